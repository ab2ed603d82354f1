package virt

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"troth/launcher/stall"
)

// argumentsVariable makes this test binary a process whose arguments are that many bytes of nothing.
const argumentsVariable = "TROTH_VIRT_TEST_ARGUMENTS"

func init() {
	size, err := strconv.Atoi(os.Getenv(argumentsVariable))
	if err != nil {
		return
	}
	if err := moveArguments(size); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println("up")
	_, _ = os.Stdin.Read(make([]byte, 1)) // until the test ends
	os.Exit(0)
}

// moveArguments tells the kernel that the arguments of this process are elsewhere: memory that was never touched. It takes no privilege (prctl(2), PR_SET_MM_MAP).
func moveArguments(size int) error {
	at, err := unix.MmapPtr(-1, 0, nil, uintptr(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return err
	}
	b, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		return err
	}
	fields := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	field := func(n int) uint64 { // as proc(5) counts
		v, convert := strconv.ParseUint(fields[n-3], 10, 64)
		err = errors.Join(err, convert)
		return v
	}
	brk, _, _ := unix.Syscall(unix.SYS_BRK, 0, 0, 0)
	start := uint64(uintptr(at))
	m := struct {
		startCode, endCode, startData, endData, startBrk, brk, startStack, argStart, argEnd, envStart, envEnd, auxv uint64
		auxvSize, exe                                                                                               uint32
	}{field(26), field(27), field(45), field(46), field(47), uint64(brk), field(28), start, start + uint64(size) - 1, field(50), field(51), 0, 0, ^uint32(0)}
	if err != nil {
		return err
	}
	return unix.Prctl(unix.PR_SET_MM, unix.PR_SET_MM_MAP, uintptr(unsafe.Pointer(&m)), unsafe.Sizeof(m), 0)
}

// boundless starts such a process by this name, of nobody where we may, and ends it with the test.
func boundless(t *testing.T, name string, size int) (pid int) {
	t.Helper()
	dir, err := os.MkdirTemp("", "troth-arguments")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	exe := filepath.Join(dir, name)
	self, err := os.ReadFile("/proc/self/exe")
	if err := errors.Join(err, os.WriteFile(exe, self, 0o755), os.Chmod(dir, 0o755)); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe)
	cmd.Dir, cmd.Env = "/", []string{argumentsVariable + "=" + strconv.Itoa(size)}
	if os.Geteuid() == 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	}
	in, err1 := cmd.StdinPipe()
	out, err2 := cmd.StdoutPipe()
	if err := errors.Join(err1, err2, cmd.Start()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(in.Close(), cmd.Wait()); err != nil {
			t.Error(err)
		}
	})
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "up\n" {
		t.Fatalf("%q, %v", line, err)
	}
	return cmd.Process.Pid
}

// frugal fails the test if f takes much more memory than the arguments that an emulator may have.
func frugal(t *testing.T, f func()) {
	t.Helper()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	if took := after.TotalAlloc - before.TotalAlloc; took > 64<<20 {
		t.Errorf("%d MiB were taken", took>>20)
	}
}

func TestAttack(t *testing.T) {
	t.Run("R-CMDLINE", attackArguments)
	t.Run("R-CMDLINE/never come", attackSilence)
}

// attackArguments: any user can give a process as many arguments as there are addresses. Of a process that is no emulator nobody reads them; of one that
// is called so, nobody reads more than an emulator has, and then nobody knows.
func attackArguments(t *testing.T) {
	const uuid = "6cf3a1f8-0f41-4f6e-9a5e-6f8f7a2b9c33"
	count := func(t *testing.T, user *uint32, want int, failure string) {
		t.Helper()
		frugal(t, func() {
			n, err := Processes(t.Context(), uuid, user)
			if n != want || (err == nil) != (failure == "") || err != nil && !strings.Contains(err.Error(), failure) {
				t.Errorf("%d processes, %v", n, err)
			}
		})
	}
	boundless(t, "sleep", 64<<20)
	count(t, nil, 0, "")
	// One that has many is found by them.
	many := make([]string, 10)
	for i := range many {
		many[i] = strings.Repeat("x", 100<<10)
	}
	guest, _ := emulatorNamed(t, uuid, "echo up; read wait", many...)
	count(t, nil, 1, "")
	frugal(t, func() {
		if p, err := FindProcess(t.Context(), uuid, nil); err != nil || p.PID != guest.Process.Pid || len(p.Args) != 16 {
			t.Errorf("%+v, %v", p, err)
		}
	})
	for size, failure := range map[int]string{64 << 20: "bytes", 3 << 20: "arguments"} {
		t.Run(failure, func(t *testing.T) {
			pid := boundless(t, "qemu-system-x86_64", size)
			count(t, nil, 0, fmt.Sprintf("process %d: cannot read arguments", pid))
			if user := uint32(os.Geteuid()); user == 0 { // whoever QEMU runs as, others do not keep a guest from being found
				count(t, &user, 1, "")
			}
		})
	}
}

// attackSilence: a process of another kind is not asked for its arguments; an emulator that does not give them holds up nobody for long, and nobody knows.
func attackSilence(t *testing.T) {
	proc := t.TempDir()
	silent := func(pid int, exe string) {
		t.Helper()
		fake(t, proc, pid, exe, "silent")
		path := filepath.Join(proc, strconv.Itoa(pid), "cmdline")
		if err := errors.Join(os.Remove(path), unix.Mkfifo(path, 0o600)); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { // what hangs goes on, and ends
			f, err := os.OpenFile(path, os.O_RDWR, 0)
			if err == nil {
				err = f.Close()
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	silent(10, "/usr/bin/sleep")
	fake(t, proc, 20, "/usr/bin/qemu-system-x86_64", "qemu", "-uuid", guest)
	if found, err := processes(t.Context(), proc, guest, nil); err != nil || len(found) != 1 {
		t.Fatalf("%v, %v", found, err)
	}
	silent(21, "/usr/bin/qemu-system-x86_64")
	for range 2 {
		if found, err := processes(t.Context(), proc, guest, nil); !errors.Is(err, stall.ErrStalled) {
			t.Errorf("%v, %v", found, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := processes(ctx, proc, guest, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("given up: %v", err)
	}
}
