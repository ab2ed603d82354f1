package image

import (
	"errors"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// maxPath is Linux's PATH_MAX.
const maxPath = 4096

// File systems whose files are not images: what they give changes by itself or by whoever serves them
// (statfs(2), f_type).
var notStorage = map[int64]string{
	unix.PROC_SUPER_MAGIC:    "/proc",
	unix.SYSFS_MAGIC:         "/sys",
	unix.DEBUGFS_MAGIC:       "debugfs",
	unix.TRACEFS_MAGIC:       "tracefs",
	unix.SECURITYFS_MAGIC:    "securityfs",
	unix.CGROUP_SUPER_MAGIC:  "a cgroup file system",
	unix.CGROUP2_SUPER_MAGIC: "a cgroup file system",
	unix.BPF_FS_MAGIC:        "bpffs",
	unix.FUSE_SUPER_MAGIC:    "a FUSE file system, where a process answers each read as it likes",
}

// CheckPath says whether a path may name an image: absolute, clean, no control bytes, not below /proc, /sys or /dev/fd.
// It looks at the text only.
func CheckPath(path string) error {
	switch {
	case path == "":
		return notMeasured(path, "the path is empty")
	case len(path) >= maxPath:
		return notMeasured(path[:64]+"…", "the path is longer than 4095 bytes")
	case !filepath.IsAbs(path):
		return notMeasured(path, "the path is not absolute")
	case filepath.Clean(path) != path:
		return notMeasured(path, "the path is not clean (it has '..', '.', '//' or a slash at the end)")
	case strings.ContainsFunc(path, func(r rune) bool { return r < 0x20 || r == 0x7f || r == '\uFFFD' }):
		return notMeasured(path, "the path has control bytes or is not UTF-8")
	}
	for _, dir := range []string{"/proc", "/sys", "/dev/fd", "/dev/std"} {
		if path == dir || strings.HasPrefix(path, dir+"/") || (dir == "/dev/std" && strings.HasPrefix(path, dir)) {
			return notMeasured(path, "no image is kept below "+dir)
		}
	}
	return nil
}

// openSafe opens path for reading. The type is looked at through O_PATH first, since opening a device may have effects.
func openSafe(path string) (*os.File, state, error) {
	if err := CheckPath(path); err != nil {
		return nil, state{}, err
	}
	look, err := resolve(path, unix.O_PATH)
	if err != nil {
		return nil, state{}, notMeasured(path, openReason(err))
	}
	before, err := stateOf(look)
	if cerr := unix.Close(look); err == nil {
		err = cerr
	}
	if err != nil {
		return nil, state{}, notMeasured(path, "its state cannot be read: "+reason(err))
	}
	if before.mode != unix.S_IFREG && before.mode != unix.S_IFBLK {
		return nil, state{}, notMeasured(path, "it is neither a regular file nor a block device")
	}
	fd, err := resolve(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY)
	if err != nil {
		return nil, state{}, notMeasured(path, openReason(err))
	}
	f := os.NewFile(uintptr(fd), path)
	if f == nil {
		return nil, state{}, notMeasured(path, "its descriptor cannot be used")
	}
	st, err := accept(path, f, before)
	if err != nil {
		if cerr := f.Close(); cerr != nil {
			err = errors.Join(err, cerr)
		}
		return nil, state{}, err
	}
	return f, st, nil
}

// accept looks at what was opened: the same file as looked at, on a file system that keeps data.
func accept(path string, f *os.File, before state) (state, error) {
	fd := int(f.Fd())
	st, err := stateOf(fd)
	if err != nil {
		return st, notMeasured(path, "its state cannot be read: "+reason(err))
	}
	if st.dev != before.dev || st.ino != before.ino || st.mode != before.mode {
		return st, changed(path)
	}
	var fs unix.Statfs_t
	if err := unix.Fstatfs(fd, &fs); err != nil {
		return st, notMeasured(path, "its file system cannot be read: "+reason(err))
	}
	if what, bad := notStorage[fs.Type]; bad && st.mode == unix.S_IFREG {
		return st, notMeasured(path, "it is on "+what)
	}
	return st, nil
}

// resolve opens path without following any symbolic or magic link (openat2(2)).
func resolve(path string, flags int) (int, error) {
	for {
		fd, err := unix.Openat2(unix.AT_FDCWD, path, &unix.OpenHow{
			Flags:   uint64(flags | unix.O_CLOEXEC),
			Resolve: unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
		})
		switch {
		case errors.Is(err, unix.EINTR) || errors.Is(err, unix.EAGAIN):
			continue
		case errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EPERM):
			return walk(path, flags) // older kernel, or a sandbox that knows no openat2
		}
		return fd, err
	}
}

// walk is resolve by hand: one component at a time, none of them a link.
func walk(path string, flags int) (int, error) {
	dir, err := unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	parts := strings.Split(strings.TrimPrefix(path, "/"), "/")
	for i, part := range parts {
		how := unix.O_PATH | unix.O_DIRECTORY
		if i == len(parts)-1 {
			how = flags
		}
		next, err := unix.Openat(dir, part, how|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if cerr := unix.Close(dir); err == nil && cerr != nil {
			err = errors.Join(cerr, unix.Close(next))
		}
		if err != nil {
			return -1, err
		}
		dir = next
	}
	// O_PATH opens a symbolic link itself.
	st, err := stateOf(dir)
	if err == nil && st.mode == unix.S_IFLNK {
		err = unix.ELOOP
	}
	if err != nil {
		return -1, errors.Join(err, unix.Close(dir))
	}
	return dir, nil
}

func openReason(err error) string {
	if errors.Is(err, unix.ELOOP) {
		return "there is a symbolic link in its path: name the file itself"
	}
	return "it cannot be opened: " + reason(err)
}
