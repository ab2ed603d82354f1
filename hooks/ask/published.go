package ask

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"syscall"
)

// Published is a registry as it lies on disk, with its checksum verified. A hook looks one domain up in it at every
// start of every domain, so it searches the text, which has one form for each entry, and builds nothing from it.
// The zero value has no entry.
type Published struct {
	domains []byte // header and the lines before the volumes'
	volumes []byte // the lines of volumes, with the line's end before them
}

// OpenRegistry reads a published registry for look-ups. fs.ErrNotExist: there is none. Everything else that goes wrong
// is ErrDamaged, also a file that others than its owner can write, and a line of a kind that this version does not know.
func OpenRegistry(path string) (Published, error) {
	b, err := load(path)
	if err != nil {
		return Published{}, err
	}
	return search(b)
}

// search verifies the checksum, and that nothing in the text is unknown.
func search(b []byte) (Published, error) {
	body, err := summed(b)
	if err != nil {
		return Published{}, err
	}
	rest := body[len(registryHeader):]
	last := 0
	for n := 2; len(rest) > 0; n++ {
		line, after, whole := bytes.Cut(rest, []byte("\n"))
		k := kind(line)
		if !whole || k == 0 || k < last {
			return Published{}, fmt.Errorf("%w: line %d: not a whole entry of a known kind, in its place", ErrDamaged, n)
		}
		last, rest = k, after
	}
	p := Published{domains: body}
	if at := bytes.Index(body, []byte("\n"+volumeWord)); at >= 0 { // they come last
		p.domains, p.volumes = body[:at+1], body[at:]
	}
	return p, nil
}

// kind says where a line stands among the others; zero: nowhere.
func kind(line []byte) int {
	switch {
	case string(line) == allLine:
		return 1
	case len(line) == len(uuidWord)+32 && bytes.HasPrefix(line, []byte(uuidWord)):
		return 2
	case bytes.HasPrefix(line, []byte(volumeWord)):
		return 3
	}
	return 0
}

// All says that every domain counts as trusted.
func (p Published) All() bool { return holds(p.domains, "\n"+allLine+"\n") }

// Has says whether the UUID is registered.
func (p Published) Has(uuid [16]byte) bool {
	return holds(p.domains, "\n"+uuidWord+hex.EncodeToString(uuid[:])+"\n")
}

// HasVolumes says whether there is any volume.
func (p Published) HasVolumes() bool { return len(p.volumes) > 0 }

// HasPath says whether a volume has this path, which is absolute and clean.
func (p Published) HasPath(path string) bool {
	return holds(p.volumes, " "+strconv.QuoteToASCII(path)+"\n")
}

// HasBelow says whether a volume's path lies below a folder, which is absolute and clean.
func (p Published) HasBelow(dir string) bool {
	if dir == "/" {
		return p.HasVolumes()
	}
	quoted := strconv.QuoteToASCII(dir)
	return holds(p.volumes, " "+quoted[:len(quoted)-1]+"/")
}

// HasBase says whether a volume's path ends in this name.
func (p Published) HasBase(name string) bool {
	return holds(p.volumes, "/"+strconv.QuoteToASCII(name)[1:]+"\n")
}

// HasFile says whether a volume is the file that stat(2) calls so.
func (p Published) HasFile(dev, ino uint64) bool {
	return holds(p.volumes, "\n"+volumeWord+strconv.FormatUint(dev, 10)+" "+strconv.FormatUint(ino, 10)+" ")
}

// Paths calls yield with each volume's path until it returns false.
func (p Published) Paths(yield func(path string) bool) {
	for line := range bytes.Lines(p.volumes) {
		if !bytes.HasPrefix(line, []byte(volumeWord)) {
			continue
		}
		// A path that cannot be read matches nothing; WriteRegistry writes none.
		v, err := parseVolume(string(line[len(volumeWord) : len(line)-1]))
		if err == nil && !yield(v.Path) {
			return
		}
	}
}

func holds(text []byte, s string) bool { return bytes.Contains(text, []byte(s)) }

// load reads the file, and believes none that others could write.
func load(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("cannot find registry: %w", err)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	if !st.Mode().IsRegular() || st.Mode().Perm()&0o022 != 0 {
		return nil, fmt.Errorf("%w: mode %v", ErrDamaged, st.Mode())
	}
	if st.Size() > MaxRegistry {
		return nil, fmt.Errorf("%w: %d bytes", ErrDamaged, st.Size())
	}
	// Nobody writes into a published registry: another one takes its name.
	b := make([]byte, st.Size())
	if _, err := io.ReadFull(f, b); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return b, nil
}

// summed gives the text before the checksum, if header and checksum are right.
func summed(b []byte) (body []byte, err error) {
	const tail = len(sumWord) + 2*sha256.Size + 1
	if len(b) > MaxRegistry {
		return nil, fmt.Errorf("%w: line 1: file is too large", ErrDamaged)
	}
	if len(b) < len(registryHeader)+tail || string(b[:len(registryHeader)]) != registryHeader {
		return nil, fmt.Errorf("%w: line 1: no header or no checksum", ErrDamaged)
	}
	body = b[:len(b)-tail]
	sum := sha256.Sum256(body)
	if string(b[len(body):]) != sumWord+hex.EncodeToString(sum[:])+"\n" {
		return nil, fmt.Errorf("%w: line %d: wrong checksum", ErrDamaged, bytes.Count(b, []byte("\n")))
	}
	return body, nil
}
