package hostd

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"troth/proof"
)

// Bounds of one look: libvirt itself has none, but whoever fills the folder must not hold us up.
const (
	maxHookFile    = 256 << 20
	maxHookEntries = 1024
)

// Installed is what libvirt would run as its qemu hook, as the file system shows it: the hook, its folder, and the entries of qemu.d.
type Installed struct {
	Hook    HookFile
	Content proof.Digest // SHA-256 of the hook
	Folder  HookFile     // its folder: the time of change moves with every name that comes or goes in it
	Entries []HookEntry  // executable entries of qemu.d, in libvirt's order
	fresh   bool         // it was changed so shortly before this look that a change after it may have the same time
}

// tick is longer than what the kernel counts times of files in: until Linux 6.13 two changes within one tick (1 to 10 ms) have one time.
const tick = time.Second

// HookFile tells one state of a file from every other. The time of change (st_ctim) is the kernel's own: no call sets it, and every write,
// chmod, link and rename moves it.
type HookFile struct {
	Dev, Ino uint64
	Mode     uint32
	UID      uint32
	Size     int64
	Changed  unix.Timespec
}

// HookEntry is an executable file in qemu.d.
type HookEntry struct {
	Name string
	File HookFile
}

// qemuD is the folder whose entries libvirt runs after the hook (docs/hook.md).
func qemuD(script string) string { return script + ".d" }

// Inspect looks at the hook. Its errors are *NotLive. With an earlier look at the same file, the content is not read again.
func Inspect(script string, earlier *Installed) (*Installed, error) {
	in := &Installed{}
	var err error
	if in.Folder, err = statHook(filepath.Dir(script)); err != nil {
		return nil, gone(script, err)
	}
	if in.Hook, err = statHook(script); err != nil {
		return nil, gone(script, err)
	}
	if in.Hook.Mode&unix.S_IFMT != unix.S_IFREG || in.Hook.Mode&0o111 == 0 {
		return nil, &NotLive{Why: "libvirt would not run the hook, and takes that for a permit: it is not an executable file",
			Facts:  []proof.Fact{{Name: script, Want: "a regular file, mode 0755", Got: fs.FileMode(in.Hook.Mode & 0o7777).String()}},
			Remedy: "Run `chmod 0755 " + script + "`; the hook is tried by itself then."}
	}
	var mounted unix.Statfs_t
	if err := unix.Statfs(script, &mounted); err == nil && mounted.Flags&unix.ST_NOEXEC != 0 {
		return nil, &NotLive{Why: "libvirt cannot run the hook: its file system is mounted noexec", Facts: []proof.Fact{{Name: "hook", Value: script}},
			Remedy: "Put the hook on a file system that permits execution."}
	}
	in.fresh = time.Since(time.Unix(in.Hook.Changed.Unix())).Abs() < tick
	if earlier != nil && earlier.Hook == in.Hook && !earlier.fresh {
		in.Content = earlier.Content
	} else if in.Content, err = hashHook(script); err != nil {
		return nil, gone(script, err)
	}
	if in.Entries, err = hookEntries(qemuD(script)); err != nil {
		return nil, &NotLive{Undecided: true, Why: "nobody can see what else libvirt would run", Facts: []proof.Fact{{Name: qemuD(script), Value: err.Error()}},
			Remedy: "See that troth-hostd may read " + qemuD(script) + "."}
	}
	return in, nil
}

func gone(script string, err error) *NotLive {
	if errors.Is(err, fs.ErrNotExist) {
		return &NotLive{Why: "the hook is not there, which libvirt takes for a permit", Facts: []proof.Fact{{Name: "hook", Want: script, Got: "nothing"}},
			Remedy: "Install troth-hook as " + script + ", mode 0755; if libvirtd or virtqemud was started without it, send it a SIGHUP."}
	}
	return &NotLive{Undecided: true, Why: "the hook cannot be looked at", Facts: []proof.Fact{{Name: "hook", Value: err.Error()}},
		Remedy: "See that troth-hostd may read " + script + "."}
}

func statHook(path string) (HookFile, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil { // as libvirt does, through symbolic links
		return HookFile{}, &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	return HookFile{Dev: st.Dev, Ino: st.Ino, Mode: st.Mode, UID: st.Uid, Size: st.Size, Changed: st.Ctim}, nil
}

func hashHook(path string) (proof.Digest, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0) // swapped for a FIFO, it must not hold us
	if err != nil {
		return proof.Digest{}, err
	}
	defer f.Close()
	h := sha256.New()
	if n, err := io.Copy(h, io.LimitReader(f, maxHookFile+1)); err != nil {
		return proof.Digest{}, err
	} else if n > maxHookFile {
		return proof.Digest{}, fmt.Errorf("%s is larger than %d bytes", path, maxHookFile)
	}
	return proof.Digest(h.Sum(nil)), nil
}

// hookEntries lists what libvirt would run out of a folder; a folder that is not there has none.
func hookEntries(dir string) ([]HookEntry, error) {
	f, err := os.Open(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	names, err := f.Readdirnames(maxHookEntries + 1)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	if len(names) > maxHookEntries {
		return nil, fmt.Errorf("more than %d entries", maxHookEntries)
	}
	slices.Sort(names)
	var all []HookEntry
	for _, name := range names {
		file, err := statHook(filepath.Join(dir, name))
		if errors.Is(err, fs.ErrNotExist) {
			continue // went away, or a link that leads nowhere: libvirt runs neither
		}
		if err != nil {
			return nil, err
		}
		if file.Mode&unix.S_IFMT == unix.S_IFREG && file.Mode&0o111 != 0 {
			all = append(all, HookEntry{name, file})
		}
	}
	return all, nil
}

// differs says how now is another hook than in was; nil: it is the same.
func (in *Installed) differs(now *Installed) []proof.Fact {
	switch {
	case in.Content != now.Content:
		return []proof.Fact{{Name: "content of the hook", Want: in.Content.String(), Got: now.Content.String()}}
	case in.Hook != now.Hook:
		return []proof.Fact{{Name: "hook", Want: in.Hook.String(), Got: now.Hook.String()}}
	case !slices.Equal(in.Entries, now.Entries):
		return []proof.Fact{{Name: "qemu.d", Want: in.others(), Got: now.others()}}
	case in.Folder != now.Folder:
		return []proof.Fact{{Name: "folder of the hook", Want: in.Folder.String(), Got: now.Folder.String()}}
	}
	return nil
}

func (f HookFile) String() string {
	return fmt.Sprintf("device %d, inode %d, mode %o, owner %d, changed at %d.%09d", f.Dev, f.Ino, f.Mode&0o7777, f.UID, f.Changed.Sec, f.Changed.Nsec)
}

// others names the entries of qemu.d.
func (in *Installed) others() string {
	if len(in.Entries) == 0 {
		return "no executable entry"
	}
	var names []string
	for _, e := range in.Entries {
		names = append(names, fmt.Sprintf("%q", e.Name))
	}
	return strings.Join(names, ", ")
}

// watched is what the kernel is to tell of; opening, reading and running are none of it.
const watched = unix.IN_ATTRIB | unix.IN_CLOSE_WRITE | unix.IN_CREATE | unix.IN_DELETE | unix.IN_DELETE_SELF | unix.IN_MODIFY |
	unix.IN_MOVE_SELF | unix.IN_MOVED_FROM | unix.IN_MOVED_TO

// hookWatch hears of changes (inotify(7)). It is a bell, no witness: whoever hears it looks. It may miss some (a mount over the folder, a queue that
// overflowed), which the look before each launch and every few seconds sees.
type hookWatch struct {
	file  *os.File
	paths []string
}

// openWatch makes a watch that is not aimed yet.
func openWatch(script string) (*hookWatch, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("cannot watch the hook: %w", err)
	}
	dir := filepath.Dir(script)
	return &hookWatch{file: os.NewFile(uintptr(fd), "inotify"), paths: []string{filepath.Dir(dir), dir, script, qemuD(script)}}, nil
}

// aim watches what the paths lead to now. A path that leads nowhere is watched by the folder above it.
func (w *hookWatch) aim() error {
	conn, err := w.file.SyscallConn()
	if err != nil {
		return err
	}
	var errs []error
	err = conn.Control(func(fd uintptr) {
		for _, p := range w.paths {
			if _, err := unix.InotifyAddWatch(int(fd), p, watched); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTDIR) {
				errs = append(errs, fmt.Errorf("cannot watch %s: %w", p, err))
			}
		}
	})
	return errors.Join(append(errs, err)...)
}

// listen rings for whatever happens, until the watch is closed.
func (w *hookWatch) listen(ring func()) error {
	buf := make([]byte, 4096)
	for {
		if _, err := w.file.Read(buf); err != nil {
			return err
		}
		ring()
	}
}

// watch rings the worker when the kernel tells of a change, until ctx ends. Without inotify the looks remain.
func (l *Liveness) watch(ctx context.Context, log *slog.Logger) {
	w, err := openWatch(l.Script)
	if err != nil {
		log.Warn("the hook is looked at only from time to time", "error", err.Error())
		return
	}
	defer w.file.Close()
	defer context.AfterFunc(ctx, func() { w.file.Close() })()
	var said string
	l.mu.Lock()
	l.aim = func() {
		text := ""
		if err := w.aim(); err != nil {
			text = err.Error()
		}
		if text != said && text != "" && ctx.Err() == nil {
			log.Warn("a change of the hook may be seen late", "error", text)
		}
		said = text
	}
	l.mu.Unlock()
	poke(l.kick)
	err = w.listen(func() { l.heardChange.Store(true); poke(l.kick) })
	if ctx.Err() == nil {
		log.Warn("the hook is looked at only from time to time", "error", err.Error())
	}
}
