package launcher

import (
	"bytes"
	"context"
	"runtime"
	"strings"
	"sync"
	"testing"

	"troth/proof"
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

// TestStrayBesideDelete: a stray is found while the end of its domain is on its way to the disk. hostd starts on that journal.
func TestStrayBesideDelete(t *testing.T) {
	w := newWorld(t)
	if _, refusal := w.launch(w.token()); refusal != nil {
		t.Fatal(refusal)
	}
	noted := make(chan error, 1)
	var once sync.Once
	w.around = func(name string, do func() error) error {
		err := do()
		if name == "journal forgotten" { // written, and the book does not know yet
			once.Do(func() {
				go func() { noted <- w.l.NoteStray(guestUUID, proof.Refuse(proof.GrantMissing, "a stray")) }()
				for all := make([]byte, 1<<20); len(noted) == 0 && bytes.Count(all[:runtime.Stack(all, true)], []byte("(*Book).Write(")) < 2; {
					runtime.Gosched()
				}
			})
		}
		return err
	}
	if refusal := w.l.Delete(t.Context(), guestUUID); refusal != nil {
		t.Fatal(refusal)
	}
	if err := <-noted; err != nil {
		t.Error(err)
	}
	w.around = nil
	w.restart()
	if n := w.l.Book.Late(); n != 0 {
		t.Errorf("%d entries came too late", n)
	}
}

// TestLateStray: a journal of before, in which a stray is behind the end of its domain, is read without it. A stray of a domain that never was is refused still.
func TestLateStray(t *testing.T) {
	stray := &Entry{What: WroteStray, UUID: guestUUID, Refusal: proof.Refuse(proof.GrantMissing, "a stray")}
	known := &Entry{What: WroteRefused, UUID: guestUUID, Refusal: proof.Refuse(proof.Internal, "a test")}
	forgotten := &Entry{What: WroteForgotten, UUID: guestUUID}
	book, err := NewBook(nil, fakeClock{}.Now, nil, []*Entry{known, forgotten, stray, stray, known})
	if err != nil {
		t.Fatal(err)
	}
	if d := book.Domain(guestUUID); book.Late() != 2 || d == nil || len(d.History) != 1 {
		t.Errorf("%d late entries, and %+v", book.Late(), d)
	}
	for name, found := range map[string][]*Entry{
		"never known":          {stray},
		"forgotten once more":  {known, forgotten, forgotten},
		"saved, and forgotten": {known, forgotten, {What: WroteSaved, UUID: guestUUID}},
	} {
		if _, err := NewBook(nil, fakeClock{}.Now, nil, found); err == nil || !strings.Contains(err.Error(), "unknown domain") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
