package virt

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"troth/launcher/emulator"
	"troth/launcher/stall"
)

// ErrNoProcess and ErrManyProcesses: not exactly one emulator runs for a UUID.
var (
	ErrNoProcess     = errors.New("no QEMU process for this domain")
	ErrManyProcesses = errors.New("more than one QEMU process for this domain")
)

// File is a file that a process has open or names in its arguments.
type File struct {
	Path     string // as the process names it, or as /proc shows it
	Dev, Ino uint64 // as of stat(2); for a block device, of its node
	Size     int64
	Writable bool   // open for writing
	Option   string // "-kernel", "-blockdev", …; "" for an open descriptor
}

// Process is a running emulator.
type Process struct {
	PID   int
	UID   uint32
	Start uint64   // start time in clock ticks after boot (proc(5), stat field 22): tells a reused PID
	Exe   string   // what /proc/PID/exe links to
	Args  []string // what it was started with. QEMU could overwrite them; libvirt's QEMU does not
	Open  []File   // regular files and block devices behind its descriptors, in their order
	Named []File   // kernel, initrd, firmware, fw_cfg and image files that Args name, as its mount namespace finds them
}

// FindProcess finds the one emulator of this user (nil: of anybody) that runs the domain, by scanning /proc. Anything but exactly one is an error: a second process
// with this UUID is a guest that nobody judged. Whoever QEMU runs as, other users may give their processes any name and any arguments: they are no reason
// against the guest, as long as that user has one; else the caller is told of theirs.
func FindProcess(ctx context.Context, uuid string, user *uint32) (*Process, error) {
	return findProcess(ctx, "/proc", uuid, user)
}

func findProcess(ctx context.Context, proc, uuid string, user *uint32) (*Process, error) {
	found, err := processes(ctx, proc, uuid, user)
	if err == nil && user != nil && len(found) == 0 {
		found, err = processes(ctx, proc, uuid, nil)
	}
	if err != nil {
		return nil, err
	}
	switch len(found) {
	case 0:
		return nil, fmt.Errorf("%w: %s", ErrNoProcess, uuid)
	case 1:
		return readProcess(proc, found[0])
	}
	return nil, fmt.Errorf("%w: %s: pids %v", ErrManyProcesses, uuid, found)
}

// Processes counts the emulators of this user (nil: of anybody) that run the domain. It looks at no descriptor: that one is closed meanwhile makes nobody
// seem to have ended.
func Processes(ctx context.Context, uuid string, user *uint32) (int, error) {
	found, err := processes(ctx, "/proc", uuid, user)
	return len(found), err
}

// processes lists the numbers of the emulators that run the domain. One that does not let its arguments be read, or has more of them than Arguments takes, may
// run it: that is an error.
func processes(ctx context.Context, proc, uuid string, user *uint32) (found []int, err error) {
	dirs, err := os.ReadDir(proc)
	if err != nil {
		return nil, fmt.Errorf("cannot list processes: %w", err)
	}
	for _, d := range dirs {
		pid, err := strconv.Atoi(d.Name())
		if err != nil {
			continue // not a process
		}
		if err := ctx.Err(); err != nil {
			return nil, fmt.Errorf("cannot look at all processes: %w", err)
		}
		is, err := runs(filepath.Join(proc, d.Name()), uuid, user)
		if err != nil && !emulator.Gone(err) {
			return nil, fmt.Errorf("cannot look at process %d: %w", pid, err)
		}
		if is {
			found = append(found, pid)
		}
	}
	return found, nil
}

// runs says whether the process is an emulator of this user with this UUID: by its executable's name, so that nobody takes part
// by arguments alone, and by -uuid, which libvirt always passes.
func runs(dir, uuid string, user *uint32) (bool, error) {
	uid, err := owner(dir)
	if err != nil || user != nil && uid != *user {
		return false, err
	}
	// First of all: what the arguments are, and how many, the process decides; what it is called, the kernel knows.
	exe, unseen := os.Readlink(filepath.Join(dir, "exe"))
	if emulator.Gone(unseen) || unseen == nil && !emulator.Named(exe) {
		return false, unseen
	}
	args, err := arguments(dir, uid)
	if err != nil && user == nil {
		return false, fmt.Errorf("cannot read arguments of user %d's (with qemu.user set, no other user's count): %w", uid, err)
	}
	if err != nil {
		return false, fmt.Errorf("cannot read arguments: %w", err)
	}
	i := slices.Index(args, "-uuid")
	if i < 0 || i+1 >= len(args) || !strings.EqualFold(args[i+1], uuid) {
		return false, nil
	}
	return unseen == nil, unseen
}

// owner is the effective user of the process: the kernel gives its folder to that one, whatever may be read in it.
func owner(dir string) (uint32, error) {
	var st syscall.Stat_t
	err := syscall.Stat(dir, &st)
	return st.Uid, err
}

// reading is of arguments. One at a time: what another is asking at this moment does not hang. A host that swaps takes a while, and a hook waits longer.
var (
	reading  = &stall.Guard{Within: time.Second, Most: 16}
	oneByOne sync.Mutex
)

func arguments(dir string, uid uint32) ([]string, error) {
	oneByOne.Lock()
	defer oneByOne.Unlock()
	return emulator.Arguments(reading, uid, dir)
}

func readProcess(proc string, pid int) (*Process, error) {
	dir := filepath.Join(proc, strconv.Itoa(pid))
	p := &Process{PID: pid}
	// Only the process's own end makes it none: whatever else was not there a moment ago may be back, and nobody could look.
	fail := func(what string, err error) (*Process, error) {
		if ended(dir, p.Start) {
			err = errors.Join(ErrNoProcess, err)
		}
		return nil, fmt.Errorf("cannot read %s of process %d: %w", what, pid, err)
	}
	var err error
	if p.Start, err = emulator.StartTime(dir); err != nil {
		if emulator.Gone(err) {
			err = errors.Join(ErrNoProcess, err)
		}
		return nil, fmt.Errorf("cannot read start time of process %d: %w", pid, err)
	}
	if p.UID, err = owner(dir); err != nil {
		return fail("owner", err)
	}
	if p.Exe, err = os.Readlink(filepath.Join(dir, "exe")); err != nil {
		return fail("executable", err)
	}
	if p.Args, err = arguments(dir, p.UID); err != nil {
		return fail("arguments", err)
	}
	if p.Open, err = openFiles(dir); err != nil {
		return fail("descriptors", err)
	}
	if p.Named, err = namedFiles(dir, p.Args); err != nil {
		return fail("arguments", err)
	}
	// The same process from first to last.
	if again, err := emulator.StartTime(dir); err != nil || again != p.Start {
		return fail("start time", errors.Join(err, errors.New("it was started at another time than it was a moment ago")))
	}
	return p, nil
}

// ended says that the process which was started then is over. One that is over and that nobody has waited for still has a folder, with little in it.
func ended(dir string, start uint64) bool {
	again, err := emulator.StartTime(dir)
	if err != nil {
		return emulator.Gone(err)
	}
	if again != start {
		return true
	}
	over, err := emulator.Over(dir)
	return over && err == nil
}

// Loads is the option by which QEMU takes the guest's memory from elsewhere instead of booting it, without its value: an incoming migration, which is how
// libvirt restores too, or a snapshot in a disk. Empty: it boots. QEMU takes each option with one dash or two.
func (p *Process) Loads() string {
	for _, a := range p.Args {
		switch a {
		case "-incoming", "--incoming":
			return "-incoming"
		case "-loadvm", "--loadvm":
			return "-loadvm"
		}
	}
	return ""
}

// openFiles lists the regular files and block devices behind /proc/PID/fd: the images, and also a log or a pid
// file, which are not images and which the caller knows by their path.
func openFiles(dir string) ([]File, error) {
	fds, err := os.ReadDir(filepath.Join(dir, "fd"))
	if err != nil {
		return nil, err
	}
	var files []File
	for _, fd := range fds {
		link := filepath.Join(dir, "fd", fd.Name())
		f, err := stat(link) // follows to the open file itself, whatever its path is now
		if emulator.Gone(err) {
			continue // closed meanwhile
		}
		if err != nil {
			return nil, err
		}
		if f == nil {
			continue
		}
		if f.Path, err = os.Readlink(link); err == nil {
			f.Writable, err = writable(dir, fd.Name())
		}
		if emulator.Gone(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		files = append(files, *f)
	}
	return files, nil
}

// stat gives nil for what is neither a regular file nor a block device.
func stat(path string) (*File, error) {
	var st syscall.Stat_t
	if err := syscall.Stat(path, &st); err != nil {
		return nil, err
	}
	if t := st.Mode & syscall.S_IFMT; t != syscall.S_IFREG && t != syscall.S_IFBLK {
		return nil, nil
	}
	return &File{Dev: st.Dev, Ino: st.Ino, Size: st.Size}, nil
}

// writable reads the access mode from /proc/PID/fdinfo/FD ("flags:" in octal).
func writable(dir, fd string) (bool, error) {
	b, err := os.ReadFile(filepath.Join(dir, "fdinfo", fd))
	if err != nil {
		return false, err
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, "flags:"); ok {
			flags, err := strconv.ParseUint(strings.TrimSpace(rest), 8, 64)
			return flags&syscall.O_ACCMODE != syscall.O_RDONLY, err
		}
	}
	return false, errors.New("fdinfo without flags")
}

// namedFiles finds the files that QEMU reads and closes again, so that no descriptor shows them.
func namedFiles(dir string, args []string) ([]File, error) {
	var files []File
	for i := 0; i+1 < len(args); i++ {
		for _, path := range pathsIn(args[i], args[i+1]) {
			f, err := stat(filepath.Join(dir, "root", path))
			switch {
			case errors.Is(err, fs.ErrNotExist):
				f = &File{} // dev and ino zero: it was removed, as a one-time file may be
			case err != nil:
				return nil, err
			case f == nil:
				continue
			}
			f.Path, f.Option = path, args[i]
			files = append(files, *f)
		}
	}
	return files, nil
}

// pathsIn gives the files in one option of QEMU's command line as libvirt writes it.
func pathsIn(option, value string) []string {
	switch option {
	case "-kernel", "-initrd", "-dtb", "-bios":
		return []string{value}
	case "-blockdev": // JSON, with the file one or more levels down
		var tree any
		if json.Unmarshal([]byte(value), &tree) == nil {
			return filenames(tree)
		}
	case "-fw_cfg", "-drive":
		return keyed(value, "file=")
	}
	return nil
}

// filenames walks a -blockdev tree.
func filenames(tree any) []string {
	node, ok := tree.(map[string]any)
	if !ok {
		return nil
	}
	var paths []string
	for key, value := range node {
		if s, ok := value.(string); ok && key == "filename" && filepath.IsAbs(s) {
			paths = append(paths, s)
		}
		paths = append(paths, filenames(value)...)
	}
	slices.Sort(paths)
	return paths
}

// keyed splits QEMU's key=value,key=value, in which ",," is a comma.
func keyed(value, key string) []string {
	const comma = "\x00" // no argument holds it
	var paths []string
	for _, part := range strings.Split(strings.ReplaceAll(value, ",,", comma), ",") {
		if p, ok := strings.CutPrefix(strings.ReplaceAll(part, comma, ","), key); ok && filepath.IsAbs(p) {
			paths = append(paths, p)
		}
	}
	return paths
}

// ReadProcess reads the emulator with this number and start time. ErrNoProcess if it has ended, also when its number is another's now.
func ReadProcess(pid int, start uint64) (*Process, error) { return readProcessAt("/proc", pid, start) }

func readProcessAt(proc string, pid int, start uint64) (*Process, error) {
	p, err := readProcess(proc, pid)
	if err == nil && p.Start != start {
		return nil, fmt.Errorf("%w: number %d is another process's now", ErrNoProcess, pid)
	}
	return p, err
}
