package hooks

import (
	"bytes"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"troth/hooks/ask"
)

// touches says whether the domain names a registered volume, or what the gate itself stands on: by its path, by another path that leads to the same file, by a folder above it, inside
// a value that holds paths among other things (a json: or nbd: source, a QEMU argument), or as a volume of a storage pool. What only the disk's content names (a backing file
// that the XML leaves out) and what changes while it is looked at, hostd's scan of processes finds.
func touches(s subject, r ask.Published) bool {
	named := make([]string, 0, len(s.paths)+len(s.volumes))
	for _, p := range s.paths {
		clean := filepath.Clean(p)
		named = append(named, clean)
		if clean != p && strings.Contains(p, "..") {
			named = append(named, p) // what stands before the dots may be a link
		}
	}
	for _, v := range s.volumes {
		p, ok := v.path()
		if ok {
			named = append(named, p)
		} else if r.HasBase(path.Base(v.name)) {
			return true // known by its name alone: hostd is asked once too often rather than once too seldom
		}
	}
	slices.Sort(named)
	named = slices.Compact(named)
	if slices.ContainsFunc(named, func(p string) bool { return inside(p, kept[:]) || r.HasPath(p) }) {
		return true
	}
	if len(s.mentions) > 0 {
		all := []byte(strings.Join(s.mentions, "\x00")) // which no path holds
		if mentioned(all) {
			return true
		}
		for v := range r.Paths {
			if holds(all, v) {
				return true
			}
		}
	}
	// Last, since it touches the disk: what do the paths lead to? A server that does not answer is no reason to
	// let a domain pass: Main ends the process, and libvirt could not start QEMU on such a path either.
	are := filesAt(kept[:])
	return slices.ContainsFunc(named, func(p string) bool {
		end := lookAt(p)
		return r.HasVolumes() && leads(end, r) || leadsInside(end, kept[:], are)
	})
}

// leads: the path leads to the file of a volume, to its path, or to a folder above or below it.
func leads(to end, r ask.Published) bool {
	if to.there && r.HasFile(to.dev, to.ino) {
		return true
	}
	// Numbers change where a file is put back from a backup, and on some file systems at each mount.
	return covered(to.path, r) || to.there && to.dir && (r.HasBelow(to.path) || mirrors(to.path, r))
}

// mirrors: the folder is one above a volume, at another place (a bind mount): some end of the volume's path leads from it to the volume's file.
func mirrors(dir string, r ask.Published) bool {
	for v := range r.Paths {
		for at := len(v); at > 0; {
			at = bytes.LastIndexByte(v[:at], '/')
			var st syscall.Stat_t
			if at >= 0 && syscall.Stat(dir+string(v[at:]), &st) == nil && r.HasFile(st.Dev, st.Ino) {
				return true
			}
		}
	}
	return false
}

// holds: name stands in m as a whole path, not as the beginning of a longer one.
func holds(m, name []byte) bool {
	for {
		i := bytes.Index(m, name)
		if i < 0 {
			return false
		}
		m = m[i+len(name):]
		if len(m) == 0 || !inPath(m[0]) {
			return true
		}
	}
}

func inPath(c byte) bool {
	return c == '/' || c == '.' || c == '-' || c == '_' || c >= '0' && c <= '9' ||
		c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= 0x80
}
