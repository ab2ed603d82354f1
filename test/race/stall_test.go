package race

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"troth/hooks/answer"
	"troth/hooks/ask"
	"troth/test/lab"
	"troth/test/standstill"
)

// queued is how many trusted starts stand before hostd at once; libvirtd has 20 workers, and 8 may wait for hostd.
func queued() int { return count(24, 60) }

// refusedIn is how much longer a trusted start may take when hostd says nothing than when it answers: what the starts cost libvirtd is the same.
const refusedIn = 3 * time.Second

// crowd is many clients, each about to start a trusted domain of its own, and one that starts an untrusted one.
type crowd struct {
	host      *lab.Host
	trusted   []*client
	untrusted *client
	file      string
}

// fate is what becomes of hostd before the starts, and how it comes back.
type fate struct {
	name        string
	begin, mend func(context.Context) error
}

// way is a way to start the untrusted domain: alone, or with a crowd that began some time before.
type way struct {
	fate
	crowded bool
	behind  bool // not at the same instant

	took    []time.Duration // by round: the untrusted start
	slowest time.Duration   // of all trusted starts, to their refusal
	left    []int           // by round: trusted starts that had no answer yet when the untrusted one began
}

func (w *way) String() string {
	switch {
	case !w.crowded:
		return "alone"
	case w.behind:
		return w.name + ", behind the crowd"
	}
	return w.name + ", with the crowd"
}

// fates are a hostd that answers, and all that it can be instead.
func (s *stage) fates() []fate {
	hang := hang{host: s.Host}
	return []fate{
		{"hostd answers", func(context.Context) error { return nil }, func(context.Context) error { return nil }},
		{"hostd stopped", func(ctx context.Context) error { return s.Host.PauseHostd(ctx, true) }, func(ctx context.Context) error { return s.Host.PauseHostd(ctx, false) }},
		{"hostd killed", s.Host.KillHostd, s.Host.StartHostd},
		{"hostd hangs", hang.begin, hang.end},
	}
}

// stalled measures how long an untrusted start takes: alone; at the same instant as a crowd of trusted starts; and when that crowd has been there for as long as a hostd that
// answers just needed for all of it, so that what is left of it then is queued because of hostd. They are interleaved, so that what else the machine does meets all of them.
func (s *stage) stalled(ctx context.Context, t *testing.T) {
	c := s.newCrowd(ctx, t)
	alone := &way{fate: s.fates()[0]}
	var now, behind []*way
	for _, f := range s.fates() {
		now = append(now, &way{fate: f, crowded: true})
		behind = append(behind, &way{fate: f, crowded: true, behind: true})
	}
	for range count(3, 11) {
		c.try(ctx, t, alone, 0)
		answered := c.try(ctx, t, now[0], 0)
		for _, w := range now[1:] {
			c.try(ctx, t, w, 0)
		}
		for _, w := range behind {
			c.try(ctx, t, w, answered)
		}
	}
	alone.check(t, alone, alone)
	for i := range now {
		now[i].check(t, alone, now[0])
		behind[i].check(t, alone, behind[0])
	}
}

// check tells what came out, against a start alone and against the same with a hostd that answers, and fails when somebody was held up.
func (w *way) check(t *testing.T, alone, answering *way) {
	t.Helper()
	took, usual, beside := median(w.took), median(alone.took), median(answering.took)
	t.Logf("%-33s an untrusted start takes %v (median of %d), %.2f of alone, %.2f of beside a hostd that answers; %d trusted ones had no answer yet when it began, the slowest was refused after %v",
		w.String()+":", took.Round(time.Millisecond), len(w.took), float64(took)/float64(usual), float64(took)/float64(beside), median(w.left), w.slowest.Round(time.Millisecond))
	if w.slowest > answering.slowest+refusedIn {
		t.Errorf("%v: a trusted start was refused only after %v, by a hostd that answers after %v", w, w.slowest, answering.slowest)
	}
	// What 60 refusals cost the processors is no stall: a hook that waited 3 s made the start 25 times as slow.
	if took > 2*max(usual, beside) {
		t.Errorf("%v: an untrusted start takes %v, alone %v, beside a hostd that answers %v", w, took, usual, beside)
	}
}

// hang puts in hostd's place one that takes questions as hostd does, and comes to no answer.
type hang struct {
	host *lab.Host
	stop func() error
}

func (h *hang) begin(ctx context.Context) error {
	if err := h.host.KillHostd(ctx); err != nil {
		return err
	}
	l, err := answer.Listen(h.host.HookSocket(), 0o600)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	served := make(chan error, 1)
	server := answer.Server{UIDs: []uint32{0}, Answer: func(ctx context.Context, _ ask.Question, _ []byte) ask.Answer {
		<-ctx.Done()
		return ask.Deny(ask.Internal)
	}}
	go func() { served <- server.Serve(ctx, l) }()
	h.stop = func() error { cancel(); return <-served }
	return nil
}

func (h *hang) end(ctx context.Context) error {
	return errors.Join(h.stop(), h.host.StartHostd(ctx))
}

func median[T cmp.Ordered](d []T) T {
	d = slices.Sorted(slices.Values(d))
	return d[len(d)/2]
}

func (s *stage) newCrowd(ctx context.Context, t *testing.T) *crowd {
	c := &crowd{host: s.Host, untrusted: connect(ctx, t, s.Host)}
	c.file = s.File(t, s.Lab.Guest.XML(guest("untrusted", 0)))
	for n := range queued() {
		d := guest("queued", n)
		d.MetadataText = `<troth:launch xmlns:troth="urn:troth:launch:v1"/>`
		v := connect(ctx, t, s.Host)
		if _, err := v.do("define " + s.File(t, s.Lab.Guest.XML(d))); err != nil {
			t.Fatal(err)
		}
		c.trusted = append(c.trusted, v)
	}
	return c
}

// try starts the untrusted domain in one way, some time after the crowd, and ends it. It returns how long the crowd took.
func (c *crowd) try(ctx context.Context, t *testing.T, w *way, after time.Duration) time.Duration {
	t.Helper()
	step := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	step(w.fate.begin(ctx))
	var trusted refusals
	if w.crowded {
		trusted = c.begin()
		time.Sleep(after)
	}
	w.left = append(w.left, cap(trusted)-len(trusted))
	begun := time.Now()
	_, err := c.untrusted.do("create --paused " + c.file)
	step(err)
	w.took = append(w.took, standstill.Since(begun))
	slowest := trusted.slowest(t)
	w.slowest = max(w.slowest, slowest)
	_, err = c.untrusted.do("destroy untrusted0")
	step(err)
	step(w.mend(ctx))
	if w.crowded {
		step(c.host.AwaitReady(ctx))
	}
	return slowest
}

// refusal is what came of a trusted start.
type refusal struct {
	took time.Duration
	err  error
}

// refusals are a crowd's, as they come in.
type refusals chan refusal

// begin lets all start their trusted domains.
func (c *crowd) begin() refusals {
	all := make(refusals, len(c.trusted))
	for n, v := range c.trusted {
		go func() {
			begun := time.Now()
			_, err := v.do(fmt.Sprintf("start queued%d", n))
			all <- refusal{standstill.Since(begun), err}
		}()
	}
	return all
}

// slowest waits for all, each of which must have been refused, and returns how long the slowest took.
func (all refusals) slowest(t *testing.T) (slowest time.Duration) {
	t.Helper()
	for range cap(all) {
		a := <-all
		if a.err == nil || !strings.Contains(a.err.Error(), "troth: refused: ") {
			t.Fatalf("a trusted start was not refused: %v", a.err)
		}
		slowest = max(slowest, a.took)
	}
	return slowest
}
