package hostd

import (
	"context"
	"sync"
	"time"

	"troth/proof"
)

// States of a condition.
const (
	OK      = "ok"
	Failed  = "failed"
	Unknown = "unknown"
)

// States of the host as engines see them.
const (
	Trusted     = "trusted"
	Untrusted   = "untrusted"
	Unreachable = "unreachable" // the verifier
	Stale       = "stale"
	// Unknown too
)

// Condition is one thing that has to hold for launches, with what was seen and what to do.
type Condition struct {
	Name, State      string
	Code             proof.Code // of the refusal that follows from it; empty when ok
	Evidence, Remedy string
	Since            int64 // unix seconds
}

// Status puts the newest values of the workers together.
type Status struct {
	Attester *Attester
	Hook     *HookSocket
	Liveness *Liveness // nil: the hook is not tried
	Registry *Registry
	Owed     func() int
	Strays   func() Condition
	Workers  func() Condition
	Now      func() time.Time

	mu      sync.Mutex
	libvirt *Condition
	since   map[string]Condition
}

// startLibvirt is the remedy where libvirt does not answer.
const startLibvirt = "Start libvirtd, or virtqemud where that serves QEMU, and see that troth-hostd may use its socket. One that runs and does not answer hangs: restart it; guests run on."

// LibvirtSeen takes what the last call to libvirt showed.
func (s *Status) LibvirtSeen(version string, err error) {
	c := &Condition{Name: "libvirt", State: OK, Evidence: version}
	if err != nil {
		c = &Condition{Name: "libvirt", State: Failed, Code: proof.Internal, Evidence: err.Error(),
			Remedy: startLibvirt}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.libvirt = c
}

// Conditions lists all, in the order in which to mend them.
func (s *Status) Conditions() []Condition {
	st := s.Attester.State()
	all := []Condition{s.tpm(st), s.dynamicLaunch(st), s.verifier(st), s.verdict(st)}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.libvirt != nil {
		all = append(all, *s.libvirt)
	} else {
		all = append(all, Condition{Name: "libvirt", State: Unknown, Evidence: "not asked yet"})
	}
	all = append(all, s.hook(), s.registry())
	if s.Strays != nil {
		all = append(all, s.Strays())
	}
	if s.Workers != nil {
		all = append(all, s.Workers())
	}
	if s.since == nil {
		s.since = map[string]Condition{}
	}
	for i, c := range all {
		old, known := s.since[c.Name]
		if !known || old.State != c.State || old.Code != c.Code {
			c.Since = s.Now().Unix()
			s.since[c.Name] = c
		}
		all[i].Since = s.since[c.Name].Since
	}
	return all
}

func refused(name string, r *proof.Refusal) Condition {
	c := Condition{Name: name, State: Failed, Code: r.Code, Evidence: r.Error(), Remedy: r.Remedy}
	return c
}

func (s *Status) tpm(st State) Condition {
	if st.Failure != nil {
		switch st.Failure.Code {
		case proof.TPMUnavailable, proof.TPMBusy, proof.BankUnallocated, proof.SealedToOtherState, proof.SealedBlobDamaged:
			return refused("tpm", st.Failure)
		}
	}
	if st.AK == (State{}).AK {
		return Condition{Name: "tpm", State: Unknown, Evidence: "not asked yet"}
	}
	return Condition{Name: "tpm", State: OK, Evidence: "attestation key " + st.AK.String()}
}

func (s *Status) dynamicLaunch(st State) Condition {
	const name = "dynamic-launch"
	switch {
	case st.Failure != nil && (st.Failure.Code == proof.NoDynamicLaunch || st.Failure.Code == proof.HostRelaunched || st.Failure.Code == proof.HostRebooted):
		return refused(name, st.Failure)
	case st.Epoch == nil:
		return Condition{Name: name, State: Unknown, Evidence: "no verdict yet"}
	}
	if err := st.Epoch.PCRs.DynamicLaunch(); err != nil {
		return refused(name, proof.Refuse(proof.NoDynamicLaunch, err.Error()))
	}
	return Condition{Name: name, State: OK, Evidence: "PCRs " + st.Epoch.Verdict.Selection.String() + " were measured into"}
}

func (s *Status) verifier(st State) Condition {
	if f := st.Failure; f != nil && (f.Code == proof.VerifierUnreachable || f.Code == proof.HostNotApproved || f.Code == proof.Forbidden || f.Code == proof.EvidenceInvalid) {
		return refused("verifier", f)
	}
	if st.Tried == 0 {
		return Condition{Name: "verifier", State: Unknown, Evidence: "not asked yet"}
	}
	c := Condition{Name: "verifier", State: OK, Evidence: "answers"}
	if n := s.Owed(); n > 0 {
		c.Evidence = "answers, and is owed chain events"
	}
	return c
}

func (s *Status) verdict(st State) Condition {
	const name = "verdict"
	if st.Epoch == nil {
		if st.Failure != nil {
			return refused(name, st.Failure)
		}
		return refused(name, proof.Refuse(proof.VerdictMissing, "this host has not attested yet"))
	}
	if st.Epoch.Against != nil {
		return refused(name, st.Epoch.Against)
	}
	if st.Epoch.Verdict.Status != proof.Affirming {
		return refused(name, proof.Refuse(proof.VerdictContraindicated, "the verifier found against this host"))
	}
	age, life := s.Attester.Clock.Boot()-st.Epoch.Sent, st.Epoch.Lifetime()
	if age > life {
		return refused(name, proof.Refuse(proof.VerdictStale, "the verdict is older than it may be",
			proof.Fact{Name: "age", Want: "at most " + life.String(), Got: age.Round(time.Second).String()}))
	}
	return Condition{Name: name, State: OK, Evidence: "affirming, " + age.Round(time.Second).String() + " old of " + life.String()}
}

func (s *Status) hook() Condition {
	if err := s.Hook.Ready(); err != nil {
		if c, ok := notLive(err); ok {
			return c
		}
		return refused("hook", proof.Refuse(proof.HookNotLive, "the hook cannot work", proof.Fact{Name: "cause", Value: err.Error()}))
	}
	c := Condition{Name: "hook", State: OK, Evidence: "installed, socket is served, not asked yet"}
	if at := s.Hook.LastAsked(); !at.IsZero() {
		c.Evidence = "installed, socket is served, last asked at " + at.UTC().Format(time.RFC3339)
	}
	if s.Liveness != nil {
		c.Evidence += s.Liveness.evidence()
	}
	return c
}

func (s *Status) registry() Condition {
	if f := s.Registry.Failure(); f != "" {
		return Condition{Name: "registry", State: Failed, Code: proof.Internal, Evidence: f, Remedy: "See that troth-hostd may write state_dir/gate, and that the disk has room."}
	}
	return Condition{Name: "registry", State: OK, Evidence: "published"}
}

// Host sums the conditions up for an engine.
func (s *Status) Host() string {
	st := s.Attester.State()
	c := s.verdict(st)
	switch {
	case c.State == OK:
		return Trusted
	case st.Failure != nil && st.Failure.Code == proof.VerifierUnreachable:
		return Unreachable
	case c.Code == proof.VerdictStale:
		return Stale
	case st.Epoch == nil && (st.Failure == nil || !lasting(st.Failure.Code)):
		return Unknown
	default:
		return Untrusted
	}
}

// Ready says why no launch would be permitted now; nil: one would.
func (s *Status) Ready(context.Context) *proof.Refusal {
	var first *proof.Refusal
	for _, c := range s.Conditions() {
		if c.State == OK || c.Name == strays {
			continue // a stray elsewhere is no reason against a launch
		}
		code := c.Code
		if code == "" {
			code = proof.VerdictMissing // nothing was seen yet
		}
		if first != nil {
			first.Also = append(first.Also, code)
			continue
		}
		// The first thing to mend leads, not the first code.
		first = proof.Refuse(code, c.Name+": "+c.Evidence)
		if c.Remedy != "" {
			first.Remedy = c.Remedy
		}
	}
	return first
}
