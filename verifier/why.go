package verifier

import (
	"time"

	"troth/proof"
)

// Standing of a host, for people: the four are kept apart.
const (
	Trusted       = "trusted"
	Untrusted     = "untrusted"
	Stale         = "stale"
	UnknownToDate = "unknown"
)

// View is a host with what is known of it now.
type View struct {
	*Host
	Standing     string
	Met          []proof.ProfileRef
	LastAttested int64
	Expires      int64
	Report       *proof.Report
	Reasons      []*proof.Refusal // why it is not trusted; first the one that decides
}

// View tells how a host stands and why.
func (v *Verifier) View(h *Host) *View {
	v.mu.RLock()
	s := v.standing[h.AKName]
	v.mu.RUnlock()
	now := v.now()
	out := &View{Host: h, Standing: Trusted}
	if h.State != Approved {
		out.Standing = Untrusted
		out.Reasons = append(out.Reasons, releaseHost(&ReleaseFacts{Host: h}))
	}
	if s == nil {
		if out.Standing == Trusted {
			out.Standing = UnknownToDate
		}
		out.Reasons = append(out.Reasons, proof.Refuse(proof.VerdictMissing, "the host has not attested since it was approved or this service started",
			proof.Fact{Name: "host", Value: h.Name}))
		return out
	}
	out.LastAttested, out.Report = s.At, s.Report
	if s.Verdict != nil {
		out.Expires, out.Met = s.Verdict.V.Expires, s.Verdict.V.Profiles
	} else {
		out.Expires = time.Unix(s.At, 0).Add(v.cfg.Lifetime).Unix()
	}
	if s.Refusal != nil {
		out.Standing = Untrusted
		out.Reasons = append(out.Reasons, s.Refusal)
	}
	if now.Unix() >= out.Expires {
		if out.Standing == Trusted {
			out.Standing = Stale
		}
		out.Reasons = append(out.Reasons, proof.Refuse(proof.VerdictStale, "the host's last evidence is too old",
			proof.Fact{Name: "last attested", Want: "within " + v.cfg.Lifetime.String(), Got: now.Sub(time.Unix(s.At, 0)).Round(time.Second).String() + " ago"}))
	}
	return out
}

// Sentence says it in one line.
func (w *View) Sentence() string {
	switch {
	case w.Standing == Trusted:
		return "the host is trusted: its newest evidence meets " + profileNames(w.Met)
	case len(w.Reasons) > 0:
		return "the host is " + w.Standing + ": " + w.Reasons[0].Sentence
	}
	return "the host is " + w.Standing
}

func profileNames(refs []proof.ProfileRef) string {
	out := ""
	for i, r := range refs {
		if i > 0 {
			out += ", "
		}
		out += r.Name
	}
	return out
}
