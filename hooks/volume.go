package hooks

import (
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"troth/hooks/ask"
)

// touches says whether the domain names a registered volume: by its path, by another path that leads to the same
// file, inside a value that holds paths among other things (a json: or nbd: source, a QEMU argument), or by the name
// of a volume in a storage pool. A pool's volume is known here by its name alone, so one of the same file name
// counts: hostd is asked once too often rather than once too seldom.
func touches(s subject, r ask.Published) bool {
	if !r.HasVolumes() {
		return false
	}
	named := make([]string, 0, len(s.paths))
	for _, p := range s.paths {
		named = append(named, filepath.Clean(p))
	}
	slices.Sort(named)
	named = slices.Compact(named)
	if slices.ContainsFunc(named, r.HasPath) {
		return true
	}
	for _, name := range s.volumes {
		if r.HasBase(path.Base(name)) {
			return true
		}
	}
	if len(s.mentions) > 0 {
		for v := range r.Paths {
			if slices.ContainsFunc(s.mentions, func(m string) bool { return holds(m, v) }) {
				return true
			}
		}
	}
	// Last, since it touches the disk: what do the paths lead to? A server that does not answer is no reason to
	// let a domain pass: Main ends the process, and libvirt could not start QEMU on such a path either.
	return slices.ContainsFunc(named, func(p string) bool { return leads(p, r) })
}

// leads: the path leads to the file of a volume.
func leads(p string, r ask.Published) bool {
	var st syscall.Stat_t
	return syscall.Stat(p, &st) == nil && r.HasFile(st.Dev, st.Ino)
}

// holds: name stands in m as a whole path, not as the beginning of a longer one.
func holds(m, name string) bool {
	for {
		i := strings.Index(m, name)
		if i < 0 {
			return false
		}
		m = m[i+len(name):]
		if m == "" || !inPath(m[0]) {
			return true
		}
	}
}

func inPath(c byte) bool {
	return c == '/' || c == '.' || c == '-' || c == '_' || c >= '0' && c <= '9' ||
		c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= 0x80
}
