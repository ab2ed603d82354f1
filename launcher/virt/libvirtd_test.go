package virt_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"troth/hooks"
	"troth/hooks/answer"
	"troth/hooks/ask"
	"troth/launcher/virt"
)

const (
	uri      = "qemu:///system"
	uuid     = "6cf3a1f8-0f41-4f6e-9a5e-6f8f7a2b9c01"
	launchID = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"
	mark     = `<metadata><troth:launch xmlns:troth="urn:troth:launch:v1"/></metadata>`
	marked   = `<metadata><troth:launch xmlns:troth="urn:troth:launch:v1" id="` + launchID + `"/></metadata>`
)

// node is the libvirtd of one test, with the real hook and a hostd that the test plays.
type node struct {
	t      *testing.T
	daemon *exec.Cmd
	virt   *virt.Virt
	disk   string
	secret string

	mu     sync.Mutex
	asked  []ask.Question
	answer ask.Answer
}

func newNode(t *testing.T) *node {
	t.Helper()
	if testing.Short() {
		t.Skip("needs root and libvirtd")
	}
	n := &node{t: t, answer: ask.Allow(), disk: filepath.Join(scratch, "disk.img"), secret: filepath.Join(scratch, "secret")}
	for path, size := range map[string]int{n.disk: 1 << 20, n.secret: 32} {
		if err := os.WriteFile(path, make([]byte, size), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	l, err := answer.Listen(hooks.SocketPath, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	s := &answer.Server{UIDs: []uint32{0}, Answer: func(_ context.Context, q ask.Question, _ []byte) ask.Answer {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.asked = append(n.asked, q)
		return n.answer
	}}
	go func() { done <- s.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	n.start()
	t.Cleanup(func() { n.stop(syscall.SIGKILL) })
	n.virt, err = virt.Connect(n.deadline(), uri, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.virt.Destroy(n.deadline(), uuid); err != nil && !errors.Is(err, virt.ErrNoDomain) {
			t.Error(err)
		}
		if err := n.virt.Undefine(n.deadline(), uuid); err != nil && !errors.Is(err, virt.ErrNoDomain) {
			t.Error(err)
		}
		if err := n.virt.Close(); err != nil {
			t.Error(err)
		}
	})
	return n
}

// deadline is one that a healthy libvirt always keeps.
func (n *node) deadline() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	n.t.Cleanup(cancel)
	return ctx
}

// start runs libvirtd and waits for its socket.
func (n *node) start() {
	n.t.Helper()
	log, err := os.OpenFile(filepath.Join(scratch, "libvirtd.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		n.t.Fatal(err)
	}
	defer log.Close()
	n.daemon = exec.Command("/usr/sbin/libvirtd", "--config", "/etc/libvirt/libvirtd.conf")
	n.daemon.Stdout, n.daemon.Stderr = log, log
	if err := n.daemon.Start(); err != nil {
		n.t.Fatal(err)
	}
	var last error
	defer func() {
		if n.t.Failed() {
			text, err := os.ReadFile(log.Name())
			n.t.Logf("last error %v; libvirtd's log (%v):\n%s", last, err, text)
		}
	}()
	n.eventually("libvirtd answers", func() bool {
		v, err := virt.Connect(n.deadline(), uri, nil)
		if last = err; err != nil {
			return false
		}
		return v.Close() == nil
	})
}

func (n *node) stop(sig syscall.Signal) {
	n.t.Helper()
	if err := n.daemon.Process.Signal(sig); err != nil {
		n.t.Fatal(err)
	}
	err := n.daemon.Wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		n.t.Fatal(err)
	}
}

func (n *node) eventually(what string, ok func() bool) {
	n.t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			n.t.Fatalf("not within 20 s: %s", what)
		}
	}
}

func (n *node) hostd(a ask.Answer) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.answer, n.asked = a, nil
}

func (n *node) questions() []ask.Question {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.asked)
}

func (n *node) xml(metadata string) []byte {
	return []byte(`<domain type='qemu'>
  <name>-rf --x $(id) ..</name>
  <uuid>` + uuid + `</uuid>
  ` + metadata + `
  <memory unit='KiB'>65536</memory>
  <vcpu>1</vcpu>
  <sysinfo type='fwcfg'><entry name='opt/test' file='` + n.secret + `'/></sysinfo>
  <os><type arch='x86_64' machine='q35'>hvm</type></os>
  <devices>
    <disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='` + n.disk + `'/><target dev='vda' bus='virtio'/></disk>
  </devices>
</domain>`)
}

func (n *node) want(state string) {
	n.t.Helper()
	if got, err := n.virt.State(n.deadline(), uuid); err != nil || got != state {
		n.t.Fatalf("state %q, %v; want %q", got, err, state)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestDenied: what the hook refused is ErrDenied with hostd's code, and nothing runs.
func TestDenied(t *testing.T) {
	n := newNode(t)
	must(t, n.virt.Define(n.deadline(), n.xml(mark)))
	for _, c := range []struct {
		name, want string
		deny       func()
	}{
		{"hostd refuses", "grant-missing", func() { n.hostd(ask.Deny(ask.GrantMissing)) }},
		{"hostd is gone", "hostd-unreachable", func() { must(t, os.Remove(hooks.SocketPath)) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.deny()
			err := n.virt.CreatePaused(n.deadline(), n.xml(marked))
			var e *virt.Error
			if !errors.Is(err, virt.ErrDenied) || !errors.As(err, &e) || e.Refusal != c.want {
				t.Fatalf("%v; want denied with %s", err, c.want)
			}
			if code, denied := e.Denied(); code != c.want || !denied || strings.Contains(err.Error(), "PATH") {
				t.Errorf("%v", err) // libvirt's message holds libvirtd's environment
			}
			n.want("shutoff")
			if _, err := virt.FindProcess(t.Context(), uuid, nil); !errors.Is(err, virt.ErrNoProcess) {
				t.Errorf("a process: %v", err)
			}
		})
	}
}

// TestUntrusted: a domain without a mark starts with hostd away, and hostd hears nothing of it.
func TestUntrusted(t *testing.T) {
	n := newNode(t)
	n.hostd(ask.Deny(ask.GrantMissing))
	must(t, n.virt.CreatePaused(n.deadline(), n.xml("")))
	n.want("paused")
	if q := n.questions(); len(q) != 0 {
		t.Errorf("hostd was asked about %+v", q)
	}
	if _, err := n.virt.InactiveXML(n.deadline(), uuid); !errors.Is(err, virt.ErrState) {
		t.Errorf("definition of a transient domain: %v", err)
	}
	must(t, n.virt.Destroy(n.deadline(), uuid))
}

// TestHung: libvirtd stops in the middle. Callers get their deadline, and everything works when it goes on.
func TestHung(t *testing.T) {
	n := newNode(t)
	must(t, n.virt.Define(n.deadline(), n.xml(mark)))
	must(t, n.daemon.Process.Signal(syscall.SIGSTOP))
	var wg sync.WaitGroup
	for range 100 { // more than there are places
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
			defer cancel()
			begin := time.Now()
			_, err := n.virt.State(ctx, uuid)
			if !errors.Is(err, context.DeadlineExceeded) || !(errors.Is(err, virt.ErrNotReturned) || errors.Is(err, virt.ErrUnreachable)) {
				t.Errorf("error %v", err)
			}
			if took := time.Since(begin); took > 10*time.Second { // without a deadline nobody comes back
				t.Errorf("came back after %v", took)
			}
		})
	}
	wg.Wait()
	must(t, n.daemon.Process.Signal(syscall.SIGCONT))
	n.want("shutoff")
}

// TestReconnect: libvirtd is killed under a running guest; the guest lives, and we are back by ourselves.
func TestReconnect(t *testing.T) {
	n := newNode(t)
	must(t, n.virt.Define(n.deadline(), n.xml(mark)))
	must(t, n.virt.CreatePaused(n.deadline(), n.xml(marked)))
	before, err := virt.FindProcess(t.Context(), uuid, nil)
	must(t, err)
	w := n.virt.Watch()
	defer w.Close()
	if _, gap, err := w.Next(n.deadline()); err != nil || !gap {
		t.Fatalf("first news: gap %v, %v", gap, err)
	}
	descriptors := openFiles(t)
	n.hostd(ask.Deny(ask.GrantMissing)) // and reconnect is not vetoed
	for range 3 {
		session := n.virt.Session()
		n.stop(syscall.SIGKILL)
		n.eventually("calls fail as unreachable", func() bool {
			_, err := n.virt.State(n.deadline(), uuid)
			return errors.Is(err, virt.ErrUnreachable)
		})
		if now := n.virt.Session(); session == 0 || now != 0 {
			t.Errorf("session %d before, %d without libvirtd", session, now)
		}
		n.start()
		n.eventually("domain is back", func() bool {
			state, err := n.virt.State(n.deadline(), uuid)
			return err == nil && state == "paused"
		})
		for gap := false; !gap; {
			if _, gap, err = w.Next(n.deadline()); err != nil {
				t.Fatal(err)
			}
		}
		if now := n.virt.Session(); now <= session {
			t.Errorf("session %d after %d", now, session)
		}
	}
	after, err := virt.FindProcess(t.Context(), uuid, nil)
	must(t, err)
	if before.PID != after.PID || before.Start != after.Start {
		t.Errorf("the guest did not live: %d, then %d", before.PID, after.PID)
	}
	n.eventually("hostd hears of reconnects", func() bool {
		return slices.ContainsFunc(n.questions(), func(q ask.Question) bool { return q.Op == ask.OpReconnect })
	})
	// Events flow on the new connection. Not "stopped": libvirt may keep silent about a guest that ends while the
	// new libvirtd still takes it over.
	must(t, n.virt.Destroy(n.deadline(), uuid))
	must(t, n.virt.Undefine(n.deadline(), uuid))
	n.heard(w, "undefined")
	defer func() {
		if t.Failed() {
			t.Logf("descriptors before: %q\nnow: %q", descriptors, openFiles(t))
		}
	}()
	n.eventually("no descriptor is left of the lost connections", func() bool { return len(openFiles(t)) <= len(descriptors) })
}

// openFiles tells what this process's descriptors are open on, "number kind:[inode]" or "number path".
func openFiles(t *testing.T) []string {
	t.Helper()
	const dir = "/proc/self/fd"
	fds, err := os.ReadDir(dir)
	must(t, err)
	var open []string
	for _, fd := range fds {
		if on, err := os.Readlink(filepath.Join(dir, fd.Name())); err == nil { // but the one that read the directory
			open = append(open, fd.Name()+" "+on)
		}
	}
	return open
}
