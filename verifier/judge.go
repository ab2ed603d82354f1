package verifier

import (
	"errors"
	"slices"
	"time"

	"troth/proof"
)

// ReleaseFacts are all that a release is judged by.
type ReleaseFacts struct {
	Now       time.Time
	Host      *Host        // enrolled with the TLS key; nil: none
	SPKI      proof.Digest // of the TLS key
	Token     *proof.Token // opened
	Digest    proof.Digest // of the token's text
	Statement *proof.Statement
	Verdict   *issued   // the one that the statement names; nil: unknown or long expired
	Standing  *standing // newest of the host; nil: none
	Chain     *Chain
}

// ReleaseCheck is one thing that must hold before a nonce leaves.
type ReleaseCheck struct {
	Name string
	Spec string
	Run  func(*ReleaseFacts) *proof.Refusal
}

// ReleaseChecks all run; the refusal whose code stands first in the table of refusals is told, the others in `also`.
var ReleaseChecks = []ReleaseCheck{
	{"host-approved", "protocol 2", releaseHost},
	{"statement-token", "protocol 5", releaseToken},
	{"statement-host", "protocol 5", releaseStatementHost},
	{"verdict-known", "protocol 5", releaseVerdictKnown},
	{"verdict-host", "protocol 2", releaseVerdictHost},
	{"verdict-fresh", "protocol 3", releaseVerdictFresh},
	{"verdict-affirming", "protocol 3", releaseVerdictAffirming},
	{"standing", "protocol 3", releaseStanding},
	{"counters", "protocol 3", releaseCounters},
	{"profile", "protocol 4", releaseProfile},
	{"expiry", "protocol 4", releaseExpiry},
	{"pins", "protocol 4", releasePins},
	{"pins-complete", "protocol 4", releasePinsComplete},
}

// JudgeRelease runs the checks. nil: what is asked for may be released, if the chain allows it.
func JudgeRelease(f *ReleaseFacts, checks []ReleaseCheck) *proof.Refusal {
	var all []*proof.Refusal
	for _, c := range checks {
		if r := c.Run(f); r != nil {
			all = append(all, r)
		}
	}
	return proof.First(all)
}

func releaseHost(f *ReleaseFacts) *proof.Refusal {
	switch {
	case f.Host == nil:
		return proof.Refuse(proof.HostNotApproved, "no host is enrolled with this TLS key", proof.Fact{Name: "tls key", Got: f.SPKI.String()})
	case f.Host.State != Approved:
		return proof.Refuse(proof.HostNotApproved, "no operator has approved this host", proof.Fact{Name: "host", Value: f.Host.Name},
			proof.Fact{Name: "state", Want: string(Approved), Got: string(f.Host.State)})
	}
	return nil
}

func releaseToken(f *ReleaseFacts) *proof.Refusal {
	if f.Statement.Token != f.Digest {
		return proof.Refuse(proof.RequestInvalid, "the statement is about another token", proof.Fact{Name: "token", Want: f.Digest.String(), Got: f.Statement.Token.String()})
	}
	return nil
}

func releaseStatementHost(f *ReleaseFacts) *proof.Refusal {
	if f.Host != nil && f.Statement.Host != f.Host.AKName {
		return proof.Refuse(proof.VerdictForOtherHost, "the statement names another host", proof.Fact{Name: "host", Want: f.Host.AKName.String(), Got: f.Statement.Host.String()})
	}
	return nil
}

func releaseVerdictKnown(f *ReleaseFacts) *proof.Refusal {
	if f.Verdict == nil {
		return proof.Refuse(proof.VerdictStale, "the statement names a verdict that is not in force", proof.Fact{Name: "verdict", Got: f.Statement.Verdict.String()})
	}
	return nil
}

func releaseVerdictHost(f *ReleaseFacts) *proof.Refusal {
	if f.Verdict == nil || f.Host == nil {
		return nil
	}
	vd := f.Verdict.V
	if vd.Host != f.Host.AKName || vd.Confirmation != f.SPKI {
		return proof.Refuse(proof.VerdictForOtherHost, "the verdict is another host's, or over another TLS key",
			proof.Fact{Name: "host", Want: f.Host.AKName.String(), Got: vd.Host.String()}, proof.Fact{Name: "tls key", Want: f.SPKI.String(), Got: vd.Confirmation.String()})
	}
	return nil
}

func releaseVerdictFresh(f *ReleaseFacts) *proof.Refusal {
	if f.Verdict != nil && f.Now.Unix() >= f.Verdict.V.Expires {
		return proof.Refuse(proof.VerdictStale, "the verdict is over", proof.Fact{Name: "verdict expiry", Want: "after " + itoa(f.Now.Unix()), Got: itoa(f.Verdict.V.Expires)})
	}
	return nil
}

func releaseVerdictAffirming(f *ReleaseFacts) *proof.Refusal {
	if f.Verdict != nil && f.Verdict.V.Status != proof.Affirming {
		return proof.Refuse(proof.VerdictContraindicated, "the verdict is against this host", proof.Fact{Name: "failed", Value: joinCodes(f.Verdict.V.Failed)})
	}
	return nil
}

func joinCodes(s []string) string {
	out := ""
	for i, c := range s {
		if i > 0 {
			out += ", "
		}
		out += c
	}
	return out
}

// releaseStanding: a good verdict that still runs does not outlive newer and worse evidence of the same host.
func releaseStanding(f *ReleaseFacts) *proof.Refusal {
	if f.Standing == nil || f.Standing.Refusal == nil {
		return nil
	}
	cause := f.Standing.Refusal
	r := proof.Refuse(proof.VerdictContraindicated, "the host's newest evidence speaks against it: "+cause.Sentence, cause.Facts...)
	r.Also = []proof.Code{cause.Code}
	return r
}

// releaseCounters: the verdict is about this launch of this boot.
func releaseCounters(f *ReleaseFacts) *proof.Refusal {
	if f.Verdict == nil || f.Standing == nil || f.Host == nil || f.Verdict.V.Host != f.Host.AKName {
		return nil
	}
	want, got := f.Verdict.V.Counters, f.Standing.Counters
	switch {
	case want.Reset != got.Reset:
		return proof.Refuse(proof.HostRebooted, "the host was reset since this verdict", counterFacts(want, got)...)
	case want.Restart != got.Restart:
		return proof.Refuse(proof.HostRelaunched, "the host was launched again since this verdict", counterFacts(want, got)...)
	}
	return nil
}

func releaseProfile(f *ReleaseFacts) *proof.Refusal {
	if f.Verdict == nil || f.Verdict.V.Status != proof.Affirming || slices.Contains(f.Verdict.V.Profiles, f.Token.Profile) {
		return nil
	}
	facts := []proof.Fact{{Name: "profile", Want: f.Token.Profile.Name + " " + f.Token.Profile.Digest.String(), Got: "none met"}}
	for i, p := range f.Verdict.V.Profiles {
		if i == 0 {
			facts[0].Got = p.Name + " " + p.Digest.String()
			continue
		}
		facts = append(facts, proof.Fact{Name: "profile met", Value: p.Name + " " + p.Digest.String()})
	}
	return proof.Refuse(proof.ProfileNotMet, "the host's verdict does not name the token's profile", facts...)
}

// releaseExpiry: the first link needs expiry, every later one chain_expiry. The verifier's clock judges.
func releaseExpiry(f *ReleaseFacts) *proof.Refusal {
	limit, which := f.Token.Expiry, "expiry"
	if f.Chain.Number > 0 && !(f.Chain.Number == 1 && f.Chain.State == Reserved) {
		limit, which = f.Token.ChainExpiry, "chain_expiry"
	}
	if now := f.Now.Unix(); now >= limit {
		return proof.Refuse(proof.TokenExpired, "the token's time is over", proof.Fact{Name: which, Want: "after " + itoa(now), Got: itoa(limit)})
	}
	return nil
}

func releasePins(f *ReleaseFacts) *proof.Refusal {
	if f.Token.Pins == nil {
		return nil
	}
	return f.Token.Pins.Judge(f.Statement)
}

// releasePinsComplete: nothing goes to a guest of which the token leaves something open (S-PINS). Package proof makes and opens
// no such token; this is the verifier's own word on it.
func releasePinsComplete(f *ReleaseFacts) *proof.Refusal {
	if !f.Token.Secret.IsZero() && !f.Token.GuestAllowed() {
		return proof.Refuse(proof.TokenConstraint, "the token carries a secret and does not pin all that the guest boots, its disks and interactive \"no\"",
			proof.Fact{Name: "pins", Want: "complete", Got: "incomplete"})
	}
	return nil
}

// errRace ends a loop of compare-and-swap that found no quiet moment.
var errRace = errors.New("the chain kept changing")
