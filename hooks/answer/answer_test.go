package answer_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"troth/hooks/answer"
	"troth/hooks/ask"
)

// serve runs s on a socket of its own.
func serve(t *testing.T, s *answer.Server) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "hook.sock")
	l, err := answer.Listen(path, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return path
}

var question = ask.Question{Op: ask.OpPrepare, SubOp: ask.SubBegin, Flags: ask.Marked, UUID: [16]byte{9}}

// TestPeer: only the users that are named get an answer.
func TestPeer(t *testing.T) {
	var reported atomic.Int32
	called := false
	path := serve(t, &answer.Server{
		UIDs:   []uint32{uint32(os.Getuid()) + 1},
		Answer: func(context.Context, ask.Question, []byte) ask.Answer { called = true; return ask.Allow() },
		Report: func(error) { reported.Add(1) },
	})
	if a, err := ask.Ask(path, question, nil, time.Now()); !errors.Is(err, ask.ErrUnreachable) || a.Allow || called {
		t.Errorf("%+v, %v, asked %v", a, err, called)
	}
	if reported.Load() != 1 {
		t.Errorf("%d reports, want 1", reported.Load())
	}
}

// TestBound: hostd judges at most MaxWaiting at once, and as many wait; the rest is turned away at once.
func TestBound(t *testing.T) {
	var now, most atomic.Int32
	release := make(chan struct{})
	path := serve(t, &answer.Server{
		UIDs: []uint32{uint32(os.Getuid())},
		Answer: func(context.Context, ask.Question, []byte) ask.Answer {
			n := now.Add(1)
			defer now.Add(-1)
			for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
			}
			<-release
			return ask.Allow()
		},
	})
	var wg sync.WaitGroup
	var allowed, ended atomic.Int32
	for range 100 {
		wg.Go(func() {
			defer ended.Add(1)
			if a, err := ask.Ask(path, question, nil, time.Now()); err == nil && a.Allow {
				allowed.Add(1)
			}
		})
	}
	// All but those that are judged give up.
	for end := time.Now().Add(10 * ask.InAll); ended.Load() < 100-answer.MaxWaiting; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("only %d of 100 gave up", ended.Load())
		}
	}
	close(release)
	wg.Wait()
	if most.Load() != answer.MaxWaiting || allowed.Load() != answer.MaxWaiting {
		t.Errorf("%d at once, %d permitted; want %d", most.Load(), allowed.Load(), answer.MaxWaiting)
	}
	if a, err := ask.Ask(path, question, nil, time.Now()); err != nil || !a.Allow {
		t.Errorf("after the storm: %+v, %v", a, err)
	}
}

// TestXML: hostd judges exactly the bytes that libvirt gave the hook, or nothing.
func TestXML(t *testing.T) {
	var got []byte
	path := serve(t, &answer.Server{
		UIDs:   []uint32{uint32(os.Getuid())},
		Answer: func(_ context.Context, q ask.Question, xml []byte) ask.Answer { got = xml; return ask.Allow() },
	})
	xml := bytes.Repeat([]byte("<domain/>"), ask.MaxXML/9)
	q := question
	q.XML = sha256.Sum256(xml)
	if a, err := ask.Ask(path, q, xml, time.Now()); err != nil || !a.Allow || !bytes.Equal(got, xml) {
		t.Errorf("%+v, %v: %d bytes of %d arrived", a, err, len(got), len(xml))
	}
	got = nil
	for name, bad := range map[string][]byte{
		"another text": append([]byte("<Domain/>"), xml[9:]...),
		"too long":     append(bytes.Clone(xml), make([]byte, ask.MaxXML)...),
	} {
		if a, err := ask.Ask(path, q, bad, time.Now()); !errors.Is(err, ask.ErrUnreachable) || a.Allow || got != nil {
			t.Errorf("%s: %+v, %v, judged %d bytes", name, a, err, len(got))
		}
	}
	q.Op = ask.OpStarted // carries none
	if a, err := ask.Ask(path, q, xml, time.Now()); err != nil || !a.Allow || len(got) != 0 {
		t.Errorf("%+v, %v: %d bytes arrived", a, err, len(got))
	}
}

// TestStrangers: what is no question gets no answer and hurts nobody.
func TestStrangers(t *testing.T) {
	var reports sync.Map
	path := serve(t, &answer.Server{
		UIDs:   []uint32{uint32(os.Getuid())},
		Answer: func(context.Context, ask.Question, []byte) ask.Answer { return ask.Allow() },
		Report: func(err error) { reports.Store(err.Error(), true) },
	})
	for _, s := range []string{"", "TRQ1", strings.Repeat("x", ask.QuestionSize), strings.Repeat("\x00", 4096)} {
		c, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Write([]byte(s)); err != nil {
			t.Fatal(err)
		}
		if err := c.SetDeadline(time.Now().Add(ask.InAll)); err != nil {
			t.Fatal(err)
		}
		if n, err := c.Read(make([]byte, 8)); n != 0 || err == nil {
			t.Errorf("%q was answered", s)
		}
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if a, err := ask.Ask(path, question, nil, time.Now()); err != nil || !a.Allow {
		t.Errorf("%+v, %v", a, err)
	}
}

// TestListenAgain: a socket that a dead hostd left is replaced, and one that is only told is not waited for.
func TestListenAgain(t *testing.T) {
	path := filepath.Join(t.TempDir(), "hook.sock")
	for range 2 {
		l, err := answer.Listen(path, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 || st.Mode()&os.ModeSocket == 0 {
			t.Fatalf("%v, %v", st.Mode(), err)
		}
		begin := time.Now()
		if err := ask.Tell(path, question); err != nil || time.Since(begin) > ask.FirstByte/2 {
			t.Fatalf("%v after %v", err, time.Since(begin))
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := ask.Ask(path, question, nil, time.Now()); !errors.Is(err, ask.ErrUnreachable) {
		t.Fatal(err)
	}
}
