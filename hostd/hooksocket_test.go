package hostd

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"troth/hooks/answer"
	"troth/hooks/ask"
	"troth/launcher/domain"
	"troth/proof"
)

func socket(t *testing.T) *HookSocket {
	t.Helper()
	script := filepath.Join(t.TempDir(), "qemu")
	if err := os.WriteFile(script, []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return &HookSocket{Script: script, UIDs: hookUIDs(nil), Log: slog.New(slog.DiscardHandler)}
}

func question(op ask.Op, uuid domain.UUID, id [32]byte) ask.Question {
	return ask.Question{Op: op, SubOp: ask.SubBegin, Flags: ask.Marked, UUID: uuid, LaunchID: id}
}

func TestOwnStart(t *testing.T) {
	h := socket(t)
	uuid, id := domain.UUID{1}, [32]byte{2}
	e := h.Expect(uuid, id, false)
	if e.Called() {
		t.Error("called before anything")
	}
	called := false // from prepare, start and started on, not before
	for _, step := range []struct {
		name  string
		q     ask.Question
		allow bool
	}{
		{"start before prepare", question(ask.OpStart, uuid, id), false},
		{"another UUID", question(ask.OpPrepare, domain.UUID{9}, id), false},
		{"another id", question(ask.OpPrepare, uuid, [32]byte{3}), false},
		{"no id", question(ask.OpPrepare, uuid, [32]byte{}), false},
		{"end of prepare", ask.Question{Op: ask.OpPrepare, SubOp: ask.SubEnd, UUID: uuid, LaunchID: id}, false},
		{"prepare", question(ask.OpPrepare, uuid, id), true},
		{"prepare again", question(ask.OpPrepare, uuid, id), false},
		{"restore", question(ask.OpRestore, uuid, id), false},
		{"migrate", question(ask.OpMigrate, uuid, id), false},
		{"unknown", question(ask.OpUnknown, uuid, id), false},
		{"start", question(ask.OpStart, uuid, id), true},
		{"start again", question(ask.OpStart, uuid, id), false},
		{"started of another", question(ask.OpStarted, domain.UUID{9}, id), false},
		{"started", question(ask.OpStarted, uuid, id), true},
		{"stopped", question(ask.OpStopped, uuid, id), true},
		{"reconnect", question(ask.OpReconnect, domain.UUID{8}, [32]byte{}), true},
	} {
		a := h.judge(t.Context(), step.q, nil)
		if a.Allow != step.allow || !a.Allow && a.Code != ask.GrantMissing {
			t.Errorf("%s: %+v", step.name, a)
		}
		if began := step.q.Op == ask.OpStarted && a.Allow; began {
			called = true
		}
		if e.Called() != called {
			t.Errorf("%s: called %v", step.name, !called)
		}
	}
	e.Done()
	if h.judge(t.Context(), question(ask.OpPrepare, uuid, id), nil).Allow {
		t.Error("a launch id was good after its launch")
	}
}

func TestHookReady(t *testing.T) {
	h := socket(t)
	if h.Ready() == nil {
		t.Error("ready without a socket")
	}
	path := filepath.Join(t.TempDir(), "hook.sock")
	l, err := answer.Listen(path, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- h.Run(ctx, l) }()
	var a ask.Answer
	for try := 0; ; try++ {
		if a, err = ask.Ask(path, question(ask.OpPrepare, domain.UUID{1}, [32]byte{}), nil, time.Now()); err == nil || try > 50 {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if err != nil || a.Allow || a.Code != ask.GrantMissing {
		t.Errorf("%+v, %v", a, err)
	}
	if err := h.Ready(); err != nil {
		t.Error(err)
	}
	if err := os.Chmod(h.Script, 0o644); err != nil {
		t.Fatal(err)
	}
	if h.Ready() == nil {
		t.Error("ready with a hook that libvirt does not run")
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if h.Ready() == nil {
		t.Error("ready after the end")
	}
}

// starts notes what it is asked and permits whatever comes as a start.
type starts struct{ asked []string }

func (s *starts) Prepare(context.Context, domain.UUID, []byte) *proof.Refusal {
	s.note("prepare")
	return nil
}

func (s *starts) Proceed(domain.UUID, []byte) *proof.Refusal {
	s.note("start")
	return nil
}

func (s *starts) Started(context.Context, domain.UUID) *proof.Refusal {
	s.note("started")
	return nil
}

func (s *starts) Ended(domain.UUID) { s.note("ended") }

func (s *starts) Elsewhere(_ domain.UUID, op string) *proof.Refusal {
	s.note("elsewhere " + op)
	return proof.Refuse(proof.GrantMissing, "from elsewhere")
}

func (s *starts) note(what string) { s.asked = append(s.asked, what) }

// TestElsewhere: restore and migrate are no starts, whatever they carry; what ends them says why.
func TestElsewhere(t *testing.T) {
	for _, id := range [][32]byte{{}, {7}} {
		for op, want := range map[ask.Op]string{ask.OpRestore: "elsewhere restore", ask.OpMigrate: "elsewhere migrate"} {
			h, s := socket(t), &starts{}
			h.Starts = s
			a := h.judge(t.Context(), question(op, domain.UUID{1}, id), nil)
			if a.Allow || a.Code != ask.GrantMissing || len(s.asked) != 1 || s.asked[0] != want {
				t.Errorf("%v with id %v: %+v, asked %q", op, id != [32]byte{}, a, s.asked)
			}
			s.asked = nil
			q := question(op, domain.UUID{1}, id)
			q.SubOp = ask.SubEnd
			if a := h.judge(t.Context(), q, nil); a.Allow || len(s.asked) != 0 {
				t.Errorf("%v end: %+v, asked %q", op, a, s.asked)
			}
		}
	}
}

// TestOwnRestore: a restore of our own is asked about at restore first, once, and by its launch id alone.
func TestOwnRestore(t *testing.T) {
	h, s := socket(t), &starts{}
	h.Starts = s
	uuid, id := domain.UUID{1}, [32]byte{2}
	plain := h.Expect(uuid, [32]byte{5}, false)
	defer plain.Done()
	e := h.Expect(uuid, id, true)
	for _, step := range []struct {
		name  string
		q     ask.Question
		allow bool
	}{
		{"prepare before restore", question(ask.OpPrepare, uuid, id), false},
		{"start before restore", question(ask.OpStart, uuid, id), false},
		{"another UUID", question(ask.OpRestore, domain.UUID{9}, id), false},
		{"another id", question(ask.OpRestore, uuid, [32]byte{3}), false},
		{"no id", question(ask.OpRestore, uuid, [32]byte{}), false},
		{"the id of a start", question(ask.OpRestore, uuid, [32]byte{5}), false},
		{"migrate", question(ask.OpMigrate, uuid, id), false},
		{"end", ask.Question{Op: ask.OpRestore, SubOp: ask.SubEnd, UUID: uuid, LaunchID: id}, false},
		{"restore", question(ask.OpRestore, uuid, id), true},
		{"restore again", question(ask.OpRestore, uuid, id), false},
		{"start before prepare", question(ask.OpStart, uuid, id), false},
		{"prepare", question(ask.OpPrepare, uuid, id), true},
		{"start", question(ask.OpStart, uuid, id), true},
		{"started", question(ask.OpStarted, uuid, id), true},
	} {
		if e.Called() {
			t.Errorf("called before %s", step.name)
		}
		if a := h.judge(t.Context(), step.q, nil); a.Allow != step.allow || !a.Allow && a.Code != ask.GrantMissing {
			t.Errorf("%s: %+v", step.name, a)
		}
	}
	if !e.Called() {
		t.Error("not called")
	}
	e.Done()
	if h.judge(t.Context(), question(ask.OpRestore, uuid, id), nil).Allow {
		t.Error("a launch id was good after its restore")
	}
}
