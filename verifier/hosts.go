package verifier

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"

	"troth/proof"
	"troth/tpm"
	"troth/tpm/pcr"
	"troth/verifier/store"
)

// State of a host's enrolment.
type State string

// The states. Only an approved host gets verdicts and releases.
const (
	Pending  State = "pending"
	Approved State = "approved"
	Revoked  State = "revoked"
)

// Host is an enrolled TPM and the TLS key that speaks for it.
type Host struct {
	Name     string         `json:"name"`
	State    State          `json:"state"`
	Class    tpm.Class      `json:"class"`
	EK       proof.Digest   `json:"ek"` // proven by credential activation: whose it is, is this TPM
	AK       proof.Bytes    `json:"ak"`
	SRK      proof.Bytes    `json:"srk"`
	SPKI     proof.Digest   `json:"spki"`
	Profiles []string       `json:"profiles,omitempty"` // judged by these; empty: by all
	EKs      []proof.Digest `json:"eks,omitempty"`      // read only, of older versions: the proven EK, then others that nobody proved

	AKName tpm.Name `json:"-"`
	ak     *tpm.AK
	srk    *tpm.SRK
	rev    int64
}

// complete derives what is not stored.
func (h *Host) complete(rev int64) (err error) {
	if len(h.EKs) > 0 {
		h.EK, h.EKs = h.EKs[0], nil
	}
	if h.EK == (proof.Digest{}) {
		return errors.New("ek: there is none")
	}
	if h.ak, err = tpm.ParseAK(h.AK); err != nil {
		return fmt.Errorf("ak: %w", err)
	}
	if h.srk, err = tpm.ParseSRK(h.SRK); err != nil {
		return fmt.Errorf("srk: %w", err)
	}
	h.AKName, h.rev = h.ak.Name(), rev
	return nil
}

// identity names what is enrolled: the EK and the TLS key.
func (h *Host) identity() proof.Digest { return proof.Hash(proof.LabelIdentity, h.SPKI[:], h.EK[:]) }

func (h *Host) sameIdentity(o *Host) bool {
	return h.AKName == o.AKName && h.SPKI == o.SPKI && h.EK == o.EK && h.srk.Name() == o.srk.Name() && h.Class == o.Class
}

func (h *Host) claims() []string {
	return []string{"ak:" + h.AKName.String(), "tls key:" + h.SPKI.String(), "ek:" + h.EK.String()}
}

func (v *Verifier) hostBySPKI(spki proof.Digest) *Host {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return v.bySPKI[spki]
}

func (v *Verifier) hostByName(name string) *Host {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return v.hosts[name]
}

// Hosts returns all hosts by name.
func (v *Verifier) Hosts() []*Host {
	v.mu.RLock()
	defer v.mu.RUnlock()
	out := make([]*Host, 0, len(v.hosts))
	for _, h := range v.hosts {
		out = append(out, h)
	}
	slices.SortFunc(out, func(a, b *Host) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

// Host returns a host by name.
func (v *Verifier) Host(name string) (*Host, error) {
	if h := v.hostByName(name); h != nil {
		return h, nil
	}
	return nil, unknownThing("host", name)
}

// unknownThing is the refusal for a name that is not there; ErrUnknown tells it apart for the HTTP status.
func unknownThing(kind, name string) error {
	return &UnknownError{proof.Refuse(proof.RequestInvalid, "there is no such "+kind, proof.Fact{Name: kind, Got: strconv.Quote(cut(name, 80))})}
}

// UnknownError is a refusal because something named is not there: 404 over HTTP.
type UnknownError struct{ Refusal *proof.Refusal }

func (e *UnknownError) Error() string { return e.Refusal.Error() }
func (e *UnknownError) Unwrap() error { return e.Refusal }

// Approve makes a host trusted to attest; profiles nil leaves those it has. With an EK, the host has to have it at the moment of the approval: between a look
// and the word, another TPM may have taken a name that was free.
func (v *Verifier) Approve(ctx context.Context, name string, profiles []string, ek *proof.Digest, by string) (*Host, error) {
	for _, p := range profiles {
		if _, err := v.Profile(p); err != nil {
			return nil, err
		}
	}
	return v.changeHost(ctx, name, by, "approved", func(h *Host) error {
		if ek != nil && h.EK != *ek {
			return proof.Refuse(proof.HostNotApproved, "the host of this name has another EK", proof.Fact{Name: "ek digest", Want: ek.String(), Got: h.EK.String()})
		}
		h.State = Approved
		if profiles != nil {
			h.Profiles = profiles
		}
		return nil
	})
}

// Revoke ends trust in a host at once: no verdict, no release, also under verdicts it has. A host that was never approved is
// forgotten, so that a stranger who took a name first does not keep it.
func (v *Verifier) Revoke(ctx context.Context, name, by string) (*Host, error) {
	return v.changeHost(ctx, name, by, "revoked", func(h *Host) error {
		h.State = Revoked
		return nil
	})
}

func (v *Verifier) changeHost(ctx context.Context, name, by, what string, change func(*Host) error) (*Host, error) {
	for range 3 {
		old := v.hostByName(name)
		if old == nil {
			return nil, unknownThing("host", name)
		}
		h := *old
		if err := change(&h); err != nil {
			return nil, err
		}
		w := store.Write{Kind: kindHost, Name: name, Rev: old.rev, Body: encode(h), Claims: h.claims()}
		kept := &h
		if old.State == Pending && h.State == Revoked {
			w.Body, w.Claims, kept = nil, nil, nil
		}
		err := v.store.Apply(ctx, w)
		if errors.Is(err, store.ErrConflict) {
			if err := v.reloadHost(ctx, name); err != nil {
				return nil, err
			}
			continue
		}
		if err != nil {
			return nil, internal("cannot keep host", err)
		}
		h.rev++
		v.mu.Lock()
		v.keep(old, kept)
		v.mu.Unlock()
		v.log.Info("host "+what, "host", strconv.Quote(name), "by", strconv.Quote(by), "ek", h.EK.String())
		return &h, nil
	}
	return nil, internal("cannot change host", store.ErrConflict)
}

// reloadHost takes what another writer stored.
func (v *Verifier) reloadHost(ctx context.Context, name string) error {
	var h *Host
	err := each(ctx, v.store, kindHost, name, func(d store.Doc, got *Host) error {
		if d.Name != name {
			return nil
		}
		h = got
		return h.complete(d.Rev)
	})
	if err != nil {
		return internal("cannot read host", err)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.keep(v.hosts[name], h)
	return nil
}

// defaultSelection is quoted by hosts that no profile judges yet.
var defaultSelection = func() pcr.Selection {
	s, err := pcr.Select(pcr.SHA256, 17, 18, 19)
	if err != nil {
		panic(err)
	}
	return s
}()

// selection is what a host quotes: the union of its profiles.
func (v *Verifier) selection(h *Host) pcr.Selection {
	if h == nil {
		return defaultSelection
	}
	sel := defaultSelection
	for i, p := range v.profilesOf(h) {
		if i == 0 {
			sel.Mask = [3]byte{}
		}
		for j := range sel.Mask {
			sel.Mask[j] |= p.Selection.Mask[j]
		}
	}
	return sel
}
