package launcher

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"troth/launcher/image"
	"troth/proof"
)

// Files measures real files. A read lease is held while a file is hashed and given up right after: libvirt opens every image for writing when it
// starts a domain (virSecurityManagerMetadataLock, while remember_owner is on), which would wait for our lease until the kernel breaks it
// (fs.lease-break-time, 45 s), also when it starts another domain that boots the same kernel. From then on the open descriptor, the path,
// size and modification time tell; the change time does not, since libvirt gives files to QEMU's user. What a guest cannot write to is hashed
// once more while it stands paused (the step compare).
type Files struct {
	Verity *image.Verity // digests of files that the kernel holds fixed; nil: every file is hashed each time
}

// measureTries bounds how often a file is hashed again after somebody opened it for writing meanwhile, as libvirt does for an instant.
const measureTries = 8

type heldFile struct {
	held   *image.Held
	digest proof.Digest
	stamp  string // size and modification time while the lease was held; empty for a file that the guest writes to
	device bool
	verity *image.Verity
}

// Measure implements Images.
func (v Files) Measure(ctx context.Context, path string, progress func(done, total int64)) (Image, error) {
	for try := 1; ; try++ {
		f, err := v.measureOnce(ctx, path, progress)
		if err == nil {
			return f, nil
		}
		if !errors.Is(err, &proof.Refusal{Code: proof.ImageChanged}) || try == measureTries {
			return nil, err
		}
		select {
		case <-time.After(time.Duration(try) * 20 * time.Millisecond):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (v Files) measureOnce(ctx context.Context, path string, progress func(done, total int64)) (_ *heldFile, err error) {
	f, fixed, err := v.remembered(path)
	if err != nil {
		return nil, err
	}
	if f != nil {
		progress(f.held.Size, f.held.Size)
		return f, nil
	}
	leased, err := image.Measure(ctx, path, progress)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, leased.Close()) }()
	if f, err = openFile(path); err != nil {
		return nil, err
	}
	f.digest, f.verity = leased.Digest, v.Verity
	f.stamp, err = stamp(path)
	// Rechecked after the stamp was taken: still under the lease, so the stamp is of the content that was hashed.
	if err == nil {
		err = leased.Recheck()
	}
	if err == nil && (leased.Device() != f.held.Device() || leased.Inode() != f.held.Inode()) {
		err = proof.Refuse(proof.ImageChanged, "another file took the image's place", proof.Fact{Name: "path", Value: path})
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	if key, ok := v.Verity.Key(f.held); ok && key == fixed {
		v.Verity.Remember(key, f.digest)
	}
	return f, nil
}

// remembered opens a file whose content the kernel holds fixed and that was hashed before. If there is none, fixed is what the file has of its own
// before it is hashed.
func (v Files) remembered(path string) (_ *heldFile, fixed image.VerityKey, err error) {
	if v.Verity == nil {
		return nil, fixed, nil
	}
	f, err := openFile(path)
	if err != nil {
		return nil, fixed, err
	}
	fixed, ok := v.Verity.Key(f.held)
	if !ok {
		return nil, image.VerityKey{}, f.Close()
	}
	if f.digest, ok = v.Verity.Digest(fixed); !ok {
		return nil, fixed, f.Close()
	}
	f.verity = v.Verity
	if f.stamp, err = stamp(path); err != nil {
		return nil, fixed, errors.Join(err, f.Close())
	}
	return f, fixed, nil
}

// Open implements Images.
func (Files) Open(path string) (Image, error) {
	f, err := openFile(path)
	if err != nil {
		return nil, err
	}
	return f, nil
}

func openFile(path string) (*heldFile, error) {
	h, err := image.Open(path)
	if err != nil {
		return nil, err
	}
	info, err := os.Lstat(path)
	if err != nil {
		return nil, errors.Join(proof.Refuse(proof.ImageNotMeasured, "an image cannot be looked at", proof.Fact{Name: "path", Value: path}), err, h.Close())
	}
	return &heldFile{held: h, device: info.Mode()&os.ModeDevice != 0}, nil
}

func stamp(path string) (string, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return "", proof.Refuse(proof.ImageChanged, "an image is gone", proof.Fact{Name: "path", Value: path}, proof.Fact{Name: "cause", Value: err.Error()})
	}
	return fmt.Sprintf("%d bytes of %s", info.Size(), info.ModTime().UTC().Format(time.RFC3339Nano)), nil
}

// Digest implements Image.
func (f *heldFile) Digest() proof.Digest { return f.digest }

// Hash implements Image.
func (f *heldFile) Hash(ctx context.Context) (proof.Digest, error) {
	if key, ok := f.verity.Key(f.held); ok {
		if d, ok := f.verity.Digest(key); ok {
			return d, nil
		}
	}
	return f.held.Hash(ctx)
}

// HashSealed implements Image.
func (f *heldFile) HashSealed(ctx context.Context) (proof.Digest, error) { return f.held.LUKS(ctx) }

// Close implements Image.
func (f *heldFile) Close() error { return f.held.Close() }

// CheckFormat implements Image.
func (f *heldFile) CheckFormat(format, backing, backingFormat string) error {
	return f.held.CheckFormat(format, backing, backingFormat)
}

// Recheck implements Image.
func (f *heldFile) Recheck() error {
	if err := f.held.Recheck(); err != nil {
		return err
	}
	if f.stamp == "" {
		return nil
	}
	now, err := stamp(f.held.Path)
	if err == nil && now != f.stamp {
		err = proof.Refuse(proof.ImageChanged, "an image is not in the state that was measured",
			proof.Fact{Name: "path", Value: f.held.Path}, proof.Fact{Name: "state", Want: f.stamp, Got: now})
	}
	return err
}

// File implements Image.
func (f *heldFile) File() (File, bool) {
	return File{Path: f.held.Path, Dev: f.held.Device(), Ino: f.held.Inode()}, f.device
}
