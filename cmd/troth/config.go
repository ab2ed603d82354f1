package main

import (
	"github.com/spf13/cobra"
)

type configAnswer struct {
	File     string    `json:"file,omitempty"`
	Settings *settings `json:"settings"`
}

func (a *app) configCommand() *cobra.Command {
	check := &cobra.Command{
		Use:   "check",
		Short: "Read the settings as any command would, and print what came out",
		Long: `Read the settings file, the environment (TROTH_TROTH_…) and the flags as any command would,
check that certificates, keys and the trust file can be read, and print the result. Nothing is contacted.`,
		Example: "  troth config check\n  troth config check --config ./troth.toml -o json",
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			s, err := a.settings()
			if err != nil {
				return err
			}
			if _, err := s.transport(); err != nil {
				return err
			}
			if s.Trust != "" {
				if _, err := a.readTrust(s.Trust); err != nil {
					return err
				}
			}
			v := configAnswer{a.settingsFile(), s}
			return a.answer(v, func(p *printer) {
				p.field("file", v.File)
				p.field("verifier", s.Verifier)
				p.field("hostd", s.Hostd)
				p.field("ca", s.CA)
				p.field("cert", s.Cert)
				p.field("key", s.Key)
				p.field("trust", s.Trust)
				p.field("timeout", s.Timeout.D())
			})
		},
	}
	return group("config", "The settings of this program", check)
}
