package emulator

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"troth/launcher/stall"
)

// TestHidden has emulators whose arguments cannot be read, since nobody says a word into them: they hold up nobody, hide no other, and what else shows a
// trusted guest still does.
func TestHidden(t *testing.T) {
	dir := t.TempDir()
	volume := filepath.Join(dir, "disk.raw")
	if err := os.WriteFile(volume, []byte("disk"), 0o644); err != nil {
		t.Fatal(err)
	}
	proc := newMadeUp(t)
	const thief, most = 1000, 40
	for pid := thief; pid < thief+most; pid++ {
		proc.link(pid, "exe", "/usr/bin/qemu-system-x86_64")
		proc.start(pid)
		if err := unix.Mkfifo(proc.path(pid, "cmdline"), 0o600); err != nil {
			t.Fatal(err)
		}
		proc.link(pid, "fd/7", volume)
	}
	t.Cleanup(func() { // what hangs goes on, and ends
		for pid := thief; pid < thief+most; pid++ {
			f, err := os.OpenFile(proc.path(pid, "cmdline"), os.O_RDWR, 0)
			if err != nil {
				t.Error(err)
				continue
			}
			if err := f.Close(); err != nil {
				t.Error(err)
			}
		}
	})
	x := NewIndex(registry(t, volume))
	for round := range 3 {
		s, err := Look(t.Context(), proc.dir, x.Wants())
		if err != nil {
			t.Fatal(err)
		}
		if s.Unseen < most || !strings.Contains(s.Why, stall.ErrStalled.Error()) {
			t.Errorf("round %d: %d not looked at whole: %s", round, s.Unseen, s.Why)
		}
		for pid := thief; pid < thief+most; pid++ {
			p := find(s.Emulators, pid)
			if p == nil {
				t.Fatalf("round %d: %d is not seen", round, pid)
			}
			if why, _ := x.Why(p); why != ByVolume {
				t.Errorf("round %d: %d is trusted by %q", round, pid, why)
			}
		}
	}
}

// TestServerHangs has a process hold a file open whose server answers no question about it: nobody asks one.
func TestServerHangs(t *testing.T) {
	if testing.Short() {
		t.Skip("needs root: make test")
	}
	dir, volume := hangingServer(t), filepath.Join(t.TempDir(), "disk.raw")
	if err := os.WriteFile(volume, []byte("disk"), 0o644); err != nil {
		t.Fatal(err)
	}
	x := NewIndex(registry(t, volume))
	thief := start(t, "qemu-system-x86_64", dir+"; exec 8<"+volume)
	seen := make(chan *Scan, 1)
	go func() {
		s, err := Look(t.Context(), "/proc", x.Wants())
		if err != nil {
			t.Error(err)
		}
		seen <- s
	}()
	select {
	case s := <-seen:
		p := find(s.Emulators, thief.Process.Pid)
		if p == nil {
			t.Fatal("not seen")
		}
		if why, _ := x.Why(p); why != ByVolume {
			t.Errorf("trusted by %q", why)
		}
	case <-time.After(10 * time.Second):
		t.Error("the look waits for the server")
	}
}

// hangingServer mounts a file system by FUSE whose folder can be opened, and which then says nothing any more.
func hangingServer(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("hanging", dir, "fuse", unix.MS_NOSUID|unix.MS_NODEV, fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other", fd)); err != nil {
		t.Fatal(errors.Join(err, unix.Close(fd)))
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		serveOpening(fd)
	}()
	t.Cleanup(func() { // before the process that has it open ends: what waits for an answer gets an error
		err := unix.Unmount(dir, unix.MNT_FORCE|unix.MNT_DETACH)
		<-served
		if err := errors.Join(err, unix.Close(fd)); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// serveOpening answers what comes with mounting and opening (linux/fuse.h), until there is no file system any more.
func serveOpening(fd int) {
	const opInit, opOpendir = 26, 27
	request := make([]byte, 1<<17)
	for {
		n, err := unix.Read(fd, request)
		if errors.Is(err, unix.EINTR) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EAGAIN) {
			continue
		}
		if err != nil || n < 40 {
			return
		}
		order := binary.LittleEndian
		var body []byte
		switch order.Uint32(request[4:]) {
		case opInit:
			body = make([]byte, 64)
			order.PutUint32(body[0:], 7)
			order.PutUint32(body[4:], 31)
			order.PutUint32(body[20:], 1<<12)
		case opOpendir:
			body = make([]byte, 16)
		default:
			continue
		}
		answer := make([]byte, 16, 16+len(body))
		order.PutUint32(answer[0:], uint32(16+len(body)))
		copy(answer[8:16], request[8:16])
		if _, err := unix.Write(fd, append(answer, body...)); err != nil {
			return
		}
	}
}
