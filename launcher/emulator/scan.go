package emulator

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"troth/launcher/stall"
)

// Bounds of a scan.
const (
	maxProcesses   = 1 << 20 // the kernel's own limit is 4 Mi; a machine with more is not looked at whole
	maxArguments   = 6 << 20 // bytes of one command line: execve(2) takes no more; libvirt's are below 64 KiB
	maxWords       = 1 << 20 // arguments of one: as many do not fit, since each counts with its pointer
	maxDescriptors = 1 << 16 // of one process
	maxOthers      = 1 << 18 // descriptors of all processes that are no emulators by name
)

// File is a regular file or a block device that a process has open.
type File struct {
	Path     string // as /proc shows it
	Dev, Ino uint64 // of the inode that is open; of a block device, its node
	Block    uint64 // device number of a block device, else zero
}

// Process is one process that was looked at.
type Process struct {
	PID   int
	Start uint64 // clock ticks after boot (proc(5), stat, field 22)
	UID   uint32
	Exe   string     // what /proc/PID/exe links to
	Named bool       // its executable is called like an emulator
	KVM   bool       // it holds a virtual machine of KVM, whatever its name
	UUIDs [][16]byte // that its arguments give the guest; empty unless it is an emulator
	Guest bool       // its arguments give the guest Troth's channel
	Open  []File
	// SameRoot says that its root directory is ours, so that its paths mean what ours mean, but for what is mounted for it alone.
	SameRoot bool
}

// Emulator says whether it runs a guest.
func (p *Process) Emulator() bool { return p.Named || p.KVM }

// Scan is what one pass saw.
type Scan struct {
	Emulators []*Process
	// Others are processes that are no emulators, as far as anyone can tell, and that have one of the wanted files open.
	Others []*Process
	// Unseen counts processes that could not be looked at, whole; Why is the reason of one of them.
	Unseen int
	Why    string
}

// Look makes one pass over proc ("/proc"). want says which open files of processes that are no emulators are of interest; nil: none.
func Look(ctx context.Context, proc string, want func(File) bool) (*Scan, error) {
	dir, err := os.Open(proc)
	if err != nil {
		return nil, fmt.Errorf("cannot list processes: %w", err)
	}
	defer dir.Close()
	s, budget, seen := &Scan{}, maxOthers, 0
	for {
		names, err := dir.Readdirnames(1024)
		if errors.Is(err, io.EOF) {
			return s, nil
		}
		if err != nil {
			return nil, fmt.Errorf("cannot list processes: %w", err)
		}
		for _, name := range names {
			pid, err := strconv.Atoi(name)
			if err != nil || pid <= 0 {
				continue // not a process
			}
			if err := ctx.Err(); err != nil {
				return nil, fmt.Errorf("cannot look at all processes: %w", err)
			}
			if seen++; seen > maxProcesses {
				return nil, fmt.Errorf("cannot look at all processes: more than %d", maxProcesses)
			}
			s.add(proc, pid, &budget, want)
		}
	}
}

func (s *Scan) add(proc string, pid int, budget *int, want func(File) bool) {
	p, err := one(proc, pid, budget, want)
	switch {
	case Gone(err):
	case err != nil:
		s.Unseen++
		s.Why = err.Error()
	}
	switch {
	case p == nil || Gone(err):
	case p.Emulator():
		s.Emulators = append(s.Emulators, p)
	case len(p.Open) > 0:
		s.Others = append(s.Others, p)
	}
}

// At looks at one process as Look does; fs.ErrNotExist when there is none.
func At(proc string, pid int) (*Process, error) {
	budget := maxDescriptors
	return one(proc, pid, &budget, nil)
}

// one looks at one process. With an error it returns what it could see: each thing is looked at whatever came of the others, since the process may have a hand
// in what cannot be read.
func one(proc string, pid int, budget *int, want func(File) bool) (*Process, error) {
	dir := filepath.Join(proc, strconv.Itoa(pid))
	p := &Process{PID: pid}
	var err error
	fail := func(what string, err error) (*Process, error) {
		return p, fmt.Errorf("cannot read %s of process %d: %w", what, pid, err)
	}
	var unseen error
	miss := func(what string, err error) {
		if err != nil {
			_, err = fail(what, err)
			unseen = errors.Join(unseen, err)
		}
	}
	if p.Exe, err = os.Readlink(filepath.Join(dir, "exe")); err != nil {
		return fail("executable", err) // a kernel thread has none: it counts as gone
	}
	p.Named = Named(p.Exe)
	if p.Start, err = StartTime(dir); err != nil {
		return fail("start time", err)
	}
	// Arguments are everybody's to read, descriptors are not: what can be known is known first.
	if p.Named {
		miss("arguments", p.identify(dir))
	}
	miss("descriptors", p.descriptors(dir, budget, want))
	if !p.Emulator() {
		return p, unseen
	}
	if !p.Named {
		miss("arguments", p.identify(dir))
	}
	// The same process from first to last.
	if again, err := StartTime(dir); err != nil || again != p.Start {
		return fail("start time", errors.Join(fs.ErrNotExist, err))
	}
	return p, unseen
}

// identify reads who the process belongs to and what its arguments say of the guest.
func (p *Process) identify(dir string) error {
	var st syscall.Stat_t
	if err := syscall.Stat(dir, &st); err != nil {
		return err
	}
	p.UID = st.Uid
	ours, err1 := nodeAt("/", 0)
	its, err2 := nodeAt(dir+"/root/", 0)
	p.SameRoot = err1 == nil && err2 == nil && ours.Dev == its.Dev && ours.Ino == its.Ino
	args, err := Arguments(reading, p.UID, dir)
	p.UUIDs, p.Guest = identities(args), hasChannel(args)
	return err
}

// reading is of arguments, in groups by the user whose they are: 250 ms are a thousand times what it takes.
var reading = &stall.Guard{Within: 250 * time.Millisecond, Most: 16}

// descriptors reads what the process has open. Of a process that is no emulator only the wanted files are kept. One that cannot be looked at keeps none of the
// others out of sight.
func (p *Process) descriptors(dir string, budget *int, want func(File) bool) error {
	fds := filepath.Join(dir, "fd")
	d, err := os.Open(fds)
	if err != nil {
		return err
	}
	defer d.Close()
	var kept []File
	var unseen error
all:
	for n := 0; ; {
		names, err := d.Readdirnames(512)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			unseen = err
			break
		}
		for _, name := range names {
			if n++; n > maxDescriptors {
				unseen = fmt.Errorf("more than %d descriptors", maxDescriptors)
				break all
			}
			if !p.Named {
				if *budget--; *budget < 0 {
					unseen = errors.New("too many descriptors on this machine")
					break all
				}
			}
			if err := p.descriptor(filepath.Join(fds, name), want, &kept); err != nil {
				unseen = err
			}
		}
	}
	for _, f := range kept {
		if p.Emulator() || want != nil && want(f) {
			p.Open = append(p.Open, f)
		}
	}
	return unseen
}

// descriptor reads one. A file that cannot be looked at keeps its path, which is the kernel's word too.
func (p *Process) descriptor(link string, want func(File) bool, kept *[]File) error {
	path, err := os.Readlink(link)
	if Gone(err) {
		return nil // closed meanwhile
	}
	if err != nil {
		return err
	}
	if path == "anon_inode:kvm-vm" {
		p.KVM = true
	}
	// A socket, a pipe, an event: no file. Character devices are told by stat.
	if !strings.HasPrefix(path, "/") || path == "/dev/null" || (!p.Named && want == nil && !p.KVM) {
		return nil
	}
	f, err := nodeAt(link, 0) // what is open itself, whatever its path is now
	switch {
	case Gone(err):
		return nil
	case err != nil:
		*kept = append(*kept, File{Path: path})
		return err
	case f.mode == unix.S_IFREG || f.mode == unix.S_IFBLK:
		*kept = append(*kept, File{Path: path, Dev: f.Dev, Ino: f.Ino, Block: f.Block})
	}
	return nil
}

// node is what a path leads to.
type node struct {
	mode            uint16 // its type
	Dev, Ino, Block uint64 // as in File
}

// nodeAt asks for the numbers of a file, which do not change while it is there, without asking the server of its file system: one that does not answer would hold
// up whoever looks at what is open already.
func nodeAt(path string, flags int) (node, error) {
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, path, unix.AT_STATX_DONT_SYNC|flags, unix.STATX_TYPE|unix.STATX_INO, &st); err != nil {
		return node{}, err
	}
	n := node{mode: st.Mode & unix.S_IFMT, Dev: unix.Mkdev(st.Dev_major, st.Dev_minor), Ino: st.Ino}
	if n.mode == unix.S_IFBLK {
		n.Block = unix.Mkdev(st.Rdev_major, st.Rdev_minor)
	}
	return n, nil
}

// Arguments reads what a process of this user was started with, from its directory. Whoever owns the process decides what fills the memory that its arguments
// lie in, and when, and how much of it there is: who does not answer in the guard's time, or says more than any process can be started with, is an error.
func Arguments(g *stall.Guard, uid uint32, dir string) ([]string, error) {
	return stall.Ask(g, strconv.FormatUint(uint64(uid), 10), dir, func() ([]string, error) { return arguments(dir) })
}

func arguments(dir string) ([]string, error) {
	f, err := os.Open(filepath.Join(dir, "cmdline"))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxArguments+1))
	if err != nil {
		return nil, err
	}
	if len(b) > maxArguments {
		return nil, fmt.Errorf("more than %d bytes", maxArguments)
	}
	// Counted before there is a string for each.
	if bytes.Count(b, []byte{0}) > maxWords {
		return nil, fmt.Errorf("more than %d arguments", maxWords)
	}
	return strings.Split(strings.TrimSuffix(string(b), "\x00"), "\x00"), nil
}
