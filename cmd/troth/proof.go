package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/spf13/cobra"

	"troth/proof"
)

func (a *app) proofCommand() *cobra.Command {
	return group("proof", "Launch proofs: check, read and take apart", a.proofVerify(), a.proofShow(), a.proofExport(), a.proofLost())
}

// readProof reads the file of a proof. A proof that cannot be read is not
// genuine: that is a no, not a "could not decide".
func (a *app) readProof(path string) ([]byte, error) {
	b, err := a.readFile(path)
	if err != nil {
		return nil, nof("unreadable: %w", err)
	}
	return b, nil
}

// besideTrust is the trust file when none was named and it only helps to read:
// the one of the settings, or trust.json beside the proof. proof verify never
// asks here, since who sends a proof may send a trust.json with it.
func (a *app) besideTrust(path, file string) (*proof.Trust, error) {
	if path != "" {
		return a.readTrust(path)
	}
	s, err := a.settings()
	if err != nil {
		return nil, err
	}
	if s.Trust != "" {
		return a.readTrust(s.Trust)
	}
	if file == "-" {
		return nil, nil
	}
	beside := filepath.Join(filepath.Dir(file), "trust.json")
	if _, err := os.Stat(beside); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	a.note("trusting %s", beside)
	return a.readTrust(beside)
}

type showAnswer struct {
	Checked    string          `json:"checked"` // "nothing", "public" or "genuine"
	Says       []string        `json:"says"`
	DoesNotSay []string        `json:"does_not_say"`
	Link       proof.Digest    `json:"link"`
	Statement  proof.Statement `json:"statement"`
	Window     proof.Window    `json:"window"`
}

func (a *app) proofShow() *cobra.Command {
	var trust, key string
	c := &cobra.Command{
		Use:   "show FILE",
		Short: "Say in plain sentences what a proof says, and what it does not",
		Long: `Say in plain sentences what a proof says, and what it does not. It is checked as far as trust file
and key allow, and the first line says how far that was; the trust file is --trust, the one of the
settings, or trust.json beside FILE. Exit status 0 says that it was shown; troth proof verify decides.`,
		Example: "  troth proof show --trust trust.json --key nonce.key proof.json",
		Args:    cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			b, err := a.readProof(args[0])
			if err != nil {
				return err
			}
			t, err := a.besideTrust(trust, args[0])
			if err != nil {
				return err
			}
			v, err := a.describeProof(b, t, key)
			if err != nil {
				return err
			}
			return a.answer(v, func(p *printer) { p.proof(v) })
		},
	}
	c.Flags().StringVar(&trust, "trust", "", "trust file")
	c.Flags().StringVar(&key, "key", "", "your record of the token (nonce.key)")
	return c
}

func (a *app) describeProof(b []byte, t *proof.Trust, keyFile string) (*showAnswer, error) {
	var public *proof.Public
	checked := "public"
	switch {
	case t == nil && keyFile != "":
		return nil, usagef("--key checks nothing without a trust file: give --trust")
	case t == nil:
		var err error
		if public, err = claimed(b); err != nil {
			return nil, err
		}
		checked = "nothing"
	case keyFile == "":
		var err error
		if public, err = proof.VerifyPublic(b, t); err != nil {
			return nil, err
		}
	default:
		k, err := a.readKey(keyFile)
		if err != nil {
			return nil, err
		}
		g, err := proof.Verify(b, t, k)
		if err != nil {
			return nil, err
		}
		public, checked = &g.Public, "genuine"
	}
	v := showAnswer{checked, public.Sentences(), public.NotSaid(), public.Link, *public.Statement, public.Window}
	if checked != "genuine" {
		v.DoesNotSay = slices.Insert(v.DoesNotSay, 0, proof.PublicOnly)
	}
	return &v, nil
}

func (p *printer) proof(v *showAnswer) {
	switch v.Checked {
	case "genuine":
		p.line("Checked with trust file and key: this proof is genuine. It says:")
	case "public":
		p.line("Checked with the trust file, without the tenant's key. It says:")
	default:
		p.line("Nothing was checked (no trust file): anybody could have written this. It claims:")
	}
	for _, s := range v.Says {
		p.line("  %s", s)
	}
	p.line("What it does not say:")
	for _, s := range v.DoesNotSay {
		p.line("  %s", s)
	}
}

func (a *app) proofExport() *cobra.Command {
	var trust, dir string
	var force bool
	c := &cobra.Command{
		Use:   "export --dir D FILE",
		Short: "Write a proof's parts in the forms of tpm2-tools, openssl and JWT libraries",
		Long: `Write a proof's parts so that other programs can check them: quote.msg, quote.sig, pcrs.bin, ak.pem
and qualification.hex for tpm2_checkquote; verdict.* and receipt.* (.jwt, .tbs, .sig, .pem) for
openssl; jwks.json for any JWT library; statement.json. The public checks come first, so no file
says what is not so. The trust file is --trust, the one of the settings, or trust.json beside FILE.`,
		Example: `  troth proof export --dir parts --trust trust.json proof.json
  tpm2_checkquote -u parts/ak.pem -m parts/quote.msg -s parts/quote.sig -f parts/pcrs.bin -g sha256 -q "$(cat parts/qualification.hex)"
  openssl dgst -verify parts/verdict.pem -signature parts/verdict.sig parts/verdict.tbs`,
		Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			b, err := a.readProof(args[0])
			if err != nil {
				return err
			}
			t, err := a.besideTrust(trust, args[0])
			if err != nil {
				return err
			}
			if t == nil {
				return usagef("no trust file: give --trust FILE")
			}
			names, err := export(b, t, dir, force)
			if err != nil {
				return err
			}
			return a.answer(exportAnswer{dir, names}, func(p *printer) {
				for _, n := range names {
					p.line("%s", filepath.Join(dir, n))
				}
			})
		},
	}
	c.Flags().StringVar(&trust, "trust", "", "trust file")
	c.Flags().StringVar(&dir, "dir", "", "folder to write into; it is made when it does not exist")
	c.Flags().BoolVar(&force, "force", false, "overwrite files")
	must(c.MarkFlagRequired("dir"))
	return c
}

type exportAnswer struct {
	Dir   string   `json:"dir"`
	Files []string `json:"files"`
}

func export(b []byte, t *proof.Trust, dir string, force bool) ([]string, error) {
	files, err := proof.Export(b, t)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("cannot make %s: %w", dir, err)
	}
	var names, paths []string
	for n := range files {
		names = append(names, n)
	}
	slices.Sort(names)
	for _, n := range names {
		paths = append(paths, filepath.Join(dir, n))
	}
	if err := absent(force, paths...); err != nil {
		return nil, err
	}
	for i, n := range names {
		if err := writeFile(paths[i], files[n], public, force); err != nil {
			return nil, err
		}
	}
	return names, nil
}
