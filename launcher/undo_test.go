package launcher

import (
	"context"
	"sync"
	"testing"
	"time"

	"troth/proof"
)

// waits begins what has to wait for the claim of whoever is at work, and returns when it waits.
func (w *world) waits(do func(context.Context, string) *proof.Refusal) (end func() *proof.Refusal) {
	done := make(chan *proof.Refusal, 1)
	go func() { done <- do(context.Background(), guestUUID) }()
	time.Sleep(10 * time.Millisecond) // it has read the book by now, and looks for the claim every 20 ms
	return func() *proof.Refusal { return <-done }
}

// TestDeleteAfterLaunch: a delete that waited for a launch closes the link that the launch opened. Its token is free.
func TestDeleteAfterLaunch(t *testing.T) {
	w := newWorld(t)
	token := w.token()
	if _, refusal := w.launch(token); refusal != nil {
		t.Fatal(refusal)
	}
	if refusal := w.l.Stop(t.Context(), guestUUID); refusal != nil {
		t.Fatal(refusal)
	}
	var end func() *proof.Refusal
	var once sync.Once
	w.around = func(name string, do func() error) error {
		if name == "create" {
			once.Do(func() { end = w.waits(w.l.Delete) })
		}
		return do()
	}
	if _, refusal := w.launch(token); refusal != nil {
		t.Fatal(refusal)
	}
	if refusal := end(); refusal != nil {
		t.Fatal(refusal)
	}
	w.around = nil
	if d := w.l.Book.Domain(guestUUID); d != nil || w.live[guestUUID] != nil {
		t.Errorf("deleted, and there is %+v, runs: %v", d, w.live[guestUUID] != nil)
	}
	if c := w.chains[proof.TokenDigest(token)]; c.state != "closed" {
		t.Errorf("the chain is %s", c.state)
	}
	if _, refusal := w.launch(token); refusal != nil {
		t.Fatal(refusal)
	}
	w.running(token)
}

// TestStopAfterLaunch: a stop that waited for a launch closes the link of that launch, not the one before it.
func TestStopAfterLaunch(t *testing.T) {
	w := newWorld(t)
	token := w.token()
	if _, refusal := w.launch(token); refusal != nil {
		t.Fatal(refusal)
	}
	var end func() *proof.Refusal
	var once sync.Once
	w.around = func(name string, do func() error) error {
		if name == "create" {
			once.Do(func() { end = w.waits(w.l.Stop) })
		}
		return do()
	}
	first := *w.l.Book.Domain(guestUUID).Link
	if refusal := w.l.Stop(t.Context(), guestUUID); refusal != nil {
		t.Fatal(refusal)
	}
	if _, refusal := w.launch(token); refusal != nil {
		t.Fatal(refusal)
	}
	if refusal := end(); refusal != nil {
		t.Fatal(refusal)
	}
	w.around = nil
	d := w.l.Book.Domain(guestUUID)
	if d.State != StateStopped || *d.Link == first || w.live[guestUUID] != nil {
		t.Errorf("stopped, and it is %s, runs: %v", d.State, w.live[guestUUID] != nil)
	}
	if c := w.chains[proof.TokenDigest(token)]; c.state != "closed" {
		t.Errorf("the chain is %s", c.state)
	}
	if _, refusal := w.launch(token); refusal != nil {
		t.Fatal(refusal)
	}
	w.running(token)
}
