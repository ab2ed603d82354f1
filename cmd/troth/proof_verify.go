package main

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"slices"

	"github.com/spf13/cobra"

	"troth/launcher/domain"
	"troth/proof"
	"troth/verifier/api"
)

type verifyOptions struct {
	trust, key     string
	domain         string
	references     []string
	public, online bool
}

// verifyAnswer is what proof verify found. Genuine and Wanted are "yes", "no" or
// "not decided"; nothing that was not asked is ever yes.
type verifyAnswer struct {
	Genuine    string        `json:"genuine"`
	Wanted     string        `json:"wanted"`
	Exit       exit          `json:"exit"`
	Held       []proof.Check `json:"held"`
	Failed     *failedCheck  `json:"failed,omitempty"`
	NotChecked []proof.Check `json:"not_checked,omitempty"`
	Domain     string        `json:"domain,omitempty"`
	Name       string        `json:"name,omitempty"`
	Link       *proof.Digest `json:"link,omitempty"`
	Window     *proof.Window `json:"window,omitempty"`
	Chain      *api.Chain    `json:"chain,omitempty"`
	DoesNotSay []string      `json:"does_not_say,omitempty"`
}

type failedCheck struct {
	proof.Check
	Error string       `json:"error"`
	Facts []proof.Fact `json:"facts,omitempty"`
}

const (
	yes        = "yes"
	no         = "no"
	notDecided = "not decided"
)

func (a *app) proofVerify() *cobra.Command {
	var o verifyOptions
	c := &cobra.Command{
		Use:   "verify --trust T --key K FILE",
		Short: "Check a launch proof, offline: is it genuine, and is it what you asked for?",
		Long: `Check a launch proof alone and offline: every numbered check of the proof format, then whether what was
launched is what your token asked for.

Exit 0: genuine and wanted. 1: not genuine, not wanted, or unreadable. 3: without the key, when
everything that can be checked without it holds. --public asks only that narrower question
and answers it with 0 or 1. --online asks the verifier, too, whether the chain was closed or
broken or the host revoked since; then 0 says that none of this is so.

A proof is about its launch window. It says nothing about now.`,
		Example: `  troth proof verify --trust trust.json --key nonce.key proof.json
  troth proof verify --trust trust.json --public proof.json
  troth proof verify --trust trust.json --key nonce.key --reference my-values.json --online proof.json`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error { return a.verifyProof(c.Context(), args[0], o) },
	}
	f := c.Flags()
	f.StringVar(&o.trust, "trust", "", "trust file: the verifier's root that you pinned")
	f.StringVar(&o.key, "key", "", "your record of the token (nonce.key)")
	f.BoolVar(&o.public, "public", false, "ask only what everybody can ask, without the key")
	f.BoolVar(&o.online, "online", false, "ask the verifier whether it stands still")
	f.StringVar(&o.domain, "domain", "", "UUID that the domain has to have")
	f.StringArrayVar(&o.references, "reference", nil, "file with your own reference values, one set of which must fit (JSON: name, values)")
	return c
}

func (a *app) verifyProof(ctx context.Context, file string, o verifyOptions) error {
	if o.public && o.key != "" {
		return usagef("--public asks without the key: leave out --key")
	}
	trust, err := a.readTrust(o.trust)
	if err != nil {
		return err
	}
	var key *proof.Key
	if o.key != "" {
		if key, err = a.readKey(o.key); err != nil {
			return err
		}
	}
	want, err := a.wish(o, key)
	if err != nil {
		return err
	}
	b, err := a.readProof(file)
	if err != nil {
		return err
	}
	v := &verifyAnswer{Genuine: notDecided, Wanted: notDecided, Held: []proof.Check{}}
	err = v.judge(b, trust, key, want, o.public)
	if err == nil && o.online {
		err = a.stands(ctx, v, b)
	}
	return a.verified(v, o, err)
}

// judge fills in the answer; its error is the reason of every other end than yes.
func (v *verifyAnswer) judge(b []byte, t *proof.Trust, k *proof.Key, want proof.Want, public bool) error {
	var err error
	var p *proof.Public
	if k != nil {
		var g *proof.Genuine
		if g, err = proof.Verify(b, t, k); err == nil {
			p, v.Genuine = &g.Public, yes
		}
	} else {
		p, err = proof.VerifyPublic(b, t)
	}
	if invalid, ok := errors.AsType[*proof.Invalid](err); ok {
		v.Genuine = no
		v.fail(invalid)
		return err
	}
	if err != nil {
		return undecidedf("%w", err)
	}
	v.Held, v.Domain, v.Name, v.Link, v.Window = p.Held, p.Statement.UUID, p.Statement.Name, &p.Link, &p.Window
	v.DoesNotSay = p.NotSaid()
	if k == nil {
		v.DoesNotSay = append([]string{proof.PublicOnly}, v.DoesNotSay...)
		v.NotChecked = slices.DeleteFunc(proof.Checks(), func(c proof.Check) bool { return slices.Contains(p.Held, c) })
	}
	if err := proof.ValidatePublic(p, want); err != nil {
		v.Wanted = no
		if u, ok := errors.AsType[*proof.Unwanted](err); ok {
			v.Failed = &failedCheck{u.Check, err.Error(), u.Facts}
		}
		return &noError{err}
	}
	if k != nil {
		v.Wanted = yes
	} else if !public {
		return undecidedf("%w", proof.ErrNoKey)
	}
	return nil
}

// fail tells which check failed, and that those before it held.
func (v *verifyAnswer) fail(e *proof.Invalid) {
	v.Failed = &failedCheck{Check: e.Check, Error: e.Err.Error()}
	for _, c := range proof.Checks() {
		if c.Number < e.Number {
			v.Held = append(v.Held, c)
		}
	}
}

// stands asks the verifier what offline verification cannot see.
func (a *app) stands(ctx context.Context, v *verifyAnswer, b []byte) error {
	p, err := proof.ParseProof(b)
	if err != nil {
		return nof("%w", err)
	}
	s, err := proof.ParseStatement(p.Statement)
	if err != nil {
		return nof("%w", err)
	}
	c, peer, err := a.verifier()
	if err != nil {
		return err
	}
	chain, err := asking[api.Chain](ctx, peer, func(ctx context.Context) (*http.Response, error) { return c.GetChain(ctx, s.Token.String()) })
	if err != nil {
		return err
	}
	v.Chain = chain
	switch {
	case chain.Revoked:
		return nof("the verifier has revoked the host of this launch since")
	case chain.Link == nil || *chain.Link != *v.Link:
		return nof("the verifier says that this launch is not the newest one of its token: its chain is at link %d (%s)", chain.Number, chain.State)
	case chain.State != "open":
		return nof("the verifier says that the chain of this launch is %s, not open", chain.State)
	default:
		return nil
	}
}

// verified prints the answer and turns the reason into the exit status.
func (a *app) verified(v *verifyAnswer, o verifyOptions, err error) error {
	v.Exit = exitOf(err)
	if a.json() {
		if werr := writeJSON(a.stdout, v); werr != nil {
			return werr
		}
		if err != nil {
			return answered{err}
		}
		return nil
	}
	if werr := a.answer(v, func(p *printer) { p.verify(v, o) }); werr != nil {
		return werr
	}
	if v.Failed != nil {
		return answered{err} // the answer itself says why
	}
	return err
}

func (p *printer) verify(v *verifyAnswer, o verifyOptions) {
	switch {
	case v.Genuine == no:
		p.line("NOT GENUINE: check %d (%s) failed: %s", v.Failed.Number, v.Failed.Name, v.Failed.Error)
		p.line("  what that check asks: %s", v.Failed.Says)
		return
	case v.Wanted == no:
		p.line("NOT WANTED: what was launched is not what was asked for (check V%d, %s).", v.Failed.Number, v.Failed.Name)
		for _, f := range v.Failed.Facts {
			p.line("  %s: want %s", f.Name, orDash(f.Want))
			p.line("  %s:  got %s", f.Name, orDash(f.Got))
		}
	case v.Exit == exitYes && o.public:
		p.line("HOLDS IN PUBLIC: verdict, receipt, statement and quote are signed and belong together.")
	case v.Exit == exitYes:
		p.line("GENUINE AND WANTED: all %d checks held, and what was launched is what the token asked for.", len(v.Held))
	case o.public:
		p.line("HELD IN PUBLIC when it was made; what the verifier says of it now is below.")
	case v.Genuine == yes:
		p.line("GENUINE AND WANTED when it was made; what the verifier says of it now is below.")
	default:
		p.line("NOT DECIDED: without the key (--key) nobody can say that it is genuine. These %d checks held:", len(v.Held))
		for _, c := range v.Held {
			p.line("  %2d %-18s %s", c.Number, c.Name, c.Says)
		}
		for _, c := range v.NotChecked {
			p.line("  %2d %-18s not checked", c.Number, c.Name)
		}
	}
	p.field("domain", v.Name+" ("+v.Domain+")")
	p.field("link", v.Link)
	p.field("launched", "between "+when(v.Window.From)+" and "+when(v.Window.To))
	if v.Chain != nil {
		p.field("chain now", v.Chain.State)
	}
	p.line("It says nothing about now. It also does not say:")
	for _, s := range v.DoesNotSay {
		p.line("  %s", s)
	}
}

// wish collects what the tenant asked for: the record's, and the flags'.
func (a *app) wish(o verifyOptions, k *proof.Key) (want proof.Want, err error) {
	if k != nil {
		want = proof.WantOf(k)
	}
	if o.domain != "" {
		u, err := domain.ParseUUID(o.domain)
		if err != nil {
			return want, usagef("--domain: %w", err)
		}
		want.Domain = u.String()
	}
	want.References, err = a.ownReferences(o.references)
	return want, err
}

// ownReferences reads the tenant's own reference values.
func (a *app) ownReferences(files []string) ([]proof.Reference, error) {
	var all []proof.Reference
	for _, f := range files {
		b, err := a.readFile(f)
		if err != nil {
			return nil, usagef("--reference: %w", err)
		}
		var r proof.Reference
		if err := json.Unmarshal(b, &r); err != nil {
			return nil, usagef("--reference: cannot read %s: %w", f, err)
		}
		if len(r.Values) == 0 {
			return nil, usagef("--reference: %s holds no values", f)
		}
		all = append(all, r)
	}
	return all, nil
}
