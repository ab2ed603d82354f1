package crash

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"troth/test/lab"
	"troth/test/standstill"
)

// recoverIn is how long a daemon that is back may take until the host is in order.
const recoverIn = 2 * time.Second

// soak is how many kills there are in all.
const soak = 300

func TestAttack(t *testing.T) {
	if testing.Short() {
		t.Skip("needs the lab: make test-crash")
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
	defer cancel()
	s := newStage(ctx, t)
	t.Run("R-MIDLAUNCH", func(t *testing.T) { s.killAll(ctx, t, kills(t)) })
	t.Run("R-MIDLAUNCH/hung", func(t *testing.T) { s.hung(ctx, t) })
	t.Run("R-ENOSPC", func(t *testing.T) { s.fullDisk(ctx, t) })
}

// kills is how many there are.
func kills(t *testing.T) int {
	if os.Getenv("TROTH_SOAK") != "" {
		return soak
	}
	text := os.Getenv("TROTH_KILLS")
	if text == "" {
		return 4
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		t.Fatalf("TROTH_KILLS: %q is not a count", text)
	}
	return n
}

// killAll goes through all moments with both daemons, as often as it takes.
func (s *stage) killAll(ctx context.Context, t *testing.T, n int) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	ends, each, done, slowest := map[string]int{}, map[int]int{}, 0, time.Duration(0)
	order := random.Perm(len(moments) * len(daemons))
	for k := 0; done < n; k++ {
		if k > 3*n+100 {
			t.Fatalf("%d tries gave %d kills", k, done)
		}
		place := order[k%len(order)]
		m, d := moments[place/len(daemons)], daemons[place%len(daemons)]
		what := fmt.Sprintf("kill %d: %s, %s", done+1, d.name, m.name)
		end, took, err := s.once(ctx, m, d, random)
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if end == "" {
			continue // the moment was not seen: the launch had ended
		}
		done++
		ends[end]++
		each[place]++
		slowest = max(slowest, took)
		t.Logf("%s: %s in %v", what, end, took.Round(time.Millisecond))
	}
	t.Logf("%d kills: %v, slowest recovery %v, 0 broken", done, ends, slowest.Round(time.Millisecond))
	for _, place := range order {
		if n >= soak && each[place] < 5 {
			t.Errorf("only %d kills of %s at %s", each[place], daemons[place%len(daemons)].name, moments[place/len(daemons)].name)
		}
	}
	s.audited(ctx, t, n)
	if slowest > recoverIn {
		t.Errorf("recovery took %v, more than %v", slowest, recoverIn)
	}
}

// once brings the host to a moment, kills, starts again, and checks.
func (s *stage) once(ctx context.Context, m moment, d daemon, random *rand.Rand) (end string, took time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	if err := s.rest(ctx, m.stop, random.IntN(3) == 0); err != nil {
		return "", 0, fmt.Errorf("before it: %w", err)
	}
	if err := s.mark(); err != nil {
		return "", 0, err
	}
	ended := make(chan struct{})
	launch, err := s.begin(ctx, m.stop, ended)
	if err != nil {
		return "", 0, err
	}
	hit, err := s.await(ctx, m, ended, random)
	if err != nil {
		return "", 0, err
	}
	if err := d.kill(s.Host, ctx); err != nil {
		return "", 0, err
	}
	if err := d.start(s.Host, ctx); err != nil {
		return "", 0, err
	}
	back := time.Now()
	<-ended
	end, err = s.settled(ctx, launch)
	took = standstill.Since(back)
	if err == nil {
		err = s.check(ctx, end)
	}
	if err == nil {
		err = s.Host.AwaitReady(ctx)
	}
	if !hit {
		end = ""
	}
	return end, took, err
}

// hung kills hostd while the QEMU of a launch hangs: it heeds no request to end, for which libvirt would wait ten seconds.
func (s *stage) hung(ctx context.Context, t *testing.T) {
	m := moment{name: "a QEMU that hangs", seen: there("/run/libvirt/qemu/" + name + ".pid")}
	stop := daemon{kill: func(h *lab.Host, ctx context.Context) error {
		_, err := h.Exec(ctx, "sh", "-c", `until pkill -STOP -f "[q]emu-system.*guest=`+name+`,"; do sleep 0.01; done`)
		return errors.Join(err, h.KillHostd(ctx))
	}, start: (*lab.Host).StartHostd}
	random, slow := rand.New(rand.NewPCG(1, 0)), 0
	for range 5 {
		end, took, err := s.once(ctx, m, stop, random)
		switch {
		case err != nil:
			t.Fatal(err)
		case end != "gone":
			continue // it came too late: the launch had ended
		case took > recoverIn && slow == 0: // a slow moment comes once, a slow hostd each time
			slow++
			continue
		case took > recoverIn:
			t.Errorf("recovery took %v, more than %v", took, recoverIn)
		}
		t.Logf("a QEMU that hangs: %s in %v", end, took.Round(time.Millisecond))
		return
	}
	t.Fatal("no launch was met in time")
}

// audited follows the chain of the audit log, which every kill of hostd may have torn, and looks whether it tells what happened.
func (s *stage) audited(ctx context.Context, t *testing.T, n int) {
	out, err := s.Host.Exec(ctx, "/opt/troth/bin/troth-hostd", "audit", "verify")
	if err != nil {
		t.Errorf("the audit log: %v: %s", err, out)
		return
	}
	t.Logf("the audit log: %s", out)
	log, err := s.Host.Exec(ctx, "/opt/troth/bin/troth-hostd", "audit", "show")
	if err != nil {
		t.Error(err)
	}
	for _, what := range []string{"started", "asked", "granted", "proved", "refused", "stopped"} {
		if !strings.Contains(log, `"what":"`+what+`"`) && n > 20 {
			t.Errorf("after %d kills the audit log has no %q", n, what)
		}
	}
}
