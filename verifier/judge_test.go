package verifier

import (
	"slices"
	"testing"
	"time"

	"troth/proof"
	"troth/tpm"
)

// releaseFacts are those of an honest release.
func releaseFacts(t *testing.T) *ReleaseFacts {
	t.Helper()
	now := time.Unix(1_800_000_000, 0)
	m := newSoft(t)
	h := &Host{Name: "h", State: Approved, EK: proof.Digest{1}, AK: m.akPublic, SRK: m.srk, SPKI: proof.Digest{7}}
	check(t, h.complete(1))
	ref := proof.ProfileRef{Name: "gold", Digest: proof.Digest{1}}
	v := &issued{Digest: proof.Digest{5}, V: &proof.Verdict{Host: h.AKName, Confirmation: h.SPKI, Status: proof.Affirming, Profiles: []proof.ProfileRef{ref},
		Expires: now.Unix() + 60, Counters: tpm.Counters{Reset: 2, Restart: 3}}}
	k := &proof.Token{Header: proof.Header{Profile: ref, Expiry: now.Unix() + 10, ChainExpiry: now.Unix() + 20}, Secret: proof.NewSecret([]byte("s")),
		Pins: &proof.Pins{Kernel: digestOf("k"), Initrd: digestOf("i"), CommandLine: digestOf("c"), Interactive: proof.InteractiveNo}}
	s := &proof.Statement{Token: proof.Digest{9}, Host: h.AKName, Verdict: v.Digest, Interactive: proof.InteractiveNo,
		Measurements: proof.Measurements{Kernel: digestOf("k"), Initrd: digestOf("i"), CommandLine: digestOf("c")}}
	return &ReleaseFacts{Now: now, Host: h, SPKI: h.SPKI, Token: k, Digest: s.Token, Statement: s, Verdict: v,
		Standing: &standing{Verdict: v, Counters: v.V.Counters}, Chain: &Chain{Place: Place{State: Free}}}
}

// TestEachReleaseCheckIsNecessary: each case is refused with its code by its check, and accepted without it.
func TestEachReleaseCheckIsNecessary(t *testing.T) {
	if r := JudgeRelease(releaseFacts(t), ReleaseChecks); r != nil {
		t.Fatalf("honest: %v", r)
	}
	cases := []struct {
		check string
		code  proof.Code
		spoil func(*ReleaseFacts)
	}{
		{"host-approved", proof.HostNotApproved, func(f *ReleaseFacts) { f.Host = nil }},
		{"host-approved", proof.HostNotApproved, func(f *ReleaseFacts) { f.Host.State = Pending }},
		{"host-approved", proof.HostNotApproved, func(f *ReleaseFacts) { f.Host.State = Revoked }},
		{"statement-token", proof.RequestInvalid, func(f *ReleaseFacts) { f.Digest[0] ^= 1 }},
		{"statement-host", proof.VerdictForOtherHost, func(f *ReleaseFacts) { f.Statement.Host[9] ^= 1 }},
		{"verdict-known", proof.VerdictStale, func(f *ReleaseFacts) { f.Verdict = nil }},
		{"verdict-host", proof.VerdictForOtherHost, func(f *ReleaseFacts) { f.Verdict.V.Host[9] ^= 1 }},
		{"verdict-host", proof.VerdictForOtherHost, func(f *ReleaseFacts) { f.Verdict.V.Confirmation[9] ^= 1 }},
		{"verdict-fresh", proof.VerdictStale, func(f *ReleaseFacts) { f.Verdict.V.Expires = f.Now.Unix() }},
		{"verdict-affirming", proof.VerdictContraindicated, func(f *ReleaseFacts) {
			f.Verdict.V.Status, f.Verdict.V.Failed = proof.Contraindicated, []string{"pcr-mismatch", "x"}
		}},
		{"standing", proof.VerdictContraindicated, func(f *ReleaseFacts) { f.Standing.Refusal = proof.Refuse(proof.PCRMismatch, "PCR 18 differs") }},
		{"counters", proof.HostRebooted, func(f *ReleaseFacts) { f.Standing.Counters.Reset++ }},
		{"counters", proof.HostRelaunched, func(f *ReleaseFacts) { f.Standing.Counters.Restart++ }},
		{"profile", proof.ProfileNotMet, func(f *ReleaseFacts) { f.Token.Profile.Digest[0] ^= 1 }},
		{"profile", proof.ProfileNotMet, func(f *ReleaseFacts) { f.Token.Profile.Name = "silver" }},
		{"expiry", proof.TokenExpired, func(f *ReleaseFacts) { f.Token.Expiry = f.Now.Unix() }},
		{"expiry", proof.TokenExpired, func(f *ReleaseFacts) {
			f.Chain.State, f.Chain.Number, f.Token.ChainExpiry = Closed, 1, f.Now.Unix()
		}},
		{"expiry", proof.TokenExpired, func(f *ReleaseFacts) { f.Chain.State, f.Chain.Number, f.Token.Expiry = Reserved, 1, f.Now.Unix() }},
		{"pins", proof.TokenConstraint, func(f *ReleaseFacts) { f.Statement.Measurements.Initrd = digestOf("evil") }},
		{"pins-complete", proof.TokenConstraint, func(f *ReleaseFacts) { f.Token.Pins.CommandLine, f.Statement.Measurements.CommandLine = nil, nil }},
		{"pins-complete", proof.TokenConstraint, func(f *ReleaseFacts) { f.Token.Pins = nil }},
	}
	for _, x := range ReleaseChecks {
		n := 0
		for _, c := range cases {
			if c.check != x.Name {
				continue
			}
			n++
			f := releaseFacts(t)
			c.spoil(f)
			r := refused(t, orNil(JudgeRelease(f, ReleaseChecks)), c.code, "")
			if r.Remedy == "" || r.Sentence == "" || len(r.Facts) == 0 && c.check != "standing" {
				t.Errorf("%s: a bare refusal: %+v", c.check, r)
			}
			rest := slices.DeleteFunc(slices.Clone(ReleaseChecks), func(y ReleaseCheck) bool { return y.Name == x.Name })
			if r := JudgeRelease(f, rest); r != nil {
				t.Errorf("%s is noticed by another: %v", x.Name, r)
			}
		}
		if n == 0 {
			t.Errorf("no case for %s", x.Name)
		}
	}
	// Several at once: the first of the fixed order, the others in also.
	f := releaseFacts(t)
	f.Host.State, f.Token.Expiry = Revoked, 0
	if r := JudgeRelease(f, ReleaseChecks); r.Code != proof.HostNotApproved || !slices.Equal(r.Also, []proof.Code{proof.TokenExpired}) {
		t.Fatalf("%+v", r)
	}
	// Later links do not look at the first expiry.
	f = releaseFacts(t)
	f.Chain.State, f.Chain.Number, f.Token.Expiry = Closed, 1, 0
	if r := JudgeRelease(f, ReleaseChecks); r != nil {
		t.Fatal(r)
	}
}
