package hostd

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"troth/hooks/ask"
	"troth/launcher"
	"troth/launcher/domain"
	"troth/proof"
)

func (m *libvirtFake) liveness() *Liveness {
	l, c := NewLiveness("/hooks/qemu", m, m.Session, slog.New(slog.DiscardHandler))
	l.inspect = m.inspect
	m.heard = c.Heard
	return l
}

// TestCanary: only a veto that we were asked for, and that libvirt heeded, counts; whatever happened, nothing of the canary stays.
func TestCanary(t *testing.T) {
	for _, c := range []struct {
		hook, why, fact string
		undecided       bool
		prepare         func(m *libvirtFake)
	}{
		{hook: realHook},
		{hook: realHook, prepare: func(m *libvirtFake) { m.kinds = []string{"kvm"} }},
		{hook: noHook, why: "libvirt started a domain", fact: "hook asked: false"},
		{hook: permits, why: "libvirt started a domain", fact: "hook asked: false"},
		{hook: swallows, why: "libvirt started a domain", fact: "hook asked: true"},
		{hook: realHook, why: "libvirt started a domain", prepare: func(m *libvirtFake) { m.known = false }},
		{hook: forges, why: "nobody asked us"},
		{hook: refuses, why: "something else than troth-hook"},
		{hook: lostSocket, why: "does not reach troth-hostd"},
		{hook: otherReason, why: "another reason", fact: "got forbidden"},
		{hook: realHook, why: "could not be tried", undecided: true, prepare: func(m *libvirtFake) { m.away = true }},
		{hook: realHook, why: "could not be tried", undecided: true, prepare: func(m *libvirtFake) { m.kinds = []string{"xen"} }},
	} {
		m := newMachine()
		m.hook = c.hook
		if c.prepare != nil {
			c.prepare(m)
		}
		canary := &Canary{Virt: m}
		m.heard = canary.Heard
		err := canary.Run(t.Context())
		var n *NotLive
		switch {
		case c.why == "" && err != nil:
			t.Errorf("%s: %v", c.hook, err)
		case c.why != "" && (!errors.As(err, &n) || !strings.Contains(err.Error(), c.why) || !strings.Contains(err.Error(), c.fact) || n.Undecided != c.undecided || n.Remedy == ""):
			t.Errorf("%s: %v, want %q", c.hook, err, c.why)
		}
		if len(m.running) > 0 {
			t.Errorf("%s: a canary stays", c.hook)
		}
	}
}

func TestCanaryHearsItsOwn(t *testing.T) {
	c := &Canary{}
	c.Heard(ask.Question{Op: ask.OpPrepare}, false) // nothing is under way, and no UUID is zero's
	uuid, id := c.announce()
	for _, q := range []ask.Question{
		{Op: ask.OpPrepare, UUID: uuid}, {Op: ask.OpPrepare, LaunchID: id}, {Op: ask.OpStopped, UUID: uuid, LaunchID: id},
	} {
		c.Heard(q, false)
	}
	c.Heard(ask.Question{Op: ask.OpPrepare, UUID: uuid, LaunchID: id}, true)
	if c.taken() {
		t.Error("another question was taken for the canary's")
	}
	uuid, id = c.announce()
	c.Heard(ask.Question{Op: ask.OpPrepare, UUID: uuid, LaunchID: id}, false)
	if !c.taken() || c.taken() && !c.uuid.IsZero() {
		t.Error("the canary's own question was not heard")
	}
}

func TestCanaryLeftBehind(t *testing.T) {
	m := newMachine()
	m.hook, m.stuck = permits, true
	c := &Canary{Virt: m}
	m.heard = c.Heard
	if err := c.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "cannot destroy it yet") || len(m.running) != 1 {
		t.Fatalf("%v, %d run", err, len(m.running))
	}
	m.stuck = false
	if err := c.Sweep(t.Context()); err != nil || len(m.running) != 0 {
		t.Errorf("%v, %d run", err, len(m.running))
	}
	for what, stranger := range map[string]string{"unmarked": "<name>troth-hook-canary</name>", "defined": "<name>troth-hook-canary</name> urn:troth:launch:v1"} {
		m.running[domain.UUID{1}] = []byte(stranger)
		m.defined[domain.UUID{1}] = what == "defined"
		if err := c.Sweep(t.Context()); err == nil || len(m.running) != 1 {
			t.Errorf("%s: %v, %d run", what, err, len(m.running))
		}
	}
}

// at work runs f beside a worker whose time is synctest's.
func atWork(t *testing.T, m *libvirtFake, f func(l *Liveness)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		l := m.liveness()
		if err := l.Ready(); err == nil || !strings.Contains(err.Error(), "not been tried yet") {
			t.Errorf("before anything: %v", err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); l.work(ctx) }()
		synctest.Wait()
		f(l)
		cancel()
		<-done
	})
}

func expect(t *testing.T, l *Liveness, why string) {
	t.Helper()
	err := l.Ready()
	if why == "" && err != nil || why != "" && (err == nil || !strings.Contains(err.Error(), why)) {
		t.Errorf("ready: %v, want %q", err, why)
	}
}

// TestLivenessHeals: each change is met at once by whoever asks, and when its cause is gone the hook is live again by itself.
func TestLivenessHeals(t *testing.T) {
	for _, c := range []struct {
		name   string
		spoil  func(m *libvirtFake, l *Liveness)
		atOnce string // what Ready says before the worker had a turn
		after  string // what it says while the cause lasts; empty: it is live again
		mend   func(m *libvirtFake)
		within time.Duration
	}{
		{name: "deleted", spoil: func(m *libvirtFake, _ *Liveness) { m.install(noHook) }, atOnce: "not there", after: "not there",
			mend: func(m *libvirtFake) { m.install(realHook) }, within: lookEvery + time.Second},
		{name: "replaced", spoil: func(m *libvirtFake, _ *Liveness) { m.install(permits) }, atOnce: "content of the hook", after: "libvirt started a domain",
			mend: func(m *libvirtFake) { m.install(realHook) }, within: lookEvery + time.Second},
		{name: "another build", spoil: func(m *libvirtFake, _ *Liveness) { m.set(func() { m.changes++ }) }, atOnce: "folder of the hook"},
		{name: "late", spoil: func(m *libvirtFake, _ *Liveness) { m.install(noHook); m.restart(); m.install(realHook) }, atOnce: "folder of the hook", after: "libvirt started a domain",
			mend: func(m *libvirtFake) { m.set(func() { m.known = true }) }, within: 2 * maxPause},
		{name: "entry", spoil: func(m *libvirtFake, _ *Liveness) { m.set(func() { m.entries = []HookEntry{{Name: "50-site"}} }) }, atOnce: `got "50-site"`},
		{name: "libvirtd restarted", spoil: func(m *libvirtFake, _ *Liveness) { m.restart() }, atOnce: "connected anew"},
		{name: "libvirtd away", spoil: func(m *libvirtFake, _ *Liveness) { m.set(func() { m.away = true }) }, atOnce: "not connected", after: "could not be tried",
			mend: func(m *libvirtFake) { m.set(func() { m.away = false; m.session++ }) }, within: lookEvery + time.Second},
		{name: "missed", spoil: func(_ *libvirtFake, l *Liveness) { l.Missed() }, atOnce: "without asking the hook"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := newMachine()
			atWork(t, m, func(l *Liveness) {
				expect(t, l, "")
				time.Sleep(time.Minute + time.Second) // between two looks
				c.spoil(m, l)
				expect(t, l, c.atOnce)
				time.Sleep(lookEvery + time.Second) // of synctest's time: until the worker has looked
				expect(t, l, c.after)
				if c.mend == nil {
					return
				}
				time.Sleep(10 * time.Minute)
				expect(t, l, c.after)
				c.mend(m)
				time.Sleep(c.within)
				expect(t, l, "")
			})
		})
	}
}

// TestCanariesAreFew: while nothing changes there is one each proveEvery; while a cause lasts they come at most each half of maxPause.
func TestCanariesAreFew(t *testing.T) {
	m := newMachine()
	atWork(t, m, func(l *Liveness) {
		time.Sleep(time.Hour)
		if n := m.flown() - 1; n < 4 || n > 5 { // the first of all was of a kind that this libvirt does not know
			t.Errorf("%d canaries in an hour", n)
		}
		expect(t, l, "")
		before := m.flown()
		m.install(permits)
		time.Sleep(10 * time.Minute)
		if n := m.flown() - before; n > int(10*time.Minute/(maxPause/2))+10 || n < 20 {
			t.Errorf("%d canaries in ten minutes", n)
		}
		// Whoever changes the hook again and again makes us look, not fly.
		before = m.flown()
		for range 1000 {
			m.set(func() { m.changes++ })
			l.Look()
			time.Sleep(10 * time.Millisecond)
		}
		if n := m.flown() - before; n > 110 {
			t.Errorf("%d canaries in ten seconds of changes", n)
		}
	})
}

// TestChangedMeanwhile: a canary that was vetoed while things changed speaks of neither state.
func TestChangedMeanwhile(t *testing.T) {
	for name, change := range map[string]func(m *libvirtFake, l *Liveness){
		"hook":    func(m *libvirtFake, _ *Liveness) { m.set(func() { m.changes++ }) },
		"libvirt": func(m *libvirtFake, _ *Liveness) { m.restart() },
		"missed":  func(_ *libvirtFake, l *Liveness) { l.Missed() },
	} {
		m := newMachine()
		var l *Liveness
		m.during = func() { change(m, l) }
		l = m.liveness()
		l.round(t.Context())
		if l.Ready() == nil || l.proven != nil {
			t.Errorf("%s: live by a canary of before", name)
		}
		m.during = nil
		l.next = time.Time{}
		l.round(t.Context())
		if err := l.Ready(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestCanaryHangs: a libvirt that does not answer is no veto, and holds nothing up for ever.
func TestCanaryHangs(t *testing.T) {
	m := newMachine()
	m.slow = time.Hour
	atWork(t, m, func(l *Liveness) {
		time.Sleep(2 * canaryTime)
		expect(t, l, "could not be tried")
		m.set(func() { m.slow = 0 })
		time.Sleep(canaryTime + 2*maxPause)
		expect(t, l, "")
	})
}

// TestHookCondition: engines and people see why, and what to do.
func TestHookCondition(t *testing.T) {
	m := newMachine()
	l := m.liveness()
	h := socket(t)
	h.Live = l
	h.serving.Store(true)
	s := &Status{Hook: h, Liveness: l}
	if c := s.hook(); c.State != Unknown || c.Code != "hook-not-live" || c.Remedy == "" {
		t.Errorf("before the first canary: %+v", c)
	}
	m.hook = permits
	l.round(t.Context())
	if c := s.hook(); c.State != Failed || c.Code != "hook-not-live" || !strings.Contains(c.Evidence, "hook asked: false") || !strings.Contains(c.Remedy, "SIGHUP") {
		t.Errorf("with another hook: %+v", c)
	}
	m.hook, m.entries, l.next = realHook, []HookEntry{{Name: "a"}}, time.Time{}
	l.round(t.Context())
	if c := s.hook(); c.State != OK || !strings.Contains(c.Evidence, `libvirt also runs "a" of /hooks/qemu.d`) {
		t.Errorf("live: %+v", c)
	}
}

// TestMissedLaunch: a start that the hook did not see ends the liveness; a launch that was refused because there was none changes nothing.
func TestMissedLaunch(t *testing.T) {
	m := newMachine()
	l := m.liveness()
	l.round(t.Context())
	launches := NewLaunches(t.Context(), nil, slog.New(slog.DiscardHandler), 1, time.Minute)
	launches.Missed = l.Missed
	launches.tell(View{Step: launcher.StepDecide, Refusal: proof.Refuse(proof.HookNotLive, "not live")})
	launches.tell(View{Step: launcher.StepCreate, Refusal: proof.Refuse(proof.Internal, "another")})
	if err := l.Ready(); err != nil {
		t.Error(err)
	}
	launches.tell(View{Step: launcher.StepCreate, Refusal: proof.Refuse(proof.HookNotLive, "not asked")})
	expect(t, l, "without asking the hook")
}
