package leak

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"troth/test/lab"
)

// pattern is what part of a value looks like in one form.
type pattern struct {
	what  string
	bytes []byte
}

// searcher looks for values in files and in memory.
type searcher struct {
	patterns []pattern
	longest  int
}

// look makes a value be searched for: raw, in hex and in base64, in base64 also where it is part of something longer that
// was encoded. Each form is searched for by its halves, so that a copy which was overwritten in part is found as well.
func (s *searcher) look(name string, value []byte) {
	forms := map[string][]byte{
		"raw": value, "hex": []byte(hex.EncodeToString(value)), "HEX": []byte(strings.ToUpper(hex.EncodeToString(value))),
	}
	for shift := range 3 {
		// Three bytes are four characters. What comes before moves the value's bits; the characters at both ends, which
		// also hold bits of others, are left out.
		padded := append(make([]byte, shift), value...)
		for kind, e := range map[string]*base64.Encoding{"base64": base64.RawStdEncoding, "base64url": base64.RawURLEncoding} {
			text := []byte(e.EncodeToString(padded))
			from, to := (shift*8+5)/6, len(padded)*8/6
			forms[fmt.Sprintf("%s+%d", kind, shift)] = text[from:to]
		}
	}
	for form, b := range forms {
		half := len(b) / 2
		s.patterns = append(s.patterns,
			pattern{fmt.Sprintf("%s (%s, first half)", name, form), b[:half]},
			pattern{fmt.Sprintf("%s (%s, second half)", name, form), b[half:]})
		s.longest = max(s.longest, len(b)-half)
	}
}

// hit is one place where a value stands.
type hit struct {
	what, where string
	offset      int64
	around      []byte
}

func (h hit) String() string {
	return fmt.Sprintf("%s in %s at %#x: %q", h.what, h.where, h.offset, h.around)
}

const chunk = 1 << 20

// in searches length bytes from an offset; a negative length is to the end. Parts overlap, so that no border hides a value.
// What cannot be read ends the search with an error, unless it is the end.
func (s *searcher) in(r io.ReaderAt, where string, offset, length int64) ([]hit, error) {
	var hits []hit
	seen := map[string]bool{}
	for at := offset; length < 0 || at < offset+length; {
		size := int64(chunk)
		if length >= 0 {
			size = min(size, offset+length-at)
		}
		buf := make([]byte, size)
		n, err := r.ReadAt(buf, at)
		buf = buf[:n]
		for _, p := range s.patterns {
			for from := 0; ; {
				i := bytes.Index(buf[from:], p.bytes)
				if i < 0 {
					break
				}
				i += from
				key := fmt.Sprint(p.what, at+int64(i))
				if !seen[key] {
					hits = append(hits, hit{p.what, where, at + int64(i), bytes.Clone(buf[max(0, i-48):min(len(buf), i+len(p.bytes)+48)])})
				}
				seen[key] = true
				from = i + 1
			}
		}
		clear(buf)
		if errors.Is(err, io.EOF) {
			return hits, nil
		}
		if err != nil {
			return hits, fmt.Errorf("cannot read %s at %#x: %w", where, at, err)
		}
		at += int64(n)
		if at < offset+length || length < 0 {
			at -= int64(s.longest)
		}
	}
	return hits, nil
}

// bytes searches what is in our hands.
func (s *searcher) bytes(b []byte, where string) []hit {
	hits, err := s.in(bytes.NewReader(b), where, 0, int64(len(b)))
	if err != nil && !errors.Is(err, io.EOF) {
		panic(err) // a bytes.Reader gives all that it has
	}
	return hits
}

// files searches names and content of all files below a directory.
func (s *searcher) files(dir string) (hits []hit, searched int, err error) {
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // gone meanwhile: temporary files of daemons
		}
		if err != nil {
			return err
		}
		hits = append(hits, s.bytes([]byte(path), "the name "+path)...)
		if d.Type()&fs.ModeSymlink != 0 {
			target, err := os.Readlink(path)
			hits = append(hits, s.bytes([]byte(target), "the link "+path)...)
			return err
		}
		if !d.Type().IsRegular() {
			return nil
		}
		f, err := os.Open(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		defer f.Close()
		searched++
		found, err := s.in(f, path, 0, -1)
		hits = append(hits, found...)
		return err
	})
	return hits, searched, err
}

// processes are those of a node, as the machine numbers them.
func processes(n *lab.Node) ([]int, error) {
	ours, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", n.PID()))
	if err != nil {
		return nil, err
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if space, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", pid)); err == nil && space == ours {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// service finds a service of a node among the machine's processes.
func service(ctx context.Context, n *lab.Node, name string) (int, error) {
	s, err := n.Service(ctx, name)
	if err != nil {
		return 0, err
	}
	if !s.Running {
		return 0, fmt.Errorf("%s on %s does not run", name, n.Name)
	}
	return outer(n, s.PID)
}

// outer is what the machine calls a process of a node.
func outer(n *lab.Node, inner int) (int, error) {
	pids, err := processes(n)
	if err != nil {
		return 0, err
	}
	for _, pid := range pids {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil {
			continue
		}
		_, line, _ := strings.Cut(string(text), "\nNSpid:")
		line, _, _ = strings.Cut(line, "\n")
		if f := strings.Fields(line); len(f) > 0 && f[len(f)-1] == strconv.Itoa(inner) {
			return pid, nil
		}
	}
	return 0, fmt.Errorf("no process %d on %s", inner, n.Name)
}

// started searches command line and environment of processes. A process that has ended meanwhile is none.
func (s *searcher) started(pids []int) (hits []hit, searched int) {
	for _, pid := range pids {
		for _, what := range []string{"cmdline", "environ"} {
			path := fmt.Sprintf("/proc/%d/%s", pid, what)
			b, err := os.ReadFile(path)
			if err == nil && len(b) > 0 {
				searched++
				hits = append(hits, s.bytes(b, path)...)
			}
		}
	}
	return hits, searched
}

// memory searches all that a process can write to: heap, stacks, data, shared mappings.
func (s *searcher) memory(pid int, name string) (hits []hit, searched int64, err error) {
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		return nil, 0, err
	}
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		return nil, 0, err
	}
	defer mem.Close()
	for line := range strings.Lines(string(maps)) {
		f := strings.Fields(line)
		if len(f) < 5 || !strings.HasPrefix(f[1], "rw") {
			continue
		}
		var from, to int64
		if _, err := fmt.Sscanf(f[0], "%x-%x", &from, &to); err != nil {
			return hits, searched, fmt.Errorf("cannot read the maps of %s: %w: %s", name, err, line)
		}
		where := fmt.Sprintf("the memory of %s, %s", name, strings.Join(f[5:], " "))
		found, err := s.in(mem, where, from, to-from)
		hits = append(hits, found...)
		if errors.Is(err, syscall.EIO) {
			if now, merr := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid)); merr == nil && !strings.Contains(string(now), f[0]+" ") {
				continue // it is no memory of the process any more
			}
		}
		if err != nil {
			return hits, searched, err
		}
		searched += to - from
	}
	return hits, searched, nil
}
