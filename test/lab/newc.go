package lab

import (
	"fmt"
	"io"
	"os"
	"path"
	"sort"
)

// archive is a cpio archive in the "newc" form (Linux, Documentation/driver-api/early-userspace/buffer-format.rst). Equal
// content gives equal bytes: entries are sorted, times are zero, owners are root, inodes are counted.
type archive map[string]archiveEntry

type archiveEntry struct {
	mode         uint32 // type and permissions, as in stat(2)
	data         []byte
	major, minor uint32 // of a device
}

// Types of files in mode.
const (
	typeDirectory = 0o040000
	typeRegular   = 0o100000
	typeCharacter = 0o020000
	typeLink      = 0o120000
)

// add puts a file into the archive, with the directories above it.
func (a archive) add(name string, e archiveEntry) {
	for d := path.Dir(name); d != "."; d = path.Dir(d) {
		if _, ok := a[d]; !ok {
			a[d] = archiveEntry{mode: typeDirectory | 0o755}
		}
	}
	a[name] = e
}

// addFile puts a copy of a file of the machine into the archive.
func (a archive) addFile(name, from string, mode uint32) error {
	data, err := os.ReadFile(from)
	if err != nil {
		return fmt.Errorf("cannot put %s into the guest's initrd: %w", name, err)
	}
	a.add(name, archiveEntry{mode: typeRegular | mode, data: data})
	return nil
}

// write writes the archive.
func (a archive) write(w io.Writer) error {
	names := make([]string, 0, len(a))
	for n := range a {
		names = append(names, n)
	}
	sort.Strings(names)
	pos := 0
	emit := func(b []byte) error {
		n, err := w.Write(b)
		pos += n
		if err == nil && pos%4 != 0 {
			n, err = w.Write(make([]byte, 4-pos%4))
			pos += n
		}
		return err
	}
	entry := func(inode int, name string, e archiveEntry) error {
		links := 1
		if e.mode&0o170000 == typeDirectory {
			links = 2
		}
		header := fmt.Sprintf("070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
			inode, e.mode, 0, 0, links, 0, len(e.data), 0, 0, e.major, e.minor, len(name)+1, 0, name)
		if err := emit([]byte(header)); err != nil {
			return err
		}
		return emit(e.data)
	}
	for i, n := range names {
		if err := entry(i+1, n, a[n]); err != nil {
			return fmt.Errorf("cannot write the archive: %w", err)
		}
	}
	if err := entry(0, "TRAILER!!!", archiveEntry{}); err != nil {
		return fmt.Errorf("cannot write the archive: %w", err)
	}
	return nil
}
