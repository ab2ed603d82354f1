package image

import (
	"testing"

	"troth/proof"
)

// TestVerity: a digest counts for one file with one tree, and for none without.
func TestVerity(t *testing.T) {
	dir := temp(t)
	h := measure(t, file(t, dir, "disk", []byte("one")))
	if _, ok := NewVerity(MeasureVerity).Key(h); ok {
		t.Fatal("a file has fs-verity that nobody asked for")
	}
	tree, has := [32]byte{1}, true
	v := NewVerity(func(int) ([32]byte, bool) { return tree, has })
	k, ok := v.Key(h)
	if !ok {
		t.Fatal("no key")
	}
	if _, ok := v.Digest(k); ok {
		t.Error("a digest that nobody made")
	}
	v.Remember(k, h.Digest)
	if d, ok := v.Digest(k); !ok || d != h.Digest {
		t.Error("forgotten")
	}
	other := measure(t, file(t, dir, "other", []byte("one")))
	if k, _ := v.Key(other); v.known[k] == h.Digest {
		t.Error("another file has its digest")
	}
	tree[0]++
	if k, _ := v.Key(h); v.known[k] == h.Digest {
		t.Error("another content has its digest")
	}
	has = false
	if _, ok := v.Key(h); ok {
		t.Error("a key without fs-verity")
	}
	for i := range maxVerity + 1 {
		v.Remember(VerityKey{ino: uint64(i)}, proof.Digest{})
	}
	if len(v.known) > maxVerity {
		t.Error("without a bound")
	}
	if _, ok := (*Verity)(nil).Key(h); ok {
		t.Error("nil has a key")
	}
}
