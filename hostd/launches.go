package hostd

import (
	"context"
	"encoding/hex"
	"log/slog"
	"strconv"
	"sync"
	"time"

	"troth/launcher"
	"troth/proof"
)

// States of a launch as callers see it.
const (
	LaunchRunning = "running"
	LaunchDone    = "done"
	LaunchRefused = "refused"
)

// maxKept bounds how many ended launches are kept in memory for those who ask.
const maxKept = 1024

// queued is how many launches may wait for their turn: four for each that is at work, and no fewer than an engine brings at one time.
func queued(slots int) int { return 4 * max(slots, 16) }

// Launches runs launches by themselves: a caller gets an id at once and asks how far it is.
type Launches struct {
	Launcher *launcher.Launcher
	Log      *slog.Logger
	Timeout  time.Duration
	Ended    func(View)      // hears of every launch that ended; may be nil
	Missed   func()          // is told of a launch that libvirt started without asking the hook
	ctx      context.Context // of the daemon: launches end with it, and are undone
	slots    chan struct{}
	work     sync.WaitGroup

	mu      sync.Mutex
	all     map[string]*Launch
	order   []string
	waiting int // for their turn
}

// Launch is one launch. Its fields are read through View.
type Launch struct {
	mu   sync.Mutex
	view View
	done chan struct{}
}

// View is a launch at one moment.
type View struct {
	ID, Asked        string
	UUID, Name       string
	State, Step      string
	Hashed, HashedOf int64
	DryRun           bool
	Refusal          *proof.Refusal
	Proof            []byte
	Would            *proof.Statement
}

// NewLaunches makes room for max launches at work; more wait their turn, and beyond those that may wait they are refused.
func NewLaunches(ctx context.Context, l *launcher.Launcher, log *slog.Logger, max int, timeout time.Duration) *Launches {
	return &Launches{Launcher: l, Log: log, Timeout: timeout, ctx: ctx, slots: make(chan struct{}, max), all: map[string]*Launch{}}
}

// LaunchID is the id of the launch that a caller's idempotency key names: the same caller with the same key gets the same launch,
// also after a restart, and no other caller can name it.
func LaunchID(caller, key string) string {
	d := proof.Hash(proof.LabelLaunchID, []byte(caller), []byte(key))
	return hex.EncodeToString(d[:16])
}

// Submit takes a launch up, or returns the one that has this id already. A different request under the same id is a refusal.
func (l *Launches) Submit(req launcher.Request) (*Launch, *proof.Refusal) {
	l.mu.Lock()
	defer l.mu.Unlock()
	known := l.find(req.ID)
	if known != nil {
		if known.View().Asked != req.Asked {
			return nil, proof.Refuse(proof.RequestInvalid, "this idempotency key was used for another request", proof.Fact{Name: "launch", Value: req.ID})
		}
		return known, nil
	}
	if l.ctx.Err() != nil {
		return nil, proof.Refuse(proof.Internal, "the daemon is about to stop")
	}
	if most := queued(cap(l.slots)); l.waiting >= most {
		return nil, proof.Refuse(proof.TPMBusy, "too many launches wait for their turn", proof.Fact{Name: "waiting", Value: strconv.Itoa(most)})
	}
	l.waiting++
	n := &Launch{view: View{ID: req.ID, Asked: req.Asked, State: LaunchRunning, Step: launcher.StepRead, DryRun: req.DryRun}, done: make(chan struct{})}
	l.all[req.ID] = n
	l.order = append(l.order, req.ID)
	l.forget()
	l.work.Add(1)
	go l.run(n, req)
	return n, nil
}

// forget drops the oldest ended launches.
func (l *Launches) forget() {
	for i := 0; len(l.order) > maxKept && i < len(l.order); {
		if old := l.all[l.order[i]]; old.View().State == LaunchRunning {
			i++
			continue
		}
		delete(l.all, l.order[i])
		l.order = append(l.order[:i], l.order[i+1:]...)
	}
}

func (l *Launches) run(n *Launch, req launcher.Request) {
	defer l.work.Done()
	defer close(n.done)
	n.end(l.launch(n, req))
	l.tell(n.View())
}

// launch waits for a turn and launches. However it ends, it says how.
func (l *Launches) launch(n *Launch, req launcher.Request) (out *launcher.Outcome, refusal *proof.Refusal) {
	defer func() {
		if p := recover(); p != nil {
			l.Log.Error("panic in a launch", "launch", req.ID, "panic", p)
			out, refusal = nil, proof.Refuse(proof.Internal, "the launch failed in a way that nobody foresaw")
		}
	}()
	ctx, cancel := context.WithTimeout(l.ctx, l.Timeout)
	defer cancel()
	called := sync.OnceFunc(l.called)
	defer called()
	select {
	case l.slots <- struct{}{}:
		defer func() { <-l.slots }()
	case <-ctx.Done():
		return nil, proof.Refuse(proof.Internal, "the launch waited for its turn too long")
	}
	called()
	if req.Arm {
		return l.Launcher.Arm(ctx, req, n)
	}
	return l.Launcher.Launch(ctx, req, n)
}

// called: a launch waits no more.
func (l *Launches) called() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.waiting--
}

// tell says how a launch ended. A start that the hook did not see speaks of the host, not of the launch alone.
func (l *Launches) tell(v View) {
	if l.Ended != nil {
		l.Ended(v)
	}
	if refusal := v.Refusal; refusal != nil {
		l.Log.Warn("launch refused", "launch", v.ID, "uuid", v.UUID, "step", v.Step, "code", string(refusal.Code), "sentence", refusal.Sentence)
		if refusal.Code == proof.HookNotLive && v.Step == launcher.StepCreate && l.Missed != nil {
			l.Missed()
		}
		return
	}
	l.Log.Info("launch done", "launch", v.ID, "uuid", v.UUID, "dry_run", v.DryRun)
}

func (n *Launch) end(out *launcher.Outcome, refusal *proof.Refusal) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if refusal != nil {
		n.view.State, n.view.Refusal = LaunchRefused, refusal
		return
	}
	n.view.State, n.view.Step, n.view.Proof, n.view.UUID = LaunchDone, launcher.StepDone, out.Proof, out.UUID
	if n.view.DryRun {
		n.view.Would = out.Would
	}
}

// Get returns a launch by id, also one that ended before the daemon started, or nil.
func (l *Launches) Get(id string) *Launch {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.find(id)
}

// find looks in memory, then in the book. The caller holds mu.
func (l *Launches) find(id string) *Launch {
	if n := l.all[id]; n != nil {
		return n
	}
	r := l.Launcher.Book.Launch(id)
	if r == nil {
		return nil
	}
	n := &Launch{view: View{ID: id, Asked: r.Asked, UUID: r.UUID, Step: r.Reached, Refusal: r.Refusal, Proof: r.Proof, State: LaunchRunning}, done: make(chan struct{})}
	switch {
	case !r.Ended():
		n.view.Refusal, n.view.Proof = nil, nil // recovery is at it: ask again
	case r.Refusal != nil:
		n.view.State, n.view.Proof = LaunchRefused, nil
	default:
		n.view.State, n.view.Step = LaunchDone, launcher.StepDone
	}
	if n.view.State != LaunchRunning {
		close(n.done)
	}
	return n
}

// Wait waits until every launch that was taken up has ended.
func (l *Launches) Wait() { l.work.Wait() }

// View returns the launch as it is now.
func (n *Launch) View() View {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.view
}

// Done is closed when the launch has ended.
func (n *Launch) Done() <-chan struct{} { return n.done }

// Step implements launcher.Watcher.
func (n *Launch) Step(step string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.view.Step = step
}

// Domain implements launcher.Watcher.
func (n *Launch) Domain(uuid, name string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.view.UUID, n.view.Name = uuid, name
}

// Hashed implements launcher.Watcher.
func (n *Launch) Hashed(done, total int64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.view.Hashed, n.view.HashedOf = done, total
}
