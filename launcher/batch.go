package launcher

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"troth/proof"
)

// linger is how long a batch waits for launches that are known to come; alone, a launch does not wait.
var linger = 100 * time.Millisecond // a variable for tests that crash thousands of launches

// batcher lets concurrent callers share one TPM operation: while one batch is with the chip the next one gathers, and a batch waits a little
// for launches that were announced. So n concurrent launches cost one unseal and one quote, not n (DESIGN.md, the TPM budget).
type batcher[In, Out any] struct {
	// do handles one batch: it returns an Out or an error for each In. It runs alone.
	do func(ctx context.Context, in []In) ([]Out, error)
	// limit bounds one batch.
	limit int

	mu      sync.Mutex
	coming  int
	waiting []*seat[In, Out]
	running bool
	wake    chan struct{} // closed and renewed when coming or waiting changes
}

type seat[In, Out any] struct {
	in   In
	out  Out
	err  error
	done chan struct{}
}

func newBatcher[In, Out any](limit int, do func(context.Context, []In) ([]Out, error)) *batcher[In, Out] {
	return &batcher[In, Out]{do: do, limit: limit, wake: make(chan struct{})}
}

// announce says that a caller will come soon, or (by the returned function, which may be called again) that it will not after all.
func (b *batcher[In, Out]) announce() (arrived func()) {
	b.mu.Lock()
	b.coming++
	b.mu.Unlock()
	return sync.OnceFunc(func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.coming--
		b.changed()
	})
}

// changed wakes the gathering batch. The caller holds mu.
func (b *batcher[In, Out]) changed() {
	close(b.wake)
	b.wake = make(chan struct{})
}

// join takes part in a batch and returns the caller's own result. A caller that gives up leaves its seat empty; the batch goes on without it.
func (b *batcher[In, Out]) join(ctx context.Context, in In, arrived func()) (Out, error) {
	s := &seat[In, Out]{in: in, done: make(chan struct{})}
	b.mu.Lock()
	b.waiting = append(b.waiting, s)
	if !b.running {
		b.running = true
		go b.run()
	}
	b.mu.Unlock()
	arrived()
	select {
	case <-s.done:
		return s.out, s.err
	case <-ctx.Done():
		var none Out
		return none, ctx.Err()
	}
}

// waited says of a launch whose time ended before the chip was through with its batch that the chip is busy.
func waited(err error) error {
	if errors.Is(err, context.DeadlineExceeded) && !errors.As(err, new(*proof.Refusal)) {
		return proof.Refuse(proof.TPMBusy, "the TPM did not come to it in time", proof.Fact{Name: "cause", Value: err.Error()})
	}
	return err
}

// run serves batches until nobody waits.
func (b *batcher[In, Out]) run() {
	for {
		b.gather()
		b.mu.Lock()
		n := min(len(b.waiting), b.limit)
		batch := b.waiting[:n:n]
		b.waiting = append([]*seat[In, Out](nil), b.waiting[n:]...)
		if n == 0 {
			b.running = false
			b.mu.Unlock()
			return
		}
		b.mu.Unlock()
		b.serve(batch)
	}
}

// gather waits until nobody is announced, the batch is full, or the time is over.
func (b *batcher[In, Out]) gather() {
	over := time.NewTimer(linger)
	defer over.Stop()
	for {
		b.mu.Lock()
		ready := b.coming == 0 || len(b.waiting) >= b.limit || len(b.waiting) == 0
		wake := b.wake
		b.mu.Unlock()
		if ready {
			return
		}
		select {
		case <-wake:
		case <-over.C:
			return
		}
	}
}

// serve runs one batch. The batch is not any one caller's: it has a deadline of its own.
func (b *batcher[In, Out]) serve(batch []*seat[In, Out]) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	in := make([]In, len(batch))
	for i, s := range batch {
		in[i] = s.in
	}
	out, err := b.attempt(ctx, in)
	for i, s := range batch {
		if err != nil {
			s.err = err
		} else {
			s.out = out[i]
		}
		close(s.done)
	}
}

// attempt turns a panic into an error of this batch.
func (b *batcher[In, Out]) attempt(ctx context.Context, in []In) (out []Out, err error) {
	defer func() {
		if p := recover(); p != nil {
			out, err = nil, fmt.Errorf("panic in a batch: %v", p)
		}
	}()
	out, err = b.do(ctx, in)
	if err == nil && len(out) != len(in) {
		err = fmt.Errorf("batch of %d gave %d results", len(in), len(out))
	}
	return out, err
}
