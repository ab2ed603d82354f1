// Package stall asks what may never answer: the kernel, about a file whose server hangs or about memory that another process decides when to fill.
//
// It promises: nobody waits longer than the limit; what has not come back is not asked again until it has; and at most so many questions hang at once
// for each group, so that nobody can use up the threads of this process, nor keep it from asking about others.
// It trusts nobody. A question that hangs holds a thread until the kernel lets it go.
package stall

import (
	"errors"
	"fmt"
	"sync"
	"time"
)

// ErrStalled says that there is no answer yet, which is neither yes nor no.
var ErrStalled = errors.New("no answer in time")

// Guard keeps account of what hangs.
type Guard struct {
	Within time.Duration // for one question
	Most   int           // questions of one group that hang at once

	mu   sync.Mutex
	open map[string]map[string]bool // by group, what is being asked
}

// Ask asks for the answer of a question, named by its group and its key. A question that is being asked still is not asked a second time.
func Ask[T any](g *Guard, group, key string, question func() (T, error)) (T, error) {
	type answer struct {
		value    T
		err      error
		panicked any
	}
	var none T
	if err := g.begin(group, key); err != nil {
		return none, err
	}
	answered := make(chan answer, 1)
	go func() {
		var a answer
		defer func() {
			a.panicked = recover() // it is the asker's
			g.end(group, key)      // first: who has the answer may ask again
			answered <- a
		}()
		a.value, a.err = question()
	}()
	timer := time.NewTimer(g.Within)
	defer timer.Stop()
	select {
	case a := <-answered:
		if a.panicked != nil {
			panic(a.panicked)
		}
		return a.value, a.err
	case <-timer.C:
		return none, fmt.Errorf("%w: %v", ErrStalled, g.Within)
	}
}

func (g *Guard) begin(group, key string) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	asked := g.open[group]
	switch {
	case asked[key]:
		return fmt.Errorf("%w: asked before, and still none", ErrStalled)
	case len(asked) >= g.Most:
		return fmt.Errorf("%w: %d others hang", ErrStalled, len(asked))
	case asked == nil:
		asked = map[string]bool{}
		if g.open == nil {
			g.open = map[string]map[string]bool{}
		}
		g.open[group] = asked
	}
	asked[key] = true
	return nil
}

func (g *Guard) end(group, key string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if delete(g.open[group], key); len(g.open[group]) == 0 {
		delete(g.open, group)
	}
}
