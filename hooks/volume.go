package hooks

import (
	"path"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"troth/hooks/ask"
)

// touches says whether the domain names a registered volume: by its path, by another path that leads to the same
// file, inside a value that holds paths among other things (a json: or nbd: source, a QEMU argument), or by the name
// of a volume in a storage pool. A pool's volume is known here by its name alone, so one of the same file name
// counts: hostd is asked once too often rather than once too seldom.
func touches(s subject, volumes []ask.Volume) bool {
	if len(volumes) == 0 {
		return false
	}
	named, bases := map[string]bool{}, map[string]bool{}
	for _, p := range s.paths {
		named[filepath.Clean(p)] = true
	}
	for _, name := range s.volumes {
		bases[path.Base(name)] = true
	}
	for _, v := range volumes {
		if named[v.Path] || len(bases) > 0 && bases[path.Base(v.Path)] {
			return true
		}
		for _, m := range s.mentions {
			if holds(m, v.Path) {
				return true
			}
		}
	}
	// Last, since it touches the disk: what do the paths lead to? A server that does not answer is no reason to
	// let a domain pass.
	found := make(chan bool, 1)
	go func() { found <- leads(named, volumes) }()
	select {
	case is := <-found:
		return is
	case <-time.After(statWithin):
		return true
	}
}

// leads: one of the paths leads to the file of a volume.
func leads(named map[string]bool, volumes []ask.Volume) bool {
	type file struct{ dev, ino uint64 }
	files := map[file]bool{}
	for p := range named {
		var st syscall.Stat_t
		if syscall.Stat(p, &st) == nil {
			files[file{st.Dev, st.Ino}] = true
		}
	}
	for _, v := range volumes {
		if files[file{v.Dev, v.Ino}] {
			return true
		}
	}
	return false
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
