package launcher

import (
	"errors"
	"hash/fnv"
	"strings"
	"sync"

	"troth/proof"
)

// lanes bounds how many domains are written of at one time. Those that share a lane by chance wait for each other's sync.
const lanes = 256

var errUnknown = errors.New("unknown domain")

// Shorter makes the journal as short as its book is.
type Shorter interface {
	// Due says that it is time to.
	Due() bool
	// Shorten puts these entries in place of all that are there. What fails leaves the journal as it was.
	Shorten(all []*Entry)
}

// Write puts the entry into the journal, and then into the book. After an error it is in neither, or in the journal alone as after a crash. Entries of one
// domain are in the journal in the order in which the book took them, and one that the book would not take is not in it: what is replayed has happened.
// Entries of different domains share a sync.
func (b *Book) Write(e *Entry) error {
	e.At, e.Refusal = b.now().Unix(), brief(e.Refusal)
	b.shorten()
	if err := b.put(e); err != nil {
		return err
	}
	if b.changed != nil {
		b.changed()
	}
	return nil
}

func (b *Book) put(e *Entry) error {
	b.writing.RLock()
	defer b.writing.RUnlock()
	lane := b.lane(e)
	lane.Lock()
	defer lane.Unlock()
	b.mu.Lock()
	err := b.check(e)
	b.mu.Unlock()
	if err != nil {
		return err
	}
	if err := b.journal.Append(e); err != nil {
		return &unwritten{err}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.apply(e)
}

// shorten makes a journal that has grown shorter, while nobody writes: what is in it then, the book has.
func (b *Book) shorten() {
	if b.Shorter == nil || !b.Shorter.Due() {
		return
	}
	b.writing.Lock()
	defer b.writing.Unlock()
	if b.Shorter.Due() { // another one may have been here first
		b.Shorter.Shorten(b.Snapshot())
	}
}

// maxFacts bounds what is kept of a refusal's facts, in bytes: they may hold values of a request, and a domain keeps the refusals of its past.
const maxFacts = 16 << 10

// brief is a refusal with no more facts than are kept.
func brief(r *proof.Refusal) *proof.Refusal {
	if r == nil {
		return nil
	}
	kept, room := *r, maxFacts
	cut := func(s string) string {
		if len(s) > room {
			s = strings.ToValidUTF8(s[:room], "") + "…"
		}
		room = max(room-len(s), 0)
		return s
	}
	kept.Sentence, kept.Facts = cut(r.Sentence), nil
	for _, f := range r.Facts {
		if room == 0 {
			break
		}
		kept.Facts = append(kept.Facts, proof.Fact{Name: cut(f.Name), Want: cut(f.Want), Got: cut(f.Got), Value: cut(f.Value)})
	}
	return &kept
}

// lane is what entries of one domain, and events of one token's chain, queue in.
func (b *Book) lane(e *Entry) *sync.Mutex {
	h := fnv.New32a()
	if e.Event != nil {
		h.Write(e.Event.Token[:])
	} else {
		h.Write([]byte(e.UUID))
	}
	return &b.lanes[h.Sum32()%lanes]
}

// Late is how many entries of the journal told of a domain that was forgotten by then, and say nothing.
func (b *Book) Late() int { return b.late }

// unwritten is the error of a journal that cannot be written. It is a refusal, since nothing may start without its entry.
type unwritten struct{ cause error }

func (u *unwritten) Error() string { return "cannot write journal: " + u.cause.Error() }
func (u *unwritten) Unwrap() error { return u.cause }

// As makes a refusal of it.
func (u *unwritten) As(target any) bool {
	r, ok := target.(**proof.Refusal)
	if ok {
		*r = proof.Refuse(proof.Internal, "hostd's journal cannot be written, so nothing is launched", proof.Fact{Name: "cause", Value: u.cause.Error()})
	}
	return ok
}

// Blame keeps why a launch is being undone where the journal could not take it. Memory alone has it: a crash finds that the launch was cut short.
func (b *Book) Blame(launch string, why *proof.Refusal) {
	b.writing.RLock()
	defer b.writing.RUnlock()
	b.mu.Lock()
	defer b.mu.Unlock()
	if r := b.launches[launch]; r != nil && r.Refusal == nil && !r.Ended() {
		r.Refusal = brief(why)
	}
}
