package launcher

import (
	"bytes"
	"context"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"troth/launcher/domain"
	"troth/proof"
)

// mute is a verifier that answers no report.
type mute struct {
	Verifier
	calls        atomic.Int32
	come, answer chan struct{}
}

func (m *mute) Report(context.Context, ChainEvent) error {
	m.calls.Add(1)
	m.come <- struct{}{}
	<-m.answer
	return proof.Refuse(proof.VerifierUnreachable, "no verifier answers")
}

func TestAttack(t *testing.T) {
	ctx := context.Background()
	t.Run("R-POWER", crashAll)
	t.Run("L-TOCTOU-XML/race", raceAll)
	t.Run("L-NVRAM", attackVariableStore)
	t.Run("L-CPU", attackFeatures)
	t.Run("L-STEAL", func(t *testing.T) {
		// Another client starts our definition between define and create: its start carries no launch id, so the hook denies it, and our own
		// create finds the domain running or not ours.
		w := newWorld(t)
		token := w.token()
		w.strikeAt("create", func() {
			if err := w.CreatePaused(ctx, w.inactive[guestUUID]); err == nil {
				t.Error("a start without launch id was allowed")
			}
		})
		if _, refusal := w.launch(token); refusal != nil {
			t.Fatal(refusal)
		}
		w.running(token)

		// Another client resumes the paused guest before its proof: no MAC is made for what changed, and a guest that runs early is the same guest.
		w = newWorld(t)
		token = w.token()
		w.strikeAt("process", func() {
			w.mu.Lock()
			w.live[guestUUID] = bytes.ReplaceAll(w.live[guestUUID], []byte("/images/initrd"), []byte("/images/evil"))
			w.mu.Unlock()
		})
		_, refusal := w.launch(token)
		expect(t, refusal, proof.ConfigurationChanged)
		w.gone(nil)
	})
	t.Run("L-STEAL/replayed id", func(t *testing.T) {
		w := newWorld(t)
		if _, refusal := w.launch(w.token()); refusal != nil {
			t.Fatal(refusal)
		}
		live := w.live[guestUUID]
		if err := w.Destroy(ctx, domain.UUID{}); err != nil {
			t.Fatal(err)
		}
		delete(w.live, guestUUID)
		if err := w.CreatePaused(ctx, live); err == nil {
			t.Error("a launch id was good twice")
		}
	})
	t.Run("L-TOCTOU-XML", func(t *testing.T) {
		w := newWorld(t)
		w.rewrite = func(xml []byte) []byte { return bytes.ReplaceAll(xml, []byte("console=ttyS0"), []byte("init=/bin/sh")) }
		_, refusal := w.launch(w.token())
		expect(t, refusal, proof.ConfigurationChanged)
		w.rewrite = nil
		w.gone(nil)
	})
	t.Run("L-TOCTOU-DISK", func(t *testing.T) {
		for _, at := range []string{"release", "journal granted", "define", "create"} {
			w := newWorld(t)
			w.strikeAt(at, func() {
				w.mu.Lock()
				w.files["/images/vmlinuz"], w.changed["/images/vmlinuz"] = []byte("evil"), true
				w.mu.Unlock()
			})
			_, refusal := w.launch(w.token())
			expect(t, refusal, proof.ImageChanged)
			w.gone(nil)
		}
		testSwapAtEveryStep(t)
		testHeaderOfSecondLink(t)
	})
	t.Run("L-BACKING", testBackingFiles)
	t.Run("L-VOLUME", testVolumeOfAnother)
	t.Run("L-QMP", testReachedWhilePaused)
	t.Run("L-RECONCILE", testTwinOfAnotherUser)
	t.Run("L-HOOKGONE", func(t *testing.T) {
		w := newWorld(t)
		w.noHook = true
		_, refusal := w.launch(w.token())
		expect(t, refusal, proof.HookNotLive)
		w.gone(nil)
	})
	t.Run("S-PINS", func(t *testing.T) {
		w := newWorld(t)
		token := w.token()
		w.files["/images/initrd"] = []byte("the engine's own")
		_, refusal := w.launch(token)
		expect(t, refusal, proof.TokenConstraint)
		w.gone(nil)
	})
	t.Run("S-REUSE", func(t *testing.T) {
		w := newWorld(t)
		token := w.token()
		if _, refusal := w.launch(token); refusal != nil {
			t.Fatal(refusal)
		}
		second := bytes.ReplaceAll(guestXML(t), []byte(guestUUID), []byte("11111111-4c55-4a53-9d5c-0d8b6f1f2a11"))
		second = bytes.ReplaceAll(second, []byte("<name>g1<"), []byte("<name>g2<"))
		_, refusal := w.l.Launch(ctx, Request{ID: "second", Token: token, Domain: second, Action: proof.ActionStart}, quiet{})
		expect(t, refusal, proof.TokenUsed)
		w.running(token)
	})
	t.Run("S-RECEIPT", func(t *testing.T) {
		for name, change := range map[string]struct {
			do   func(r *proof.Receipt)
			code proof.Code
		}{
			"token":     {func(r *proof.Receipt) { r.Token[0] ^= 1 }, proof.TokenInvalid},
			"statement": {func(r *proof.Receipt) { r.Statement[0] ^= 1 }, proof.EvidenceInvalid},
			"verdict":   {func(r *proof.Receipt) { r.Verdict[0] ^= 1 }, proof.EvidenceInvalid},
			"attempt":   {func(r *proof.Receipt) { r.Attempt++ }, proof.TokenUsed},
		} {
			w := newWorld(t)
			w.receipt = change.do
			_, refusal := w.launch(w.token())
			if refusal == nil || refusal.Code != change.code {
				t.Errorf("%s: %v", name, refusal)
			}
			w.gone(nil)
		}
	})
	t.Run("S-ORACLE", func(t *testing.T) {
		// What is MACed names what this daemon measured and read, whatever the caller says: a caller has no way to hand in a statement, a quote or
		// a proof, and a launch that ends refused leaves no MAC anywhere.
		w := newWorld(t)
		w.process = func(p *Process) { p.Exe = "/tmp/qemu-evil" }
		_, refusal := w.launch(w.token())
		expect(t, refusal, proof.ConfigurationChanged)
		for _, e := range w.entries {
			if strings.Contains(string(e), `"mac"`) || strings.Contains(string(e), `"what":"proved"`) {
				t.Error("a refused launch left a proof in the journal")
			}
		}
		w.gone(nil)
	})
	t.Run("R-VERDOWN", func(t *testing.T) {
		w := newWorld(t)
		token := w.token()
		w.heldBack = proof.Refuse(proof.VerifierUnreachable, "no verifier answers")
		_, refusal := w.launch(token)
		expect(t, refusal, proof.VerifierUnreachable)
		w.gone(nil)
		w.heldBack = nil
		if _, refusal := w.launch(token); refusal != nil {
			t.Fatal(refusal)
		}
		w.running(token)
	})
	t.Run("R-VERDOWN/late", func(t *testing.T) {
		// The verifier takes a release up after hostd gave it up, and after its abort, which then meant nothing to it: the token is not lost to that.
		w := newWorld(t)
		token := w.token()
		w.late = true
		_, refusal := w.launch(token)
		expect(t, refusal, proof.VerifierUnreachable)
		if n := w.count["report aborted"]; n != 0 {
			t.Errorf("the refusal waited for %d more calls of a verifier that does not answer", n)
		}
		if err := w.l.Tell(ctx); err != nil {
			t.Fatal(err)
		}
		w.late = false
		if w.arrives == nil {
			t.Fatal("the release was not held back")
		}
		if err := w.arrives(); err != nil {
			t.Fatal(err)
		}
		if _, refusal := w.launch(token); refusal != nil {
			t.Fatal(refusal)
		}
		w.running(token)
	})
	t.Run("R-VERDOWN/one wait for all", func(t *testing.T) {
		// Reports that wait for their turn while the verifier does not answer one do not each wait as long again.
		w := newWorld(t)
		owed := ChainEvent{Token: proof.Digest{1}, Event: EventClosed, Attempt: 1}
		if err := w.l.owe(owed); err != nil {
			t.Fatal(err)
		}
		v := &mute{come: make(chan struct{}), answer: make(chan struct{})}
		w.l.Verifier = v
		var all sync.WaitGroup
		told := func() {
			if err := w.l.Tell(ctx); err == nil {
				t.Error("told")
			}
		}
		all.Go(told)
		<-v.come
		const many = 16
		came := make(chan struct{}, many)
		for range many {
			all.Go(func() { came <- struct{}{}; told() })
		}
		for range many {
			<-came
		}
		ended := make(chan struct{})
		go func() { all.Wait(); close(ended) }()
		v.answer <- struct{}{}
		for open := true; open; {
			select {
			case <-v.come:
				v.answer <- struct{}{}
			case <-ended:
				open = false
			}
		}
		if n := v.calls.Load(); n > 4 { // a straggler may have come later
			t.Errorf("%d reports to a verifier that does not answer", n)
		}
	})
	t.Run("R-PANIC", func(t *testing.T) {
		w := newWorld(t)
		token := w.token()
		w.strikeAt("process", func() { panic("in the middle of a launch") })
		_, refusal := w.launch(token)
		expect(t, refusal, proof.Internal)
		w.gone(nil)
		if _, refusal := w.launch(token); refusal != nil {
			t.Fatal(refusal)
		}
		w.running(token)
	})
	t.Run("R-PANIC/beside a hook", func(t *testing.T) {
		// Another client's start turns out to be of another emulator, and ending it panics: hostd lives, there is no proof, and recovery ends the guest.
		w := newWorld(t)
		token := w.token()
		if _, refusal := w.l.Arm(ctx, Request{ID: "arm", Token: token, Domain: guestXML(t), Action: proof.ActionStart, Arm: true}, quiet{}); refusal != nil {
			t.Fatal(refusal)
		}
		w.process = func(p *Process) { p.Exe = "/tmp/evil" }
		w.strikeAt("destroy", func() { panic("while it is ended") })
		if err := w.startOther(guestUUID); err != nil {
			t.Fatal(err)
		}
		if d := w.l.Book.Domain(guestUUID); d.State == StateProved || d.Proof != nil {
			t.Fatalf("%+v", d)
		}
		if err := w.l.Recover(ctx); err != nil {
			t.Fatal(err)
		}
		if w.live[guestUUID] != nil {
			t.Fatal("the guest runs on")
		}
		w.process = nil
		if err := w.startOther(guestUUID); err != nil {
			t.Fatal(err)
		}
		w.running(token)
	})
	t.Run("A-CLOCK", func(t *testing.T) {
		// Only time since boot counts: an old verdict is stale, and heals by attesting.
		w := newWorld(t)
		token := w.token()
		w.boot += time.Hour
		w.renewed = func(*world) error { return proof.Refuse(proof.VerifierUnreachable, "held back") }
		_, refusal := w.launch(token)
		expect(t, refusal, proof.VerifierUnreachable)
		if len(refusal.Also) == 0 || refusal.Also[0] != proof.VerdictStale {
			t.Errorf("also %v", refusal.Also)
		}
		w.gone(nil)
		w.renewed = nil
		if _, refusal := w.launch(token); refusal != nil {
			t.Fatal(refusal)
		}
		w.running(token)
	})
}
