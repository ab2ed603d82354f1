package launcher

import (
	"bytes"
	"context"
	"runtime"
	"testing"
)

// TestStrayOrLaunch: a domain was stopped when a look at it began, and is launched and proved before the look goes on. Its guest is no stray.
func TestStrayOrLaunch(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	token := w.token()
	if _, refusal := w.launch(token); refusal != nil {
		t.Fatal(refusal)
	}
	live := w.live[guestUUID]
	if refusal := w.l.Stop(ctx, guestUUID); refusal != nil {
		t.Fatal(refusal)
	}
	w.l.mu.Lock() // the look waits here for its turn
	done := make(chan error)
	go func() {
		_, err := w.l.Stray(ctx, guestUUID)
		done <- err
	}()
	for all := make([]byte, 1<<20); !bytes.Contains(all[:runtime.Stack(all, true)], []byte("(*Launcher).turn(")); {
		runtime.Gosched()
	}
	w.mu.Lock()
	w.live[guestUUID] = live
	w.mu.Unlock()
	w.l.Book.mu.Lock()
	w.l.Book.domains[guestUUID].State = StateProved
	w.l.Book.mu.Unlock()
	w.l.mu.Unlock()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	w.running(token)
}
