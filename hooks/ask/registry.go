package ask

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Bounds of the registry: what a hook may read on every start of every domain.
const (
	MaxRegistry = 8 << 20 // bytes
	MaxEntries  = 65536   // UUIDs and volumes, each
	maxPath     = 4096    // PATH_MAX of Linux
)

// ErrDamaged says that a registry is there and cannot be believed: then every domain counts as trusted.
// A registry that is not there at all is fs.ErrNotExist: the host is not provisioned, and only marks count.
var ErrDamaged = errors.New("registry is damaged")

// Volume is a disk image that belongs to a trusted domain: by its path, and by what the path led to.
type Volume struct {
	Path     string // absolute, clean
	Dev, Ino uint64 // of the file; for a block device, of the device node. Zero and zero: not known
}

// Registry is what hostd publishes, free of secrets and readable by everyone.
// An attacker who can change it can have a marked domain asked about or an unmarked one not asked about; the mark
// alone still counts, and no proof can be made from it.
type Registry struct {
	All     bool
	UUIDs   [][16]byte
	Volumes []Volume
}

// Has says whether the UUID is registered.
func (r Registry) Has(uuid [16]byte) bool { return slices.Contains(r.UUIDs, uuid) }

// The words of the text: a header line, then lines that begin so, and last the checksum.
const (
	registryHeader = "troth registry 1\n"
	allLine        = "all"
	uuidWord       = "uuid "
	volumeWord     = "volume "
	sumWord        = "sha256 "
)

// Encode gives the registry's only encoding: a header line, then sorted lines
// 'all', 'uuid HEX', 'volume DEV INO QUOTED-PATH', then 'sha256 HEX' over everything before.
func (r Registry) Encode() ([]byte, error) {
	if len(r.UUIDs) > MaxEntries || len(r.Volumes) > MaxEntries {
		return nil, fmt.Errorf("cannot encode registry: more than %d entries", MaxEntries)
	}
	b := make([]byte, 0, 256+64*len(r.UUIDs)+128*len(r.Volumes))
	b = append(b, registryHeader...)
	if r.All {
		b = append(b, allLine+"\n"...)
	}
	for _, u := range sorted(r.UUIDs, func(x, y [16]byte) int { return bytes.Compare(x[:], y[:]) }) {
		b = append(b, uuidWord...)
		b = hex.AppendEncode(b, u[:])
		b = append(b, '\n')
	}
	for _, v := range sorted(r.Volumes, compareVolumes) {
		if !filepath.IsAbs(v.Path) || filepath.Clean(v.Path) != v.Path || len(v.Path) > maxPath {
			return nil, fmt.Errorf("cannot encode registry: volume path %q is not absolute and clean", v.Path)
		}
		b = append(b, volumeWord...)
		b = append(strconv.AppendUint(b, v.Dev, 10), ' ')
		b = append(strconv.AppendUint(b, v.Ino, 10), ' ')
		b = append(strconv.AppendQuoteToASCII(b, v.Path), '\n')
	}
	sum := sha256.Sum256(b)
	b = append(b, sumWord...)
	b = append(hex.AppendEncode(b, sum[:]), '\n')
	if len(b) > MaxRegistry {
		return nil, fmt.Errorf("cannot encode registry: more than %d bytes", MaxRegistry)
	}
	return b, nil
}

// sorted gives s in order and without repetitions.
func sorted[T comparable](s []T, compare func(x, y T) int) []T {
	rises := true
	for i := 1; i < len(s) && rises; i++ {
		rises = compare(s[i-1], s[i]) < 0
	}
	if rises {
		return s
	}
	s = slices.Clone(s)
	slices.SortFunc(s, compare)
	return slices.Compact(s)
}

func compareVolumes(x, y Volume) int {
	if c := strings.Compare(x.Path, y.Path); c != 0 {
		return c
	}
	return slices.Compare([]uint64{x.Dev, x.Ino}, []uint64{y.Dev, y.Ino})
}

// ReadRegistry reads a published registry whole. fs.ErrNotExist: there is none. Everything else that goes wrong is
// ErrDamaged, also a file that others than its owner can write. For look-ups alone there is OpenRegistry.
func ReadRegistry(path string) (Registry, error) {
	b, err := load(path)
	if err != nil {
		return Registry{}, err
	}
	return ParseRegistry(b)
}

// WriteRegistry publishes r at path. A crash at any step leaves the old registry or the new one, whole: the new
// one is written beside it and synced before it takes the name, and the name is synced before we return.
// One writer at a time.
func WriteRegistry(path string, r Registry) (err error) {
	b, err := r.Encode()
	if err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return fmt.Errorf("cannot write registry: %w", err)
	}
	defer dir.Close()
	fresh := path + ".new"
	if err := os.Remove(fresh); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("cannot write registry: %w", err) // a leftover of a crash
	}
	f, err := os.OpenFile(fresh, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("cannot write registry: %w", err)
	}
	_, err = f.Write(b)
	err = errors.Join(err, f.Chmod(0o644)) // whatever the umask: hooks of any user read it
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(fresh, path)
	}
	if err != nil {
		return fmt.Errorf("cannot write registry: %w", errors.Join(err, os.Remove(fresh)))
	}
	if err := dir.Sync(); err != nil {
		return fmt.Errorf("cannot sync registry's directory: %w", err)
	}
	return nil
}
