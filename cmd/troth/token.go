package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"troth/proof"
)

func (a *app) tokenCommand() *cobra.Command {
	return group("token", "Tokens: a nonce, and what may run with it", a.tokenNew(), a.tokenDiskKey(), a.tokenShow())
}

// readToken reads a token's text from a file; the one newline that an editor or
// echo leaves at its end is no part of it.
func (a *app) readToken(path string) (string, error) {
	b, err := a.readFile(path)
	if err != nil {
		return "", usagef("token: %w", err)
	}
	return strings.TrimSuffix(string(b), "\n"), nil
}

type tokenShowAnswer struct {
	proof.Header
	Digest proof.Digest `json:"digest"`
}

func (a *app) tokenShow() *cobra.Command {
	return &cobra.Command{
		Use:   "show FILE",
		Short: "Print the readable header of a token",
		Long: `Print what everyone can read of a token: id, profile, expiries, the verifier's key, and its digest.
Nonce, secret and pins are encrypted to the verifier; nobody else can read them, you neither
(your own record of them is nonce.key).`,
		Example: "  troth token show token\n  troth token show -o json - < token",
		Args:    cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			text, err := a.readToken(args[0])
			if err != nil {
				return err
			}
			s, err := proof.ParseToken(text)
			if err != nil {
				return proof.Refuse(proof.TokenInvalid, err.Error(), proof.Fact{Name: "file", Value: args[0]})
			}
			v := tokenShowAnswer{s.Header, s.Digest()}
			return a.answer(v, func(p *printer) {
				p.tokenHeader(s.Header, s.Digest())
				if now := a.now().Unix(); now > s.Header.Expiry {
					p.line("Its first release is over: the verifier starts no new chain with it.")
				}
			})
		},
	}
}

func (p *printer) tokenHeader(h proof.Header, digest proof.Digest) {
	p.field("id", h.ID)
	p.field("profile", h.Profile.Name+"@"+h.Profile.Digest.String())
	p.field("first release", "until "+when(h.Expiry))
	p.field("chain", "until "+when(h.ChainExpiry))
	p.field("verifier key", h.KeyID)
	p.field("digest", digest)
}

// pins prints what the token pins and what it leaves open.
func (p *printer) pins(t *proof.Pins) {
	if t == nil {
		return
	}
	digest := func(name string, d *proof.Digest) {
		if d != nil {
			p.field(name, d)
		}
	}
	p.field("domain", t.Domain)
	digest("configuration", t.Configuration)
	digest("firmware", t.Firmware)
	digest("kernel", t.Kernel)
	digest("initrd", t.Initrd)
	digest("command line", t.CommandLine)
	for _, d := range t.Disks {
		p.field("disk "+d.Target, fmt.Sprintf("%s %s", d.Mode, d.Digest))
		digest("backing of "+d.Target, d.Backing)
	}
	p.field("interactive", t.Interactive)
}

// unpinned names what complete pins would need besides these.
func unpinned(t *proof.Pins) []string {
	if t == nil {
		t = &proof.Pins{}
	}
	if t.Complete() {
		return nil
	}
	var missing []string
	need := func(name string, there bool) {
		if !there {
			missing = append(missing, name)
		}
	}
	if t.Firmware != nil && t.Kernel == nil {
		need("--disk (what the firmware boots)", t.Disk())
	} else {
		need("--kernel", t.Kernel != nil)
		need("--initrd", t.Initrd != nil)
		need("--cmdline", t.CommandLine != nil)
	}
	need("--interactive no", t.Interactive == proof.InteractiveNo)
	return missing
}
