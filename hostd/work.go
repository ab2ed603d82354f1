package hostd

import (
	"context"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sort"
	"strings"
	"sync"
	"time"

	"troth/proof"
)

// How a worker that panicked is taken up again, and for how long it counts as broken.
const (
	againAfter = time.Second
	brokenFor  = time.Minute
)

// Workers runs the daemon's workers. What they read was made by others: domains, processes, answers of libvirt, verifier and TPM. A panic over it ends no
// daemon, since that would leave running guests unwatched, and is not passed over either: for a while the condition says so and the host is not ready.
type Workers struct {
	Log  *slog.Logger
	Boot func() time.Duration

	work   sync.WaitGroup
	mu     sync.Mutex
	broken map[string]panicked
}

type panicked struct {
	what string
	at   time.Duration
}

// Go runs a worker until it returns. After a panic it begins again.
func (w *Workers) Go(ctx context.Context, name string, run func(context.Context)) {
	w.work.Go(func() {
		for w.panics(ctx, name, run) && ctx.Err() == nil {
			select {
			case <-ctx.Done():
			case <-time.After(againAfter):
			}
		}
	})
}

// Wait waits until all workers have returned.
func (w *Workers) Wait() { w.work.Wait() }

func (w *Workers) panics(ctx context.Context, name string, run func(context.Context)) (did bool) {
	defer func() {
		if p := recover(); p != nil {
			did = true
			w.Log.Error("panic in a worker", "worker", name, "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
			w.mu.Lock()
			defer w.mu.Unlock()
			if w.broken == nil {
				w.broken = map[string]panicked{}
			}
			w.broken[name] = panicked{fmt.Sprint(p), w.Boot()}
		}
	}()
	run(ctx)
	return false
}

// Condition says which workers panicked lately.
func (w *Workers) Condition() Condition {
	w.mu.Lock()
	defer w.mu.Unlock()
	var names []string
	for name, p := range w.broken {
		if w.Boot()-p.at > brokenFor {
			delete(w.broken, name)
			continue
		}
		names = append(names, fmt.Sprintf("%s (%.200q)", name, p.what))
	}
	if len(names) == 0 {
		return Condition{Name: "workers", State: OK, Evidence: "at work"}
	}
	sort.Strings(names)
	return Condition{Name: "workers", State: Failed, Code: proof.Internal, Evidence: "failed in a way that nobody foresaw, and began again: " + strings.Join(names, ", "),
		Remedy: "Report it, with the log of troth-hostd, which has the place."}
}
