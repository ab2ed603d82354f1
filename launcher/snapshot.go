package launcher

import (
	"bytes"
	"errors"
	"maps"
	"slices"

	"troth/proof"
)

// Snapshot gives entries that make this very book, for a journal that has grown. Ended launches that no domain names any more are left out but for
// the newest, whose callers may still ask for them.
func (b *Book) Snapshot() []*Entry {
	b.mu.Lock()
	defer b.mu.Unlock()
	var all []*Entry
	add := func(s Snapshot) { all = append(all, &Entry{What: WroteSnapshot, At: b.now().Unix(), Snapshot: &s}) }
	for _, uuid := range slices.Sorted(maps.Keys(b.domains)) {
		add(Snapshot{Domain: b.domains[uuid]})
	}
	for _, id := range b.ended { // in the order in which they are forgotten
		if r := b.launches[id]; r != nil {
			add(Snapshot{Launch: r})
		}
	}
	for _, id := range slices.Sorted(maps.Keys(b.launches)) {
		if r := b.launches[id]; !r.Ended() {
			add(Snapshot{Launch: r})
		}
	}
	for _, token := range slices.SortedFunc(maps.Keys(b.chains), func(x, y proof.Digest) int { return bytes.Compare(x[:], y[:]) }) {
		c := b.chains[token]
		add(Snapshot{Chain: &ChainPlace{Token: token, Head: c.head, Attempt: c.attempt}})
	}
	for _, e := range b.owed {
		add(Snapshot{Owed: &e})
	}
	return all
}

// restore takes one part of a snapshot.
func (b *Book) restore(s *Snapshot) error {
	switch {
	case s == nil:
		return errors.New("snapshot of nothing")
	case s.Domain != nil:
		b.domains[s.Domain.UUID] = s.Domain
	case s.Launch != nil:
		b.launches[s.Launch.Launch] = s.Launch
		if s.Launch.Ended() {
			b.ended = append(b.ended, s.Launch.Launch)
		}
	case s.Chain != nil:
		if c := (&chain{head: s.Chain.Head, attempt: s.Chain.Attempt}); !c.unmoved() {
			b.chains[s.Chain.Token] = c
		}
	case s.Owed != nil:
		b.owed = append(b.owed, *s.Owed)
	default:
		return errors.New("snapshot of nothing")
	}
	return nil
}
