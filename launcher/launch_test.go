package launcher

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"troth/launcher/domain"
	"troth/proof"
)

func TestLaunch(t *testing.T) {
	w := newWorld(t)
	token := w.token()
	out, refusal := w.launch(token)
	if refusal != nil {
		t.Fatal(refusal)
	}
	if len(out.Proof) == 0 || out.UUID != guestUUID {
		t.Fatalf("outcome %+v", out)
	}
	w.running(token)
	if w.unseals != 1 || w.quotes != 1 {
		t.Errorf("%d unseals and %d quotes for one launch", w.unseals, w.quotes)
	}
	if c := w.chains[proof.TokenDigest(token)]; c.state != "open" {
		t.Errorf("the chain is %s", c.state)
	}
	// What is defined carries no launch id; what runs does.
	inactive, err := domain.Read(w.inactive[guestUUID], domain.Inactive)
	if err != nil {
		t.Fatal(err)
	}
	live, err := domain.Read(w.live[guestUUID], domain.Live)
	if err != nil {
		t.Fatal(err)
	}
	if inactive.Added.LaunchID != [32]byte{} || live.Added.LaunchID == [32]byte{} || !inactive.Mark {
		t.Errorf("launch ids: inactive %x, live %x", inactive.Added.LaunchID, live.Added.LaunchID)
	}

	// Stopped, it starts again with the same token, as the next link.
	if refusal := w.l.Stop(context.Background(), guestUUID); refusal != nil {
		t.Fatal(refusal)
	}
	if w.live[guestUUID] != nil || w.chains[proof.TokenDigest(token)].state != "closed" {
		t.Fatal("stop left the guest or the chain open")
	}
	if _, refusal := w.launch(token); refusal != nil {
		t.Fatal(refusal)
	}
	w.running(token)
	if n := w.chains[proof.TokenDigest(token)].number; n != 2 {
		t.Errorf("link number %d", n)
	}
	// And is forgotten.
	if refusal := w.l.Delete(context.Background(), guestUUID); refusal != nil {
		t.Fatal(refusal)
	}
	if w.live[guestUUID] != nil || w.inactive[guestUUID] != nil || w.l.Book.Domain(guestUUID) != nil {
		t.Error("delete left something")
	}
}

// TestFaults makes every call of a launch fail, before and after it took effect: either the guest runs and is proved, or nothing is left,
// and the next honest launch works.
func TestFaults(t *testing.T) {
	previous := func(w *world) []byte {
		c, err := domain.Read(guestXML(t), domain.Request)
		if err != nil {
			t.Fatal(err)
		}
		c.Boot.CommandLine = "the definition from before"
		return domain.Emit(c, domain.Additions{})
	}
	plain := newWorld(t)
	if _, refusal := plain.launch(plain.token()); refusal != nil {
		t.Fatal(refusal)
	}
	calls := plain.calls
	if len(calls) < 20 {
		t.Fatalf("only %d calls: %v", len(calls), calls)
	}
	for _, mode := range []struct {
		name              string
		after, dead, prev bool
	}{{"before", false, false, false}, {"after", true, false, false}, {"before, redefined", false, false, true}, {"after, redefined", true, false, true},
		{"killed before", false, true, false}, {"killed after", true, true, false}, {"killed after, redefined", true, true, true}} {
		for _, call := range calls {
			t.Run(mode.name+"/"+call, func(t *testing.T) {
				w := newWorld(t)
				var before []byte
				if mode.prev {
					before = previous(w)
					w.inactive[guestUUID] = before
				}
				token := w.token()
				w.failAt(call, mode.after, mode.dead)
				out, refusal := w.launch(token)
				if (out == nil) == (refusal == nil) {
					t.Fatal("neither done nor refused")
				}
				w.heal()
				if mode.dead {
					// What the killed daemon thought does not count: only the journal and the world are left.
					w.opened = 0
					w.restart()
				}
				if err := w.l.Recover(context.Background()); err != nil {
					t.Fatal(err)
				}
				if err := w.l.Tell(context.Background()); err != nil {
					t.Fatal(err)
				}
				if d := w.l.Book.Domain(guestUUID); d != nil && d.State == StateProved {
					w.running(token)
					return
				}
				if !mode.dead && refusal == nil {
					t.Fatal("done, and it does not run")
				}
				w.gone(before)
				if _, refusal := w.launch(token); refusal != nil {
					t.Fatalf("the next honest launch: %v", refusal)
				}
				w.running(token)
			})
		}
	}
}

// TestRecoverAgain kills the daemon in every call of its recovery too.
func TestRecoverAgain(t *testing.T) {
	for _, where := range []string{"create", "resume", "release"} {
		for n := range 12 {
			w := newWorld(t)
			token := w.token()
			w.failAt(where+"#0", true, true)
			if _, refusal := w.launch(token); refusal == nil {
				t.Fatal("a killed daemon finished a launch")
			}
			w.opened = 0
			w.restart()
			recovering := []string{"live#0", "resume#0", "destroy#0", "undefine#0", "remove secret#0", "remove secret#1", "journal event#0", "journal refused#0",
				"journal running#0", "report aborted#0", "report open#0", "journal told#0"}
			w.failAt(recovering[n], n%2 == 0, true)
			err := w.l.Recover(context.Background())
			w.restart()
			if err2 := w.l.Recover(context.Background()); err2 != nil {
				t.Fatalf("second recovery after %v: %v", err, err2)
			}
			if err := w.l.Tell(context.Background()); err != nil {
				t.Fatal(err)
			}
			if d := w.l.Book.Domain(guestUUID); d.State == StateProved {
				w.running(token)
				continue
			}
			w.gone(nil)
			if _, refusal := w.launch(token); refusal != nil {
				t.Fatalf("%s %d: %v", where, n, refusal)
			}
		}
	}
}

func expect(t *testing.T, refusal *proof.Refusal, code proof.Code) {
	t.Helper()
	if refusal == nil || refusal.Code != code {
		t.Fatalf("got %v, want %s", refusal, code)
	}
	if refusal.Sentence == "" || refusal.Remedy == "" {
		t.Errorf("a refusal without sentence or remedy: %+v", refusal)
	}
}

// strikeAt runs f when the launch makes the named call for the first time.
func (w *world) strikeAt(name string, f func()) {
	w.failAt(name+"#0", false, false)
	w.strike = f
}

func TestDryRunAsksNothing(t *testing.T) {
	w := newWorld(t)
	out, refusal := w.l.Launch(context.Background(), Request{ID: "dry", Token: w.token(), Domain: guestXML(t), Action: proof.ActionStart, DryRun: true}, quiet{})
	if refusal != nil {
		t.Fatal(refusal)
	}
	if out.Would == nil || out.Would.UUID != guestUUID || out.Proof != nil {
		t.Fatalf("outcome %+v", out)
	}
	for _, c := range w.calls {
		for _, no := range []string{"journal", "release", "unseal", "quote", "define", "create", "report", "put secret"} {
			if strings.HasPrefix(c, no) {
				t.Errorf("a dry run made the call %q", c)
			}
		}
	}
	w.tidy()
}

// TestBatch launches 32 domains at once on a chip that is busy until all have their release, and again until all want a quote: then one unseal serves all that
// wait, and few quotes serve all.
func TestBatch(t *testing.T) {
	defer func(was time.Duration) { linger = was }(linger)
	linger = 20 * time.Second // as for the deadlines below: what is known to come does come
	w := newWorld(t)
	const n = 32
	var wg sync.WaitGroup
	errs := make([]*proof.Refusal, n)
	tokens := make([]string, n)
	w.beforeUnseal = sync.OnceFunc(func() {
		for deadline := time.Now().Add(20 * time.Second); w.released.Load() < n && time.Now().Before(deadline); {
			runtime.Gosched()
		}
	})
	w.beforeQuote = sync.OnceFunc(func() {
		for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); runtime.Gosched() {
			w.l.quotes.mu.Lock()
			coming := w.l.quotes.coming
			w.l.quotes.mu.Unlock()
			if coming == 0 {
				return
			}
		}
	})
	for i := range n {
		tokens[i] = w.token(func(t *proof.Token) { t.ID = fmt.Sprintf("t%02d", i) })
	}
	for i := range n {
		wg.Go(func() {
			xml := bytes.ReplaceAll(guestXML(t), []byte(guestUUID), fmt.Appendf(nil, "%08x-4c55-4a53-9d5c-0d8b6f1f2a11", i+1))
			xml = bytes.ReplaceAll(xml, []byte("<name>g1<"), fmt.Appendf(nil, "<name>batch-%d<", i))
			_, errs[i] = w.l.Launch(context.Background(), Request{ID: fmt.Sprint("batch", i), Token: tokens[i], Domain: xml, Action: proof.ActionStart}, quiet{})
		})
	}
	wg.Wait()
	for i, r := range errs {
		if r != nil {
			t.Fatalf("launch %d: %v", i, r)
		}
	}
	if 3*w.unseals+w.quotes > 24 {
		t.Errorf("%d unseals (3 commands each) and %d quotes for %d launches", w.unseals, w.quotes, n)
	}
	w.tidy()
}

func TestOneLaunchOfADomainAtATime(t *testing.T) {
	w := newWorld(t)
	token := w.token()
	var second *proof.Refusal
	w.strikeAt("release", func() { _, second = w.launch(token) })
	if _, refusal := w.launch(token); refusal != nil {
		t.Fatal(refusal)
	}
	expect(t, second, proof.RequestInvalid)
	w.running(token)
}

func TestRunningDomainIsNotLaunchedAgain(t *testing.T) {
	w := newWorld(t)
	token := w.token()
	if _, refusal := w.launch(token); refusal != nil {
		t.Fatal(refusal)
	}
	_, refusal := w.launch(token)
	expect(t, refusal, proof.RequestInvalid)
	w.running(token)
}

func TestStray(t *testing.T) {
	w := newWorld(t)
	w.process = func(p *Process) { p.Exe = "/tmp/evil" }
	var came []byte
	w.strikeAt("process", func() { came = bytes.Clone(w.live[guestUUID]) })
	if _, refusal := w.launch(w.token()); refusal == nil {
		t.Fatal("permitted")
	}
	w.live[guestUUID] = came // libvirt's answer was late
	if ended, err := w.l.Stray(context.Background(), guestUUID); !ended || err != nil {
		t.Fatal(err)
	}
	w.gone(nil)
}

func TestRefusalOfErrors(t *testing.T) {
	if Refusal("x", nil) != nil {
		t.Error("a refusal of nothing")
	}
	if r := Refusal("define", errors.New("boom")); r.Code != proof.Internal || r.Facts[0].Value != "define" {
		t.Errorf("%+v", r)
	}
	if r := Refusal("x", fmt.Errorf("wrapped: %w", proof.Refuse(proof.TPMBusy, "busy"))); r.Code != proof.TPMBusy {
		t.Errorf("%+v", r)
	}
}
