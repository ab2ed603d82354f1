package proof

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"

	"golang.org/x/mod/sumdb/tlog"
)

// Batch is the Merkle tree (RFC 6962 chapter 2.1) over the links that one quote
// signs. Random leaves fill it up to a power of two, so that a proof tells its
// reader neither how many launches were beside it nor anything about them.
type Batch struct {
	count  int64
	real   int
	hashes []tlog.Hash // in tlog's order of stored hashes
}

// NewBatch makes the tree over links, in their order; one link is a batch too.
func NewBatch(links []Digest) (*Batch, error) {
	if len(links) == 0 || len(links) > MaxBatch {
		return nil, fmt.Errorf("cannot make batch of %d links: there are 1-%d", len(links), MaxBatch)
	}
	b := &Batch{count: 1 << bits.Len(uint(len(links)-1)), real: len(links)}
	for n := range b.count {
		leaf := NewBlinder()
		if int(n) < len(links) {
			leaf = links[n]
		}
		stored, err := tlog.StoredHashes(n, leaf[:], tlog.HashReaderFunc(b.read))
		if err != nil {
			return nil, fmt.Errorf("cannot make batch: %w", err)
		}
		b.hashes = append(b.hashes, stored...)
	}
	return b, nil
}

func (b *Batch) read(indexes []int64) ([]tlog.Hash, error) {
	out := make([]tlog.Hash, len(indexes))
	for i, x := range indexes {
		if x < 0 || x >= int64(len(b.hashes)) {
			return nil, errors.New("no such hash")
		}
		out[i] = b.hashes[x]
	}
	return out, nil
}

// Count is the number of leaves, a power of two.
func (b *Batch) Count() int64 { return b.count }

// Root is the tree's root.
func (b *Batch) Root() Digest {
	h, err := tlog.TreeHash(b.count, tlog.HashReaderFunc(b.read))
	if err != nil {
		panic(err) // every hash of the tree is stored
	}
	return Digest(h)
}

// Path is the audit path of link i (RFC 6962 chapter 2.1.1), from the leaf up.
func (b *Batch) Path(i int) []Digest {
	if i < 0 || i >= b.real {
		return nil
	}
	p, err := tlog.ProveRecord(b.count, int64(i), tlog.HashReaderFunc(b.read))
	if err != nil {
		panic(err) // every hash of the tree is stored
	}
	path := make([]Digest, len(p))
	for k, h := range p {
		path[k] = Digest(h)
	}
	return path
}

// rootFrom computes the root that a path leads to. In a full tree the bits of
// the index say on which side each step joins.
func rootFrom(link Digest, index, count int64, path []Digest) (Digest, error) {
	if count < 1 || count > MaxBatch || count&(count-1) != 0 {
		return Digest{}, fmt.Errorf("count: %d is not a power of two up to %d", count, MaxBatch)
	}
	if index < 0 || index >= count {
		return Digest{}, fmt.Errorf("index: %d is not below the count of %d", index, count)
	}
	if len(path) != bits.TrailingZeros64(uint64(count)) {
		return Digest{}, fmt.Errorf("path: it has %d steps, a tree of %d leaves has %d", len(path), count, bits.TrailingZeros64(uint64(count)))
	}
	h := tlog.RecordHash(link[:])
	for i, step := range path {
		if index>>i&1 == 1 {
			h = tlog.NodeHash(tlog.Hash(step), h)
		} else {
			h = tlog.NodeHash(h, tlog.Hash(step))
		}
	}
	return Digest(h), nil
}

// QuoteExtraData is what a launch quote signs beside the PCRs.
func QuoteExtraData(root Digest, count int64, verdict Digest) []byte {
	d := Hash(LabelQuote, root[:], binary.BigEndian.AppendUint64(nil, uint64(count)), verdict[:])
	return d[:]
}
