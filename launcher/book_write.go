package launcher

import (
	"errors"
	"hash/fnv"
	"sync"

	"troth/proof"
)

// lanes bounds how many domains are written of at one time. Those that share a lane by chance wait for each other's sync.
const lanes = 256

var errUnknown = errors.New("unknown domain")

// Write puts the entry into the journal, and then into the book. After an error it is in neither, or in the journal alone as after a crash. Entries of one
// domain are in the journal in the order in which the book took them, and one that the book would not take is not in it: what is replayed has happened.
// Entries of different domains share a sync.
func (b *Book) Write(e *Entry) error {
	e.At = b.now().Unix()
	if err := b.put(e); err != nil {
		return err
	}
	if b.changed != nil {
		b.changed()
	}
	return nil
}

func (b *Book) put(e *Entry) error {
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
	b.mu.Lock()
	defer b.mu.Unlock()
	if r := b.launches[launch]; r != nil && r.Refusal == nil && !r.Ended() {
		r.Refusal = why
	}
}
