package proof

import (
	"fmt"
	"slices"
	"strings"
)

// Want is what a tenant asked for. What is nil or empty is not compared.
type Want struct {
	Profile     *ProfileRef
	Domain      string // UUID
	Pins        *Pins
	Policy      *Policy
	Expiry      int64       // of the first release
	ChainExpiry int64       // of every later one
	References  []Reference // the tenant's own reference values: one set has to fit
}

// Reference is one set of PCR values that the tenant accepts.
type Reference struct {
	Name   string `json:"name"`
	Values []PCR  `json:"values"`
}

// WantOf is what the tenant's own record of the token says.
func WantOf(k *Key) Want {
	w := Want{Profile: &k.Profile, Pins: k.Pins, Policy: &k.Policy, Expiry: k.Expiry, ChainExpiry: k.ChainExpiry}
	if k.Pins != nil {
		w.Domain = k.Pins.Domain
	}
	return w
}

// Unwanted says in what a genuine proof is not what the tenant asked for.
type Unwanted struct {
	Check
	Facts []Fact
}

func (e *Unwanted) Error() string {
	var facts []string
	for _, f := range e.Facts {
		facts = append(facts, fmt.Sprintf("%s: want %s, got %s", clean(f.Name), clean(f.Want), clean(f.Got)))
	}
	return fmt.Sprintf("genuine but not wanted: check V%d (%s): %s", e.Number, e.Name, strings.Join(facts, "; "))
}

type wish struct {
	Check
	run func(*Public, Want) []Fact // no fact: it is as wanted
}

var wishes = []wish{
	{Check{1, "profile", "The host met the profile of this name and digest."}, wishProfile},
	{Check{2, "domain", "The domain has the UUID that was asked for."}, wishDomain},
	{Check{3, "pins", "What was launched is what the token pins."}, wishPins},
	{Check{4, "policy", "The verifier released under the token's policy."}, wishPolicy},
	{Check{5, "expiry", "The nonce was released before the token's expiry."}, wishExpiry},
	{Check{6, "references", "The PCRs equal one set of the tenant's own reference values."}, wishReferences},
}

// Wishes lists Validate's checks in their order.
func Wishes() []Check {
	var list []Check
	for _, w := range wishes {
		list = append(list, w.Check)
	}
	return list
}

// Validate asks: is this what I wanted? The proof has been found genuine before.
func Validate(g *Genuine, want Want) error { return validate(&g.Public, want) }

// ValidatePublic compares a proof of which only the public part was verified.
func ValidatePublic(p *Public, want Want) error { return validate(p, want) }

func validate(p *Public, want Want) error {
	for _, w := range wishes {
		if facts := w.run(p, want); len(facts) > 0 {
			return &Unwanted{w.Check, facts}
		}
	}
	return nil
}

func wishProfile(p *Public, w Want) []Fact {
	if w.Profile == nil || slices.Contains(p.Verdict.Profiles, *w.Profile) {
		return nil
	}
	var met []string
	for _, m := range p.Verdict.Profiles {
		met = append(met, m.Name+" "+m.Digest.String())
	}
	return []Fact{{Name: "profile", Want: w.Profile.Name + " " + w.Profile.Digest.String(), Got: strings.Join(met, ", ")}}
}

func wishDomain(p *Public, w Want) []Fact {
	if w.Domain == "" || w.Domain == p.Statement.UUID {
		return nil
	}
	return []Fact{{Name: "domain", Want: w.Domain, Got: p.Statement.UUID}}
}

func wishPins(p *Public, w Want) []Fact {
	if w.Pins == nil {
		return nil
	}
	if r := w.Pins.Judge(p.Statement); r != nil {
		return r.Facts
	}
	return nil
}

func wishPolicy(p *Public, w Want) []Fact {
	if w.Policy == nil || *w.Policy == p.Receipt.Policy {
		return nil
	}
	return []Fact{{Name: "policy", Want: fmt.Sprintf("%+v", *w.Policy), Got: fmt.Sprintf("%+v", p.Receipt.Policy)}}
}

func wishExpiry(p *Public, w Want) []Fact {
	limit := w.ChainExpiry
	if p.Receipt.Link == 1 {
		limit = w.Expiry
	}
	if limit == 0 || p.Receipt.IssuedAt <= limit {
		return nil
	}
	return []Fact{{Name: "released at", Want: "by " + clock(limit), Got: clock(p.Receipt.IssuedAt)}}
}

func wishReferences(p *Public, w Want) []Fact {
	var facts []Fact
	for _, r := range w.References {
		differs := false
		for _, v := range r.Values {
			if got, ok := p.PCRs[v.Index]; !ok || Digest(got) != v.Value {
				differs = true
				facts = append(facts, Fact{Name: fmt.Sprintf("%s PCR %d", r.Name, v.Index), Want: v.Value.String(), Got: pcrText(got, ok)})
			}
		}
		if !differs && len(r.Values) > 0 {
			return nil
		}
		if len(r.Values) == 0 {
			facts = append(facts, Fact{Name: r.Name, Want: "values", Got: "an empty set"})
		}
	}
	return facts
}

func pcrText(d Digest, listed bool) string {
	if !listed {
		return "not quoted"
	}
	return d.String()
}
