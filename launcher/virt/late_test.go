package virt_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"troth/launcher/virt"
)

// Numbers of libvirt's protocol (src/remote/remote_protocol.x).
const (
	procDefine     = 350 // REMOTE_PROC_DOMAIN_DEFINE_XML_FLAGS
	procMakeSecret = 142 // REMOTE_PROC_SECRET_DEFINE_XML
)

// stall is a way to libvirtd that keeps the first call of one kind until it is let through, and everything behind it too unless it overtakes.
type stall struct {
	proc     uint32
	overtake bool
	held     chan struct{} // closed when the call has come
	release  chan struct{}
	once     sync.Once
}

// newStall gives a stalled connection.
func newStall(t *testing.T, n *node, proc uint32, overtake bool) (*stall, *virt.Virt) {
	t.Helper()
	s := &stall{proc: proc, overtake: overtake, held: make(chan struct{}), release: make(chan struct{})}
	path := filepath.Join(t.TempDir(), "stall.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() { s.carry(t, c) })
		}
	})
	v, err := virt.Connect(n.deadline(), "qemu+unix:///system?socket="+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(v.Close(), l.Close()); err != nil {
			t.Error(err)
		}
		all.Wait()
	})
	return s, v
}

func (s *stall) carry(t *testing.T, client net.Conn) {
	server, err := net.Dial("unix", "/run/libvirt/libvirt-sock")
	if err != nil {
		t.Error(err)
		return
	}
	var both sync.WaitGroup
	both.Go(func() {
		_, err := io.Copy(client, server)
		t.Log("from libvirtd:", err, client.Close())
	})
	var writes sync.Mutex // of whole messages
	send := func(m []byte) {
		writes.Lock()
		defer writes.Unlock()
		if _, err := server.Write(m); err != nil {
			t.Log("to libvirtd:", err)
		}
	}
	for {
		m, err := message(client)
		if err != nil {
			break
		}
		mine := false
		if binary.BigEndian.Uint32(m[12:]) == s.proc {
			s.once.Do(func() { mine = true; close(s.held) })
		}
		switch {
		case mine && s.overtake:
			both.Go(func() { <-s.release; send(m) })
		case mine:
			<-s.release
			send(m)
		default:
			send(m)
		}
	}
	if err := server.Close(); err != nil {
		t.Log(err)
	}
	both.Wait()
}

// message reads one message of the protocol: its length, which counts itself, then program, version, procedure and the rest.
func message(r io.Reader) ([]byte, error) {
	head := make([]byte, 4)
	if _, err := io.ReadFull(r, head); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(head)
	if n < 28 || n > 32<<20 {
		return nil, errors.New("no message of libvirt's")
	}
	m := append(head, make([]byte, n-4)...)
	_, err := io.ReadFull(r, m[4:])
	return m, err
}

// idle waits until no call is with libvirt any more.
func idle(t *testing.T, v *virt.Virt) {
	t.Helper()
	for end := time.Now().Add(time.Minute); v.Calls() > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("a call has not returned")
		}
	}
}

// given gives a call up when libvirt has it.
func (s *stall) given(t *testing.T, do func(ctx context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		select {
		case <-s.held:
		case <-ctx.Done():
		}
		cancel()
	}()
	if err := do(ctx); !errors.Is(err, virt.ErrNotReturned) {
		t.Fatalf("given up: %v", err)
	}
}

// TestLateKey: a key that libvirt takes after everybody has given up waiting and has removed what was there is not left with libvirt.
func TestLateKey(t *testing.T) {
	n := newNode(t)
	s, v := newStall(t, n, procMakeSecret, false)
	s.given(t, func(ctx context.Context) error { return v.PutKey(ctx, keyID, keyUsage, []byte("the key")) })
	must(t, n.virt.RemoveKeys(n.deadline(), "troth/", func(string) func() { return func() {} }))
	close(s.release)
	idle(t, v)
	if out, err := virsh(t, "secret-dumpxml", keyID); err == nil {
		t.Errorf("the key came late and is left: %s", out)
	}
}

// TestLateDefine: a definition that libvirt takes late does not cover the one that was put back.
func TestLateDefine(t *testing.T) {
	n := newNode(t)
	old := bytes.Replace(n.xml(mark), []byte("<name>"), []byte("<title>old</title><name>"), 1)
	must(t, n.virt.Define(n.deadline(), old))
	s, v := newStall(t, n, procDefine, true)
	s.given(t, func(ctx context.Context) error { return v.Define(ctx, n.xml(mark)) })
	if err := v.Undefine(n.deadline(), "6cf3a1f8-0f41-4f6e-9a5e-000000000000"); !errors.Is(err, virt.ErrNoDomain) {
		t.Errorf("another domain waits for this one: %v", err)
	}
	for what, change := range map[string]func(context.Context) error{
		"put back": func(ctx context.Context) error { return v.Define(ctx, old) },
		"undefine": func(ctx context.Context) error { return v.Undefine(ctx, uuid) },
	} {
		soon, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		if err := change(soon); !errors.Is(err, virt.ErrNotReturned) {
			t.Errorf("%s while an earlier definition is with libvirt: %v", what, err)
		}
		cancel()
	}
	back := make(chan error, 1)
	go func() { back <- v.Define(n.deadline(), old) }()
	close(s.release)
	must(t, <-back)
	idle(t, v)
	out, err := virsh(t, "dumpxml", "--inactive", uuid)
	if err != nil || !strings.Contains(out, "<title>old</title>") {
		t.Errorf("the late definition covers the one that was put back: %v: %s", err, out)
	}
}
