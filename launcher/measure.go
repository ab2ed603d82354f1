package launcher

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"

	"troth/launcher/domain"
	"troth/proof"
)

// held are the images of one launch, open until it ends.
type held struct{ images []*heldImage }

// roleDisk is what is held open by QEMU; every other role is what it was told to read.
const roleDisk = "disk"

type heldImage struct {
	Image
	path   string
	role   string // "-kernel", "-initrd", "firmware", "nvram", "disk"
	target string // of a disk
	writes bool   // the guest writes to it
}

func (h *held) close() error {
	var errs []error
	for _, i := range h.images {
		if i.Image != nil {
			errs = append(errs, i.Close())
			i.Image = nil
		}
	}
	return errors.Join(errs...)
}

// recheck asks every image whether it is still what was measured.
func (h *held) recheck() []*proof.Refusal {
	var all []*proof.Refusal
	for _, i := range h.images {
		if err := i.Recheck(); err != nil {
			all = append(all, Refusal(StepMeasure, err))
		}
	}
	return all
}

// wanted is one file that a configuration boots from, reads or writes.
type wanted struct {
	path, role, target string
	format             string // of a disk
	writes, measure    bool
	digest             **proof.Digest // where its digest goes
}

// measure opens and hashes everything of the configuration. What the guest writes to is hashed at the first link of a chain, when it is still
// what the tenant put there, and only held afterwards.
func (l *Launcher) measure(ctx context.Context, c *domain.Config, first bool, w Watcher) (*held, *Measured, error) {
	m := &Measured{}
	var files []wanted
	add := func(path, role string, digest **proof.Digest) {
		if path != "" {
			files = append(files, wanted{path: path, role: role, measure: true, digest: digest})
		}
	}
	add(c.Boot.Firmware, "firmware", &m.Firmware)
	add(c.Boot.Kernel, "-kernel", &m.Kernel)
	add(c.Boot.Initrd, "-initrd", &m.Initrd)
	if c.Boot.Kernel != "" {
		d := proof.Digest(sha256.Sum256([]byte(c.Boot.CommandLine)))
		m.CommandLine = &d
	}
	m.Disks = make([]proof.StatementDisk, 0, len(c.Disks))
	for _, d := range c.Disks {
		if d.Source == "" {
			continue
		}
		if len(d.Backing) > 0 {
			return nil, nil, proof.Refuse(proof.ImageNotMeasured, "a disk with backing files has no single digest yet: flatten it",
				proof.Fact{Name: "disk", Value: d.Target}, proof.Fact{Name: "backing", Value: d.Backing[0].Source})
		}
		mode := proof.DiskInitial
		if d.ReadOnly {
			mode = proof.DiskImmutable
		}
		m.Disks = append(m.Disks, proof.StatementDisk{Target: d.Target, Mode: mode, ReadOnly: d.ReadOnly})
	}
	slices.SortFunc(m.Disks, func(a, b proof.StatementDisk) int { return strings.Compare(a.Target, b.Target) })
	for i := range m.Disks {
		at := slices.IndexFunc(c.Disks, func(d domain.Disk) bool { return d.Target == m.Disks[i].Target })
		d := c.Disks[at]
		files = append(files, wanted{path: d.Source, role: roleDisk, target: d.Target, format: d.Format, writes: !d.ReadOnly, measure: d.ReadOnly || first, digest: &m.Disks[i].Digest})
	}
	h, err := l.hold(ctx, files, w)
	if err != nil {
		return nil, nil, err
	}
	return h, m, nil
}

// hold opens and measures the files, one after the other: hashing is bound by the disk.
func (l *Launcher) hold(ctx context.Context, files []wanted, w Watcher) (*held, error) {
	h := &held{}
	var before int64
	for _, f := range files {
		var size int64
		var image Image
		var err error
		if f.measure {
			image, err = l.Images.Measure(ctx, f.path, func(done, total int64) {
				size = total
				w.Hashed(before+done, before+total)
			})
		} else {
			image, err = l.Images.Open(f.path)
		}
		if err != nil {
			return nil, errors.Join(err, h.close())
		}
		if f.role == roleDisk {
			// Disks with backing files are refused before, so that a header may name none; nor a data file.
			if err := image.CheckFormat(f.format, ""); err != nil {
				return nil, errors.Join(err, image.Close(), h.close())
			}
		}
		h.images = append(h.images, &heldImage{Image: image, path: f.path, role: f.role, target: f.target, writes: f.writes})
		if f.measure {
			d := image.Digest()
			*f.digest = &d
		}
		before += size
	}
	return h, nil
}

// handOver lets go of the digests of what the guest is about to write to, after a last look, and keeps holding the very same files.
func (l *Launcher) handOver(h *held) error {
	for _, i := range h.images {
		if !i.writes {
			continue
		}
		was, _ := i.File()
		if err := i.Recheck(); err != nil {
			return err
		}
		open, err := l.Images.Open(i.path)
		if err != nil {
			return err
		}
		old := i.Image
		i.Image = open
		if err := old.Close(); err != nil {
			return fmt.Errorf("cannot close %q: %w", i.path, err)
		}
		if is, _ := open.File(); is != was {
			return proof.Refuse(proof.ImageChanged, "another file took the image's place", proof.Fact{Name: "path", Value: i.path})
		}
	}
	return nil
}

// again hashes what the guest boots once more. QEMU has read it by now, and libvirt touched the files to start it: whoever wrote into one
// after it was measured is seen here, before there is a proof.
func (l *Launcher) again(ctx context.Context, h *held) error {
	for _, i := range h.images {
		if i.role == roleDisk {
			continue
		}
		now, err := l.Images.Measure(ctx, i.path, func(int64, int64) {})
		if err != nil {
			return err
		}
		got := now.Digest()
		if err := now.Close(); err != nil {
			return fmt.Errorf("cannot close %q: %w", i.path, err)
		}
		if want := i.Digest(); got != want {
			return proof.Refuse(proof.ImageChanged, "an image changed while the domain was created",
				proof.Fact{Name: "path", Value: i.path}, proof.Fact{Name: "digest", Want: want.String(), Got: got.String()})
		}
	}
	return nil
}

// volumes lists the files that belong to this domain alone: what it writes to.
func (h *held) volumes() []Volume {
	var all []Volume
	for _, i := range h.images {
		if i.writes {
			f, _ := i.File()
			all = append(all, Volume{Path: i.path, Dev: f.Dev, Ino: f.Ino})
		}
	}
	return all
}
