package verifier

import (
	"context"
	"slices"
	"time"

	"troth/proof"
	"troth/tpm/pcr"
)

// ImportRequest takes a host's last attested state as reference values (a golden host).
type ImportRequest struct {
	Host, Name, Launcher string
	Profile              string // "": none; made or extended otherwise
	Apply                bool
	Confirmed            []proof.PCR // with Apply: the values that a person saw and said yes to
	By                   string
}

// Import is the difference to what the reference says now, and what it would say.
type Import struct {
	Difference []Difference
	Values     []proof.PCR
	Applied    bool
	Profile    *proof.ProfileRef // after applying
}

// Import compares and, with Apply, stores, but only what was confirmed: the host attests on while a person reads. The values are those of a quote that passed every check up to the profiles, so
// they are this host's own; whether they are good is the operator's to say.
func (v *Verifier) Import(ctx context.Context, req ImportRequest) (*Import, error) {
	h, err := v.Host(req.Host)
	if err != nil {
		return nil, err
	}
	v.mu.RLock()
	s, old := v.standing[h.AKName], v.refs[req.Name]
	profile := v.profiles[req.Profile]
	v.mu.RUnlock()
	if s == nil || s.Values == nil || v.now().Sub(time.Unix(s.At, 0)) > v.cfg.Lifetime {
		return nil, proof.Refuse(proof.VerdictMissing, "there is no fresh evidence of this host to import from", proof.Fact{Name: "host", Value: h.Name})
	}
	if s.Verdict == nil { // the evidence was refused, not only off the reference values
		return nil, s.Refusal
	}
	sel := s.Verdict.V.Selection
	r := &Reference{Name: req.Name, Launcher: req.Launcher, Values: proof.PCRList(s.Values, sel), Events: selected(s.Events, sel),
		Source: "host " + h.Name + " at " + time.Unix(s.At, 0).UTC().Format(time.RFC3339)}
	if f := r.check(); f != nil {
		return nil, f
	}
	out := &Import{Values: r.Values, Difference: difference(old, r, sel)}
	if !req.Apply {
		return out, nil
	}
	if f := confirmed(req.Confirmed, r, sel); f != nil {
		return nil, f
	}
	c := change{refs: map[string]*Reference{r.Name: r}}
	if req.Profile != "" {
		p := &Profile{Name: req.Profile, Launcher: req.Launcher, Selection: sel}
		if profile != nil {
			p.Selection, p.References = profile.Selection, slices.Clone(profile.References)
		}
		if !slices.Contains(p.References, r.Name) {
			p.References = append(p.References, r.Name)
		}
		if err := p.check(); err != nil {
			return nil, err
		}
		c.profiles = map[string]*Profile{p.Name: p}
	}
	if err := v.edit(ctx, c, "reference imported from "+h.Name, req.By); err != nil {
		return nil, err
	}
	out.Applied = true
	if req.Profile != "" {
		p, err := v.Profile(req.Profile)
		if err != nil {
			return nil, err
		}
		ref := p.Ref()
		out.Profile = &ref
	}
	return out, nil
}

// confirmed refuses values that are not those that were shown.
func confirmed(shown []proof.PCR, r *Reference, sel pcr.Selection) *proof.Refusal {
	values, err := proof.PCRValues(shown)
	if err != nil || len(shown) == 0 {
		return proof.Refuse(proof.RequestInvalid, "to apply an import is to name the values that were shown",
			proof.Fact{Name: "values", Want: "PCRs in ascending order", Got: itoa(len(shown)) + " values"})
	}
	if slices.Equal(shown, r.Values) {
		return nil
	}
	f := proof.Refuse(proof.PCRMismatch, "the host has other values than those that were shown; nothing was stored")
	for _, d := range difference(&Reference{values: values}, r, sel) {
		f.Facts = append(f.Facts, proof.Fact{Name: "PCR " + itoa(d.PCR), Want: d.Want, Got: d.Got})
	}
	if len(f.Facts) == 0 { // what it has was shown, and more
		f.Facts = append(f.Facts, proof.Fact{Name: "selection", Want: itoa(len(shown)) + " values", Got: sel.String()})
	}
	return f
}

func selected(events []ReferenceEvent, sel pcr.Selection) []ReferenceEvent {
	return slices.DeleteFunc(slices.Clone(events), func(e ReferenceEvent) bool { return !sel.Contains(e.Index) })
}

// difference lists per PCR, and per event where both sides have a log, what the old set says and what the host has.
func difference(old, r *Reference, sel pcr.Selection) []Difference {
	if old == nil {
		old = &Reference{}
	}
	var out []Difference
	for _, i := range sel.Indexes() {
		want, had := old.values[i]
		got := r.values[i]
		if had && want == got {
			continue
		}
		out = append(out, Difference{PCR: i, Want: hexOr(want, had), Got: hexOr(got, true)})
		out = append(out, compareReferenceEvents(i, old.Events, r.Events)...)
	}
	return out
}
