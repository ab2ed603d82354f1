package hostd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"troth/hooks/answer"
	"troth/hooks/ask"
	"troth/launcher"
	"troth/launcher/domain"
	"troth/proof"
)

// HookSocket answers troth-hook. A start of our own is told by its one-time launch id, each operation of it once; whatever else the hook holds
// for trusted has no grant. It looks at memory alone and never calls libvirt, which holds the domain's lock until the hook ends.
type HookSocket struct {
	Script string // what libvirt runs
	UIDs   []uint32
	Log    *slog.Logger
	// Starts judges starts by other clients than us; nil: none is permitted.
	Starts Starts
	// Heard is told of every question that was refused, and of ended guests. It must not block.
	Heard func(q ask.Question, a ask.Answer)
	// Live says whether libvirt calls the hook; nil: only the script is looked at.
	Live interface{ Ready() error }

	mu       sync.Mutex
	expected map[[32]byte]*expected
	serving  atomic.Bool
	last     atomic.Int64 // unix seconds of the last question
}

// Starts are the starts of armed domains by other libvirt clients: the launcher.
type Starts interface {
	Prepare(ctx context.Context, id domain.UUID, xml []byte) *proof.Refusal
	Proceed(id domain.UUID, xml []byte) *proof.Refusal
	Started(ctx context.Context, id domain.UUID) *proof.Refusal
	// Elsewhere refuses a domain whose memory is to come from a save image or from another host, and keeps the reason.
	Elsewhere(id domain.UUID, op string) *proof.Refusal
	Ended(id domain.UUID)
}

// expected is one announced start.
type expected struct {
	socket *HookSocket
	uuid   domain.UUID
	id     [32]byte
	first  ask.Op // what libvirt asks about before anything else
	seen   map[ask.Op]bool
}

// Ready implements launcher.Hook.
func (h *HookSocket) Ready() error {
	if !h.serving.Load() {
		return errors.New("nobody serves the hook's socket")
	}
	if h.Live != nil {
		return h.Live.Ready()
	}
	return CheckScript(h.Script)
}

// CheckScript says why libvirt would not run the hook: it takes a hook that is missing or not executable for a permit.
func CheckScript(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("the hook is not installed: %w", err)
	}
	if !info.Mode().IsRegular() || info.Mode().Perm()&0o111 == 0 {
		return fmt.Errorf("the hook %s is not an executable file", path)
	}
	return nil
}

// LastAsked is when a hook asked for the last time; zero: never.
func (h *HookSocket) LastAsked() time.Time {
	if at := h.last.Load(); at != 0 {
		return time.Unix(at, 0)
	}
	return time.Time{}
}

// Expect implements launcher.Hook.
func (h *HookSocket) Expect(uuid domain.UUID, launchID [32]byte, restore bool) launcher.Expected {
	e := &expected{socket: h, uuid: uuid, id: launchID, first: ask.OpPrepare, seen: map[ask.Op]bool{}}
	if restore {
		e.first = ask.OpRestore
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.expected == nil {
		h.expected = map[[32]byte]*expected{}
	}
	h.expected[launchID] = e
	return e
}

// Called implements launcher.Expected.
func (e *expected) Called() bool {
	e.socket.mu.Lock()
	defer e.socket.mu.Unlock()
	return e.seen[e.first] && e.seen[ask.OpPrepare] && e.seen[ask.OpStart] && e.seen[ask.OpStarted]
}

// Done implements launcher.Expected.
func (e *expected) Done() {
	e.socket.mu.Lock()
	defer e.socket.mu.Unlock()
	delete(e.socket.expected, e.id)
}

// Run serves the socket until ctx ends.
func (h *HookSocket) Run(ctx context.Context, l net.Listener) error {
	h.serving.Store(true)
	defer h.serving.Store(false)
	server := &answer.Server{Answer: h.answer, UIDs: h.UIDs, Report: func(err error) { h.Log.Warn("hook socket", "error", err.Error()) }}
	return server.Serve(ctx, l)
}

func (h *HookSocket) answer(ctx context.Context, q ask.Question, xml []byte) ask.Answer {
	h.last.Store(time.Now().Unix())
	a := h.judge(ctx, q, xml)
	if !a.Allow {
		h.Log.Warn("refused a hook", "uuid", domain.UUID(q.UUID).String(), "op", q.Op.String(), "subop", q.SubOp.String(), "code", a.Code.String())
	}
	if h.Heard != nil {
		h.Heard(q, a)
	}
	return a
}

// judge decides one question.
func (h *HookSocket) judge(ctx context.Context, q ask.Question, xml []byte) ask.Answer {
	switch q.Op {
	case ask.OpStopped, ask.OpRelease:
		if h.Starts != nil {
			h.Starts.Ended(domain.UUID(q.UUID))
		}
		return ask.Allow() // nothing to veto: the hook only tells
	case ask.OpReconnect:
		return ask.Allow() // denying it would kill a guest that libvirt merely lost sight of
	case ask.OpPrepare, ask.OpStart, ask.OpStarted:
		if q.LaunchID != [32]byte{} {
			return h.own(q)
		}
		if h.Starts != nil && q.SubOp == ask.SubBegin {
			return h.other(ctx, q, xml)
		}
	case ask.OpMigrate, ask.OpRestore:
		if q.Op == ask.OpRestore && h.restoring(q) {
			return h.own(q)
		}
		if h.Starts != nil && q.SubOp == ask.SubBegin {
			return h.other(ctx, q, xml)
		}
	case ask.OpUnknown:
	}
	return ask.Deny(ask.GrantMissing)
}

// other decides about the start of a domain by another client.
func (h *HookSocket) other(ctx context.Context, q ask.Question, xml []byte) ask.Answer {
	id := domain.UUID(q.UUID)
	var refusal *proof.Refusal
	switch q.Op {
	case ask.OpPrepare:
		refusal = h.Starts.Prepare(ctx, id, xml)
	case ask.OpStart:
		refusal = h.Starts.Proceed(id, xml)
	case ask.OpMigrate, ask.OpRestore:
		refusal = h.Starts.Elsewhere(id, q.Op.String())
	default:
		refusal = h.Starts.Started(ctx, id)
	}
	if refusal == nil {
		return ask.Allow()
	}
	h.Log.Warn("refused a start by another client", "uuid", id.String(), "op", q.Op.String(), "code", string(refusal.Code), "sentence", refusal.Sentence, "facts", fmt.Sprint(refusal.Facts))
	return ask.Deny(ask.CodeOf(string(refusal.Code)))
}

// restoring says that a restore of our own was announced under the question's launch id.
func (h *HookSocket) restoring(q ask.Question) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	e := h.expected[q.LaunchID]
	return e != nil && e.first == ask.OpRestore
}

// own decides a question that carries a launch id.
func (h *HookSocket) own(q ask.Question) ask.Answer {
	h.mu.Lock()
	defer h.mu.Unlock()
	e := h.expected[q.LaunchID]
	if e == nil || e.uuid != domain.UUID(q.UUID) || q.SubOp != ask.SubBegin || e.seen[q.Op] {
		return ask.Deny(ask.GrantMissing)
	}
	if q.Op != e.first && !e.seen[e.first] || q.Op != e.first && q.Op != ask.OpPrepare && !e.seen[ask.OpPrepare] {
		return ask.Deny(ask.GrantMissing) // another order than libvirt's is not libvirt's start
	}
	e.seen[q.Op] = true
	return ask.Allow()
}
