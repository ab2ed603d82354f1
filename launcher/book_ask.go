package launcher

import (
	"cmp"
	"maps"
	"slices"

	"troth/proof"
)

// Next says what the next link of a token follows, and which attempt at it this is.
func (b *Book) Next(token proof.Digest) (previous *proof.Digest, attempt uint32) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if c := b.chains[token]; c != nil {
		return c.head, c.attempt + 1
	}
	return nil, 1
}

// undone is the launch of a token and link that ended refused and of which no guest ran; nil: there is none.
func (b *Book) undone(token, link proof.Digest) *Record {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, r := range b.launches {
		if r.Token == token && r.Link == link && r.Reached == WroteRefused && r.Proof == nil {
			c := *r
			return &c
		}
	}
	return nil
}

// Domain returns a copy of what is known of a domain, or nil.
func (b *Book) Domain(uuid string) *Domain {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.domains[uuid].copy()
}

func (d *Domain) copy() *Domain {
	if d == nil {
		return nil
	}
	c := *d
	c.History = slices.Clone(d.History)
	return &c
}

// Keeps says whether the book has room for a domain: what was never granted is kept for people, and not without bound.
func (b *Book) Keeps(uuid string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.domains[uuid] != nil || len(b.domains) < maxDomains
}

// spare lists domains that are kept for people alone, those that have been longest first: what was asked for was refused, and nothing of it is anywhere.
func (b *Book) spare() []*Domain {
	var all []*Domain
	for _, d := range b.Domains() {
		if d.spare() {
			all = append(all, d)
		}
	}
	slices.SortStableFunc(all, func(x, y *Domain) int { return cmp.Compare(x.Since, y.Since) })
	return all
}

func (d *Domain) spare() bool {
	return d != nil && d.State == StateRefused && !d.Registered && !d.Armed && d.Link == nil && d.Saved == nil
}

// Domains returns copies of all, by UUID.
func (b *Book) Domains() []*Domain {
	b.mu.Lock()
	defer b.mu.Unlock()
	var all []*Domain
	for _, uuid := range slices.Sorted(maps.Keys(b.domains)) {
		all = append(all, b.domains[uuid].copy())
	}
	return all
}

// Launch returns a copy of what is known of a launch, or nil.
func (b *Book) Launch(id string) *Record {
	b.mu.Lock()
	defer b.mu.Unlock()
	r := b.launches[id]
	if r == nil {
		return nil
	}
	c := *r
	return &c
}

// Unended lists the launches that a crash cut short.
func (b *Book) Unended() []*Record {
	b.mu.Lock()
	defer b.mu.Unlock()
	var all []*Record
	for _, id := range slices.Sorted(maps.Keys(b.launches)) {
		if r := b.launches[id]; !r.Ended() {
			c := *r
			all = append(all, &c)
		}
	}
	return all
}

// Owed returns the chain events that the verifier has not taken, oldest first.
func (b *Book) Owed() []ChainEvent {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.owed)
}
