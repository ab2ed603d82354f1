package image

import (
	"slices"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"

	"troth/proof"
)

// Verity remembers the digests of files whose content the kernel holds fixed (fs-verity, Documentation/filesystems/fsverity.rst): such a file
// cannot be opened for writing, every read is checked against its Merkle tree, and the tree's digest says which content it is. So a content that
// was hashed once need not be hashed again, by whoever the file is held and however often. Nil remembers nothing.
type Verity struct {
	// measure asks the kernel for a file's fs-verity digest. False: the file has none with SHA-256, or its file system knows none.
	measure func(fd int) ([32]byte, bool)

	mu    sync.Mutex
	known map[VerityKey]proof.Digest
}

// VerityKey is one file with one fixed content.
type VerityKey struct {
	dev, ino uint64
	tree     [32]byte
}

// maxVerity bounds what is remembered; beyond it all is forgotten, and hashed once more.
const maxVerity = 4096

// NewVerity remembers nothing yet. measure is MeasureVerity, but for tests.
func NewVerity(measure func(fd int) ([32]byte, bool)) *Verity {
	return &Verity{measure: measure, known: map[VerityKey]proof.Digest{}}
}

// Key is the file's fixed content; false when it is not fixed. Ask before hashing: verity that is enabled afterwards says nothing of what was read.
func (v *Verity) Key(h *Held) (VerityKey, bool) {
	if v == nil || h.state.mode != unix.S_IFREG {
		return VerityKey{}, false
	}
	tree, ok := v.measure(h.fd())
	return VerityKey{h.state.dev, h.state.ino, tree}, ok
}

// Digest is what the content was hashed to.
func (v *Verity) Digest(k VerityKey) (proof.Digest, bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	d, ok := v.known[k]
	return d, ok
}

// Remember keeps what the content was hashed to.
func (v *Verity) Remember(k VerityKey, d proof.Digest) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(v.known) >= maxVerity {
		clear(v.known)
	}
	v.known[k] = d
}

// keeps are the file systems (statfs(2), f_type) whose own code in the kernel checks what is read. A FUSE server could answer as it likes.
var keeps = []int64{unix.EXT4_SUPER_MAGIC, unix.F2FS_SUPER_MAGIC, unix.BTRFS_SUPER_MAGIC}

// MeasureVerity is FS_IOC_MEASURE_VERITY with struct fsverity_digest (linux/fsverity.h).
func MeasureVerity(fd int) (tree [32]byte, ok bool) {
	var fs unix.Statfs_t
	if unix.Fstatfs(fd, &fs) != nil || !slices.Contains(keeps, fs.Type) {
		return tree, false
	}
	var arg struct {
		algorithm, size uint16
		digest          [64]byte
	}
	arg.size = uint16(len(arg.digest))
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.FS_IOC_MEASURE_VERITY, uintptr(unsafe.Pointer(&arg)))
	if errno != 0 || arg.algorithm != unix.FS_VERITY_HASH_ALG_SHA256 || arg.size != uint16(len(tree)) {
		return tree, false
	}
	return [32]byte(arg.digest[:32]), true
}
