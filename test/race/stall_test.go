package race

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"troth/test/standstill"
)

// queued is how many trusted starts stand before hostd at once; libvirtd has 20 workers, and 8 may wait for hostd.
func queued() int { return count(24, 60) }

// refusedIn is how much longer a trusted start may take when hostd says nothing than when it answers: what the starts cost libvirtd is the same.
const refusedIn = 3 * time.Second

// crowd is many clients, each about to start a trusted domain of its own, and one that starts an untrusted one.
type crowd struct {
	trusted   []*client
	untrusted *client
	file      string
	refused   chan time.Duration
}

// queuedFor is how long a crowd has been there when the untrusted start comes last: far longer than one refusal takes, far shorter than hooks may wait.
const queuedFor = time.Second

// stalled measures how long an untrusted start takes: alone; at the same instant as a crowd of trusted starts that hostd refuses at once; as the same crowd with hostd
// stopped and with hostd killed; and when that crowd has been queued for a while. They are interleaved, so that what else the machine does meets all of them.
func (s *stage) stalled(ctx context.Context, t *testing.T) {
	c := s.newCrowd(ctx, t)
	rounds := count(3, 11)
	none := func(context.Context) error { return nil }
	stop := func(ctx context.Context) error { return s.Host.PauseHostd(ctx, true) }
	proceed := func(ctx context.Context) error { return s.Host.PauseHostd(ctx, false) }
	ways := []struct {
		name        string
		crowded     bool
		queued      time.Duration
		begin, mend func(context.Context) error
	}{
		{"alone", false, 0, none, none},
		{"hostd answers", true, 0, none, none},
		{"hostd stopped", true, 0, stop, proceed},
		{"hostd killed", true, 0, s.Host.KillHostd, s.Host.StartHostd},
		{"hostd stopped, crowd queued", true, queuedFor, stop, proceed},
		{"hostd killed, crowd queued", true, queuedFor, s.Host.KillHostd, s.Host.StartHostd},
	}
	took, slowest := make([][]time.Duration, len(ways)), make([]time.Duration, len(ways))
	for range rounds {
		for i, w := range ways {
			if err := w.begin(ctx); err != nil {
				t.Fatal(err)
			}
			one, refused := c.once(t, w.crowded, w.queued)
			if err := w.mend(ctx); err != nil {
				t.Fatal(err)
			}
			took[i], slowest[i] = append(took[i], one), max(slowest[i], refused)
			if w.crowded {
				if err := s.Host.AwaitReady(ctx); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	alone := median(took[0])
	for i, w := range ways {
		m := median(took[i])
		t.Logf("%-27s an untrusted start takes %v (median of %d), %.2f of alone; the slowest trusted one was refused after %v", w.name, m.Round(time.Millisecond), rounds,
			float64(m)/float64(alone), slowest[i].Round(time.Millisecond))
		if slowest[i] > slowest[1]+refusedIn {
			t.Errorf("%s: a trusted start was refused only after %v, by a hostd that answers after %v", w.name, slowest[i], slowest[1])
		}
		// What 60 refusals cost the processors is no stall: a hook that waited 3 s made the start 25 times as slow.
		if m > 2*max(alone, median(took[1])) {
			t.Errorf("%s: an untrusted start takes %v, alone %v, beside a hostd that answers %v", w.name, m, alone, median(took[1]))
		}
	}
}

func median(d []time.Duration) time.Duration {
	d = slices.Sorted(slices.Values(d))
	return d[len(d)/2]
}

func (s *stage) newCrowd(ctx context.Context, t *testing.T) *crowd {
	c := &crowd{untrusted: connect(ctx, t, s.Host), refused: make(chan time.Duration, queued())}
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

// once starts the untrusted domain and ends it, some time after the crowd or alone: how long the start took, and the slowest refusal.
func (c *crowd) once(t *testing.T, crowded bool, after time.Duration) (took, slowest time.Duration) {
	t.Helper()
	said := make(chan error, queued())
	if crowded {
		for n, v := range c.trusted {
			go func() {
				begun := time.Now()
				_, err := v.do(fmt.Sprintf("start queued%d", n))
				c.refused <- standstill.Since(begun)
				said <- err
			}()
		}
	}
	time.Sleep(after)
	begun := time.Now()
	if _, err := c.untrusted.do("create --paused " + c.file); err != nil {
		t.Fatal(err)
	}
	took = standstill.Since(begun)
	if crowded {
		for range c.trusted {
			slowest = max(slowest, <-c.refused)
			if err := <-said; err == nil || !strings.Contains(err.Error(), "troth: refused: ") {
				t.Fatalf("a trusted start was not refused: %v", err)
			}
		}
	}
	if _, err := c.untrusted.do("destroy untrusted0"); err != nil {
		t.Fatal(err)
	}
	return took, slowest
}
