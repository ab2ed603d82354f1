package hooks

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"troth/hooks/ask"
)

// kept are the files and folders that the gate stands on, whatever a registry says and also where there is none: libvirt, as root, would hand them to any
// guest that names them. Folders of hostd that its configuration puts elsewhere are in the registry, as volumes. What else root reaches is not here
// (docs/limits.md).
var kept = [...]string{
	"/run/troth", "/run/troth-reaper", "/var/lib/troth", "/etc/troth", // secrets of guests, sockets, journal, saved memory, keys
	"/etc/libvirt", "/etc/libvirt/hooks/qemu", PoolDir, // what libvirt does for the gate; the hook may be a link
	"/usr/bin/troth-hostd", "/usr/libexec/troth", "/usr/share/polkit-1/rules.d", "/etc/polkit-1",
	"/dev/tpm0", "/dev/tpmrm0",
}

// tpms begins the names of all nodes of the kernel for TPMs.
const tpms = "/dev/tpm"

// Keeps says whether a path leads to what the gate stands on, or into it, or to a folder above it; more are paths besides the fixed ones.
func Keeps(path string, more ...string) bool {
	all := append(kept[:], more...)
	return inside(filepath.Clean(path), all) || leadsInside(lookAt(path), all, filesAt(all))
}

// inside: the path, which is absolute and clean, is one of these or below one, by its text.
func inside(path string, all []string) bool {
	for _, k := range all {
		if rest, ok := strings.CutPrefix(path, k); ok && (rest == "" || rest[0] == '/') {
			return true
		}
	}
	return strings.HasPrefix(path, tpms)
}

// mentioned: something that is kept stands in a longer value.
func mentioned(value []byte) bool {
	for _, k := range kept {
		if holds(value, []byte(k)) || bytes.Contains(value, []byte(k+"/")) {
			return true
		}
	}
	return bytes.Contains(value, []byte(tpms))
}

// leadsInside: links, other mounts and the names of folders lead from the path to one of these, into one, or above one.
func leadsInside(to end, all []string, are []file) bool {
	if inside(to.path, all) || to.there && to.oneOf(are) || belowOne(filepath.Dir(to.path), are) {
		return true
	}
	return to.there && to.dir && above(to.path, to.file, all, are)
}

// belowOne: the folder, or one above it, is one of these.
func belowOne(dir string, are []file) bool {
	for ; dir != "/"; dir = filepath.Dir(dir) {
		if f, ok := fileAt(dir); ok && f.oneOf(are) {
			return true
		}
	}
	return false
}

// above: one of these lies below the folder, which may be mounted at another place: some end of its path leads from the folder to it.
func above(dir string, at file, all []string, are []file) bool {
	for _, k := range all {
		if dir == "/" || strings.HasPrefix(k, dir+"/") {
			return true // also if it is not there yet
		}
		for i := strings.LastIndexByte(k, '/'); i >= 0; i = strings.LastIndexByte(k[:i], '/') {
			if f, ok := fileAt(dir + k[i:]); ok && f != at && f.oneOf(are) {
				return true
			}
		}
	}
	return false
}

// file is what stat(2) calls it.
type file struct {
	dev, ino uint64
	dir      bool
}

func fileAt(path string) (file, bool) {
	var st syscall.Stat_t
	if syscall.Stat(path, &st) != nil {
		return file{}, false
	}
	return file{st.Dev, st.Ino, st.Mode&syscall.S_IFMT == syscall.S_IFDIR}, true
}

func filesAt(paths []string) (are []file) {
	for _, p := range paths {
		if f, ok := fileAt(p); ok {
			are = append(are, f)
		}
	}
	return are
}

func (f file) oneOf(all []file) bool {
	for _, other := range all {
		if f == other {
			return true
		}
	}
	return false
}

// end is what a path leads to, whether that is there or not.
type end struct {
	path  string // without links
	there bool
	file
}

func lookAt(path string) end {
	to := end{path: resolve(path)}
	to.file, to.there = fileAt(to.path)
	return to
}

// maxLinks is how many links Linux follows (path_resolution(7)).
const maxLinks = 40

// resolve follows links as far as the path leads: the file itself may come later, or be in a folder that we cannot look into.
func resolve(path string) string {
	left := maxLinks
	return follow(path, &left)
}

func follow(path string, left *int) string {
	if real, err := filepath.EvalSymlinks(path); err == nil {
		return real
	}
	dir, at := "/", strings.LastIndexByte(path, '/') // not by filepath.Dir: what stands before '..' may be a link
	if at > 0 {
		dir = follow(path[:at], left)
	}
	here := filepath.Join(dir, path[at+1:])
	to, err := os.Readlink(here)
	if err != nil || *left == 0 {
		return here
	}
	*left--
	if !filepath.IsAbs(to) {
		to = dir + "/" + to
	}
	return follow(to, left)
}

// covered: a folder above the path is registered: one of hostd's own that its configuration puts elsewhere.
func covered(path string, r ask.Published) bool {
	for ; path != "/"; path = filepath.Dir(path) {
		if r.HasPath(path) {
			return true
		}
	}
	return false
}
