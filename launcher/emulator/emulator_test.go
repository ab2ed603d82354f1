package emulator

import (
	"bufio"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"troth/hooks/ask"
)

const uuid = "6a0f0a5e-4c55-4a53-9d5c-0d8b6f1f2a11"

func id(t testing.TB, s string) [16]byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(s, "-", ""))
	if err != nil {
		t.Fatal(err)
	}
	return [16]byte(b)
}

// start runs a shell under another name: an emulator as far as /proc tells. It holds file open and waits until the test ends.
func start(t testing.TB, name, file string, args ...string) *exec.Cmd {
	t.Helper()
	dir := t.TempDir()
	shell, err := os.ReadFile("/bin/sh")
	if err != nil {
		t.Fatal(err)
	}
	exe := filepath.Join(dir, name)
	if err := os.WriteFile(exe, shell, 0o755); err != nil {
		t.Fatal(err)
	}
	script := "echo up; read wait"
	if file != "" {
		script = "exec 7<" + file + "; " + script
	}
	cmd := exec.Command(exe, append([]string{"-c", script}, args...)...)
	run(t, cmd)
	return cmd
}

// run starts a process that says when it is up, and ends it with the test.
func run(t testing.TB, cmd *exec.Cmd) {
	t.Helper()
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(in.Close(), cmd.Process.Kill()); err != nil && !errors.Is(err, os.ErrProcessDone) {
			t.Error(err)
		}
		if err := cmd.Wait(); err != nil {
			t.Log(err)
		}
	})
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "up\n" {
		t.Fatalf("%q, %v", line, err)
	}
}

func registry(t testing.TB, volume string) ask.Registry {
	t.Helper()
	var st syscall.Stat_t
	if err := syscall.Stat(volume, &st); err != nil {
		t.Fatal(err)
	}
	return ask.Registry{UUIDs: [][16]byte{id(t, uuid)}, Volumes: []ask.Volume{{Path: volume, Dev: st.Dev, Ino: st.Ino}}}
}

func look(t testing.TB, x *Index) *Scan {
	t.Helper()
	s, err := Look(context.Background(), "/proc", x.Wants())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func find(all []*Process, pid int) *Process {
	for _, p := range all {
		if p.PID == pid {
			return p
		}
	}
	return nil
}

func TestLook(t *testing.T) {
	dir := t.TempDir()
	volume, link, other := filepath.Join(dir, "disk.raw"), filepath.Join(dir, "hard.raw"), filepath.Join(dir, "other.raw")
	for _, f := range []string{volume, other} {
		if err := os.WriteFile(f, []byte("disk"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Link(volume, link); err != nil {
		t.Fatal(err)
	}
	x := NewIndex(registry(t, volume))
	for name, c := range map[string]struct {
		exe, file string
		args      []string
		want      Reason
	}{
		"uuid":               {"qemu-system-x86_64", "", []string{"-uuid", uuid}, ByUUID},
		"two hyphens, upper": {"qemu-system-x86_64", "", []string{"--uuid", strings.ToUpper(uuid)}, ByUUID},
		"smbios":             {"qemu-kvm", "", []string{"-smbios", "type=1,uuid=" + uuid}, ByUUID},
		"second uuid":        {"qemu-kvm", "", []string{"-uuid", "00000000-0000-0000-0000-000000000001", "-uuid", uuid}, ByUUID},
		"volume":             {"qemu-system-x86_64", volume, nil, ByVolume},
		"volume, other name": {"qemu-system-aarch64", link, []string{"-uuid", "00000000-0000-0000-0000-000000000001"}, ByVolume},
		"channel":            {"qemu-system-x86_64", "", []string{"-device", "virtserialport,bus=b,chardev=c,name=troth.guest.0"}, ByMark},
		"channel in JSON":    {"qemu-system-x86_64", "", []string{"-device", `{"driver":"virtserialport","name":"troth.guest.0"}`}, ByMark},
		"untrusted":          {"qemu-system-x86_64", other, []string{"-uuid", "00000000-0000-0000-0000-000000000001", "-name", "troth.guest.0"}, ""},
		"odd arguments":      {"qemu-system-x86_64", "", []string{"", "-uuid", "", "-smbios", ",,uuid=,=", "-uuid"}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			cmd := start(t, c.exe, c.file, c.args...)
			p := find(look(t, x).Emulators, cmd.Process.Pid)
			if p == nil {
				t.Fatal("not seen")
			}
			if why, shows := x.Why(p); why != c.want {
				t.Errorf("%q (%s), want %q", why, shows, c.want)
			}
		})
	}
	t.Run("volume, other numbers", func(t *testing.T) {
		// A file server that is mounted a second time for QEMU, or mounted anew: the path is all that both know.
		stale := NewIndex(ask.Registry{Volumes: []ask.Volume{{Path: volume, Dev: 1, Ino: 1}}})
		cmd := start(t, "qemu-system-x86_64", volume)
		p := find(look(t, stale).Emulators, cmd.Process.Pid)
		if p == nil {
			t.Fatal("not seen")
		}
		if why, shows := stale.Why(p); why != ByVolume || shows != volume {
			t.Errorf("%q (%s), want %q", why, shows, ByVolume)
		}
		// In a container the same path is another file.
		p.SameRoot = false
		if why, _ := stale.Why(p); why != "" {
			t.Errorf("by a path below another root: %q", why)
		}
	})
	t.Run("no emulator", func(t *testing.T) {
		cmd := start(t, "qemu-img", volume, "-uuid", uuid)
		s := look(t, x)
		if find(s.Emulators, cmd.Process.Pid) != nil {
			t.Error("taken for an emulator by its arguments")
		}
		if p := find(s.Others, cmd.Process.Pid); p == nil || len(p.Open) != 1 {
			t.Errorf("who has the volume open is not told: %+v", p)
		}
	})
	t.Run("executable removed", func(t *testing.T) {
		cmd := start(t, "qemu-system-x86_64", "", "-uuid", uuid)
		if err := os.Remove(cmd.Path); err != nil {
			t.Fatal(err)
		}
		if find(look(t, x).Emulators, cmd.Process.Pid) == nil {
			t.Error("not seen")
		}
	})
}

func TestEnd(t *testing.T) {
	yes := func(*Process) error { return nil }
	cmd := start(t, "qemu-system-x86_64", "", "-uuid", uuid)
	pid := cmd.Process.Pid
	p, err := At("/proc", pid)
	if err != nil {
		t.Fatal(err)
	}
	no := errors.New("no")
	for name, c := range map[string]struct {
		pid    int
		start  uint64
		action Action
		judge  func(*Process) error
		want   error
	}{
		"number used again": {pid, p.Start + 1, Kill, yes, ErrNotIt},
		"no emulator":       {os.Getppid(), 0, Kill, yes, ErrNotIt},
		"ourselves":         {os.Getpid(), p.Start, Kill, yes, ErrNotIt},
		"init":              {1, 0, Kill, yes, ErrNotIt},
		"group":             {-pid, p.Start, Kill, yes, ErrNotIt},
		"unknown action":    {pid, p.Start, "term", yes, ErrNotIt},
		"judged otherwise":  {pid, p.Start, Kill, func(*Process) error { return no }, no},
	} {
		if err := End(c.pid, c.start, c.action, c.judge); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := End(pid, p.Start, Stop, yes); err != nil {
		t.Fatal(err)
	}
	if s := state(t, pid); s != "T" {
		t.Errorf("stopped, its state is %s", s)
	}
	if err := End(pid, p.Start, Kill, yes); err != nil {
		t.Fatal(err)
	}
	if _, err := cmd.Process.Wait(); err != nil {
		t.Fatal(err)
	}
	if err := End(pid, p.Start, Kill, yes); !errors.Is(err, ErrNotIt) {
		t.Errorf("a process that has ended: %v", err)
	}
}

// state waits for the kernel's note of a stop.
func state(t *testing.T, pid int) (s string) {
	t.Helper()
	for range 1000 {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			t.Fatal(err)
		}
		if s = strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))[0]; s == "T" {
			return s
		}
	}
	return s
}

// madeUp is a /proc of the test's own.
type madeUp struct {
	t   testing.TB
	dir string
}

func newMadeUp(t testing.TB) madeUp { return madeUp{t, t.TempDir()} }

// path makes the folder of a file of a process.
func (m madeUp) path(pid int, file string) string {
	m.t.Helper()
	name := filepath.Join(m.dir, strconv.Itoa(pid), file)
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		m.t.Fatal(err)
	}
	return name
}

func (m madeUp) put(pid int, file, text string) {
	m.t.Helper()
	if err := os.WriteFile(m.path(pid, file), []byte(text), 0o644); err != nil {
		m.t.Fatal(err)
	}
}

func (m madeUp) link(pid int, file, to string) {
	m.t.Helper()
	if err := os.Symlink(to, m.path(pid, file)); err != nil {
		m.t.Fatal(err)
	}
}

// start is the text of stat of a process that was started at 777.
func (m madeUp) start(pid int) {
	m.t.Helper()
	m.put(pid, "stat", fmt.Sprintf("%d (a) b) c) S%s 777 0", pid, strings.Repeat(" 1", 18)))
}

// TestMadeUp has processes that vanish half way, that may not be read, and that are strange.
func TestMadeUp(t *testing.T) {
	proc := newMadeUp(t)
	// 1: vanished but for its folder. 2: no descriptors any more. 3: renamed, with a virtual machine. 4: strange, and whole.
	proc.start(1)
	proc.link(2, "exe", "/usr/bin/qemu-system-x86_64")
	proc.start(2)
	proc.link(3, "exe", "/tmp/innocent")
	proc.start(3)
	proc.put(3, "cmdline", "innocent\x00-uuid\x00"+uuid+"\x00")
	proc.link(3, "fd/5", "anon_inode:kvm-vm")
	proc.link(4, "exe", "/usr/bin/qemu-system-x86_64 (deleted)")
	proc.start(4)
	proc.put(4, "cmdline", strings.Repeat("x", maxArguments+1))
	proc.link(4, "fd/0", "/nowhere")
	proc.link(6, "exe", "/usr/bin/qemu-system-x86_64")
	proc.start(6)
	proc.put(6, "cmdline", strings.Repeat("\x00", maxWords+2))
	proc.link(6, "fd/0", "/nowhere")
	proc.put(5, "stat", "nonsense")
	proc.link(5, "exe", "/usr/bin/qemu-system-x86_64")
	s, err := Look(context.Background(), proc.dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	x := NewIndex(ask.Registry{UUIDs: [][16]byte{id(t, uuid)}})
	if p := find(s.Emulators, 3); p == nil || p.Start != 777 {
		t.Errorf("a renamed emulator: %+v", p)
	} else if why, _ := x.Why(p); why != ByUUID {
		t.Errorf("a renamed emulator is trusted by %q", why)
	}
	// Not looked at whole is not passed over.
	if s.Unseen != 3 || s.Why == "" {
		t.Errorf("%d unseen: %s", s.Unseen, s.Why)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := Look(ctx, proc.dir, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// BenchmarkLook is one pass over this machine, with a process that has many descriptors.
func BenchmarkLook(b *testing.B) {
	var many []*os.File
	for range 2000 {
		f, err := os.Open("/proc/self/exe")
		if err != nil {
			b.Fatal(err)
		}
		many = append(many, f)
	}
	defer func() {
		for _, f := range many {
			if err := f.Close(); err != nil {
				b.Error(err)
			}
		}
	}()
	x := NewIndex(ask.Registry{Volumes: []ask.Volume{{Path: "/nowhere", Dev: 1, Ino: 1}}})
	all, err := os.ReadDir("/proc")
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		look(b, x)
	}
	b.ReportMetric(float64(len(all)), "processes")
}
