package matrix

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"troth/test/bypass"
	"troth/test/scene"
)

var states = []state{
	{"hook gone, hostd down", false, false},
	{"hook gone, hostd up", false, true},
	{"hook alive, hostd down", true, false},
	{"hook alive, hostd up", true, true},
}

// TestMatrix tries every way in every state (make test-bypass). TROTH_BYPASS_ONLY=word picks ways by their names.
func TestMatrix(t *testing.T) {
	if testing.Short() {
		t.Skip("needs the lab: make test-bypass")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 25*time.Minute)
	defer cancel()
	begun := time.Now()
	ways, chosen := Starts(), states
	if only := os.Getenv("TROTH_BYPASS_ONLY"); only != "" { // to look at one way
		var some []Way
		for _, w := range ways {
			if strings.Contains(w.Name, only) {
				some = append(some, w)
			}
		}
		ways = some
	}
	s := newStage(ctx, t, len(ways))
	t.Logf("the host is ready after %v", time.Since(begun).Round(time.Second))
	var rows []*row
	for i, st := range chosen {
		t.Run(st.name, func(t *testing.T) {
			rows = append(rows, s.in(ctx, t, st, i, ways)...)
		})
	}
	s.proven(ctx, t)
	report(t, rows, len(ways)+len(bypass.Held()), len(chosen), time.Since(begun))
}

// in tries all ways in one state, lets hostd return, and looks what is left.
func (s *stage) in(ctx context.Context, t *testing.T, st state, i int, ways []Way) []*row {
	s.enter(ctx, t, st)
	var rows []*row
	var watched sync.WaitGroup
	for n := range ways {
		w := &ways[n]
		r := s.row(st, i, n, w, s.armed[n])
		if st.hook && w.Guard == "hook" || w.Guard == "polkit" {
			r.target = s.resting // a start of an armed domain as it was registered is no way round
			r.plain = plainName(r.target)
		}
		s.try(ctx, r)
		rows = append(rows, r)
		t.Logf("%s: %s %s %s", r.way, r.outcome, r.by, r.bad)
		if st.hostd && r.outcome == "" && r.bad == "" {
			watched.Go(func() { s.gone(ctx, []*row{r}, time.Time{}) }) // from now, while the next ways are tried
		}
		if !st.hostd && r.outcome == "" && r.bad == "" {
			// It holds still from here on, so that the next ways are not tried on a machine that boots twenty guests.
			s.Host.Exec(ctx, "sh", "-c", "virsh -q suspend "+r.own+" || virsh -q suspend "+r.target.name) //nolint:errcheck // what is not libvirt's holds still
		}
		if w.Sealed && !w.Moved {
			k := s.row(st, i, n, w, s.sealed)
			k.way, k.own, k.n = w.Name+" (sealed disk)", "k"+k.own[1:], k.n+0x8000
			s.try(ctx, k)
			if k.outcome == "" && k.bad == "" {
				k.bad = "a guest with a sealed disk runs"
			}
			rows = append(rows, k)
			t.Logf("%s: %s %s %s", k.way, k.outcome, k.by, k.bad)
		}
		s.keyless(ctx, t)
	}
	for _, w := range bypass.Held() {
		rows = append(rows, s.held(ctx, st, w))
	}
	var since time.Time
	if !st.hostd {
		since = time.Now()
		if err := s.Host.StartHostd(ctx); err != nil {
			t.Fatal(err)
		}
	}
	watched.Wait()
	if !st.hostd {
		s.gone(ctx, rows, since)
	}
	s.keyless(ctx, t)
	s.unharmed(ctx, t)
	for _, r := range rows {
		if r.bad != "" {
			t.Errorf("%s: %s", r.way, r.bad)
		}
	}
	return rows
}

func (s *stage) row(st state, i, n int, w *Way, g target) *row {
	own := fmt.Sprintf("w%02d%c", n, 'a'+i)
	return &row{state: st, way: w.Name, way_: w, target: g, own: own, plain: plainName(g), n: i<<12 + n}
}

// enter brings hook and hostd into a state; hostd is up before.
func (s *stage) enter(ctx context.Context, t *testing.T, st state) {
	t.Helper()
	const at, away = "/etc/libvirt/hooks/qemu", "/root/hook"
	s.Sh(ctx, t, map[bool]string{true: "test -x " + at + " || mv " + away + " " + at, false: "test ! -e " + at + " || mv " + at + " " + away}[st.hook])
	if err := s.Host.ReloadLibvirtd(ctx); err != nil {
		t.Fatal(err)
	}
	if st.hook {
		if err := s.Host.AwaitReady(ctx); err != nil {
			t.Fatal(err)
		}
	} else {
		// libvirt has looked when it runs an untrusted domain's start without a hook; hostd says that it has noticed.
		s.until(ctx, t, "! troth-hostd doctor | grep -q '^ok *hook '")
	}
	if !st.hostd {
		if err := s.Host.KillHostd(ctx); err != nil {
			t.Fatal(err)
		}
	}
}

// held tries, as an unprivileged operator with every right of libvirt, what reaches a guest that runs.
func (s *stage) held(ctx context.Context, st state, w bypass.Way) *row {
	r := &row{state: st, way: "running, operator: " + w.Name, begun: time.Now(), way_: &Way{Guard: "polkit"}, target: target{name: "none"}, own: "none", plain: "none"}
	out, err := s.Host.VirshAs(ctx, "manager", w.For(s.live.name, s.live.dump, "/tmp")...)
	r.took = time.Since(r.begun)
	switch {
	case err == nil:
		r.bad = "the operator may: " + out
	case strings.Contains(err.Error(), "denied access"):
		r.end("blocked", "polkit: "+w.Permission)
	default:
		r.bad = err.Error()
	}
	return r
}

// keyless demands that no key of a sealed disk is with libvirt.
func (s *stage) keyless(ctx context.Context, t *testing.T) {
	t.Helper()
	if out, err := s.Host.Virsh(ctx, "secret-list"); err != nil || strings.Contains(out, "troth") {
		t.Errorf("libvirt has a key: %s, %v", out, err)
	}
}

// unharmed demands that the honest guests run on as before, and nothing else does.
func (s *stage) unharmed(ctx context.Context, t *testing.T) {
	t.Helper()
	var d struct{ State string }
	s.Do(ctx, t, s.Engine, &d, "domain", "show", s.live.uuid)
	if d.State != "proved" {
		t.Errorf("the proved guest is %s", d.State)
	}
	for _, name := range []string{"live", "witness"} {
		if out, err := s.Host.Virsh(ctx, "domstate", name); err != nil || strings.TrimSpace(out) != "running" {
			t.Errorf("%s is %s, %v", name, out, err)
		}
	}
	if all := s.emulators.all(); len(all) != 2 {
		t.Errorf("%d emulators run, not two: %v", len(all), all)
	}
	pass := scene.Must[[]byte](t)(os.ReadFile(s.Tenant.Path("vda.pass")))
	file := s.Host.Path("/root/pass")
	if err := os.WriteFile(file, pass, 0o600); err != nil {
		t.Fatal(err)
	}
	s.Sh(ctx, t, "grep -r -l -F -f /root/pass /var/log/libvirt /var/lib/libvirt /var/lib/troth /run/libvirt; test $? = 1 && cat /proc/[0-9]*/cmdline | grep -q -a -F -f /root/pass; test $? = 1")
}

// proven launches the guest with the sealed disk once more, through the gate: it has its key.
func (s *stage) proven(ctx context.Context, t *testing.T) {
	t.Helper()
	s.enter(ctx, t, states[3])
	s.Sh(ctx, t, "virsh -q define "+s.sealed.dump)
	s.Do(ctx, t, s.Engine, nil, "domain", "start", "--wait", s.sealed.uuid)
	if out := s.Sh(ctx, t, "virsh qemu-monitor-command sealed --hmp info block"); !strings.Contains(out, "luks, encrypted") {
		t.Errorf("a proven launch has not the key: %s", out)
	}
}

// report prints the table and keeps it in build/bypass.txt.
func report(t *testing.T, rows []*row, ways, states int, took time.Duration) {
	t.Helper()
	var b strings.Builder
	bad := 0
	fmt.Fprintf(&b, "%-66s %-23s %-10s %-44s %s\n", "way", "state", "outcome", "by", "seconds")
	for _, r := range rows {
		outcome := r.outcome
		if r.bad != "" {
			bad++
			outcome = "BAD"
		}
		fmt.Fprintf(&b, "%-66s %-23s %-10s %-44s %.1f\n", r.way, r.state.name, outcome, r.by, r.took.Seconds())
	}
	if bad == 0 && !t.Failed() {
		fmt.Fprintf(&b, "%d ways × %d states: all blocked, destroyed or keyless (%d rows, %v)\n", ways, states, len(rows), took.Round(time.Second))
	} else {
		fmt.Fprintf(&b, "%d of %d rows do not hold (%v)\n", bad, len(rows), took.Round(time.Second))
	}
	file := "../../build/bypass.txt"
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(b.String()), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Log("\n" + b.String())
}
