// Package standstill tells how long the machine itself stood still: a disk that takes no write, processors that run something else.
//
// What a test demands of a daemon in seconds is about the daemon. A shared machine may hold everybody for longer than that, so such a
// test takes the time off during which this package, which does nothing but write one byte, could not go on either. It promises no
// more: a daemon that is slow by itself while the machine goes on is slow. It cannot tell who holds the machine: what a daemon does to all processors and
// the disk at once counts as the machine's.
package standstill

import (
	"fmt"
	"os"
	"sync"
	"time"
)

const (
	every = 50 * time.Millisecond  // how often a byte is written
	usual = 250 * time.Millisecond // what a write and its pause may take and be none the less usual
)

// watch is what was seen of one disk.
type watch struct {
	mu    sync.Mutex
	last  time.Time // the end of the last write; zero: nobody watches
	stood []interval
}

var machine watch

type interval struct{ from, to time.Time }

// Watch begins to watch, until the process ends: on the disk of the temporary directory, which is that of a lab too.
func Watch() error { return watching() }

var watching = sync.OnceValue(func() error {
	f, err := os.CreateTemp("", "troth-standstill")
	if err != nil {
		return fmt.Errorf("cannot watch for stalls: %w", err)
	}
	if err := os.Remove(f.Name()); err != nil { // it lives as long as it is open
		return fmt.Errorf("cannot watch for stalls: %w", err)
	}
	machine.note(time.Now())
	go func() {
		for range time.Tick(every) {
			f.WriteAt([]byte{0}, 0) //nolint:errcheck // a disk that is full does not stand still
			f.Sync()                //nolint:errcheck // the same
			machine.note(time.Now())
		}
	}()
	return nil
})

func (w *watch) note(now time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.last.IsZero() && now.Sub(w.last) > usual {
		w.stood = append(w.stood, interval{w.last, now})
	}
	w.last = now
}

// Since is the time since begun, less that for which the machine stood still. It is time.Since where nobody watches.
func Since(begun time.Time) time.Duration { return machine.between(begun, time.Now()) }

func (w *watch) between(begun, now time.Time) time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	took := now.Sub(begun)
	all := w.stood
	if !w.last.IsZero() && now.Sub(w.last) > usual {
		all = append(all[:len(all):len(all)], interval{w.last, now}) // it stands still now
	}
	for _, i := range all {
		from := i.from
		if from.Before(begun) {
			from = begun
		}
		if i.to.After(from) {
			took -= i.to.Sub(from)
		}
	}
	return took
}
