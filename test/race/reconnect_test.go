package race

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"strings"
	"testing"
	"time"

	"troth/test/lab"
	"troth/test/scene"
)

// goneIn is how long a rogue may run once the daemons are back: docs/reconcile.md.
const goneIn = 10 * time.Second

const hookFile = "/etc/libvirt/hooks/qemu"

// herd is honest guests, proved and running, an untrusted one beside them, and a registered one that is stopped.
type herd struct {
	s         *stage
	honest    []lab.Domain
	resting   lab.Domain
	processes map[string]string // by name: pid and when it was started
	slowest   time.Duration
}

// reconnected kills libvirtd below all guests, again and again, with hostd up, down and stopped, and lets rogues be started meanwhile.
func (s *stage) reconnected(ctx context.Context, t *testing.T) {
	guests := count(10, 50)
	h := s.newHerd(ctx, t, guests)
	kills := count(3, 20)
	for k := range kills {
		mode := []string{"up", "down", "slow"}[k%3]
		begun := time.Now()
		h.kill(ctx, t, k, mode)
		h.gone(ctx, t, k)
		if err := s.Host.AwaitReady(ctx); err != nil {
			t.Fatal(err)
		}
		h.unharmed(ctx, t)
		t.Logf("kill %d, hostd %s: %d guests and their proofs are as before, every rogue is gone; %v in all", k+1, mode, len(h.honest), time.Since(begun).Round(time.Millisecond))
	}
	h.watched(ctx, t)
	t.Logf("%d kills of libvirtd with %d guests: none lost, none broken; a rogue lived at most %v once the daemons were back", kills, guests, h.slowest.Round(time.Millisecond))
}

func (s *stage) newHerd(ctx context.Context, t *testing.T, n int) *herd {
	h := &herd{s: s, resting: guest("idle", 0)}
	s.Ask(ctx, t, "launch", h.resting)
	s.Do(ctx, t, s.Engine, nil, "domain", "stop", h.resting.UUID)
	scene.Must[string](t)(s.Host.Virsh(ctx, "create", s.File(t, s.Lab.Guest.XML(guest("stranger", 0)))))
	for i := range n {
		d := guest("honest", i)
		s.Ask(ctx, t, "launch", d)
		h.honest = append(h.honest, d)
	}
	h.processes = h.running(ctx, t)
	if len(h.processes) != n+1 {
		t.Fatalf("%d guests run: %v", len(h.processes), h.processes)
	}
	return h
}

// running is what libvirt says it runs, each with its process and when that was started; not a rogue that was killed and that libvirt has not noticed yet.
func (h *herd) running(ctx context.Context, t *testing.T) map[string]string {
	t.Helper()
	out := scene.Must[string](t)(h.s.Host.Exec(ctx, "sh", "-c",
		`for n in $(virsh -q -c qemu:///system list --name --state-running); do p=$(cat /run/libvirt/qemu/$n.pid) && [ -d /proc/$p ] && echo $n $p $(cut -d" " -f22 /proc/$p/stat); done; true`))
	all := map[string]string{}
	for line := range strings.Lines(out) {
		name, process, _ := strings.Cut(strings.TrimSpace(line), " ")
		all[name] = process
	}
	return all
}

// kill ends libvirtd as the kernel would and starts it again, with hostd up, down or slow, and rogues that begin meanwhile.
func (h *herd) kill(ctx context.Context, t *testing.T, k int, mode string) {
	t.Helper()
	host := h.s.Host
	step := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	switch mode {
	case "down":
		step(host.KillHostd(ctx))
	case "slow":
		step(host.PauseHostd(ctx, true))
	}
	// By libvirt itself, which heeds no hook that is not there.
	marked := guest("marked", k)
	marked.MetadataText = `<troth:launch xmlns:troth="urn:troth:launch:v1"/>`
	step(os.Rename(host.Path(hookFile), host.Path(hookFile+".away")))
	h.begin(ctx, t, mode, marked.UUID, "virsh", "-q", "-c", "qemu:///system", "create", h.s.File(t, h.s.Lab.Guest.XML(marked)))
	step(os.Rename(host.Path(hookFile+".away"), host.Path(hookFile)))
	step(host.KillLibvirtd(ctx))
	// By hand: a registered domain, and a second one of a guest that runs.
	for i, uuid := range []string{h.resting.UUID, h.honest[k%len(h.honest)].UUID} {
		h.begin(ctx, t, mode, uuid, "qemu-system-x86_64", "-S", "-daemonize", "-nodefaults", "-display", "none", "-machine", "q35,accel=tcg", "-m", "32",
			"-name", fmt.Sprintf("rogue%d-%d", k, i), "-uuid", uuid)
	}
	step(host.StartLibvirtd(ctx))
	switch mode {
	case "down":
		step(host.StartHostd(ctx))
	case "slow":
		step(host.PauseHostd(ctx, false))
	}
}

// begin starts a rogue by a command. It may fail only where hostd is up and says that it ended the rogue: hostd may be faster than the command.
func (h *herd) begin(ctx context.Context, t *testing.T, mode, uuid string, argv ...string) {
	t.Helper()
	from := len(h.s.Logged(t, 0))
	_, failed := h.s.Host.Exec(ctx, argv...)
	if failed == nil {
		return
	}
	if mode != "up" {
		t.Fatalf("hostd is %s: %v", mode, failed)
	}
	scene.Until(t, goneIn, func() error {
		if log := h.s.Logged(t, from); !strings.Contains(log, uuid) {
			return fmt.Errorf("hostd did not end it: %w; hostd said since: %s", failed, log)
		}
		return nil
	})
}

// gone waits until no rogue runs.
func (h *herd) gone(ctx context.Context, t *testing.T, k int) {
	t.Helper()
	took := scene.Within(t, goneIn, time.Now(), func() error {
		left, err := h.s.Host.Exec(ctx, "pgrep", "-a", "-f", fmt.Sprintf("qemu-system.*(rogue%d-|guest=marked%d,)", k, k))
		if err != nil {
			return nil
		}
		return errors.New("a rogue runs: " + left)
	})
	h.slowest = max(h.slowest, took)
}

// watched shows that hostd compares the guests still: it finds the one that was reached into, and nothing wrong with the others.
func (h *herd) watched(ctx context.Context, t *testing.T) {
	t.Helper()
	last := h.honest[len(h.honest)-1]
	scene.Must[string](t)(h.s.Host.Virsh(ctx, "qemu-monitor-command", last.Name, "--hmp", "info version"))
	scene.Within(t, goneIn, time.Now(), func() error {
		if v := scene.Must[view](t)(h.s.show(ctx, last.UUID)); v.State != "broken" {
			return errors.New("a guest was reached into, and is " + v.State)
		}
		return nil
	})
	h.honest = h.honest[:len(h.honest)-1]
	h.unharmed(ctx, t)
}

// unharmed demands that the guests are the very processes that they were, and that hostd has looked at each and holds it for proved.
func (h *herd) unharmed(ctx context.Context, t *testing.T) {
	t.Helper()
	if now := h.running(ctx, t); !maps.Equal(now, h.processes) {
		t.Fatalf("other guests run than before: %v, before %v", now, h.processes)
	}
	for _, d := range h.honest {
		v := scene.Must[view](t)(h.s.show(ctx, d.UUID))
		if v.State != "proved" {
			t.Fatalf("%s is %s", d.Name, v.State)
		}
	}
}
