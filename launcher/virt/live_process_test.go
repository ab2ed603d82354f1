package virt

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"troth/launcher/emulator"
)

// emulatorNamed runs a shell by an emulator's name, with a domain's UUID in its arguments; it ends with its standard input.
func emulatorNamed(t *testing.T, uuid, script string, more ...string) (*exec.Cmd, uint64) {
	t.Helper()
	exe := filepath.Join(t.TempDir(), "qemu-system-x86_64")
	b, err := os.ReadFile("/bin/bash")
	if err == nil {
		err = os.WriteFile(exe, b, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe, append(append([]string{"-c", script, "guest"}, more...), "-uuid", uuid)...)
	in, err1 := cmd.StdinPipe()
	out, err2 := cmd.StdoutPipe()
	if err := errors.Join(err1, err2, cmd.Start()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := in.Close(); err != nil {
			t.Log(err)
		}
		if err := cmd.Wait(); err != nil {
			t.Log(err)
		}
	})
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "up\n" {
		t.Fatalf("%q, %v", line, err)
	}
	start, err := emulator.StartTime(fmt.Sprintf("/proc/%d", cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	return cmd, start
}

// TestDescriptorsComeAndGo: a process that opens and closes a file all the time is never said to have ended: whoever believed it would end an honest guest.
func TestDescriptorsComeAndGo(t *testing.T) {
	const uuid = "6cf3a1f8-0f41-4f6e-9a5e-6f8f7a2b9c31"
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	// The end of its input is heard between two turns: read waits for nothing there. The file is open for about as long as it is closed.
	cmd, start := emulatorNamed(t, uuid, "echo up; while ! read -t 0; do exec 7<"+file+"; for n in {1..40}; do :; done; exec 7<&-; done")
	seen := 0
	for n := range 3000 {
		p, err := ReadProcess(cmd.Process.Pid, start)
		if err != nil {
			t.Fatalf("ReadProcess: %v", err)
		}
		for _, f := range p.Open {
			if f.Path == file {
				seen++
			}
		}
		if n%10 != 0 {
			continue // looking at all processes takes its time
		}
		if p, err = FindProcess(t.Context(), uuid, nil); err != nil || p.PID != cmd.Process.Pid {
			t.Fatalf("FindProcess: %+v, %v", p, err)
		}
		if n, err := Processes(t.Context(), uuid, nil); n != 1 || err != nil {
			t.Fatalf("%d processes, %v", n, err)
		}
	}
	t.Logf("the file was open %d times of 3000", seen)
	if seen == 0 || seen == 3000 {
		t.Errorf("the file was open %d times of 3000: it was not opened and closed", seen)
	}
}

// TestEnded: killed and not waited for, or gone, or another under its number, a process is none.
func TestEnded(t *testing.T) {
	const uuid = "6cf3a1f8-0f41-4f6e-9a5e-6f8f7a2b9c32"
	cmd, start := emulatorNamed(t, uuid, "echo up; read wait")
	pid := cmd.Process.Pid
	if _, err := ReadProcess(pid, start+1); !errors.Is(err, ErrNoProcess) {
		t.Errorf("another start time: %v", err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	for over := false; !over; {
		var err error
		if over, err = emulator.Over(fmt.Sprintf("/proc/%d", pid)); err != nil {
			t.Fatal(err)
		}
	}
	if p, err := ReadProcess(pid, start); !errors.Is(err, ErrNoProcess) {
		t.Errorf("not waited for: %+v, %v", p, err)
	}
	if n, err := Processes(t.Context(), uuid, nil); n != 0 || err != nil {
		t.Errorf("not waited for: %d processes, %v", n, err)
	}
	if _, err := ReadProcess(1<<22, 1); !errors.Is(err, ErrNoProcess) {
		t.Errorf("never there: %v", err)
	}
}

// TestUnreadable: what is not there of a process that goes on is no word on the process.
func TestUnreadable(t *testing.T) {
	proc := t.TempDir()
	fake(t, proc, 20, "/usr/bin/qemu-system-x86_64", "qemu", "-uuid", guest)
	if err := os.RemoveAll(filepath.Join(proc, "20", "fdinfo", "7")); err != nil {
		t.Fatal(err)
	}
	p, err := readProcessAt(proc, 20, 4711)
	if err != nil || len(p.Open) != 1 {
		t.Errorf("a descriptor that was closed meanwhile: %+v, %v", p, err)
	}
	if err := os.RemoveAll(filepath.Join(proc, "20", "fd")); err != nil {
		t.Fatal(err)
	}
	if _, err := findProcess(t.Context(), proc, guest, nil); err == nil || errors.Is(err, ErrNoProcess) {
		t.Errorf("no descriptors: %v", err)
	}
	if err := os.RemoveAll(filepath.Join(proc, "20", "stat")); err != nil {
		t.Fatal(err)
	}
	if _, err := readProcessAt(proc, 20, 4711); !errors.Is(err, ErrNoProcess) {
		t.Errorf("no process: %v", err)
	}
}
