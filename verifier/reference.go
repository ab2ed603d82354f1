package verifier

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"

	"troth/proof"
	"troth/tpm/pcr"
	"troth/verifier/store"
)

// Launchers: what PCR 17-19 mean depends on who launched. tboot legacy puts the remaining modules (initrd) into 19, tboot
// 'da' leaves 19 unused, Secure Launch leaves it zero.
const (
	TbootLegacy = "tboot-legacy"
	TbootDA     = "tboot-da"
	SLaunch     = "slaunch"
)

// maxSets bounds references of a profile, and how many profiles and references there are.
const maxSets = 1024

// ReferenceEvent is one event of the log that a reference was taken from: it explains a difference to people. The values decide.
type ReferenceEvent struct {
	Index  int          `json:"index"`
	Type   string       `json:"type"`
	Digest proof.Digest `json:"digest"`
}

// Reference says what one good host holds.
type Reference struct {
	Name     string           `json:"name"`
	Launcher string           `json:"launcher"`
	Values   []proof.PCR      `json:"values"` // ascending; every PCR of a profile that uses it
	Events   []ReferenceEvent `json:"events,omitempty"`
	Comment  string           `json:"comment,omitempty"`
	Source   string           `json:"source,omitempty"`

	values pcr.Values
}

// Profile is what a token can ask for: at least one of its references matches in every selected PCR.
type Profile struct {
	Name       string        `json:"name"`
	Launcher   string        `json:"launcher"`
	Selection  pcr.Selection `json:"selection"`
	References []string      `json:"references"`

	digest proof.Digest // over the profile and the content of its references
	sets   []*Reference
}

// Digest names what the profile means now: pin it and 'good' cannot change under you.
func (p *Profile) Digest() proof.Digest { return p.digest }

// Ref is the profile's name and digest.
func (p *Profile) Ref() proof.ProfileRef { return proof.ProfileRef{Name: p.Name, Digest: p.digest} }

func checkLauncher(l string) *proof.Refusal {
	switch l {
	case TbootLegacy, TbootDA, SLaunch:
		return nil
	}
	return proof.Refuse(proof.RequestInvalid, "there is no such launcher",
		proof.Fact{Name: "launcher", Want: "tboot-legacy, tboot-da or slaunch", Got: strconv.Quote(cut(l, 40))})
}

func (r *Reference) check() *proof.Refusal {
	if f := checkName("name", r.Name); f != nil {
		return f
	}
	if f := checkLauncher(r.Launcher); f != nil {
		return f
	}
	values, err := proof.PCRValues(r.Values)
	if err != nil || len(values) == 0 {
		return proof.Refuse(proof.RequestInvalid, "values must be PCRs in ascending order", proof.Fact{Name: "values", Value: fmt.Sprint(err)})
	}
	if len(r.Events) > 4096 || len(r.Comment) > 256 || len(r.Source) > 256 {
		return proof.Refuse(proof.RequestInvalid, "events, comment or source is too long", proof.Fact{Name: "events", Want: "at most 4096", Got: itoa(len(r.Events))})
	}
	// Refused here for the operator's sake; appraisal refuses such a state whatever a reference says.
	if err := values.DynamicLaunch(); err != nil {
		return proof.Refuse(proof.NoDynamicLaunch, "these values come from no dynamic launch", proof.Fact{Name: "values", Value: err.Error()})
	}
	r.values = values
	return nil
}

// check bounds a profile; resolve looks at its references.
func (p *Profile) check() error {
	if f := checkName("name", p.Name); f != nil {
		return f
	}
	if f := checkLauncher(p.Launcher); f != nil {
		return f
	}
	if p.Selection.Bank != pcr.SHA256 || !p.Selection.Contains(pcr.DynamicFirst) || !p.Selection.Contains(pcr.DynamicFirst+1) {
		return proof.Refuse(proof.RequestInvalid, "a profile selects SHA-256 PCRs, 17 and 18 among them",
			proof.Fact{Name: "selection", Want: "sha256:17,18,…", Got: p.Selection.String()})
	}
	if len(p.References) == 0 || len(p.References) > maxSets {
		return proof.Refuse(proof.RequestInvalid, "a profile names at least one reference", proof.Fact{Name: "references", Want: "1 to 1024", Got: itoa(len(p.References))})
	}
	return nil
}

// profileContent is what a profile's digest covers. Comments and sources are not in it.
type profileContent struct {
	Name       string             `json:"name"`
	Launcher   string             `json:"launcher"`
	Selection  pcr.Selection      `json:"selection"`
	References []referenceContent `json:"references"`
}

type referenceContent struct {
	Name     string      `json:"name"`
	Launcher string      `json:"launcher"`
	Values   []proof.PCR `json:"values"`
}

// resolve binds a profile to the references it names and computes its digest.
func (p *Profile) resolve(refs map[string]*Reference) *proof.Refusal {
	content := profileContent{p.Name, p.Launcher, p.Selection, nil}
	p.sets = nil
	for _, n := range slices.Compact(slices.Sorted(slices.Values(p.References))) {
		r := refs[n]
		switch {
		case r == nil:
			return proof.Refuse(proof.RequestInvalid, "the profile names a reference that is not there", proof.Fact{Name: "references", Got: strconv.Quote(cut(n, 80))})
		case r.Launcher != p.Launcher:
			return proof.Refuse(proof.RequestInvalid, "profile and reference name different launchers", proof.Fact{Name: "references " + n, Want: p.Launcher, Got: r.Launcher})
		}
		for _, i := range p.Selection.Indexes() {
			if _, ok := r.values[i]; !ok {
				return proof.Refuse(proof.RequestInvalid, "the reference lacks a PCR that the profile selects", proof.Fact{Name: "references " + n, Want: "PCR " + itoa(i), Got: "no value"})
			}
		}
		p.sets = append(p.sets, r)
		content.References = append(content.References, referenceContent{r.Name, r.Launcher, r.Values})
	}
	b, err := json.Marshal(content)
	if err != nil {
		return proof.Refuse(proof.Internal, "cannot encode profile: "+err.Error())
	}
	p.digest = proof.Hash(proof.LabelProfile, b)
	return nil
}

// Profiles returns all profiles by name.
func (v *Verifier) Profiles() []*Profile {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return sorted(v.profiles, func(p *Profile) string { return p.Name })
}

// References returns all references by name.
func (v *Verifier) References() []*Reference {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return sorted(v.refs, func(r *Reference) string { return r.Name })
}

func sorted[T any](m map[string]*T, key func(*T) string) []*T {
	out := make([]*T, 0, len(m))
	for _, x := range m {
		out = append(out, x)
	}
	slices.SortFunc(out, func(a, b *T) int { return cmp.Compare(key(a), key(b)) })
	return out
}

// Profile returns one profile.
func (v *Verifier) Profile(name string) (*Profile, error) {
	v.mu.RLock()
	defer v.mu.RUnlock()
	if p := v.profiles[name]; p != nil {
		return p, nil
	}
	return nil, unknownThing("profile", name)
}

// Reference returns one reference.
func (v *Verifier) Reference(name string) (*Reference, error) {
	v.mu.RLock()
	defer v.mu.RUnlock()
	if r := v.refs[name]; r != nil {
		return r, nil
	}
	return nil, unknownThing("reference", name)
}

// profilesOf are the profiles that judge a host, by name.
func (v *Verifier) profilesOf(h *Host) []*Profile {
	v.mu.RLock()
	defer v.mu.RUnlock()
	all := sorted(v.profiles, func(p *Profile) string { return p.Name })
	if len(h.Profiles) == 0 {
		return all
	}
	return slices.DeleteFunc(all, func(p *Profile) bool { return !slices.Contains(h.Profiles, p.Name) })
}

// change is one edit of references and profiles; it takes effect whole. nil deletes.
type change struct {
	refs     map[string]*Reference
	profiles map[string]*Profile
}

// edit judges a change against everything that stays, stores it, and only then lets appraisal see it. If we crash after the
// store, the next start reads the new values; the caller repeats and changes nothing more.
func (v *Verifier) edit(ctx context.Context, c change, what, by string) error {
	v.admin.Lock() // one edit at a time: a profile's digest covers its references
	defer v.admin.Unlock()
	v.mu.RLock()
	refs, profiles := merge(v.refs, c.refs), merge(v.profiles, c.profiles)
	v.mu.RUnlock()
	if len(refs) > maxSets || len(profiles) > proof.MaxProfiles {
		return proof.Refuse(proof.RequestInvalid, "there are too many references or profiles",
			proof.Fact{Name: "references", Value: itoa(len(refs))}, proof.Fact{Name: "profiles", Value: itoa(len(profiles))})
	}
	resolved := make(map[string]*Profile, len(profiles))
	for n, old := range profiles {
		p := *old // profiles in use are never changed in place
		if f := p.resolve(refs); f != nil {
			f.Facts = append(f.Facts, proof.Fact{Name: "profile", Value: n})
			return f
		}
		resolved[n] = &p
	}
	var writes []store.Write
	for n, r := range c.refs {
		writes = append(writes, write(kindReference, n, r))
	}
	for n, p := range c.profiles {
		writes = append(writes, write(kindProfile, n, p))
	}
	if err := v.store.Apply(ctx, writes...); err != nil {
		return internal("cannot keep references", err)
	}
	v.mu.Lock()
	v.refs, v.profiles = refs, resolved
	v.mu.Unlock()
	v.log.Info(what, "references", fmt.Sprintf("%q", sortedKeys(c.refs)), "profiles", fmt.Sprintf("%q", sortedKeys(c.profiles)), "by", strconv.Quote(by))
	return nil
}

func write[T any](kind, name string, x *T) store.Write {
	w := store.Write{Kind: kind, Name: name, Rev: store.Any}
	if x != nil {
		w.Body = encode(x)
	}
	return w
}

func merge[T any](old, with map[string]*T) map[string]*T {
	out := make(map[string]*T, len(old)+len(with))
	for k, x := range old {
		out[k] = x
	}
	for k, x := range with {
		if x == nil {
			delete(out, k)
		} else {
			out[k] = x
		}
	}
	return out
}

func sortedKeys[T any](m map[string]*T) []string {
	out := make([]string, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}

// PutReference adds or replaces a set; profiles that use it get another digest.
func (v *Verifier) PutReference(ctx context.Context, r *Reference, by string) error {
	if f := r.check(); f != nil {
		return f
	}
	return v.edit(ctx, change{refs: map[string]*Reference{r.Name: r}}, "reference put", by)
}

// DeleteReference removes a set that no profile uses.
func (v *Verifier) DeleteReference(ctx context.Context, name, by string) error {
	if _, err := v.Reference(name); err != nil {
		return err
	}
	return v.edit(ctx, change{refs: map[string]*Reference{name: nil}}, "reference deleted", by)
}

// PutProfile adds or replaces a profile and returns it with its digest.
func (v *Verifier) PutProfile(ctx context.Context, p *Profile, by string) (*Profile, error) {
	if err := p.check(); err != nil {
		return nil, err
	}
	if err := v.edit(ctx, change{profiles: map[string]*Profile{p.Name: p}}, "profile put", by); err != nil {
		return nil, err
	}
	return v.Profile(p.Name)
}

// DeleteProfile removes a profile.
func (v *Verifier) DeleteProfile(ctx context.Context, name, by string) error {
	if _, err := v.Profile(name); err != nil {
		return err
	}
	return v.edit(ctx, change{profiles: map[string]*Profile{name: nil}}, "profile deleted", by)
}
