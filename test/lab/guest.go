package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// Guest is what the lab's domains boot: a Debian kernel and an initrd with busybox and `troth guest respond`. The files
// are copies of the lab's own, in the directory that all hosts share; a test may replace them.
type Guest struct {
	Kernel, Initrd string // as seen inside hosts
	CommandLine    string
	Type           string // of the domain: kvm where a guest really boots under it, else qemu
	Outside        string // directory of kernel and initrd, as seen outside
}

// UserSpaceUp is the line that a guest writes to its console when its user space runs.
const UserSpaceUp = "troth-guest: user space is up"

// guestInit is process 1 of a guest. The responder waits for channel and secret by itself.
const guestInit = `#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /tmp
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sysfs /sys
/bin/busybox mount -t devtmpfs devtmpfs /dev
for m in /modules/*.ko; do
	/bin/busybox insmod $m || echo "troth-guest: cannot load $m"
done
echo "` + UserSpaceUp + `"
/bin/troth guest respond
echo "troth-guest: the responder ended with status $?"
while :; do /bin/busybox sleep 3600; done
`

// guestCommandLine: quiet, since every line on a serial port costs an emulated CPU time.
const guestCommandLine = "console=ttyS0 quiet panic=-1 mitigations=off"

// makeGuest puts kernel and initrd into a directory of the lab, from the cache where it can.
func (l *Lab) makeGuest(ctx context.Context) (*Guest, error) {
	to := filepath.Join(l.dir, "shared", "guest")
	dir, err := l.kernel(ctx)
	if err != nil {
		return nil, err
	}
	if err := copyFile(filepath.Join(dir, "vmlinuz"), filepath.Join(to, "vmlinuz"), 0o644); err != nil {
		return nil, err
	}
	initrd, err := BuildInitrd(filepath.Join(dir, "modules"), filepath.Join(l.options.Binaries, "troth"))
	if err != nil {
		return nil, err
	}
	if err := writeFile(filepath.Join(to, "initrd"), string(initrd), 0o644); err != nil {
		return nil, err
	}
	g := &Guest{
		Kernel: sharedInside + "/guest/vmlinuz", Initrd: sharedInside + "/guest/initrd", CommandLine: guestCommandLine,
		Outside: to,
	}
	g.Type, err = l.accelerator(ctx, to)
	return g, err
}

// BuildInitrd makes a guest's initrd from kernel modules and the program troth. The same input gives the same bytes.
func BuildInitrd(modules, troth string) ([]byte, error) {
	a := make(archive)
	a.add("init", archiveEntry{mode: typeRegular | 0o755, data: []byte(guestInit)})
	// The kernel opens /dev/console for process 1 before anything is mounted.
	a.add("dev/console", archiveEntry{mode: typeCharacter | 0o600, major: 5, minor: 1})
	if err := a.addFile("bin/busybox", "/bin/busybox", 0o755); err != nil {
		return nil, err
	}
	a.add("bin/sh", archiveEntry{mode: typeLink | 0o777, data: []byte("busybox")})
	if err := a.addFile("bin/troth", troth, 0o755); err != nil {
		return nil, err
	}
	files, err := filepath.Glob(filepath.Join(modules, "*.ko"))
	if err != nil || len(files) == 0 {
		return nil, fmt.Errorf("cannot find kernel modules in %s", modules)
	}
	for _, f := range files {
		if err := a.addFile("modules/"+filepath.Base(f), f, 0o644); err != nil {
			return nil, err
		}
	}
	var b bytes.Buffer
	err = a.write(&b)
	return b.Bytes(), err
}

// accelerator decides by trying whether a guest boots under KVM: /dev/kvm may exist where it does not. The answer is kept
// for this processor and kernel.
func (l *Lab) accelerator(ctx context.Context, guest string) (string, error) {
	if _, err := os.Stat("/dev/kvm"); errors.Is(err, fs.ErrNotExist) {
		return "qemu", nil
	}
	var u syscall.Utsname
	if err := syscall.Uname(&u); err != nil {
		return "", err
	}
	key := fmt.Sprintf("%d %d %d", u.Release, u.Version, runtime.NumCPU())
	file := filepath.Join(l.options.Cache, "accelerator")
	if data, err := os.ReadFile(file); err == nil {
		if kind, ok := strings.CutPrefix(string(data), key+"\n"); ok {
			return kind, nil
		}
	}
	l.say("trying whether a guest boots under KVM")
	kind := "qemu"
	if l.bootsUnderKVM(ctx, guest) {
		kind = "kvm"
	}
	if ctx.Err() != nil {
		return "", ctx.Err()
	}
	return kind, writeFile(file, key+"\n"+kind, 0o644)
}

// bootsUnderKVM boots the guest and looks for its line. 20 s is several times what the slowest emulation takes.
func (l *Lab) bootsUnderKVM(ctx context.Context, guest string) bool {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	cmd := l.Outside.Command(ctx, "qemu-system-x86_64", "-accel", "kvm", "-machine", "pc-q35-7.2", "-m", "256", "-nodefaults", "-display", "none",
		"-no-reboot", "-serial", "stdio", "-kernel", filepath.Join(guest, "vmlinuz"), "-initrd", filepath.Join(guest, "initrd"), "-append", guestCommandLine)
	var seen watcher
	seen.found = cancel
	cmd.Stdout = &seen
	return cmd.Run() != nil && seen.hit // it is killed by us as soon as the line is there
}

// watcher is an output that looks for UserSpaceUp.
type watcher struct {
	tail  []byte
	hit   bool
	found func()
}

func (w *watcher) Write(b []byte) (int, error) {
	w.tail = append(w.tail, b...)
	if bytes.Contains(w.tail, []byte(UserSpaceUp)) {
		w.hit = true
		w.found()
	}
	w.tail = w.tail[max(0, len(w.tail)-len(UserSpaceUp)):]
	return len(b), nil
}
