package proof

import "testing"

func TestChainDigest(t *testing.T) {
	a, b, c := testDigest("a"), testDigest("b"), testDigest("c")
	if ChainDigest() != nil || *ChainDigest(a) != a {
		t.Error("the digest of one layer is not its content's")
	}
	// Written down for other implementations: SHA-256 over 0x0e "troth/chain/v1", then each digest after 00000020.
	if got, want := *ChainDigest(a, b), Hash(LabelChain, a[:], b[:]); got != want {
		t.Errorf("got %v", got)
	}
	seen := map[Digest]bool{}
	for _, d := range []*Digest{ChainDigest(a), ChainDigest(b), ChainDigest(a, b), ChainDigest(b, a), ChainDigest(a, b, c), ChainDigest(a, *ChainDigest(b, c))} {
		if seen[*d] {
			t.Errorf("two chains have the digest %v", d)
		}
		seen[*d] = true
	}
}

// TestBackingIsJudgedAtEveryLink: what lies below a writable disk counts when the disk itself does not any more.
func TestBackingIsJudgedAtEveryLink(t *testing.T) {
	top, base, evil := testDigest("top"), testDigest("base"), testDigest("evil")
	pins := Pins{Disks: []Disk{{Target: "vda", Mode: DiskInitial, Digest: *ChainDigest(top, base), Backing: &base}}}
	first := Statement{Disks: []StatementDisk{{Target: "vda", Mode: DiskInitial, Digest: ChainDigest(top, base), Backing: &base}}}
	later := Statement{Previous: &top, Disks: []StatementDisk{{Target: "vda", Mode: DiskInitial, Backing: &base}}}
	for _, s := range []*Statement{&first, &later} {
		if r := pins.Judge(s); r != nil {
			t.Errorf("honest: %v", r)
		}
		s.Disks[0].Backing = &evil
		if r := pins.Judge(s); r == nil || r.Code != TokenConstraint {
			t.Errorf("another backing file: %v", r)
		}
		s.Disks[0].Backing = nil
		if r := pins.Judge(s); r == nil || r.Code != ImageNotMeasured {
			t.Errorf("no backing file: %v", r)
		}
	}
	// A token that pins a flat disk allows no layer below it, at no link.
	pins.Disks[0].Backing = nil
	later.Disks[0].Backing = &base
	if r := pins.Judge(&later); r == nil || r.Code != TokenConstraint {
		t.Errorf("a layer below a flat disk: %v", r)
	}
	pins.Disks[0].Backing, pins.Disks[0].Mode = &base, DiskImmutable
	if err := pins.check(); err == nil {
		t.Error("an immutable disk with a digest of its own for the layers below")
	}
}
