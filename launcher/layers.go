package launcher

import (
	"fmt"
	"slices"
	"strings"

	"troth/launcher/domain"
	"troth/proof"
)

// layered is one disk: its source and the layers below it, top first, as the domain names them. No image is asked what lies below it; each is
// only asked whether it says the same.
type layered struct {
	disk   proof.StatementDisk
	files  []wanted
	layers []*proof.Digest // of the files' contents; nil: only held
}

// disksOf lists the domain's disks, and the variable store of its firmware, in the order in which a statement has them. What lies below a disk is only read, so it is always hashed; the
// top of a writable one is at the first link, when it still is what the tenant put there.
func disksOf(c *domain.Config, first bool) []*layered {
	var all []*layered
	for _, d := range c.Disks {
		if d.Source == "" {
			continue
		}
		mode := proof.DiskInitial
		if d.ReadOnly {
			mode = proof.DiskImmutable
		}
		if d.Encryption != "" {
			mode = proof.DiskSealed
		}
		list := append([]domain.Backing{{Type: d.Type, Source: d.Source, Format: d.Format}}, d.Backing...)
		k := &layered{disk: proof.StatementDisk{Target: d.Target, Mode: mode, ReadOnly: d.ReadOnly}, layers: make([]*proof.Digest, len(list))}
		for i, layer := range list {
			f := wanted{path: layer.Source, role: roleDisk, target: d.Target, format: layer.Format, digest: &k.layers[i], measure: true}
			if i == 0 {
				f.writes, f.measure = !d.ReadOnly, d.ReadOnly || first
			}
			if mode == proof.DiskSealed {
				f.sealed, f.measure = true, false
			}
			if i+1 < len(list) {
				f.below = list[i+1]
			}
			k.files = append(k.files, f)
		}
		all = append(all, k)
	}
	if store := c.Boot.NVRAM; store != "" {
		// Small, so that it is hashed at every link: the token says only what it was at the first, but everybody can see what it was at each.
		k := &layered{disk: proof.StatementDisk{Target: proof.VariableStore, Mode: proof.DiskInitial}, layers: make([]*proof.Digest, 1)}
		k.files = []wanted{{path: store, role: roleDisk, target: proof.VariableStore, format: "raw", digest: &k.layers[0], measure: true, writes: true}}
		all = append(all, k)
	}
	slices.SortFunc(all, func(a, b *layered) int { return strings.Compare(a.disk.Target, b.disk.Target) })
	return all
}

// stated is the disk for the statement, once its layers have been measured: one digest of all of them while the top is hashed, and for a disk
// that the guest writes to a digest of what it cannot write to, at every link.
func (k *layered) stated() proof.StatementDisk {
	var digests []proof.Digest
	for _, d := range k.layers {
		if d != nil {
			digests = append(digests, *d)
		}
	}
	fixed := digests
	if k.layers[0] != nil {
		k.disk.Digest = proof.ChainDigest(digests...)
		fixed = digests[1:]
	}
	if k.disk.Mode == proof.DiskInitial {
		k.disk.Backing = proof.ChainDigest(fixed...)
	}
	return k.disk
}

// apart refuses one file under two names where that does harm: twice in one chain, which is a loop, and a file that the guest writes to in any
// second place, which would change what was measured there. domain.Read has refused it for equal paths; here the file itself counts.
func (h *held) apart() error {
	type place struct{ dev, ino uint64 }
	seen := map[place][]*heldImage{}
	for _, i := range h.images {
		f, _ := i.File()
		at := place{f.Dev, f.Ino}
		for _, other := range seen[at] {
			loop := i.role == roleDisk && other.role == roleDisk && i.target == other.target
			if loop || i.writes || other.writes {
				return proof.Refuse(proof.ImageNotMeasured, "one file stands in two places, and is a loop or is written to",
					proof.Fact{Name: "path", Value: i.path}, proof.Fact{Name: "path", Value: other.path},
					proof.Fact{Name: "file", Value: fmt.Sprintf("device %d inode %d", f.Dev, f.Ino)})
			}
		}
		seen[at] = append(seen[at], i)
	}
	return nil
}
