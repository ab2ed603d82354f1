package verifier

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"troth/proof"
	"troth/tpm"
	"troth/verifier/store"
)

// Attestation is the answer to evidence.
type Attestation struct {
	JWS     string
	Verdict *proof.Verdict
	Report  *proof.Report
	Release *tpm.SealedSeed // nil when contraindicated
	Next    Challenge
}

// Attest judges evidence that came over the TLS key spki. An error that is a *proof.Refusal says which check failed; then
// no verdict was signed and, unless the evidence was authentic, nothing that is known of the host changed.
func (v *Verifier) Attest(ctx context.Context, spki proof.Digest, e *proof.Evidence) (*Attestation, error) {
	host := v.hostBySPKI(spki)
	f := &Facts{Evidence: e, SPKI: spki, Host: host, Challenge: v.checkChallenge(e.Challenge, spki, host), Selection: v.selection(host)}
	if host != nil {
		f.Profiles = v.profilesOf(host)
		f.Mark = v.mark(host.AKName)
	}
	a := Appraise(f, Checks)
	if !a.Authentic {
		v.log.Warn("evidence refused", "host", strconv.Quote(hostName(host)), "check", a.At, "code", string(a.Refusal.Code), "cause", strconv.Quote(a.Refusal.Error()))
		return nil, a.Refusal
	}
	// The evidence is this host's. From here on its challenge is spent, whatever comes out.
	if r := v.useChallenge(e.Challenge); r != nil {
		v.log.Warn("evidence refused", "host", strconv.Quote(host.Name), "check", "single-use", "code", string(r.Code))
		return nil, r
	}
	if a.Refusal != nil && a.At != profilesCheck {
		v.setStanding(host, &standing{At: v.now().Unix(), Refusal: a.Refusal, Counters: f.Attested.Counters, Report: v.report(f, a), Values: f.Values})
		v.log.Warn("host untrusted", "host", strconv.Quote(host.Name), "check", a.At, "code", string(a.Refusal.Code), "cause", strconv.Quote(a.Refusal.Error()))
		return nil, a.Refusal
	}
	return v.verdict(f, a)
}

// verdict signs what was found and, for a good host, seals a release key to it: the seed leaves only sealed, the public half
// is in the verdict, and the private half is forgotten here.
func (v *Verifier) verdict(f *Facts, a Appraisal) (*Attestation, error) {
	if err := v.room(); err != nil {
		return nil, internal("cannot keep a verdict", err)
	}
	now := v.now()
	vd := &proof.Verdict{Issuer: v.cfg.Issuer, Host: f.Host.AKName, Confirmation: f.SPKI, Class: f.Host.Class, Selection: f.Selection,
		PCRDigest: f.Attested.PCRDigest, Counters: f.Attested.Counters, Clock: f.Attested.Clock, Status: proof.Affirming,
		IssuedAt: now.Unix(), Expires: now.Add(v.cfg.Lifetime).Unix(), NextCheck: now.Add(v.cfg.Epoch).Unix()}
	out := &Attestation{Verdict: vd}
	if a.Refusal != nil {
		vd.Status, vd.Failed = proof.Contraindicated, []string{string(a.Refusal.Code)}
	} else {
		for _, j := range f.Judged {
			if j.Met {
				vd.Profiles = append(vd.Profiles, j.Ref)
			}
		}
		seed := proof.RandomSecret(proof.SeedSize)
		defer seed.Forget()
		var err error
		if vd.Release, err = proof.ReleasePublic(seed.Reveal()); err != nil {
			return nil, internal("cannot derive release key", err)
		}
		policy := tpm.ReleasePolicy(vd.Selection, vd.PCRDigest, vd.Counters)
		if out.Release, err = tpm.SealSeed(f.Host.srk, seed.Reveal(), policy); err != nil {
			return nil, internal("cannot seal release key", err)
		}
	}
	key := v.keys.Load().Verdict
	jws, err := proof.SignVerdict(vd, key)
	if err != nil {
		return nil, internal("cannot sign verdict", err)
	}
	out.JWS, out.Report, out.Next = jws, v.report(f, a), v.Challenge(f.SPKI)
	i := &issued{proof.VerdictDigest(jws), jws, key.KeyID(), vd}
	if !v.accept(f, i, &standing{At: vd.IssuedAt, Verdict: i, Refusal: a.Refusal, Counters: vd.Counters, Report: out.Report,
		Judged: f.Judged, Values: f.Values, Events: referenceEvents(f.Events)}) {
		if !v.keys.Load().Public.Has(i.KeyID) {
			return nil, internal("cannot sign verdict", errors.New("the key was revoked while we judged"))
		}
		// An operator revoked or another identity replaced the host while we judged.
		return nil, proof.Refuse(proof.HostNotApproved, "the host is not approved any more", proof.Fact{Name: "host", Value: f.Host.Name})
	}
	v.enqueue(
		store.Write{Kind: kindMark, Name: vd.Host.String(), Rev: store.Any, Body: encode(Mark{vd.Host, vd.Counters, vd.Clock})},
		store.Write{Kind: kindVerdict, Name: i.Digest.String(), Rev: store.Any, Body: encode(storedVerdict{jws, i.KeyID, vd.Expires, a.Refusal})})
	v.log.Info("verdict", "host", strconv.Quote(f.Host.Name), "status", vd.Status, "digest", i.Digest.String(), "reset", vd.Counters.Reset,
		"restart", vd.Counters.Restart, "profiles", fmt.Sprintf("%q", vd.Profiles), "failed", fmt.Sprintf("%q", vd.Failed))
	return out, nil
}

// accept makes the verdict known, unless the host changed since it was read.
func (v *Verifier) accept(f *Facts, i *issued, s *standing) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.bySPKI[f.SPKI] != f.Host || !v.keys.Load().Public.Has(i.KeyID) {
		return false
	}
	v.verdicts[i.Digest] = i
	v.standing[f.Host.AKName] = s
	v.marks[f.Host.AKName] = Mark{f.Host.AKName, i.V.Counters, i.V.Clock}
	return true
}

// setStanding takes refused but authentic evidence. The host's verdicts leave the store, so that a restart of this service does
// not bring them back without the cause.
func (v *Verifier) setStanding(h *Host, s *standing) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.bySPKI[h.SPKI] != h {
		return
	}
	v.standing[h.AKName] = s
	for d, i := range v.verdicts {
		if i.V.Host == h.AKName {
			v.enqueue(store.Write{Kind: kindVerdict, Name: d.String(), Rev: store.Any})
		}
	}
}

func (v *Verifier) mark(ak tpm.Name) *Mark {
	v.mu.RLock()
	defer v.mu.RUnlock()
	if m, ok := v.marks[ak]; ok {
		return &m
	}
	return nil
}

func hostName(h *Host) string {
	if h == nil {
		return ""
	}
	return h.Name
}

// report is the complete one, for operators.
func (v *Verifier) report(f *Facts, a Appraisal) *proof.Report {
	h := f.Host
	r := &proof.Report{Host: h.Name, AK: h.AKName, EK: h.EK, Class: h.Class, Status: proof.Affirming, Time: v.now().Unix(),
		PCRs: f.Evidence.PCRs, Checks: a.Results, Refusal: a.Refusal, NextCheck: v.now().Add(v.cfg.Epoch).Unix()}
	if a.Refusal != nil {
		r.Status = proof.Contraindicated
	}
	for n, j := range f.Judged {
		p := proof.ReportProfile{ProfileRef: j.Ref, Met: j.Met}
		if j.Met && r.Launcher == "" {
			r.Launcher = f.Profiles[n].Launcher
		}
		for _, d := range j.Differences {
			index := d.PCR
			p.Checks = append(p.Checks, proof.ReportCheck{Name: "reference " + j.Reference, Result: proof.Failed, PCR: &index, Event: d.Event, Want: d.Want, Got: d.Got})
		}
		r.Profiles = append(r.Profiles, p)
	}
	return r
}
