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

// Published is a registry as it lies on disk, with its checksum and the order of its lines verified. A hook looks one
// domain up in it at every start of every domain, so it searches the text and builds nothing from it. The zero value
// has no entry.
type Published struct {
	all     bool
	uuids   []byte // their lines, all of one length, in order
	volumes []byte // their lines, in order of the path
	files   []byte // the same, with the end of the line before
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

const uuidLine = len(uuidWord) + 2*16 + 1

// search verifies the checksum, that nothing in the text is unknown, and that a look-up by halves finds what is there.
func search(b []byte) (Published, error) {
	body, err := summed(b)
	if err != nil {
		return Published{}, err
	}
	damaged := func(rest []byte) (Published, error) {
		n := bytes.Count(body[:len(body)-len(rest)], []byte("\n")) + 1
		return Published{}, fmt.Errorf("%w: line %d: not a whole entry of a known kind, in its place", ErrDamaged, n)
	}
	var p Published
	rest := body[len(registryHeader):]
	rest, p.all = bytes.CutPrefix(rest, []byte(allLine+"\n"))
	p.uuids = rest
	for before := []byte(nil); bytes.HasPrefix(rest, []byte(uuidWord)); rest = rest[uuidLine:] {
		if len(rest) < uuidLine || rest[uuidLine-1] != '\n' || bytes.Compare(before, rest[:uuidLine]) >= 0 {
			return damaged(rest)
		}
		before = rest[:uuidLine]
	}
	p.uuids = p.uuids[:len(p.uuids)-len(rest)]
	p.volumes, p.files = rest, body[len(body)-len(rest)-1:]
	for before := []byte(nil); len(rest) > 0; {
		end := bytes.IndexByte(rest, '\n') + 1
		path := pathOf(rest[:end])
		if path == nil || bytes.Compare(before, path) > 0 { // one path may have been several files
			return damaged(rest)
		}
		before, rest = path, rest[end:]
	}
	return p, nil
}

// pathOf gives the path in a volume's line; nil: it is no such line.
func pathOf(line []byte) []byte {
	at := bytes.IndexByte(line, '"')
	if at < 0 || !bytes.HasPrefix(line, []byte(volumeWord)) || len(line) < at+len("\"\"\n") || line[len(line)-2] != '"' {
		return nil
	}
	path := line[at+1 : len(line)-2]
	if bytes.IndexByte(path, '\\') < 0 {
		return path
	}
	other, err := unquote(string(line[at : len(line)-1])) // not printable ASCII
	if err != nil {
		return nil
	}
	return []byte(other)
}

// All says that every domain counts as trusted.
func (p Published) All() bool { return p.all }

// Has says whether the UUID is registered.
func (p Published) Has(uuid [16]byte) bool {
	line := hex.AppendEncode([]byte(uuidWord), uuid[:])
	first, beyond := 0, len(p.uuids)/uuidLine
	for first < beyond {
		middle := (first + beyond) / 2
		switch c := bytes.Compare(p.uuids[middle*uuidLine:(middle+1)*uuidLine-1], line); {
		case c == 0:
			return true
		case c < 0:
			first = middle + 1
		default:
			beyond = middle
		}
	}
	return false
}

// HasVolumes says whether there is any volume.
func (p Published) HasVolumes() bool { return len(p.volumes) > 0 }

// from gives the first volume's path that does not come before this one; nil: there is none.
func (p Published) from(path string) []byte {
	first, beyond := 0, len(p.volumes) // at the start of lines
	var found []byte
	for first < beyond {
		middle := (first + beyond) / 2
		start := first + bytes.LastIndexByte(p.volumes[first:middle], '\n') + 1
		end := start + bytes.IndexByte(p.volumes[start:], '\n') + 1
		if here := pathOf(p.volumes[start:end]); string(here) < path {
			first = end
		} else {
			beyond, found = start, here
		}
	}
	return found
}

// HasPath says whether a volume has this path, which is absolute and clean.
func (p Published) HasPath(path string) bool { return string(p.from(path)) == path }

// HasBelow says whether a volume's path lies below a folder, which is absolute and clean.
func (p Published) HasBelow(dir string) bool {
	if dir == "/" {
		return p.HasVolumes()
	}
	return bytes.HasPrefix(p.from(dir+"/"), []byte(dir+"/"))
}

// HasBase says whether a volume's path ends in this name.
func (p Published) HasBase(name string) bool {
	return holds(p.volumes, "/"+strconv.QuoteToASCII(name)[1:]+"\n")
}

// HasFile says whether a volume is the file that stat(2) calls so.
func (p Published) HasFile(dev, ino uint64) bool {
	return holds(p.files, "\n"+volumeWord+strconv.FormatUint(dev, 10)+" "+strconv.FormatUint(ino, 10)+" ")
}

// Paths calls yield with each volume's path until it returns false. The bytes are the registry's own: they are not to be changed.
func (p Published) Paths(yield func(path []byte) bool) {
	for line := range bytes.Lines(p.volumes) {
		if !yield(pathOf(line)) {
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
