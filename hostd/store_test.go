package hostd

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"troth/hostd/journal"
	"troth/launcher"
	"troth/proof"
	"troth/test/tear"
)

// asked is the entry that a launch begins with, n bytes of it a definition.
func asked(id string, n int) *launcher.Entry {
	return &launcher.Entry{What: launcher.WroteIntent, Launch: "launch " + id, UUID: id, Token: &proof.Digest{1}, Configuration: &proof.Digest{2}, Link: &proof.Digest{3},
		Attempt: 1, Request: bytes.Repeat([]byte("x"), n)}
}

func saidNo(id string) *launcher.Entry {
	return &launcher.Entry{What: launcher.WroteRefused, Launch: "launch " + id, UUID: id, Refusal: proof.Refuse(proof.TokenInvalid, "a test"), Unmoved: true}
}

func size(fs *tear.FS) int { return len(fs.Now("j/launches")) }

// TestShorterWhileRunning: launches that the verifier refuses leave no more than a bounded journal, however many they are and however long their definitions,
// and what the book says of them is there after a loss of power.
func TestShorterWhileRunning(t *testing.T) {
	fs := tear.New()
	book := openStore(t, Store{FS: fs, Dir: "j", Growth: 64 << 10})
	var all sync.WaitGroup
	for i := range 8 { // at one time, so that some write while others would make it shorter
		all.Go(func() {
			for n := range 40 {
				id := fmt.Sprint(i, "-", n%4)
				if err := errors.Join(book.Write(asked(id, 4<<10)), book.Write(saidNo(id))); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	if n := size(fs); n > 600<<10 {
		t.Errorf("the journal has %d bytes", n)
	}
	lost := fs.Clone()
	lost.PowerLoss(tear.Lost, rand.New(rand.NewPCG(1, 1)))
	again := openStore(t, Store{FS: lost, Dir: "j"})
	if was, is := len(book.Domains()), len(again.Domains()); was != 32 || is != was {
		t.Fatalf("%d domains before, %d on the disk", was, is)
	}
	for _, d := range again.Domains() {
		if d.State != launcher.StateRefused || d.Refusal == nil {
			t.Errorf("%s is %s", d.UUID, d.State)
		}
	}
	if n := len(again.Unended()); n != 0 {
		t.Errorf("%d launches have no end", n)
	}
}

// TestFullJournal: where the journal cannot be made shorter, nothing new begins while what has begun can end, and the refusal says what to do. It goes on by itself
// when there is space.
func TestFullJournal(t *testing.T) {
	fs := tear.New()
	store := Store{FS: fs, Dir: "j", Growth: 4 << 10, Full: 16 << 10}
	book := openStore(t, store)
	fs.Call = func(op string, _ []byte, do, _ func() error) error {
		if op == "fs create" {
			return errors.New("no space left on the device")
		}
		return do()
	}
	var err error
	for i := 0; err == nil && i < 100; i++ {
		id := fmt.Sprint(i)
		if err = book.Write(asked(id, 1<<10)); err == nil {
			if err := book.Write(saidNo(id)); err != nil {
				t.Fatalf("what had begun cannot end: %v", err)
			}
		}
	}
	var r *proof.Refusal
	if !errors.Is(err, journal.ErrFull) || !errors.As(err, &r) || r.Code != proof.Internal {
		t.Fatalf("full, and the answer is %v", err)
	}
	if text := r.Error(); !strings.Contains(text, "delete domains") || !strings.Contains(text, "no space left") {
		t.Errorf("a refusal that helps nobody: %s", text)
	}
	if n := size(fs); n > 18<<10 {
		t.Errorf("the journal has %d bytes", n)
	}
	if err := book.Write(&launcher.Entry{What: launcher.WroteForgotten, UUID: "0"}); err != nil {
		t.Errorf("a domain cannot be forgotten: %v", err)
	}
	fs.Call = nil
	book.Shorter.(*entries).vain = time.Now().Add(-apart) // a minute goes by
	if err := book.Write(asked("another", 1<<10)); err != nil {
		t.Error(err)
	}
}

// TestLongFacts: what a request puts into the facts of its refusals, again and again, does not keep the journal from being made shorter.
func TestLongFacts(t *testing.T) {
	fs := tear.New()
	book := openStore(t, Store{FS: fs, Dir: "j", Growth: 1 << 20})
	long := strings.Repeat("long ", 200<<10)
	for range 40 {
		err := book.Write(&launcher.Entry{What: launcher.WroteRefused, UUID: "a", Refusal: proof.Refuse(proof.ConfigurationNotAllowed, "a test", proof.Fact{Name: "value", Got: long})})
		if err != nil {
			t.Fatal(err)
		}
	}
	if n := size(fs); n > 3<<20 {
		t.Errorf("the journal has %d bytes", n)
	}
	if f := book.Domain("a").Refusal.Facts; len(f) != 1 || !strings.HasPrefix(f[0].Got, "long long ") || !strings.HasSuffix(f[0].Got, "…") {
		t.Errorf("facts %.60v", f)
	}
}

func openStore(t *testing.T, at Store) *launcher.Book {
	t.Helper()
	book, _, err := OpenBook(at, time.Now, nil)
	if err != nil {
		t.Fatal(err)
	}
	return book
}
