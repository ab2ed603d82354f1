// Package image measures the files that a domain boots from and reads, and holds them until the launch is over.
//
// Measure opens one descriptor, takes a read lease where the kernel grants one (fcntl(2), F_SETLEASE: a writer's
// open then waits and we are told), hashes through that descriptor, and looks before and after whether it is still
// the same file in the same state. Held.Recheck asks again at any later moment, and whether the path still names
// the measured file.
//
// Promises: a digest is of one state of one regular file or block device, reached without a symbolic link; no path
// outside a plain file system; qcow2 headers are read by a bounded parser of ours, and an image that points at
// another file is refused.
// Trusts: the kernel. Limits: without a lease (Held.Leased is false: block devices, NFS) a writer with a descriptor
// may change the content between two Rechecks and set nothing that we see on a block device; callers decide.
package image

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"troth/proof"
)

// Held is an open image. Close gives the lease back.
type Held struct {
	Path   string
	Digest proof.Digest // of the whole content; zero unless Measure made it
	Size   int64        // bytes

	file     *os.File
	state    state
	leased   bool
	measured bool
}

// state is what identifies a file and tells that it was changed.
type state struct {
	dev, ino, rdev uint64
	mode           uint32
	size           int64
	mtime, ctime   unix.Timespec
}

func stateOf(fd int) (state, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return state{}, err
	}
	return state{dev: st.Dev, ino: st.Ino, rdev: st.Rdev, mode: st.Mode & unix.S_IFMT,
		size: st.Size, mtime: st.Mtim, ctime: st.Ctim}, nil
}

// Open opens an image by the same rules as Measure but neither hashes nor leases it: for disks the guest writes to.
func Open(path string) (*Held, error) {
	f, st, err := openSafe(path)
	if err != nil {
		return nil, err
	}
	h := &Held{Path: path, file: f, state: st, Size: st.size}
	if st.mode == unix.S_IFBLK {
		if h.Size, err = f.Seek(0, io.SeekEnd); err != nil {
			return nil, h.drop(notMeasured(path, "its size cannot be read: "+reason(err)))
		}
	}
	return h, nil
}

// leaseTries bounds the wait for somebody who is just closing the file after writing it.
const leaseTries = 5

// Measure opens, leases and hashes the image. progress may be nil; it is called with bytes done and in all, at least
// once and at most once for every MiB. A cancelled ctx ends it within one read.
// Errors: *proof.Refusal with code image-not-measured or image-changed, or ctx's error.
func Measure(ctx context.Context, path string, progress func(done, total int64)) (*Held, error) {
	h, err := Open(path)
	if err != nil {
		return nil, err
	}
	if err := h.measure(ctx, progress); err != nil {
		return nil, h.drop(err)
	}
	return h, nil
}

// drop closes after a failure and keeps the failure's type.
func (h *Held) drop(err error) error {
	if cerr := h.Close(); cerr != nil {
		return errors.Join(err, cerr)
	}
	return err
}

func (h *Held) measure(ctx context.Context, progress func(done, total int64)) error {
	if err := h.lease(ctx); err != nil {
		return err
	}
	// Between openSafe and the lease somebody may have written: this state is the one we measure.
	st, err := stateOf(h.fd())
	if err != nil {
		return notMeasured(h.Path, "its state cannot be read: "+reason(err))
	}
	h.state = st
	if st.mode == unix.S_IFREG {
		h.Size = st.size
	}
	// Whoever wants to write waits for the lease, up to fs.lease-break-time: it is given up at once, not when a large image has been hashed.
	held, yield := context.WithCancelCause(ctx)
	defer yield(nil)
	watched := func(done, total int64) {
		if progress != nil {
			progress(done, total)
		}
		if err := h.leaseHeld(); err != nil {
			yield(err)
		}
	}
	if h.Digest, err = hash(held, h.file, h.Size, watched); err != nil {
		if ctx.Err() != nil {
			return fmt.Errorf("cannot measure %q: %w", h.Path, ctx.Err())
		}
		if held.Err() != nil {
			return context.Cause(held)
		}
		if errors.Is(err, errLength) {
			return changed(h.Path, proof.Fact{Name: "content", Want: fmt.Sprintf("%d bytes", h.Size), Got: err.Error()})
		}
		return notMeasured(h.Path, "it cannot be read: "+reason(err))
	}
	h.measured = true
	return h.Recheck()
}

// lease takes a read lease. No lease at all (not supported there) is not an error; a writer is.
func (h *Held) lease(ctx context.Context) error {
	if h.state.mode != unix.S_IFREG {
		return nil
	}
	for try := 1; ; try++ {
		_, err := unix.FcntlInt(uintptr(h.fd()), unix.F_SETLEASE, unix.F_RDLCK)
		switch {
		case err == nil:
			h.leased = true
			return nil
		case !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EBUSY):
			return nil // EINVAL, EOPNOTSUPP, EACCES: this file system or this user has no leases
		case try == leaseTries:
			return changed(h.Path, proof.Fact{Name: "writers", Want: "none", Got: "open for writing by another process"})
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("cannot measure %q: %w", h.Path, ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

var errLength = errors.New("another length")

// hash reads exactly size bytes and then the end.
func hash(ctx context.Context, r io.ReaderAt, size int64, progress func(done, total int64)) (proof.Digest, error) {
	const chunk = 1 << 20
	sum, buf := sha256.New(), make([]byte, chunk)
	if progress == nil {
		progress = func(int64, int64) {}
	}
	progress(0, size)
	for off := int64(0); ; {
		if err := ctx.Err(); err != nil {
			return proof.Digest{}, err
		}
		n, err := r.ReadAt(buf, off)
		sum.Write(buf[:n])
		off += int64(n)
		if off > size {
			return proof.Digest{}, fmt.Errorf("more than %d bytes: %w", size, errLength)
		}
		if n > 0 {
			progress(off, size)
		}
		if errors.Is(err, io.EOF) {
			if off != size {
				return proof.Digest{}, fmt.Errorf("%d bytes: %w", off, errLength)
			}
			return proof.Digest(sum.Sum(nil)), nil
		}
		if err != nil {
			return proof.Digest{}, err
		}
	}
}

// Hash reads the whole content as it is now, whoever has it open; it neither leases nor remembers it.
// Errors: *proof.Refusal with code image-not-measured or image-changed, or ctx's error.
func (h *Held) Hash(ctx context.Context) (proof.Digest, error) {
	st, err := stateOf(h.fd())
	if err != nil {
		return proof.Digest{}, notMeasured(h.Path, "its state cannot be read: "+reason(err))
	}
	size := h.Size
	if st.mode == unix.S_IFREG {
		size = st.size
	}
	d, err := hash(ctx, h.file, size, nil)
	switch {
	case err == nil:
		return d, nil
	case ctx.Err() != nil:
		return d, fmt.Errorf("cannot measure %q: %w", h.Path, ctx.Err())
	case errors.Is(err, errLength):
		return d, changed(h.Path, proof.Fact{Name: "content", Want: fmt.Sprintf("%d bytes", size), Got: err.Error()})
	}
	return d, notMeasured(h.Path, "it cannot be read: "+reason(err))
}

// Leased says that the kernel holds writers back until Close.
func (h *Held) Leased() bool { return h.leased }

// Measured says that Digest is set.
func (h *Held) Measured() bool { return h.measured }

// Device and Inode name the file for a comparison with what a process has open.
func (h *Held) Device() uint64 { return h.state.dev }

// Inode is the file's number on Device.
func (h *Held) Inode() uint64 { return h.state.ino }

func (h *Held) fd() int { return int(h.file.Fd()) }

// Recheck says whether the image is still what was opened or measured: the lease unbroken, the same size and
// times, and the path still naming this file. Under a lease a changed ctime is no change of content (libvirt gives
// the file to QEMU's user). A disk that was only opened may be written, but must be the same file.
// Error: *proof.Refusal with code image-changed, or image-not-measured when it could not be decided.
func (h *Held) Recheck() error {
	if err := h.leaseHeld(); err != nil {
		return err
	}
	now, err := stateOf(h.fd())
	if err != nil {
		return notMeasured(h.Path, "its state cannot be read: "+reason(err))
	}
	if facts := h.compare(now); len(facts) > 0 {
		return changed(h.Path, facts...)
	}
	fd, err := resolve(h.Path, unix.O_PATH)
	if err != nil {
		return changed(h.Path, proof.Fact{Name: "path", Want: "names the measured file", Got: reason(err)})
	}
	named, err := stateOf(fd)
	if cerr := unix.Close(fd); err == nil {
		err = cerr
	}
	if err != nil {
		return notMeasured(h.Path, "what its path names cannot be read: "+reason(err))
	}
	if named.dev != h.state.dev || named.ino != h.state.ino || named.mode != h.state.mode || named.rdev != h.state.rdev {
		return changed(h.Path, proof.Fact{Name: "path",
			Want: fmt.Sprintf("device %d inode %d", h.state.dev, h.state.ino),
			Got:  fmt.Sprintf("device %d inode %d", named.dev, named.ino)})
	}
	return nil
}

// leaseHeld returns a refusal once the lease, if there was one, is being broken.
func (h *Held) leaseHeld() error {
	if !h.leased {
		return nil
	}
	// A lease that is being broken reads as F_UNLCK already, while the writer still waits.
	kind, err := unix.FcntlInt(uintptr(h.fd()), unix.F_GETLEASE, 0)
	if err != nil {
		return notMeasured(h.Path, "its lease cannot be read: "+reason(err))
	}
	if kind != unix.F_RDLCK {
		return changed(h.Path, proof.Fact{Name: "lease", Want: "held", Got: "broken by a writer"})
	}
	return nil
}

// compare lists what of the open file differs from the measured state.
func (h *Held) compare(now state) []proof.Fact {
	if !h.measured && !h.leased {
		return nil // only opened: the guest may write to it; the descriptor is the file
	}
	var facts []proof.Fact
	add := func(name string, want, got any) {
		if w, g := fmt.Sprint(want), fmt.Sprint(got); w != g {
			facts = append(facts, proof.Fact{Name: name, Want: w, Got: g})
		}
	}
	add("size", h.state.size, now.size)
	add("mtime", stamp(h.state.mtime), stamp(now.mtime))
	if !h.leased {
		add("ctime", stamp(h.state.ctime), stamp(now.ctime))
	}
	return facts
}

func stamp(t unix.Timespec) string { return fmt.Sprintf("%d.%09d", t.Sec, t.Nsec) }

// Close gives the lease and the descriptor back. A second Close is an error, as of any file.
func (h *Held) Close() error {
	if err := h.file.Close(); err != nil {
		return fmt.Errorf("cannot close %q: %w", h.Path, err)
	}
	return nil
}

// changed is the refusal image-changed.
func changed(path string, facts ...proof.Fact) *proof.Refusal {
	return proof.Refuse(proof.ImageChanged, fmt.Sprintf("image %q is not in the state that was measured", path),
		append([]proof.Fact{{Name: "path", Value: path}}, facts...)...)
}

// notMeasured is the refusal image-not-measured.
func notMeasured(path, why string) *proof.Refusal {
	return proof.Refuse(proof.ImageNotMeasured, fmt.Sprintf("image %q is not measured: %s", path, why),
		proof.Fact{Name: "path", Value: path}, proof.Fact{Name: "cause", Value: why})
}

// reason prints an error of the kernel in its own words.
func reason(err error) string {
	var errno unix.Errno
	if errors.As(err, &errno) {
		return errno.Error()
	}
	return err.Error()
}
