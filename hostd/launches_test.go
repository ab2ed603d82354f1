package hostd

import (
	"context"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"troth/launcher"
	"troth/proof"
)

// TestQueueIsBounded: an engine's burst waits for its turn; what comes beyond all bounds is told at once to try again, and may, under the same key.
func TestQueueIsBounded(t *testing.T) {
	book, err := launcher.NewBook(nil, time.Now, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	l := NewLaunches(ctx, &launcher.Launcher{Book: book}, slog.New(slog.DiscardHandler), 1, time.Hour)
	l.slots <- struct{}{} // another launch is at work
	submit := func(i int) (*Launch, *proof.Refusal) {
		return l.Submit(launcher.Request{ID: fmt.Sprint("launch ", i), Asked: "a", Token: "none"})
	}
	const most = 64
	for i := range most {
		if _, refusal := submit(i); refusal != nil {
			t.Fatalf("launch %d: %v", i, refusal)
		}
	}
	_, refusal := submit(most)
	if refusal == nil || refusal.Code != proof.TPMBusy {
		t.Fatalf("one too many: %v", refusal)
	}
	if l.Get(fmt.Sprint("launch ", most)) != nil {
		t.Error("what was refused is kept")
	}
	if _, refusal := submit(0); refusal != nil {
		t.Errorf("asked again about one that waits: %v", refusal)
	}
	<-l.slots // they have their turns, and end: nobody reads such a token
	for i := range most {
		<-l.Get(fmt.Sprint("launch ", i)).Done()
	}
	last, refusal := submit(most)
	if refusal != nil {
		t.Fatal(refusal)
	}
	<-last.Done()

	// Those that give up waiting make room too.
	l.slots <- struct{}{}
	if _, refusal := submit(most + 1); refusal != nil {
		t.Fatal(refusal)
	}
	cancel()
	l.Wait()
	if l.waiting != 0 {
		t.Errorf("%d wait", l.waiting)
	}
}
