package race

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"troth/test/lab"
	"troth/test/scene"
)

// What may come and go with the garbage collector, with pooled connections and with a verdict that is being renewed.
const (
	spareMemory     = 16 << 10 // KiB
	spareFiles      = 2
	spareGoroutines = 8
)

// flat lets hostd and the verifier do all their work many times, and demands that they then hold no more than after the first few times: descriptors, memory,
// handles of the TPM, goroutines, secrets of libvirt, files for running guests.
func (s *stage) flat(ctx context.Context, t *testing.T) {
	d := guest("flat", 0)
	s.Ask(ctx, t, "launch", d)
	s.Do(ctx, t, s.Engine, nil, "domain", "stop", d.UUID)
	wrong := d
	wrong.Name, wrong.UUID, wrong.CommandLine = "wrong", guest("wrong", 1).UUID, "halt init=/evil"
	scene.Write(t, s.Engine.Path("wrong.xml"), s.Lab.Guest.XML(wrong))
	work := func(times int) {
		for range times {
			s.everything(ctx, t, d)
		}
	}
	work(3)
	idle := s.goroutines(ctx, t)
	work(3)
	before := s.holdings(ctx, t)
	rounds := count(10, 100)
	begun := time.Now()
	work(rounds)
	var after *holdings
	scene.Until(t, 30*time.Second, func() error { // what is on its way ends first
		after = s.holdings(ctx, t)
		return after.more(before)
	})
	t.Logf("%d rounds in %v: before %v, after %v", rounds, time.Since(begun).Round(time.Second), before, after)
	if n := s.goroutines(ctx, t); n > idle+spareGoroutines {
		t.Errorf("hostd has %d goroutines after %d rounds, and had %d after 3", n, rounds, idle)
	}
	s.Do(ctx, t, s.Engine, nil, "domain", "remove", d.UUID)
}

// everything is one round: a start that is proved, one that another client tries, a launch that is refused, a domain that is armed and forgotten.
func (s *stage) everything(ctx context.Context, t *testing.T, d lab.Domain) {
	t.Helper()
	s.Do(ctx, t, s.Engine, nil, "domain", "start", "--wait", d.UUID)
	s.Do(ctx, t, s.Engine, nil, "domain", "stop", d.UUID)
	if out, err := s.Host.Virsh(ctx, "start", d.Name); err == nil || !strings.Contains(err.Error(), "troth: refused: ") {
		t.Fatalf("another client's start: %s %v", out, err)
	}
	a, err := s.Engine.Troth(ctx, s.Host, "domain", "launch", "--token", d.Name+".token", "--domain", "wrong.xml", "--wait")
	if err != nil || a.Exit != 1 {
		t.Fatalf("a launch of another domain: exit %d, %v", a.Exit, err)
	}
	armed := guest("cycle", 0)
	s.Ask(ctx, t, "register", armed, "--force")
	s.Do(ctx, t, s.Engine, nil, "domain", "remove", armed.UUID)
}

// holdings are what the daemons of a host at rest hold.
type holdings struct {
	files, memory map[string]int // by daemon: descriptors; KiB that are resident
	tpm           string         // handles of objects and sessions
	left          string         // secrets with libvirt, files for guests, emulators
}

func (h *holdings) String() string {
	return fmt.Sprintf("descriptors %v, memory %v KiB, TPM handles %q, left over %q", h.files, h.memory, h.tpm, h.left)
}

// more says what h holds beyond what it may.
func (h *holdings) more(than *holdings) error {
	for daemon := range h.files {
		if h.files[daemon] > than.files[daemon]+spareFiles {
			return fmt.Errorf("%s has %d descriptors, and had %d", daemon, h.files[daemon], than.files[daemon])
		}
		if h.memory[daemon] > than.memory[daemon]+spareMemory {
			return fmt.Errorf("%s has %d KiB, and had %d", daemon, h.memory[daemon], than.memory[daemon])
		}
	}
	if h.tpm != than.tpm {
		return fmt.Errorf("the TPM has handles %q, and had %q", h.tpm, than.tpm)
	}
	if h.left != "" {
		return errors.New("left over: " + h.left)
	}
	return nil
}

func (s *stage) holdings(ctx context.Context, t *testing.T) *holdings {
	t.Helper()
	h := &holdings{files: map[string]int{}, memory: map[string]int{}}
	for daemon, n := range map[string]*lab.Node{"hostd": &s.Host.Node, "verifierd": &s.Lab.Verifier.Node} {
		service := scene.Must[lab.Service](t)(n.Service(ctx, daemon))
		out := scene.Must[string](t)(n.Exec(ctx, "sh", "-c", fmt.Sprintf(`ls /proc/%d/fd | wc -l; sed -n 's/^VmRSS:[^0-9]*\([0-9]*\).*/\1/p' /proc/%[1]d/status`, service.PID)))
		var files, memory int
		if _, err := fmt.Sscan(out, &files, &memory); err != nil {
			t.Fatalf("%s: %q: %v", daemon, out, err)
		}
		h.files[daemon], h.memory[daemon] = files, memory
	}
	for _, kind := range []string{"handles-transient", "handles-loaded-session", "handles-saved-session", "handles-persistent"} {
		out, err := exec.CommandContext(ctx, "tpm2_getcap", "-T", "swtpm:path="+s.Host.TPMSocket(), kind).CombinedOutput()
		if err != nil {
			t.Fatalf("tpm2_getcap %s: %v: %s", kind, err, out)
		}
		h.tpm += kind + " " + strconv.Itoa(bytes.Count(out, []byte("0x"))) + "; "
	}
	h.left = s.Sh(ctx, t, "virsh -q -c qemu:///system secret-list; find /run/troth/guest ! -type d; pgrep -x qemu-system-x86 || [ $? = 1 ]")
	h.left = strings.TrimSpace(h.left)
	return h
}

// goroutines ends hostd as Go's runtime does on SIGQUIT, telling of each goroutine, and starts it again.
func (s *stage) goroutines(ctx context.Context, t *testing.T) int {
	t.Helper()
	log := s.Host.Log("hostd")
	said := len(scene.Must[[]byte](t)(os.ReadFile(log)))
	service := scene.Must[lab.Service](t)(s.Host.Service(ctx, "hostd"))
	s.Sh(ctx, t, fmt.Sprintf("kill -QUIT %d", service.PID))
	scene.Until(t, 10*time.Second, func() error {
		service, err := s.Host.Service(ctx, "hostd")
		if err == nil && service.Running {
			err = errors.New("hostd runs still")
		}
		return err
	})
	text := scene.Must[[]byte](t)(os.ReadFile(log))[said:]
	n := bytes.Count(text, []byte("\ngoroutine "))
	if n < 5 {
		t.Fatalf("hostd told of %d goroutines: %s", n, text)
	}
	if err := s.Host.StartHostd(ctx); err != nil {
		t.Fatal(err)
	}
	if err := s.Host.AwaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	return n
}
