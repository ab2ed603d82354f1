package hostd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"troth/proof"
)

// How often things are looked at and tried.
const (
	lookEvery  = 5 * time.Second  // whatever inotify did not tell of
	proveEvery = 15 * time.Minute // whatever no look can show, such as a libvirtd that was told to look for hooks while there was none
	minPause   = 200 * time.Millisecond
	maxPause   = 10 * time.Second
	canaryTime = 20 * time.Second
)

// NotLive says why nobody may rely on the hook.
type NotLive struct {
	Why       string
	Facts     []proof.Fact
	Remedy    string
	Undecided bool // it was not tried, or could not be
}

func (n *NotLive) Error() string {
	var b strings.Builder
	b.WriteString(n.Why)
	for _, f := range n.Facts {
		if f.Value != "" {
			fmt.Fprintf(&b, "; %s: %s", f.Name, f.Value)
		} else {
			fmt.Fprintf(&b, "; %s: want %s, got %s", f.Name, f.Want, f.Got)
		}
	}
	return b.String()
}

// Liveness knows whether libvirt really calls the hook. It does once a canary was vetoed since this daemon started, over the connection that libvirt is spoken
// to now, and while hook, folder and qemu.d are what they were then. It stops at the first sign of a change, and begins again by itself.
//
//	inotify, libvirt's events, launches ──ring──▶ worker ──▶ canary ──▶ libvirt ──▶ hook ──▶ hooksocket ──Heard──▶ canary
//	                                                │
//	                      Ready, State ◀── proven (newest value)
type Liveness struct {
	Script  string
	Session func() uint64 // numbers the connection to libvirt; 0: there is none
	Canary  interface {
		Sweep(ctx context.Context) error
		Run(ctx context.Context) error
	}
	Log *slog.Logger

	inspect     func(script string, earlier *Installed) (*Installed, error)
	kick        chan struct{}
	heardChange atomic.Bool // read the content again, whatever the times say

	mu     sync.Mutex
	aim    func()   // of the watch; nil: there is none
	proven *witness // nil: not live
	at     time.Time
	why    error // while not live
	doubts int   // starts that the hook did not see

	// Of the worker alone.
	tried witness // by the newest canary
	next  time.Time
	pause time.Duration
}

// witness is the world in which a canary was vetoed.
type witness struct {
	installed *Installed
	session   uint64
	doubts    int
}

// NewLiveness makes a worker that is not live before its first canary.
func NewLiveness(script string, virt CanaryVirt, session func() uint64, log *slog.Logger) (*Liveness, *Canary) {
	c := &Canary{Virt: virt}
	return &Liveness{Script: script, Session: session, Canary: c, Log: log, inspect: Inspect, kick: make(chan struct{}, 1),
		why: &NotLive{Undecided: true, Why: "the hook has not been tried yet", Remedy: "Wait a moment."}}, c
}

// Ready says why the hook is not live; nil: it is. It looks by itself, so that a launch meets a change before the worker does.
func (l *Liveness) Ready() error {
	l.mu.Lock()
	p, why := l.proven, l.why
	l.mu.Unlock()
	if p == nil {
		return why
	}
	now, err := l.see(p.installed)
	if err == nil {
		err = p.differs(now)
	}
	if err != nil {
		poke(l.kick)
	}
	return err
}

// Missed is told that libvirt started a domain of ours without asking the hook.
func (l *Liveness) Missed() {
	l.mu.Lock()
	l.doubts++
	l.mu.Unlock()
	l.lose(missed())
	poke(l.kick)
}

// Look makes the worker look now.
func (l *Liveness) Look() { poke(l.kick) }

// Run looks and tries until ctx ends.
func (l *Liveness) Run(ctx context.Context) {
	var watch sync.WaitGroup
	defer watch.Wait()
	watch.Go(func() { l.watch(ctx, l.Log) })
	l.work(ctx)
}

func (l *Liveness) work(ctx context.Context) {
	for ctx.Err() == nil {
		wait := l.round(ctx)
		select {
		case <-ctx.Done():
		case <-l.kick:
		case <-time.After(wait):
		}
	}
}

// round looks, and tries when what it sees is not what was proven. It returns when to look again.
func (l *Liveness) round(ctx context.Context) time.Duration {
	l.mu.Lock()
	proven, at, aim := l.proven, l.at, l.aim
	l.mu.Unlock()
	if aim != nil {
		aim() // first, so that what changes after the look is heard
	}
	earlier := l.tried.installed
	if l.heardChange.Swap(false) {
		earlier = nil
	}
	now, err := l.see(earlier)
	if err != nil {
		l.lose(err) // libvirt would take it for a permit: there is nothing to try
		return lookEvery
	}
	if proven != nil {
		changed := proven.differs(now)
		if changed == nil && time.Since(at) < proveEvery {
			return lookEvery
		}
		if changed != nil {
			l.lose(changed)
		}
	}
	// What has changed since the newest canary deserves a new one soon; what has not, a later one each time.
	if !l.tried.same(now) {
		l.pause = 0
		if soon := time.Now().Add(minPause); l.next.After(soon) {
			l.next = soon
		}
	}
	if wait := time.Until(l.next); wait > 0 {
		return min(wait, lookEvery)
	}
	l.tried = *now
	err = l.try(ctx)
	l.pause = min(max(2*l.pause, minPause), maxPause)
	wait := l.pause/2 + rand.N(l.pause)
	l.next = time.Now().Add(wait)
	switch {
	case err == nil:
		l.pause = 0
		return lookEvery
	case ctx.Err() == nil: // else the daemon stops, which says nothing of the hook
		l.lose(err)
	}
	return min(wait, lookEvery)
}

// try lets a canary fly. What was seen before and after must be the same, or nobody knows which of both it speaks of.
func (l *Liveness) try(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, canaryTime)
	defer cancel()
	if err := l.Canary.Sweep(ctx); err != nil { // connects, too
		return err
	}
	before, err := l.see(l.tried.installed)
	if err != nil {
		return err
	}
	l.tried = *before
	if err := l.Canary.Run(ctx); err != nil {
		return err
	}
	after, err := l.see(before.installed)
	if err != nil {
		return err
	}
	if err := before.differs(after); err != nil {
		return err
	}
	return l.win(before)
}

// see looks at the world as it is. Its errors are *NotLive.
func (l *Liveness) see(earlier *Installed) (*witness, error) {
	installed, err := l.inspect(l.Script, earlier)
	if err != nil {
		return nil, err
	}
	session := l.Session()
	l.mu.Lock()
	defer l.mu.Unlock()
	return &witness{installed: installed, session: session, doubts: l.doubts}, nil
}

func (w *witness) same(now *witness) bool {
	return w.installed != nil && w.session == now.session && w.installed.differs(now.installed) == nil
}

// differs says what changed between two looks, or that there is no libvirt to speak of; nil: nothing.
func (w *witness) differs(now *witness) error {
	const remedy = "Nothing, if the change was meant: the hook is tried anew by itself. Otherwise find out who made it."
	if facts := w.installed.differs(now.installed); facts != nil {
		return &NotLive{Why: "the hook, its folder or qemu.d changed since the hook was tried", Facts: facts, Remedy: remedy}
	}
	if now.session == 0 {
		return &NotLive{Undecided: true, Why: "libvirt is not connected", Remedy: startLibvirt}
	}
	if w.session != now.session {
		return &NotLive{Undecided: true, Why: "libvirt was connected anew since the hook was tried", Remedy: "Wait a moment: the hook is tried anew by itself."}
	}
	return nil
}

func missed() *NotLive {
	return &NotLive{Why: "libvirt started a launch of this host without asking the hook", Remedy: proof.HookNotLive.Info().Remedy}
}

func (l *Liveness) win(w *witness) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if w.doubts != l.doubts {
		return missed() // meanwhile
	}
	if l.proven == nil {
		l.Log.Info("the hook is live: libvirt refused a canary for us", "hook", l.Script, "sha256", w.installed.Content.String(), "qemu.d", w.installed.others())
	}
	l.proven, l.at, l.why = w, time.Now(), nil
	return nil
}

func (l *Liveness) lose(why error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.proven != nil || l.why == nil || l.why.Error() != why.Error() {
		l.Log.Warn("the hook is not live: no trusted launch", "why", why.Error())
	}
	l.proven, l.why = nil, why
}

// notLive makes a condition of what Ready returned.
func notLive(err error) (Condition, bool) {
	var n *NotLive
	if !errors.As(err, &n) {
		return Condition{}, false
	}
	c := Condition{Name: "hook", State: Failed, Code: proof.HookNotLive, Evidence: n.Error(), Remedy: n.Remedy}
	if n.Undecided {
		c.State = Unknown
	}
	if c.Remedy == "" {
		c.Remedy = proof.HookNotLive.Info().Remedy
	}
	return c, true
}

// evidence says since when the hook is known to work. Entries of qemu.d need a person's eye and stop nothing: a veto of ours stands whatever
// they return, and what they rewrite on migrate or restore is judged at prepare (docs/decisions/0010).
func (l *Liveness) evidence() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.proven == nil {
		return ""
	}
	text := ", a canary was refused at " + l.at.UTC().Format(time.RFC3339)
	if len(l.proven.installed.Entries) > 0 {
		text += "; needs attention: libvirt also runs " + l.proven.installed.others() + " of " + qemuD(l.Script)
	}
	return text
}
