package proof

import (
	"fmt"
	"testing"

	"golang.org/x/mod/sumdb/tlog"
)

// Every path of every size agrees with tlog's own verification.
func TestBatchIsRFC6962(t *testing.T) {
	for n := 1; n <= 33; n++ {
		var links []Digest
		for i := range n {
			links = append(links, testDigest(fmt.Sprint(i)))
		}
		b := must[*Batch](t)(NewBatch(links))
		if c := b.Count(); c < int64(n) || c >= 2*int64(n) && n > 1 || c&(c-1) != 0 {
			t.Errorf("%d links, count %d", n, c)
		}
		for i, l := range links {
			path := b.Path(i)
			var p tlog.RecordProof
			for _, h := range path {
				p = append(p, tlog.Hash(h))
			}
			if err := tlog.CheckRecord(p, b.Count(), tlog.Hash(b.Root()), int64(i), tlog.RecordHash(l[:])); err != nil {
				t.Errorf("link %d of %d: %v", i, n, err)
			}
			if root, err := rootFrom(l, int64(i), b.Count(), path); err != nil || root != b.Root() {
				t.Errorf("link %d of %d: %s, %v", i, n, root, err)
			}
		}
		if b.Path(n) != nil || b.Path(-1) != nil {
			t.Error("a padding leaf has a path")
		}
	}
}

func TestBatchPadsWithFreshLeaves(t *testing.T) {
	links := []Digest{testDigest("a"), testDigest("b"), testDigest("c")}
	root := func(l []Digest) Digest { return must[*Batch](t)(NewBatch(l)).Root() }
	if first, second := root(links), root(links); first == second {
		t.Error("padding leaves are not random")
	}
	if first, second := root(links[:2]), root(links[:2]); first != second {
		t.Error("a full batch is padded")
	}
	for _, n := range []int{0, MaxBatch + 1} {
		if _, err := NewBatch(make([]Digest, n)); err == nil {
			t.Errorf("a batch of %d was made", n)
		}
	}
}
