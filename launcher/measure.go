package launcher

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"

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
	hashed *proof.Digest  // when it was measured; nil: only held
	sealed *proof.Digest  // of the LUKS header of a sealed disk
	role   string         // "-kernel", "-initrd", "firmware", "disk"
	target string         // of a disk
	writes bool           // the guest writes to it
	format string         // of a disk's layer
	below  domain.Backing // of a disk's layer: the next one, empty for the last
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
	format             string         // of a disk's layer
	below              domain.Backing // of a disk's layer: the next one, empty for the last
	writes, measure    bool
	sealed             bool           // of a disk: its LUKS header is what is hashed
	digest             **proof.Digest // where its digest goes
}

// measure opens and hashes everything of the configuration. What the guest writes to is hashed at the first link of a chain, when it is still
// what the tenant put there, and only held afterwards.
func (l *Launcher) measure(ctx context.Context, c *domain.Config, first bool, w Watcher) (*held, *Measured, error) {
	m := &Measured{}
	for _, s := range c.Serials {
		if s.Type == "file" {
			if err := l.spared(s.Path); err != nil {
				return nil, nil, err
			}
		}
		if s.Log != "" {
			if err := l.spared(s.Log); err != nil {
				return nil, nil, err
			}
		}
	}
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
	media := disksOf(c, first)
	for _, d := range media {
		files = append(files, d.files...)
	}
	h, err := l.hold(ctx, files, w)
	if err != nil {
		return nil, nil, err
	}
	if err := h.apart(); err != nil {
		return nil, nil, errors.Join(err, h.close())
	}
	m.Disks = make([]proof.StatementDisk, 0, len(media))
	for _, d := range media {
		m.Disks = append(m.Disks, d.stated())
	}
	return h, m, nil
}

// spared says whether a guest may have the file.
func (l *Launcher) spared(path string) error {
	if l.Kept == nil || !l.Kept(path) {
		return nil
	}
	return proof.Refuse(proof.ConfigurationNotAllowed, "the file is one of troth-hostd's own, or of what it stands on: no guest gets it", proof.Fact{Name: "path", Value: path})
}

// hold opens and measures the files, one after the other: hashing is bound by the disk.
func (l *Launcher) hold(ctx context.Context, files []wanted, w Watcher) (*held, error) {
	h := &held{}
	var before int64
	for _, f := range files {
		if err := l.spared(f.path); err != nil {
			return nil, errors.Join(err, h.close())
		}
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
			return nil, errors.Join(storeMissing(f, err), h.close())
		}
		if f.role == roleDisk {
			// What its header points at is what the domain names below it, or nothing.
			if err := image.CheckFormat(f.format, f.below.Source, f.below.Format); err != nil {
				return nil, errors.Join(err, image.Close(), h.close())
			}
		}
		next := &heldImage{Image: image, path: f.path, role: f.role, target: f.target, writes: f.writes, format: f.format, below: f.below}
		h.images = append(h.images, next)
		if f.sealed {
			d, err := image.HashSealed(ctx)
			if err != nil {
				return nil, errors.Join(err, h.close())
			}
			next.sealed, *f.digest = &d, &d
		}
		if f.measure {
			d := image.Digest()
			*f.digest, next.hashed = &d, &d
		}
		before += size
	}
	return h, nil
}

// storeMissing says what to do where there is no variable store: libvirt would make it from a template at the start, and nobody would have measured it.
func storeMissing(f wanted, err error) error {
	var r *proof.Refusal
	if f.target == proof.VariableStore && errors.As(err, &r) && r.Code == proof.ImageNotMeasured {
		r.Remedy = "See that the variable store is a regular file that is there before the launch: copy the template to its path. " + r.Remedy
	}
	return err
}

// handOver opens what the guest is about to write to once more, after a last look: its times may change from now on, and it must be the very same file.
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

// again hashes everything that was hashed once more, through the descriptors that are held. QEMU has opened it by now, and libvirt touched the
// files to start it, so that their change times say nothing: whoever wrote into one after it was measured, and set its modification time back,
// is seen here, before there is a proof. The guest has not run, so what it may write to has not changed either. What a disk's header points at is
// asked again too, also of one whose content is not hashed any more.
func (l *Launcher) again(ctx context.Context, h *held) error {
	for _, i := range h.images {
		if i.role == roleDisk {
			if err := i.CheckFormat(i.format, i.below.Source, i.below.Format); err != nil {
				return err
			}
		}
		want, hash := i.hashed, i.Hash
		if i.sealed != nil {
			want, hash = i.sealed, i.HashSealed
		}
		if want == nil {
			continue
		}
		got, err := hash(ctx)
		if err != nil {
			return err
		}
		if got != *want {
			return proof.Refuse(proof.ImageChanged, "an image changed while the domain was created",
				proof.Fact{Name: "path", Value: i.path}, proof.Fact{Name: "digest", Want: want.String(), Got: got.String()})
		}
	}
	return nil
}
