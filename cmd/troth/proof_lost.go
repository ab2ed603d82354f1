package main

import (
	"bytes"
	"encoding/base64"

	"github.com/spf13/cobra"

	"troth/proof"
)

type lostAnswer struct {
	UUID     string       `json:"uuid"`
	Link     proof.Digest `json:"link"`
	At       int64        `json:"at"`
	Code     proof.Code   `json:"code"`
	Sentence string       `json:"sentence"`
	Facts    []proof.Fact `json:"facts,omitempty"`
	Reaction string       `json:"reaction"`
}

func (a *app) proofLost() *cobra.Command {
	var trust string
	c := &cobra.Command{
		Use:   "lost PROOF REPORT",
		Short: "Check a host's signed report that a proof does not hold any more",
		Long: `Check that the host of this proof signed the report, and that it is about this very launch, and print
it. The report is the trust_lost of troth domain show -o json, as it stands there or decoded. Exit status 0
says that the report is genuine: the host itself says that what it proved is over. That there is no report
says nothing; a host that lies makes none.`,
		Example: "  troth domain show -o json 6b1e… | jq -r .trust_lost > report\n  troth proof lost --trust trust.json proof.json report",
		Args:    cobra.ExactArgs(2),
		RunE: func(_ *cobra.Command, args []string) error {
			t, err := a.readTrust(trust)
			if err != nil {
				return err
			}
			b, err := a.readProof(args[0])
			if err != nil {
				return err
			}
			public, err := proof.VerifyPublic(b, t)
			if err != nil {
				return err
			}
			report, err := a.readReport(args[1])
			if err != nil {
				return err
			}
			lost, err := proof.ParseTrustLost(report, public.Verdict.Confirmation)
			if err != nil {
				return nof("%w", err)
			}
			if lost.Link != public.Link {
				return nof("the report is about another launch: want link %s, got %s", public.Link, lost.Link)
			}
			v := &lostAnswer{lost.UUID, lost.Link, lost.At, lost.Code, lost.Sentence, lost.Facts, lost.Reaction}
			return a.answer(v, func(p *printer) { p.lost(v) })
		},
	}
	c.Flags().StringVar(&trust, "trust", "", "trust file")
	return c
}

// readReport takes the report's own bytes or their base64url form, in which the API has them.
func (a *app) readReport(path string) ([]byte, error) {
	b, err := a.readFile(path)
	if err != nil {
		return nil, nof("unreadable: %w", err)
	}
	b = bytes.TrimSpace(b)
	if raw, err := base64.RawURLEncoding.Strict().DecodeString(string(b)); err == nil {
		return raw, nil
	}
	return b, nil
}

func (p *printer) lost(v *lostAnswer) {
	p.line("The host that made this proof says, signed: it does not hold any more.")
	p.field("domain", v.UUID)
	p.field("since", when(v.At))
	p.field("code", string(v.Code))
	p.field("why", v.Sentence)
	for _, f := range v.Facts {
		switch {
		case f.Want != "" || f.Got != "":
			p.field("  "+f.Name, "want "+f.Want+", got "+f.Got)
		default:
			p.field("  "+f.Name, f.Value)
		}
	}
	p.field("done", v.Reaction)
}
