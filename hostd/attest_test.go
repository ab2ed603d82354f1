package hostd

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"testing"
	"time"

	"troth/launcher"
	"troth/proof"
	"troth/test/lab/txt"
	"troth/tpm"
	"troth/tpm/chip"
	"troth/tpm/pcr"
	vapi "troth/verifier/api"
)

// judge is a verifier with state: it checks what hostd depends on, signs verdicts and seals release keys to the real TPM.
type judge struct {
	t       *testing.T
	mu      sync.Mutex
	signing *proof.SigningKey
	srk     *tpm.SRK
	ak      *tpm.AK
	spki    proof.Digest
	next    []byte
	fail    error // what Attest answers
	late    func()
	// answered hears of the next answer; nil: nobody listens.
	answered chan struct{}
	against  *proof.Refusal
	seeds    int
	seed     []byte
	calls    int
	iat      int64
}

func (j *judge) challenge() []byte {
	j.next = proof.RandomSecret(56).Reveal()
	return j.next
}

func (j *judge) Challenge(context.Context) (*vapi.Challenge, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.fail != nil {
		return nil, j.fail
	}
	return &vapi.Challenge{Challenge: j.challenge(), Selection: "sha256:17,18,19"}, nil
}

func (j *judge) Attest(_ context.Context, evidence []byte) (*vapi.Attestation, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.calls++
	defer func() {
		if j.answered != nil {
			j.answered <- struct{}{}
		}
	}()
	if j.late != nil {
		j.late()
	}
	if j.fail != nil {
		return nil, j.fail
	}
	e, err := proof.ParseEvidence(evidence)
	if err != nil {
		return nil, proof.Refuse(proof.EvidenceInvalid, err.Error())
	}
	if string(e.Challenge) != string(j.next) {
		next := j.challenge()
		return nil, &challenged{proof.Refuse(proof.VerdictStale, "the challenge is not the newest one"), next}
	}
	attested, err := j.ak.VerifyQuote(e.Quote.Quote())
	if err != nil || string(attested.ExtraData) != string(proof.AttestExtraData(e.Challenge, j.spki)) {
		return nil, proof.Refuse(proof.EvidenceInvalid, "bad quote")
	}
	sel, err := pcr.Parse("sha256:17,18,19")
	if err != nil {
		return nil, err
	}
	values, err := proof.PCRValues(e.PCRs)
	if err != nil {
		return nil, err
	}
	if err := values.DynamicLaunch(); err != nil {
		return nil, proof.Refuse(proof.NoDynamicLaunch, err.Error())
	}
	j.iat++
	v := &proof.Verdict{Issuer: "auditor", Host: j.ak.Name(), Confirmation: j.spki, Class: tpm.Software, Selection: sel, PCRDigest: attested.PCRDigest,
		Counters: attested.Counters, Clock: attested.Clock, Status: proof.Affirming, Profiles: []proof.ProfileRef{{Name: "lab", Digest: proof.Digest{1}}},
		IssuedAt: j.iat, Expires: j.iat + 6, NextCheck: j.iat + 2}
	out := &vapi.Attestation{Challenge: j.challenge(), Selection: "sha256:17,18,19"}
	if j.against != nil {
		v.Status, v.Profiles, v.Failed = proof.Contraindicated, nil, []string{string(j.against.Code)}
		out.Report.Refusal = j.against
	} else {
		j.seed = proof.RandomSecret(proof.SeedSize).Reveal()
		j.seeds++
		if v.Release, err = proof.ReleasePublic(j.seed); err != nil {
			return nil, err
		}
		s, err := tpm.SealSeed(j.srk, j.seed, tpm.ReleasePolicy(sel, v.PCRDigest, v.Counters))
		if err != nil {
			return nil, err
		}
		out.Release = &vapi.SealedSeed{Public: s.Public, Duplicate: s.Duplicate, EncryptedSeed: s.EncryptedSeed}
	}
	out.Verdict, err = proof.SignVerdict(v, j.signing)
	return out, err
}

func (j *judge) Verdict(_ context.Context, jws string) (*proof.Verdict, *proof.VerdictKeys, error) {
	keys, err := proof.NewVerdictKeys(j.signing.JWK())
	if err != nil {
		return nil, nil, err
	}
	v, err := proof.ParseVerdict(jws, keys)
	return v, keys, err
}

type rig struct {
	swtpm *txt.TPM
	chip  *chip.Chip
	judge *judge
	a     *Attester
	stop  func()        // of swtpm
	boot  time.Duration // added to the real one
}

func (r *rig) Now() time.Time      { return time.Now() }
func (r *rig) Boot() time.Duration { return Clock{}.Boot() + r.boot }

// newRig is a real swtpm after a real dynamic launch, a chip on it, and an attester.
func newRig(t *testing.T) *rig {
	t.Helper()
	ctx := context.Background()
	dir := t.TempDir()
	if err := txt.Prepare(ctx, dir, dir+"/ca"); err != nil {
		t.Fatal(err)
	}
	s, err := txt.Start(ctx, dir)
	if err != nil {
		t.Fatal(err)
	}
	stop := sync.OnceFunc(func() {
		if err := s.Stop(); err != nil {
			t.Logf("swtpm: %v", err)
		}
	})
	t.Cleanup(stop)
	if err := s.Boot(txt.Example(txt.TbootLegacy)); err != nil {
		t.Fatal(err)
	}
	c, err := chip.Open(ctx, chip.Config{Socket: s.Socket()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Logf("chip: %v", err)
		}
	})
	id, err := c.Provision(ctx)
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{swtpm: s, stop: stop, chip: c, judge: &judge{t: t, spki: proof.Digest{5}, iat: 1_800_000_000}}
	if r.judge.ak, err = tpm.ParseAK(id.AKPublic); err != nil {
		t.Fatal(err)
	}
	if r.judge.srk, err = tpm.ParseSRK(id.SRKPublic); err != nil {
		t.Fatal(err)
	}
	if r.judge.signing, err = proof.GenerateSigningKey(); err != nil {
		t.Fatal(err)
	}
	r.a = &Attester{Chip: c, Judge: r.judge, SPKI: r.judge.spki, LogKind: proof.LogTCG2, EventLog: s.LogFile(), Clock: r, Log: slog.New(slog.DiscardHandler)}
	r.a.Start()
	return r
}

func codeOf(t *testing.T, err error) proof.Code {
	t.Helper()
	var r *proof.Refusal
	if err != nil && !errors.As(err, &r) {
		t.Fatalf("not a refusal: %v", err)
	}
	if r == nil {
		return ""
	}
	return r.Code
}

func TestAttest(t *testing.T) {
	ctx := context.Background()
	r := newRig(t)
	if _, _, err := r.a.Hold(ctx); codeOf(t, err) != proof.VerdictMissing {
		t.Fatalf("before the first: %v", err)
	}
	if err := r.a.Renew(ctx); err != nil {
		t.Fatal(err)
	}
	e, done, err := r.a.Hold(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if e.Verdict.Host != r.judge.ak.Name() || e.AK != e.Verdict.Host || e.Counters != e.Verdict.Counters {
		t.Errorf("epoch %+v", e)
	}
	// The release key is in the TPM, and a new one waits for whoever holds the old one.
	seed, err := r.chip.Unseal(ctx)
	if err != nil || string(seed) != string(r.judge.seed) {
		t.Fatalf("unseal: %v", err)
	}
	renewed := make(chan error, 1)
	r.judge.answered = make(chan struct{}, 1)
	go func() { renewed <- r.a.Renew(ctx) }()
	select {
	case err := <-renewed:
		t.Fatalf("the release key was replaced while it was held: %v", err)
	case <-time.After(200 * time.Millisecond):
	}
	<-r.judge.answered
	r.judge.mu.Lock()
	r.judge.answered = nil
	r.judge.mu.Unlock()
	if seed, err := r.chip.Unseal(ctx); err != nil || string(seed) == string(r.judge.seed) {
		t.Errorf("the held key is gone: %v", err)
	}
	done()
	if err := <-renewed; err != nil {
		t.Fatal(err)
	}
	if seed, err := r.chip.Unseal(ctx); err != nil || string(seed) != string(r.judge.seed) {
		t.Errorf("the new key is not there: %v", err)
	}
	// A challenge that is no longer good brings another, which is answered at once.
	r.judge.challenge()
	if err := r.a.Renew(ctx); err != nil {
		t.Errorf("a spent challenge did not heal: %v", err)
	}
}

// TestProven: an affirming verdict counts for its lifetime, from when the evidence was sent; one against this host ends what the one before promised.
func TestProven(t *testing.T) {
	ctx := context.Background()
	r := newRig(t)
	if began := r.a.Proven(); began > r.Boot() || began < r.Boot()-time.Minute {
		t.Errorf("before the first verdict: %v, it is %v", began, r.Boot())
	}
	if err := r.a.Renew(ctx); err != nil {
		t.Fatal(err)
	}
	until := r.a.Proven()
	if want := r.a.State().Epoch.Sent + 6*time.Second; until != want {
		t.Errorf("proven until %v, want %v", until, want)
	}
	r.judge.fail = proof.Refuse(proof.VerifierUnreachable, "no answer")
	if err := r.a.Renew(ctx); err == nil || r.a.Proven() != until {
		t.Errorf("without an answer: %v, proven until %v, want %v", err, r.a.Proven(), until)
	}
	r.judge.fail, r.judge.against = nil, proof.Refuse(proof.PCRMismatch, "PCR 18 differs")
	if err := r.a.Renew(ctx); err != nil {
		t.Fatal(err)
	}
	if now := r.a.Proven(); now > r.Boot() {
		t.Errorf("a verdict against this host: still proven for %v", now-r.Boot())
	}
	r.judge.against = nil
	if err := r.a.Renew(ctx); err != nil || r.a.Proven() <= r.Boot() {
		t.Errorf("again affirming: %v, proven until %v", err, r.a.Proven())
	}
}

func TestAttack(t *testing.T) {
	ctx := context.Background()
	r := newRig(t)
	attested := func(t *testing.T) *launcher.Epoch {
		t.Helper()
		if err := r.a.Renew(ctx); err != nil {
			t.Fatal(err)
		}
		e, done, err := r.a.Hold(ctx)
		if err != nil {
			t.Fatal(err)
		}
		done()
		return e
	}
	t.Run("A-CLOCK", func(t *testing.T) {
		// Evidence held back on its way makes the verdict older, not younger: age counts from sending.
		r.judge.late = func() { r.boot += time.Minute }
		e := attested(t)
		r.judge.late = nil
		if age := r.Boot() - e.Sent; age < time.Minute {
			t.Errorf("a verdict that took a minute is %v old", age)
		}
		// Certificates are checked against the verifier's time, however the host's clock is set.
		wall := time.Unix(4_000_000_000, 0)
		c := &tlsClock{boot: r.Boot, now: func() time.Time { return wall }}
		if c.Time() != wall {
			t.Error("no other clock before the first verdict")
		}
		c.set(1_800_000_000)
		wall = time.Unix(1, 0)
		r.boot += time.Hour
		if got := c.Time().Unix(); got < 1_800_003_600 || got > 1_800_003_660 {
			t.Errorf("TLS clock %d", got)
		}
	})
	t.Run("R-VERDOWN", func(t *testing.T) {
		before := attested(t)
		r.judge.fail = proof.Refuse(proof.VerifierUnreachable, "no verifier answers")
		if err := r.a.Renew(ctx); codeOf(t, err) != proof.VerifierUnreachable {
			t.Fatal(err)
		}
		// The verdict is not better or worse for that, until it is too old.
		e, done, err := r.a.Hold(ctx)
		if err != nil || e != before {
			t.Fatalf("%v", err)
		}
		done()
		if s := r.a.State(); s.Failure == nil {
			t.Error("the failure is not told")
		}
		r.judge.fail = nil
		attested(t)
	})
	t.Run("A-HOST", func(t *testing.T) {
		// A finding against this host ends its verdict at once, however fresh it is.
		attested(t)
		r.judge.fail = proof.Refuse(proof.HostNotApproved, "revoked")
		if err := r.a.Renew(ctx); codeOf(t, err) != proof.HostNotApproved {
			t.Fatal(err)
		}
		if _, _, err := r.a.Hold(ctx); codeOf(t, err) != proof.HostNotApproved {
			t.Errorf("the old verdict outlived the finding: %v", err)
		}
		r.judge.fail = nil
		r.judge.against = proof.Refuse(proof.PCRMismatch, "PCR 18 differs")
		e := attested(t)
		if e.Against == nil || e.Against.Code != proof.PCRMismatch {
			t.Errorf("%+v", e.Against)
		}
		r.judge.against = nil
		attested(t)
	})
	t.Run("A-RELAUNCH", func(t *testing.T) {
		attested(t)
		if err := r.swtpm.Relaunch(txt.Example(txt.TbootLegacy)); err != nil {
			t.Fatal(err)
		}
		kicked := false
		_, err := refusing{r.chip, func() { kicked = true }}.Unseal(ctx)
		if codeOf(t, err) != proof.SealedToOtherState || !kicked {
			t.Errorf("%v, kicked %v", err, kicked)
		}
		attested(t)
		if _, err := r.chip.Unseal(ctx); err != nil {
			t.Errorf("after attesting again: %v", err)
		}
	})
	t.Run("A-S3", func(t *testing.T) {
		if err := r.swtpm.S3(); err != nil {
			t.Fatal(err)
		}
		if err := r.a.Renew(ctx); codeOf(t, err) != proof.NoDynamicLaunch {
			t.Errorf("%v", err)
		}
		if _, _, err := r.a.Hold(ctx); codeOf(t, err) != proof.NoDynamicLaunch {
			t.Errorf("%v", err)
		}
		if err := r.swtpm.Boot(txt.Example(txt.TbootLegacy)); err != nil {
			t.Fatal(err)
		}
		attested(t)
	})
	t.Run("R-PANIC", testPanics)
	t.Run("R-TPMDOWN", func(t *testing.T) {
		attested(t)
		r.stop()
		if err := r.a.Renew(ctx); codeOf(t, err) != proof.TPMUnavailable {
			t.Errorf("%v", err)
		}
		_, err := refusing{r.chip, func() {}}.Unseal(ctx)
		if codeOf(t, err) != proof.TPMUnavailable {
			t.Errorf("%v", err)
		}
	})
}

func TestRunKeepsTheVerdictFresh(t *testing.T) {
	r := newRig(t)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); r.a.Run(ctx) }()
	deadline := time.Now().Add(time.Minute)
	for r.a.State().Epoch == nil && time.Now().Before(deadline) {
		time.Sleep(10 * time.Millisecond)
	}
	first := r.a.State().Epoch
	r.a.Kick()
	for r.a.State().Epoch == first && time.Now().Before(deadline) {
		time.Sleep(10 * time.Millisecond)
	}
	if first == nil || r.a.State().Epoch == first {
		t.Error("no new verdict after a kick")
	}
	cancel()
	<-done
}
