package launcher

import (
	"bytes"
	"encoding/json"
	"testing"

	"troth/proof"
)

// TestSnapshot: a book made from its snapshot is the same book, in every state that a launch can leave.
func TestSnapshot(t *testing.T) {
	w := newWorld(t)
	first, second := w.token(), w.token(func(t *proof.Token) { t.ID = "second" })
	if _, refusal := w.launch(first); refusal != nil {
		t.Fatal(refusal)
	}
	if refusal := w.l.Stop(t.Context(), guestUUID); refusal != nil {
		t.Fatal(refusal)
	}
	w.failAt("release#0", true, true)
	if _, refusal := w.launch(second); refusal == nil {
		t.Fatal("a killed daemon finished a launch")
	}
	w.opened = 0
	w.restart()
	parts := w.l.Book.Snapshot()
	before, err := json.Marshal(parts)
	if err != nil {
		t.Fatal(err)
	}
	w.entries = nil
	for _, e := range parts {
		b, err := json.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		w.entries = append(w.entries, b)
	}
	w.restart()
	after, err := json.Marshal(w.l.Book.Snapshot())
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(before, after) {
		t.Fatalf("another book:\n%s\n%s", before, after)
	}
	// It goes on from there: the launch that was cut short is ended, and the next one works.
	if err := w.l.Recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, refusal := w.launch(first); refusal != nil {
		t.Fatal(refusal)
	}
	w.running(first)
}
