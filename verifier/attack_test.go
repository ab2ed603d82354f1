package verifier

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"troth/proof"
	"troth/tpm"
	"troth/verifier/store"
)

// TestAttack changes real captured bytes, or the real state of a TPM, and asserts the named refusal, that nothing changed, and
// that honest work goes on. In -short runs the TPM is forged in software.
func TestAttack(t *testing.T) {
	for id, run := range map[string]func(*testing.T){
		"A-REPLAY": attackReplay, "A-NONCE": attackNonce, "A-CLOCK": attackClock, "A-HOST": attackHost, "A-CUCKOO": attackCuckoo,
		"A-UUIDTAKE": attackUUIDTake, "A-SELECT": attackSelect, "A-NODRTM": attackNoDRTM, "A-RELAUNCH": attackRelaunch, "A-RESET": attackReset,
		"A-LOG": attackLog, "S-CHAIN": attackChain, "S-REUSE": attackReuse, "S-ROLLBACK": attackRollback, "S-PINS": attackPins, "X-LOG": attackLogLines, "M-SAVECOPY": attackSaveCopy,
		"K-ROTATE": attackRotate, "K-COMPROMISE": attackCompromise, "N-SSRF": attackSSRF,
	} {
		t.Run(id, run)
	}
}

func attackReplay(t *testing.T) {
	w, h := newWorld(t), newHost(t, 1)
	w.good(h)
	e := w.evidence(h, w.Challenge(h.spki))
	first := must[*Attestation](t)(w.Attest(t.Context(), h.spki, e))
	w.unchanged(h, func() {
		_, err := w.Attest(t.Context(), h.spki, e)
		refused(t, err, proof.EvidenceInvalid, "challenge")
	})
	// An old verdict releases nothing once the host was launched again, though it has not expired.
	h.boot(t, example())
	second := w.mustAttest(h)
	a := w.newAsk(h, first, nil)
	w.unchanged(h, func() {
		_, err := w.releaseTo(h, a, nil)
		refused(t, err, proof.HostRelaunched, "restart count")
	})
	// Nor after its time.
	a = w.newAsk(h, second, nil)
	w.pass(181 * time.Second)
	_, err := w.releaseTo(h, a, nil)
	refused(t, err, proof.VerdictStale, "verdict expiry")
	third := w.mustAttest(h)
	must[*Release](t)(w.releaseTo(h, w.newAsk(h, third, nil), nil))
}

func attackNonce(t *testing.T) {
	w, h, other := newWorld(t), newHost(t, 1), newHost(t, 2)
	w.good(h)
	honest := w.Challenge(h.spki)
	spoiled := map[string][]byte{"none": nil, "short": honest.Bytes[:55], "long": append(bytes.Clone(honest.Bytes), 0),
		"zero": make([]byte, challengeSize), "another host's": w.Challenge(other.spki).Bytes}
	for bit := range 8 * challengeSize {
		b := bytes.Clone(honest.Bytes)
		b[bit/8] ^= 1 << (bit % 8)
		spoiled["bit "+itoa(bit)] = b
	}
	e := w.evidence(h, honest)
	w.unchanged(h, func() {
		for name, c := range spoiled {
			bad := *e
			bad.Challenge = c
			q := proof.AttestExtraData(c, h.spki)
			if len(name) < 5 || name[:3] != "bit" { // sign over it too: only the challenge itself is wrong
				signed := h.quote(t, honest.Selection, q)
				bad.Quote = proof.QuoteDoc{Message: signed.Message, Signature: signed.Signature}
			}
			if _, err := w.Attest(t.Context(), h.spki, &bad); err == nil {
				t.Fatalf("%s: accepted", name)
			} else {
				refused(t, err, proof.EvidenceInvalid, "")
			}
		}
	})
	// One challenge, 64 evidences at once: one verdict.
	var wins atomic.Int32
	var wg sync.WaitGroup
	for range 64 {
		wg.Go(func() {
			if _, err := w.Attest(t.Context(), h.spki, e); err == nil {
				wins.Add(1)
			}
		})
	}
	wg.Wait()
	if wins.Load() != 1 {
		t.Fatalf("%d verdicts for one challenge", wins.Load())
	}
	old := w.Challenge(h.spki)
	w.pass(121 * time.Second)
	_, err := w.Attest(t.Context(), h.spki, w.evidence(h, old))
	refused(t, err, proof.EvidenceInvalid, "challenge age")
	w.spent.prune(w.now().Add(time.Hour))
	if len(w.spent.m) != 0 {
		t.Fatalf("%d challenges are kept for ever", len(w.spent.m))
	}
	w.mustAttest(h)
}

func attackClock(t *testing.T) {
	// A host has no clock in the protocol: what it sends holds no time. The verifier's clock judges; turned back, a challenge from
	// its future is refused, and verdicts stay bounded by it.
	w, h := newWorld(t), newHost(t, 1)
	w.good(h)
	c := w.Challenge(h.spki)
	w.clock.Add(-10 * time.Second.Milliseconds())
	_, err := w.Attest(t.Context(), h.spki, w.evidence(h, c))
	refused(t, err, proof.EvidenceInvalid, "challenge age")
	w.clock.Add(10 * time.Second.Milliseconds())
	a := w.mustAttest(h)
	if got := a.Verdict.Expires - w.now().Unix(); got != 180 {
		t.Fatalf("a verdict of %d s", got)
	}
	k := w.newAsk(h, a, func(k *proof.Token) { k.Expiry = w.now().Unix() + 5 })
	w.pass(6 * time.Second)
	_, err = w.releaseTo(h, k, nil)
	refused(t, err, proof.TokenExpired, "expiry")
}

func attackHost(t *testing.T) {
	w, h, other := newWorld(t), newHost(t, 1), newHost(t, 2)
	w.good(h)
	b := w.good(other)
	// Another host's quote under one's own name, and one's own quote under another's.
	c := w.Challenge(h.spki)
	e := w.evidence(h, c)
	q := other.quote(t, c.Selection, proof.AttestExtraData(c.Bytes, h.spki))
	stolen := *e
	stolen.Quote = proof.QuoteDoc{Message: q.Message, Signature: q.Signature}
	w.unchanged(h, func() {
		_, err := w.Attest(t.Context(), h.spki, &stolen)
		refused(t, err, proof.EvidenceInvalid, "quote: signature")
		stolen.AK = b.Verdict.Host
		_, err = w.Attest(t.Context(), h.spki, &stolen)
		refused(t, err, proof.EvidenceInvalid, "ak")
	})
	// Another host's verdict in a statement: as itself, and as the other.
	a := w.newAsk(h, b, nil)
	_, err := w.releaseTo(h, a, nil)
	refused(t, err, proof.VerdictForOtherHost, "host")
	a.statement.Host = w.hostByName(h.name).AKName
	_, err = w.releaseTo(h, a, nil)
	refused(t, err, proof.VerdictForOtherHost, "tls key")
	must[*Release](t)(w.releaseTo(other, w.newAsk(other, b, nil), nil))
}

func attackCuckoo(t *testing.T) {
	// A bad machine relays a good machine's evidence over its own TLS key.
	w, good, bad := newWorld(t), newHost(t, 1), newHost(t, 2)
	w.good(good)
	w.enrol(bad)
	w.approve(bad)
	c := w.Challenge(bad.spki)
	e := w.evidence(good, Challenge{Bytes: c.Bytes, Selection: c.Selection})
	w.unchanged(good, func() {
		_, err := w.Attest(t.Context(), bad.spki, e)
		refused(t, err, proof.EvidenceInvalid, "ak")
		// Over the good host's key nothing it can make fits: it does not hold that key.
		_, err = w.Attest(t.Context(), good.spki, e)
		refused(t, err, proof.EvidenceInvalid, "challenge")
	})
	w.mustAttest(good)
}

func attackUUIDTake(t *testing.T) {
	w, h, thief := newWorld(t), newHost(t, 1), newHost(t, 2)
	w.good(h)
	w.unchanged(h, func() {
		// The name, with another TPM.
		asHost := *thief
		asHost.name = h.name
		_, err := w.Enrol(t.Context(), thief.spki, w.begin(&asHost))
		refused(t, err, proof.Forbidden, "name")
		// The TPM, under another name and another key.
		renamed := *h
		renamed.name, renamed.spki = "other", proof.Digest{3}
		_, err = w.Enrol(t.Context(), renamed.spki, w.begin(&renamed))
		refused(t, err, proof.Forbidden, "ek")
		// The TPM's public certificates behind an EK of one's own: what is not proven is nobody's.
		mixed := w.begin(&asHost)
		mixed.EKs = append(slices.Clone(mixed.EKs[:1]), h.listed()...)
		_, err = w.Enrol(t.Context(), thief.spki, mixed)
		refused(t, err, proof.Forbidden, "name")
		// Steps out of order: no enrolment, a wrong secret, another's key.
		_, err = w.Activate(t.Context(), thief.spki, "0123456789abcdef0123456789abcdef", make([]byte, 32))
		refused(t, err, proof.Forbidden, "id")
		_, err = w.Approve(t.Context(), thief.name, nil, nil, "operator")
		refused(t, err, proof.RequestInvalid, "host")
	})
	c := must[*Credential](t)(w.Enrol(t.Context(), thief.spki, w.begin(thief)))
	secret := thief.activate(t, c.Blob, c.Encrypted)
	w.unchanged(h, func() {
		_, err := w.Activate(t.Context(), thief.spki, c.ID, append(bytes.Clone(secret[:31]), secret[31]^1))
		refused(t, err, proof.EvidenceInvalid, "secret")
		_, err = w.Activate(t.Context(), thief.spki, c.ID, secret[:16]) // CVE-2023-38201: nothing less than the secret
		refused(t, err, proof.EvidenceInvalid, "secret")
		_, err = w.Activate(t.Context(), h.spki, c.ID, secret)
		refused(t, err, proof.Forbidden, "id")
	})
	// 16 at once: one host, one state.
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			if s, err := w.Activate(t.Context(), thief.spki, c.ID, secret); err != nil || s != Pending {
				t.Errorf("%v %v", s, err)
			}
		})
	}
	wg.Wait()
	if n := len(w.Hosts()); n != 2 {
		t.Fatalf("%d hosts", n)
	}
	// A name that another TPM took meanwhile is not approved in place of the one that was read.
	_, err := w.Approve(t.Context(), thief.name, nil, &w.hostByName(h.name).EK, "operator")
	refused(t, err, proof.HostNotApproved, "ek digest")
	if s := w.hostByName(thief.name).State; s != Pending {
		t.Fatalf("approved with another EK: %s", s)
	}
	// A pending host attests to nothing; enrolled anew, an approved one stays approved, and a revoked one stays revoked.
	_, err = w.attest(thief)
	refused(t, err, proof.HostNotApproved, "state")
	w.enrol(h)
	if s := w.hostByName(h.name).State; s != Approved {
		t.Fatalf("after enrolling again: %s", s)
	}
	must[*Host](t)(w.Revoke(t.Context(), h.name, "operator"))
	_, err = w.Enrol(t.Context(), h.spki, w.begin(h))
	refused(t, err, proof.HostNotApproved, "state")
	_, err = w.attest(h)
	refused(t, err, proof.HostNotApproved, "state")
	// A pending host that is revoked is forgotten, with its claims.
	must[*Host](t)(w.Revoke(t.Context(), thief.name, "operator"))
	w.enrol(thief)
	w.approve(h)
	w.mustAttest(h)
	t.Run("unproven EK", attackUnprovenEK)
}

// attackUnprovenEK shows another TPM's public certificates behind the EK that is proven: they give nothing, and take nothing.
func attackUnprovenEK(t *testing.T) {
	w, h, thief := newWorld(t), newHost(t, 1), newHost(t, 2)
	own := must[*tpm.EK](t)(tpm.ParseEK(thief.listed()[0].Public)).Digest()
	mix := func() {
		t.Helper()
		e := w.begin(thief)
		e.EKs = append(slices.Clone(e.EKs[:1]), h.listed()...)
		c := must[*Credential](t)(w.Enrol(t.Context(), thief.spki, e))
		must[State](t)(w.Activate(t.Context(), thief.spki, c.ID, thief.activate(t, c.Blob, c.Encrypted)))
		if got := w.hostByName(thief.name); got.EK != own || got.EKs != nil {
			t.Fatalf("recorded: %s %v", got.EK, got.EKs)
		}
	}
	mix() // before the TPM's own host comes: it does not lock that out
	w.good(h)
	w.unchanged(h, mix) // and after it
	e := w.begin(thief)
	e.EKs = h.listed() // to put it first is to have to prove it
	_, err := w.Enrol(t.Context(), thief.spki, e)
	refused(t, err, proof.Forbidden, "")
	// A TPM that proves another of its EKs is another TPM, whatever it lists behind.
	e = w.begin(h)
	if slices.Reverse(e.EKs); len(e.EKs) > 1 {
		_, err = w.Enrol(t.Context(), h.spki, e)
		refused(t, err, proof.Forbidden, "name")
	}
	w.mustAttest(h)
}

// TestClassOfProvenEK: the root of the EK that is proven says what the TPM is, whatever else is shown.
func TestClassOfProvenEK(t *testing.T) {
	w, maker := newWorld(t), newAuthority(t, "maker of chips")
	w.cfg.Roots = tpm.Roots{Software: []*x509.Certificate{softCA(t).cert}, Hardware: []*x509.Certificate{maker.cert}}
	soft, hard := newSoft(t), newSoft(t)
	hard.eks[0].Certificate = maker.ekCertificate(t, must[*ecdsa.PublicKey](t)(ecdsa.ParseUncompressedPublicKey(elliptic.P256(), hard.ek.PublicKey().Bytes())))
	for class, pair := range map[tpm.Class][2]*softTPM{tpm.Software: {soft, hard}, tpm.Hardware: {hard, soft}} {
		h := &host{pair[0], "of-" + string(class), proof.Hash(proof.LabelEnrol, []byte(class))}
		e := w.begin(h)
		e.EKs = []EK{pair[0].eks[0], pair[1].eks[0]}
		c := must[*Credential](t)(w.Enrol(t.Context(), h.spki, e))
		must[State](t)(w.Activate(t.Context(), h.spki, c.ID, h.activate(t, c.Blob, c.Encrypted)))
		if got := w.hostByName(h.name).Class; got != class {
			t.Errorf("%s is taken for %s", class, got)
		}
	}
}

// TestOlderHost: a record of an older version keeps its proven EK, stays approved when the host enrols again, and gives up
// the EKs that it only listed.
func TestOlderHost(t *testing.T) {
	w, h, other := newWorld(t), newHost(t, 1), newHost(t, 2)
	w.good(h)
	theirs := must[*tpm.EK](t)(tpm.ParseEK(other.listed()[0].Public)).Digest()
	old := *w.hostByName(h.name)
	own := old.EK
	old.EK, old.EKs = proof.Digest{}, []proof.Digest{own, theirs}
	check(t, w.store.Apply(t.Context(), store.Write{Kind: kindHost, Name: h.name, Rev: old.rev, Body: encode(old),
		Claims: append(old.claims(), "ek:"+own.String(), "ek:"+proof.Digest(theirs).String())}))
	check(t, w.flush(t.Context()))
	rev := must[store.Doc](t)(w.store.Get(t.Context(), kindHost, h.name)).Rev
	for range 2 { // the second start finds nothing to do
		w.open()
		if got := must[*Host](t)(w.Host(h.name)); got.EK != own || got.EKs != nil || got.State != Approved || got.rev != rev+1 {
			t.Fatalf("%+v", got)
		}
	}
	w.enrol(h)
	if s := w.hostByName(h.name).State; s != Approved {
		t.Fatalf("after enrolling again: %s", s)
	}
	w.enrol(other)
	w.mustAttest(h)
}

func attackSelect(t *testing.T) {
	w, h := newWorld(t), newHost(t, 1)
	w.good(h)
	for _, index := range [][]int{{16, 18, 19}, {18, 19, 23}, {17, 18}, {17, 18, 19, 23}, {17, 18, 19, 20}, {23}} {
		c := w.Challenge(h.spki)
		e := w.evidence(h, c)
		q := h.quote(t, selectPCRs(t, index...), proof.AttestExtraData(c.Bytes, h.spki))
		e.Quote = proof.QuoteDoc{Message: q.Message, Signature: q.Signature}
		_, err := w.Attest(t.Context(), h.spki, e)
		refused(t, err, proof.EvidenceInvalid, "selection")
	}
	w.mustAttest(h)
}

func attackNoDRTM(t *testing.T) {
	w, h := newWorld(t), newHost(t, 1)
	w.good(h)
	for name, spoil := range map[string]func(testing.TB){"never launched": h.reset, "hash sequence alone": h.hashOnly} {
		h.boot(t, example())
		good := w.mustAttest(h)
		spoil(t)
		for range 2 { // attesting again heals nothing
			_, err := w.attest(h)
			r := refused(t, err, proof.NoDynamicLaunch, "")
			if len(r.Facts) == 0 || r.Facts[0].Name[:4] != "PCR " {
				t.Fatalf("%s: %v", name, r)
			}
		}
		// The verdict from before the fall, though it has not expired, releases nothing any more.
		_, err := w.releaseTo(h, w.newAsk(h, good, nil), nil)
		if r := refused(t, err, good.code(h, w), ""); r.Code == proof.VerdictContraindicated && r.Also[0] != proof.NoDynamicLaunch {
			t.Fatalf("%s: %v", name, r)
		}
		view := w.View(w.hostByName(h.name))
		if view.Standing != Untrusted || view.Reasons[0].Code != proof.NoDynamicLaunch {
			t.Fatalf("%s: %+v", name, view)
		}
		// No import makes such a state good.
		_, err = w.Import(t.Context(), ImportRequest{Host: h.name, Name: "bad", Launcher: TbootLegacy, Apply: true})
		refused(t, err, proof.NoDynamicLaunch, "")
	}
	values := []proof.PCR{{Index: 17, Value: ones}, {Index: 18, Value: ones}, {Index: 19, Value: ones}}
	refused(t, w.PutReference(t.Context(), &Reference{Name: "ones", Launcher: TbootLegacy, Values: values}, "operator"), proof.NoDynamicLaunch, "values")
	// A restart of the verifier does not bring the good verdict back.
	h.boot(t, example())
	good := w.mustAttest(h)
	h.hashOnly(t)
	_, err := w.attest(h)
	refused(t, err, proof.NoDynamicLaunch, "")
	check(t, w.flush(t.Context()))
	w.open()
	_, err = w.releaseTo(h, w.newAsk(h, good, nil), nil)
	refused(t, err, proof.VerdictStale, "verdict")
	h.boot(t, example())
	w.mustAttest(h)
}

// code is what a release under an old verdict is refused with: the counters moved, or only the standing did.
func (a *Attestation) code(h *host, w *world) proof.Code {
	s := w.standing[a.Verdict.Host]
	switch {
	case s.Counters.Reset != a.Verdict.Counters.Reset:
		return proof.HostRebooted
	case s.Counters.Restart != a.Verdict.Counters.Restart:
		return proof.HostRelaunched
	}
	return proof.VerdictContraindicated
}

func attackRelaunch(t *testing.T) {
	w, h := newWorld(t), newHost(t, 1)
	before := w.good(h)
	// The identical launch: every PCR is the same, the counter is not.
	h.boot(t, example())
	after := w.mustAttest(h)
	if before.Verdict.PCRDigest != after.Verdict.PCRDigest || after.Verdict.Counters.Restart != before.Verdict.Counters.Restart+1 {
		t.Fatalf("%+v %+v", before.Verdict, after.Verdict)
	}
	policy := func(v *proof.Verdict) [32]byte { return tpm.ReleasePolicy(v.Selection, v.PCRDigest, v.Counters) }
	if policy(before.Verdict) == policy(after.Verdict) {
		t.Fatal("the release key is sealed to both launches")
	}
	_, err := w.releaseTo(h, w.newAsk(h, before, nil), nil)
	refused(t, err, proof.HostRelaunched, "restart count")
	// Another kernel: PCR 18 differs; the verdict says so and no key is sealed.
	s := example()
	s.Kernel = []byte("evil kernel")
	h.boot(t, s)
	a := must[*Attestation](t)(w.attest(h))
	if a.Verdict.Status != proof.Contraindicated || a.Release != nil || a.Verdict.Release != nil || !slices.Equal(a.Verdict.Failed, []string{"pcr-mismatch"}) {
		t.Fatalf("%+v", a.Verdict)
	}
	refused(t, a.Report.Refusal, proof.PCRMismatch, "PCR 18 event 2 TBOOT_MODULE")
	_, err = w.releaseTo(h, w.newAsk(h, a, nil), nil)
	refused(t, err, proof.VerdictContraindicated, "failed")
	h.boot(t, example())
	must[*Release](t)(w.releaseTo(h, w.newAsk(h, w.mustAttest(h), nil), nil))
}

func attackReset(t *testing.T) {
	w, h := newWorld(t), newHost(t, 1)
	before := w.good(h)
	h.reset(t)
	h.boot(t, example())
	after := w.mustAttest(h)
	if after.Verdict.Counters.Reset <= before.Verdict.Counters.Reset {
		t.Fatalf("%+v", after.Verdict.Counters)
	}
	_, err := w.releaseTo(h, w.newAsk(h, before, nil), nil)
	refused(t, err, proof.HostRebooted, "reset count")
	must[*Release](t)(w.releaseTo(h, w.newAsk(h, after, nil), nil))
}

func attackLog(t *testing.T) {
	w, h := newWorld(t), newHost(t, 1)
	w.good(h)
	s := example()
	s.Initrd = []byte("what the log says was booted")
	lie := must[[]byte](t)(s.Log())
	e := w.evidence(h, w.Challenge(h.spki))
	for _, data := range [][]byte{lie, e.Logs[0].Data[:40], append(bytes.Clone(e.Logs[0].Data), 0), {}} {
		c := w.Challenge(h.spki)
		bad := w.evidence(h, c)
		bad.Logs[0].Data = data
		_, err := w.Attest(t.Context(), h.spki, bad)
		refused(t, err, proof.EvidenceInvalid, "")
	}
	w.mustAttest(h)
}
