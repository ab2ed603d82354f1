package launcher

import (
	"bytes"
	"encoding/json"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"troth/proof"
)

// shortened is a journal that is made shorter once, when it is due.
type shortened struct {
	w   *world
	due atomic.Bool
}

func (s *shortened) Due() bool { return s.due.Load() }

func (s *shortened) Shorten(all []*Entry) {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	s.w.entries = nil
	for _, e := range all {
		b, err := json.Marshal(e)
		if err != nil {
			s.w.t.Error(err)
		}
		s.w.entries = append(s.w.entries, b)
	}
	s.due.Store(false)
}

// TestShorterBesideWrite: an entry that is on the disk, and that the book does not have yet, is not lost when another's makes the journal shorter.
func TestShorterBesideWrite(t *testing.T) {
	w := newWorld(t)
	short := &shortened{w: w}
	w.l.Book.Shorter = short
	if _, refusal := w.launch(w.token()); refusal != nil {
		t.Fatal(refusal)
	}
	other := make(chan error, 1)
	var once sync.Once
	w.around = func(name string, do func() error) error {
		err := do()
		if name == "journal stopped" {
			once.Do(func() {
				short.due.Store(true)
				go func() {
					other <- w.l.Book.Write(&Entry{What: WroteRefused, UUID: secondUUID, Refusal: proof.Refuse(proof.Internal, "a test")})
				}()
				all := make([]byte, 1<<20)
				for waits := false; short.due.Load() && !waits; {
					runtime.Gosched()
					stack := all[:runtime.Stack(all, true)]
					waits = bytes.Contains(stack, []byte("(*Book).shorten(")) && bytes.Contains(stack, []byte("(*RWMutex).Lock("))
				}
			})
		}
		return err
	}
	if refusal := w.l.Stop(t.Context(), guestUUID); refusal != nil {
		t.Fatal(refusal)
	}
	if err := <-other; err != nil {
		t.Fatal(err)
	}
	if short.due.Load() {
		t.Fatal("the journal was not made shorter")
	}
	w.around = nil
	w.restart()
	if d := w.l.Book.Domain(guestUUID); d.State != StateStopped {
		t.Errorf("stopped, and the journal says %s", d.State)
	}
	if w.l.Book.Domain(secondUUID) == nil {
		t.Error("the other entry is lost")
	}
}

// TestLongDefinition: a definition that grows when everything in it is written out is refused before anything keeps it.
func TestLongDefinition(t *testing.T) {
	w := newWorld(t)
	sys := "<sysinfo type='smbios'><oemStrings><entry>" + strings.Repeat(">", 600<<10) + "</entry></oemStrings></sysinfo>"
	xml := strings.Replace(string(guestXML(t)), "<os>", sys+"<os>", 1)
	_, refusal := w.l.Launch(t.Context(), Request{ID: "long", Token: w.token(), Domain: []byte(xml), Action: proof.ActionStart}, quiet{})
	expect(t, refusal, proof.RequestInvalid)
	if !strings.Contains(refusal.Sentence, "too long") || w.released.Load() != 0 || len(w.entries) > 0 {
		t.Errorf("%v, %d releases, %d entries", refusal, w.released.Load(), len(w.entries))
	}
}
