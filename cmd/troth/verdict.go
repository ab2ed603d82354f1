package main

import (
	"context"
	"net/http"
	"strings"

	"github.com/spf13/cobra"

	"troth/hostd/api"
	"troth/proof"
)

func (a *app) verdictCommand() *cobra.Command {
	return group("verdict", "What a verifier said of a host", a.verdictShow())
}

type verdictAnswer struct {
	Signature string             `json:"signature"` // "good" or "not checked"
	Digest    proof.Digest       `json:"digest"`
	Issuer    string             `json:"issuer"`
	Host      string             `json:"host"` // AK Name
	Status    string             `json:"status"`
	Class     string             `json:"tpm_class"`
	Failed    []string           `json:"failed,omitempty"`
	Profiles  []proof.ProfileRef `json:"profiles,omitempty"`
	Selection string             `json:"selection"`
	PCRDigest proof.Digest       `json:"pcr_digest"`
	Reset     uint32             `json:"reset_count"`
	Restart   uint32             `json:"restart_count"`
	IssuedAt  int64              `json:"issued_at"`
	Expires   int64              `json:"expires"`
	NextCheck int64              `json:"next_check"`
}

func (a *app) verdictShow() *cobra.Command {
	var trust string
	c := &cobra.Command{
		Use:   "show [FILE]",
		Short: "Show the newest verdict about a host, or the one in a file",
		Long: `Show the verdict that a host's daemon holds, or one in a file (the JWT that proof export writes, or a
proof). With --trust (or trust in the settings) its signature is checked and a verdict of somebody
else is refused; without, the claims are shown as they are and the answer says so. Exit status 0
says that a verdict was shown, not that it is affirming.`,
		Example: "  troth verdict show --trust trust.json\n  troth verdict show verdict.jwt -o json",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			jws, err := a.findVerdict(c.Context(), args)
			if err != nil {
				return err
			}
			v, err := a.describeVerdict(jws, trust)
			if err != nil {
				return err
			}
			return a.answer(v, func(p *printer) { p.verdict(v) })
		},
	}
	c.Flags().StringVar(&trust, "trust", "", "trust file to check the signature with")
	return c
}

func (a *app) findVerdict(ctx context.Context, args []string) (string, error) {
	if len(args) == 0 {
		h, p, err := a.hostd()
		if err != nil {
			return "", err
		}
		v, err := asking[api.VerdictAnswer](ctx, p, func(ctx context.Context) (*http.Response, error) { return h.GetVerdict(ctx) })
		if err != nil {
			return "", err
		}
		return v.Verdict, nil
	}
	b, err := a.readFile(args[0])
	if err != nil {
		return "", usagef("verdict: %w", err)
	}
	if p, err := proof.ParseProof(b); err == nil {
		return p.Verdict, nil
	}
	return strings.TrimSuffix(string(b), "\n"), nil
}

func (a *app) describeVerdict(jws, trust string) (*verdictAnswer, error) {
	if trust == "" {
		s, err := a.settings()
		if err != nil {
			return nil, err
		}
		trust = s.Trust
	}
	if trust == "" {
		v, err := claimedVerdict(jws)
		if err != nil {
			return nil, err
		}
		return verdictClaims("not checked", jws, v), nil
	}
	t, err := a.readTrust(trust)
	if err != nil {
		return nil, err
	}
	set, err := t.KeySet()
	if err != nil {
		return nil, undecidedf("%w", err)
	}
	keys, err := set.Keys()
	if err != nil {
		return nil, undecidedf("%w", err)
	}
	v, err := proof.ParseVerdict(jws, keys)
	if err != nil {
		return nil, nof("%w", err)
	}
	return verdictClaims("good", jws, v), nil
}

func verdictClaims(signature, jws string, v *proof.Verdict) *verdictAnswer {
	return &verdictAnswer{
		signature, proof.VerdictDigest(jws), v.Issuer, v.Host.String(), v.Status, string(v.Class), v.Failed, v.Profiles,
		v.Selection.String(), v.PCRDigest, v.Counters.Reset, v.Counters.Restart, v.IssuedAt, v.Expires, v.NextCheck,
	}
}

func (p *printer) verdict(v *verdictAnswer) {
	if v.Signature == "good" {
		p.field("signature", "good: of a verifier that you trust")
	} else {
		p.field("signature", "not checked (no --trust): nothing below is certain")
	}
	p.field("status", v.Status)
	for _, f := range v.Failed {
		p.field("failed", f)
	}
	p.field("host", v.Host)
	p.field("tpm", v.Class)
	for _, m := range v.Profiles {
		p.field("meets", m.Name+"@"+m.Digest.String())
	}
	p.field("pcrs", v.Selection+" = "+v.PCRDigest.String())
	p.field("resets", v.Reset)
	p.field("restarts", v.Restart)
	p.field("issuer", v.Issuer)
	p.field("issued", when(v.IssuedAt))
	p.field("expires", when(v.Expires))
	p.field("next check", when(v.NextCheck))
	p.field("digest", v.Digest)
}
