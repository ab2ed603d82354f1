package virt

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const guest = "6cf3a1f8-0f41-4f6e-9a5e-6f8f7a2b9c01"

// fake makes a process in a made-up /proc.
func fake(t *testing.T, proc string, pid int, exe string, args ...string) {
	t.Helper()
	dir := filepath.Join(proc, fmt.Sprint(pid))
	for _, d := range []string{"fd", "fdinfo", "root"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	image := filepath.Join(proc, "image")
	for path, text := range map[string]string{
		filepath.Join(dir, "cmdline"):     strings.Join(args, "\x00") + "\x00",
		filepath.Join(dir, "stat"):        fmt.Sprintf("%d (a) b) (c) S %s 4711 1 2", pid, strings.Repeat("0 ", 18)),
		filepath.Join(dir, "fdinfo", "7"): "pos:\t0\nflags:\t02100002\n",
		filepath.Join(dir, "fdinfo", "8"): "pos:\t0\nflags:\t02100000\n",
		image:                             "image",
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, to := range map[string]string{"exe": exe, "fd/7": image, "fd/8": image, "fd/9": "/dev/null", "fd/10": "pipe:[1]"} {
		if to == "" {
			continue // a thread of the kernel has no executable
		}
		if err := os.Symlink(to, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
}

func TestFindProcess(t *testing.T) {
	proc := t.TempDir()
	if _, err := findProcess(t.Context(), proc, guest, nil); !errors.Is(err, ErrNoProcess) {
		t.Fatalf("no process: %v", err)
	}
	// Not ours: another program with the arguments, an emulator of another guest, arguments cut short, a thread
	// of the kernel, and what is no process at all.
	fake(t, proc, 10, "/usr/bin/sleep", "qemu-system-x86_64", "-uuid", guest)
	fake(t, proc, 11, "/usr/bin/qemu-system-x86_64", "qemu", "-uuid", "00000000-0000-0000-0000-000000000000")
	fake(t, proc, 12, "/usr/bin/qemu-system-x86_64", "qemu", "-uuid")
	fake(t, proc, 13, "/usr/bin/qemu-system-x86_64", "qemu", "-name", guest)
	fake(t, proc, 14, "", "")
	if err := os.Mkdir(filepath.Join(proc, "self"), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := findProcess(t.Context(), proc, guest, nil); !errors.Is(err, ErrNoProcess) {
		t.Fatalf("others: %v", err)
	}
	fake(t, proc, 20, "/usr/bin/qemu-system-x86_64 (deleted)", "qemu", "-uuid", strings.ToUpper(guest), "-kernel", "/no/kernel")
	p, err := findProcess(t.Context(), proc, guest, nil)
	if err != nil {
		t.Fatal(err)
	}
	if p.PID != 20 || p.Start != 4711 || len(p.Open) != 2 || p.Open[0].Writable == p.Open[1].Writable {
		t.Errorf("%+v", p)
	}
	if want := []File{{Path: "/no/kernel", Option: "-kernel"}}; !slices.Equal(p.Named, want) {
		t.Errorf("named %+v, want %+v", p.Named, want)
	}
	fake(t, proc, 21, "/usr/libexec/qemu-kvm", "qemu", "-uuid", guest)
	if _, err := findProcess(t.Context(), proc, guest, nil); !errors.Is(err, ErrManyProcesses) {
		t.Errorf("two processes: %v", err)
	}
}

// TestFindProcessOfUser: another user's process by an emulator's name with the guest's UUID is no reason against the guest.
func TestFindProcessOfUser(t *testing.T) {
	if os.Geteuid() != 0 {
		if !testing.Short() {
			t.Fatal("needs root, to give processes to other users")
		}
		t.Skip("needs root: make test")
	}
	proc := t.TempDir()
	qemu, nobody := uint32(64055), uint32(65534)
	put := func(pid int, user uint32) {
		fake(t, proc, pid, "/usr/bin/qemu-system-x86_64", "qemu", "-uuid", guest)
		if err := os.Chown(filepath.Join(proc, fmt.Sprint(pid)), int(user), -1); err != nil {
			t.Fatal(err)
		}
	}
	count := func(want int) {
		t.Helper()
		if found, err := processes(t.Context(), proc, guest, &qemu); err != nil || len(found) != want {
			t.Errorf("%v, %v", found, err)
		}
	}
	// Alone it is told of, so that whoever named the wrong user sees that.
	put(20, nobody)
	if p, err := findProcess(t.Context(), proc, guest, &qemu); err != nil || p.PID != 20 || p.UID != nobody {
		t.Errorf("alone: %+v, %v", p, err)
	}
	count(0)
	put(21, qemu)
	put(22, nobody)
	if p, err := findProcess(t.Context(), proc, guest, &qemu); err != nil || p.PID != 21 || p.UID != qemu {
		t.Errorf("beside the guest: %+v, %v", p, err)
	}
	count(1)
	if _, err := findProcess(t.Context(), proc, guest, nil); !errors.Is(err, ErrManyProcesses) {
		t.Errorf("of anybody: %v", err)
	}
	put(23, qemu)
	if _, err := findProcess(t.Context(), proc, guest, &qemu); !errors.Is(err, ErrManyProcesses) {
		t.Errorf("two of its user: %v", err)
	}
	count(2)
}

func TestPathsIn(t *testing.T) {
	for _, c := range []struct {
		option, value string
		want          []string
	}{
		{"-kernel", "/boot/vmlinuz", []string{"/boot/vmlinuz"}},
		{"-initrd", "/a,b", []string{"/a,b"}},
		{"-append", "/not/a/file", nil},
		{"-blockdev", `{"driver":"file","filename":"/srv/a.img","node-name":"x"}`, []string{"/srv/a.img"}},
		{"-blockdev", `{"driver":"qcow2","file":{"driver":"file","filename":"/srv/b"},"backing":{"file":{"filename":"/srv/a"}}}`, []string{"/srv/a", "/srv/b"}},
		{"-blockdev", `{"driver":"qcow2","file":"libvirt-1-storage"}`, nil},
		{"-blockdev", "no json", nil},
		{"-fw_cfg", "name=opt/x,file=/run/a,,b", []string{"/run/a,b"}},
		{"-fw_cfg", "name=opt/x,string=/run/a", nil},
		{"-drive", "file=/usr/share/OVMF.fd,if=pflash,format=raw", []string{"/usr/share/OVMF.fd"}},
	} {
		if got := pathsIn(c.option, c.value); !slices.Equal(got, c.want) {
			t.Errorf("%s %s: %q, want %q", c.option, c.value, got, c.want)
		}
	}
}

// TestLoads: whether QEMU takes the guest's memory from elsewhere.
func TestLoads(t *testing.T) {
	for args, want := range map[string]string{
		"qemu -uuid x": "", "qemu -incoming fd:23": "-incoming", "qemu --incoming defer -S": "-incoming", "qemu -loadvm one": "-loadvm", "qemu --loadvm one": "-loadvm",
		"qemu -name guest=-incoming": "",
	} {
		if got := (&Process{Args: strings.Fields(args)}).Loads(); got != want {
			t.Errorf("%q: %q, want %q", args, got, want)
		}
	}
}
