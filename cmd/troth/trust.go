package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"

	"github.com/spf13/cobra"

	"troth/proof"
	"troth/verifier/api"
)

func (a *app) trustCommand() *cobra.Command {
	return group("trust", "What you pin: a verifier's root and the keys that it signed", a.trustShow(), a.trustFetch())
}

// readTrust reads the file of --trust, or the one of the settings.
func (a *app) readTrust(path string) (*proof.Trust, error) {
	if path == "" {
		s, err := a.settings()
		if err != nil {
			return nil, err
		}
		if path = s.Trust; path == "" {
			return nil, usagef("no trust file: give --trust FILE or set trust in the settings file")
		}
	}
	b, err := a.readFile(path)
	if err != nil {
		return nil, undecidedf("trust: %w", err)
	}
	t, err := proof.ParseTrust(b)
	if err != nil {
		return nil, undecidedf("%s: %w", path, err)
	}
	return t, nil
}

// tokenKey is the key that new tokens are encrypted to. A key set that is no
// longer valid may name a key that the verifier has given up.
func (a *app) tokenKey(t *proof.Trust) (proof.TokenKey, error) {
	k, err := t.KeySet()
	if err != nil {
		return proof.TokenKey{}, undecidedf("%w", err)
	}
	if now := a.now(); !k.ValidAt(now.Unix()) {
		return proof.TokenKey{}, nof("the key set of %s is valid from %s to %s, not now: run troth trust fetch", t.Verifier, when(k.NotBefore), when(k.NotAfter))
	}
	return k.TokenKey(), nil
}

type trustAnswer struct {
	Verifier         string   `json:"verifier"`
	Root             string   `json:"root"` // fingerprint: RFC 7638 thumbprint
	AllowSoftwareTPM bool     `json:"allow_software_tpm"`
	IssuedAt         int64    `json:"issued_at"`
	NotBefore        int64    `json:"not_before"`
	NotAfter         int64    `json:"not_after"`
	Valid            bool     `json:"valid_now"`
	VerdictKeys      []string `json:"verdict_keys"`
	TokenKeys        []string `json:"token_keys"`
	File             string   `json:"file,omitempty"`
}

func (a *app) describeTrust(t *proof.Trust, file string) (trustAnswer, error) {
	k, err := t.KeySet()
	if err != nil {
		return trustAnswer{}, undecidedf("%w", err)
	}
	v := trustAnswer{
		Verifier: t.Verifier, Root: t.Root.KeyID, AllowSoftwareTPM: t.AllowSoftwareTPM, IssuedAt: k.IssuedAt,
		NotBefore: k.NotBefore, NotAfter: k.NotAfter, Valid: k.ValidAt(a.now().Unix()), File: file,
	}
	for _, j := range k.VerdictKeys {
		v.VerdictKeys = append(v.VerdictKeys, j.KeyID)
	}
	for _, j := range k.TokenKeys {
		v.TokenKeys = append(v.TokenKeys, j.KeyID)
	}
	return v, nil
}

func (p *printer) trust(v trustAnswer) {
	p.field("verifier", v.Verifier)
	p.field("root", v.Root)
	p.field("software tpm", map[bool]string{true: "accepted: a proof may come from a machine without a real TPM", false: "refused"}[v.AllowSoftwareTPM])
	p.field("keys of", when(v.IssuedAt))
	p.field("valid", when(v.NotBefore)+" to "+when(v.NotAfter))
	if !v.Valid {
		p.line("Not valid now: proofs of that time can still be verified, new tokens cannot be made.")
	}
	for _, k := range v.VerdictKeys {
		p.field("verdict key", k)
	}
	for _, k := range v.TokenKeys {
		p.field("token key", k)
	}
	p.field("file", v.File)
}

func (a *app) trustShow() *cobra.Command {
	return &cobra.Command{
		Use:     "show [FILE]",
		Short:   "Show whom a trust file trusts, with fingerprints and validity",
		Example: "  troth trust show trust.json",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			path := ""
			if len(args) > 0 {
				path = args[0]
			}
			t, err := a.readTrust(path)
			if err != nil {
				return err
			}
			v, err := a.describeTrust(t, path)
			if err != nil {
				return err
			}
			return a.answer(v, func(p *printer) { p.trust(v) })
		},
	}
}

type fetchOptions struct {
	out, root, fingerprint string
	software, yes, force   bool
}

func (a *app) trustFetch() *cobra.Command {
	var o fetchOptions
	c := &cobra.Command{
		Use:   "fetch --out FILE",
		Short: "Get a verifier's signed keys and pin its root",
		Long: `Get the key set from the verifier, check that the root signed it, and write trust.json.

The root is what everything rests on, so compare its fingerprint over another way than the one that
you fetch it by: --root takes it from a file that you were given (a trust.json or a JWK),
--fingerprint accepts only that one. With neither, the root that the verifier itself names is shown
and you are asked.

To renew the keys under the root that you pinned: troth trust fetch --root trust.json --out trust.json --force.`,
		Example: `  troth trust fetch --verifier https://verifier:8443 --ca ca.pem --fingerprint 4Lq… --out trust.json
  troth trust fetch --root trust.json --out trust.json --force`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return a.fetchTrust(c.Context(), o) },
	}
	f := c.Flags()
	f.StringVar(&o.out, "out", "", "file to write")
	f.StringVar(&o.root, "root", "", "file with the root: a trust.json, or its public key as JWK")
	f.StringVar(&o.fingerprint, "fingerprint", "", "accept only this root (RFC 7638 thumbprint)")
	f.BoolVar(&o.software, "allow-software-tpm", false, "accept proofs of hosts with a software TPM (laboratories)")
	f.BoolVar(&o.yes, "yes", false, "pin the root that the verifier names without asking")
	f.BoolVar(&o.force, "force", false, "overwrite the file")
	must(c.MarkFlagRequired("out"))
	return c
}

func (a *app) fetchTrust(ctx context.Context, o fetchOptions) error {
	if err := absent(o.force, o.out); err != nil {
		return err
	}
	t := proof.Trust{AllowSoftwareTPM: o.software}
	oldest, err := a.pinnedRoot(&t, o.root)
	if err != nil {
		return err
	}
	v, p, err := a.verifier()
	if err != nil {
		return err
	}
	got, err := asking[api.Keys](ctx, p, func(ctx context.Context) (*http.Response, error) { return v.GetKeys(ctx) })
	if err != nil {
		return err
	}
	t.Keys = got.Keys
	asked := o.root == ""
	if asked {
		if got.Root == nil {
			return usagef("the verifier does not name its root: give --root with the root that its operator gave you")
		}
		t.Root = *got.Root
	}
	if o.fingerprint != "" {
		if t.Root.KeyID != o.fingerprint {
			return proof.Refuse(proof.Forbidden, "the verifier's root is not the one that you named", proof.Fact{Name: "root", Want: o.fingerprint, Got: t.Root.KeyID})
		}
		asked = false
	}
	set, err := proof.ParseKeySet(t.Keys, t.Root)
	if err != nil {
		return nof("%w", err)
	}
	if set.IssuedAt < oldest {
		return nof("the verifier's key set is older (%s) than the pinned one (%s)", when(set.IssuedAt), when(oldest))
	}
	if t.Verifier != "" && t.Verifier != set.Issuer {
		return nof("the key set is of %s, not of the pinned verifier %s", set.Issuer, t.Verifier)
	}
	t.Verifier = set.Issuer
	answer, err := a.describeTrust(&t, o.out)
	if err != nil {
		return err
	}
	if asked && !o.yes {
		ok, err := a.ask(fmt.Sprintf("Pin the root %s of %s? Compare it over another way first.", t.Root.KeyID, t.Verifier))
		if err != nil {
			return err
		}
		if !ok {
			return nof("nothing was pinned")
		}
	}
	b, err := t.Encode()
	if err != nil {
		return err
	}
	if err := writeFile(o.out, append(b, '\n'), public, o.force); err != nil {
		return err
	}
	return a.answer(answer, func(p *printer) { p.trust(answer) })
}

// pinnedRoot takes the root from a file: a trust.json, whose verifier and
// software flag are kept too, or a JWK. It gives the issue time of the key set
// that was known so far, so that an old set is not taken for a new one.
func (a *app) pinnedRoot(t *proof.Trust, path string) (oldest int64, err error) {
	if path == "" {
		return 0, nil
	}
	b, err := a.readFile(path)
	if err != nil {
		return 0, usagef("--root: %w", err)
	}
	if old, err := proof.ParseTrust(b); err == nil {
		k, err := old.KeySet()
		if err != nil {
			return 0, usagef("--root: %w", err)
		}
		t.Root, t.Verifier = old.Root, old.Verifier
		t.AllowSoftwareTPM = t.AllowSoftwareTPM || old.AllowSoftwareTPM
		return k.IssuedAt, nil
	}
	if err := json.Unmarshal(b, &t.Root); err != nil {
		return 0, usagef("--root: %s is neither a trust file nor a JWK: %w", path, err)
	}
	if _, err := t.Root.PublicKey(); err != nil {
		return 0, usagef("--root: %s: %w", path, err)
	}
	return 0, nil
}
