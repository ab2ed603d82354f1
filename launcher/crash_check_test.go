package launcher

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"troth/proof"
)

func bookOf(records [][]byte) (*Book, error) {
	var found []*Entry
	for _, r := range records {
		e := &Entry{}
		if err := json.Unmarshal(r, e); err != nil {
			return nil, err
		}
		found = append(found, e)
	}
	return NewBook(nil, fakeClock{}.Now, nil, found)
}

// Check proves every invariant of a host at rest: nothing of it depends on how it came there.
func (s *sim) Check() error {
	w := s.world
	var errs []error
	bad := func(format string, a ...any) { errs = append(errs, fmt.Errorf(format, a...)) }
	for _, b := range s.broken {
		bad("%s", b)
	}
	if n := len(w.l.Book.Unended()); n != 0 {
		bad("%d launches have no end", n)
	}
	if owed := w.l.Book.Owed(); len(owed) != 0 {
		bad("%d chain events are owed still", len(owed))
	}
	for id := range w.secrets {
		bad("the guest secret of %s is left in its file", id)
	}
	if n := w.opened - w.held(); n != 0 {
		bad("%d images are left open", n)
	}
	for digest, token := range w.tokens {
		if bytes.Contains(s.fs.Now(s.path()), token.Nonce.Reveal()) {
			bad("the nonce of token %v is in the journal", digest)
		}
	}
	for memory, times := range w.wentOn {
		if times > 1 {
			bad("%d guests went on from %s", times, memory)
		}
	}
	for uuid := range w.live {
		if d := w.l.Book.Domain(uuid); d == nil || d.State != StateProved {
			bad("guest %s is there and not proved", uuid)
		}
	}
	for uuid := range s.xml {
		if err := s.checkGuest(uuid); err != nil {
			bad("guest %s: %w", uuid, err)
		}
	}
	book, err := s.onDisk()
	if err != nil {
		bad("the journal on the disk: %w", err)
	} else if got, want := state(book), state(w.l.Book); got != want {
		bad("the disk says %s, memory says %s", got, want)
	}
	return errors.Join(errs...)
}

// onDisk is the book that a loss of power would leave now.
func (s *sim) onDisk() (*Book, error) {
	c := s.clone()
	c.fs.PowerLoss(0, nil)
	c.fs.Call = nil
	book, _, err := OpenBook(c.fs, s.dir, fakeClock{}.Now, 0)
	return book, err
}

func state(b *Book) string {
	var text strings.Builder
	for _, d := range b.Domains() {
		fmt.Fprintf(&text, "%s %s registered %v proof %d; ", d.UUID, d.State, d.Registered, len(d.Proof))
	}
	return text.String()
}

func (s *sim) checkGuest(uuid string) error {
	w := s.world
	d, defined, live := w.l.Book.Domain(uuid), w.inactive[uuid], w.live[uuid]
	if d == nil {
		if live != nil || !bytes.Equal(defined, s.before[uuid]) {
			return errors.New("nobody knows it, and libvirt has something of it")
		}
		return nil
	}
	// What is stopped may have lost its definition: a delete that was cut short is asked for again.
	ours := bytes.Contains(defined, []byte("urn:troth:launch:v1")) && !bytes.Equal(defined, s.before[uuid])
	carried := bytes.Contains(defined, []byte(`token="`)) // another client's definition becomes ours as it is
	if d.Registered != ours && !carried && (ours || d.State != StateStopped) {
		return fmt.Errorf("registered: %v, defined as ours: %v", d.Registered, ours)
	}
	switch d.State {
	case StateProved:
		if live == nil || w.paused[uuid] {
			return errors.New("proved, and does not run")
		}
		return s.checkProof(d)
	case StateSaved:
		c := w.chains[d.Token]
		if live != nil || d.Saved == nil || w.files[w.Path(uuid)] == nil || c.state != "saved" || c.image != *d.Saved || c.head == nil || *c.head != *d.Link {
			return fmt.Errorf("saved as %v, runs: %v, its image is %q, its chain is %s at %v, image %v", d.Saved, live != nil, w.files[w.Path(uuid)], c.state, c.head, c.image)
		}
		return nil
	case StateStopped, StateArmed:
		if live != nil {
			return fmt.Errorf("%s, and runs", d.State)
		}
	case StateRefused:
		if live != nil || d.Refusal == nil {
			return fmt.Errorf("refused without a reason: %v, and runs: %v", d.Refusal == nil, live != nil)
		}
		if d.Refusal.Sentence == "" || d.Refusal.Remedy == "" {
			return fmt.Errorf("a refusal that helps nobody: %w", d.Refusal)
		}
		if !d.Registered && !bytes.Equal(defined, s.before[uuid]) {
			return fmt.Errorf("the definition is %q, before it was %q", defined, s.before[uuid])
		}
	default:
		return fmt.Errorf("state %q", d.State)
	}
	if w.files[w.Path(uuid)] != nil {
		return fmt.Errorf("%s, and its save image is left", d.State)
	}
	for _, c := range w.chains {
		if d.Link != nil && c.link == *d.Link && (c.state == "open" || c.state == "reserved" || c.state == "saved") {
			return fmt.Errorf("%s, and its chain is %s", d.State, c.state)
		}
	}
	return nil
}

// checkProof compares the kept proof with the tenant's nonce and the verifier's chain.
func (s *sim) checkProof(d *Domain) error {
	p, err := proof.ParseProof(d.Proof)
	if err != nil {
		return err
	}
	made := p.MAC
	if err := p.Seal(s.world.tokens[d.Token].Nonce); err != nil || p.MAC != made {
		return fmt.Errorf("the proof's MAC is not made with the token's nonce: %w", err)
	}
	receipt, err := proof.ParseReceipt(p.Receipt, s.world.keys)
	if err != nil {
		return err
	}
	c := s.world.chains[d.Token]
	link := proof.Link(p.Statement)
	if c == nil || c.state != "open" || c.head == nil || *c.head != link || *d.Link != link || receipt.Statement != link {
		return fmt.Errorf("proof of link %v, book has %v, receipt has %v, the verifier has %+v", link, d.Link, receipt.Statement, c)
	}
	return nil
}

// again launches every guest of the step once more, honestly, stops and forgets it: nothing is stuck and nothing stays.
func (s *sim) again() error {
	ctx, l := context.Background(), s.world.l
	for uuid := range s.xml {
		if d := l.Book.Domain(uuid); d != nil && d.State == StateSaved {
			s.world.process = nil
			if _, refusal := s.restore(uuid); refusal != nil {
				return fmt.Errorf("the next restore: %w (%v)", refusal, refusal.Facts)
			}
			if times := s.world.wentOn[s.world.loaded[uuid]]; times != 1 {
				return fmt.Errorf("%d guests went on from the image", times)
			}
		}
		if d := l.Book.Domain(uuid); d != nil && d.State == StateProved {
			if refusal := l.Stop(ctx, uuid); refusal != nil {
				return fmt.Errorf("the next stop: %w", refusal)
			}
		}
		s.world.process, s.world.receipt, s.world.noStart = nil, nil, false
		if _, refusal := s.launch(uuid); refusal != nil {
			return fmt.Errorf("the next launch with the same token: %w (%v)", refusal, refusal.Facts)
		}
		if refusal := l.Delete(ctx, uuid); refusal != nil {
			return fmt.Errorf("the next delete: %w", refusal)
		}
		s.before[uuid] = nil
	}
	if err := l.Tell(ctx); err != nil {
		return err
	}
	return s.Check()
}
