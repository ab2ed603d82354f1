package reaper

import (
	"bufio"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"troth/hooks/ask"
	"troth/launcher/emulator"
)

var registered = [16]byte{0x6a, 0x0f, 0x0a, 0x5e, 0x4c, 0x55, 0x4a, 0x53, 0x9d, 0x5c, 0x0d, 0x8b, 0x6f, 0x1f, 0x2a, 0x11}

const (
	ours   = "6a0f0a5e-4c55-4a53-9d5c-0d8b6f1f2a11"
	theirs = "00000000-4c55-4a53-9d5c-0d8b6f1f2a11"
)

// serve starts a reaper for that user, with a registry.
func serve(t *testing.T, uids ...uint32) (socket string, s *Server) {
	t.Helper()
	dir := t.TempDir()
	s = &Server{Registry: filepath.Join(dir, "registry"), UIDs: uids, Log: slog.New(slog.DiscardHandler)}
	if err := ask.WriteRegistry(s.Registry, ask.Registry{UUIDs: [][16]byte{registered}}); err != nil {
		t.Fatal(err)
	}
	socket = filepath.Join(dir, "socket")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- s.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return socket, s
}

// guest runs a shell by an emulator's name.
func guest(t *testing.T, uuid string) *emulator.Process {
	t.Helper()
	exe := filepath.Join(t.TempDir(), "qemu-system-x86_64")
	b, err := os.ReadFile("/bin/sh")
	if err == nil {
		err = os.WriteFile(exe, b, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe, "-c", "echo up; read wait", "-uuid", uuid)
	in, err1 := cmd.StdinPipe()
	out, err2 := cmd.StdoutPipe()
	if err := errors.Join(err1, err2, cmd.Start()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := in.Close(); err != nil {
			t.Error(err)
		}
		if err := cmd.Wait(); err != nil {
			t.Log(err)
		}
	})
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "up\n" {
		t.Fatalf("%q, %v", line, err)
	}
	p, err := emulator.At("/proc", cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// ended says whether the process is gone; killed ones are the test's children, so they are zombies with no executable.
func ended(pid int) bool {
	_, err := emulator.At("/proc", pid)
	return err != nil
}

func TestReap(t *testing.T) {
	ctx := context.Background()
	socket, s := serve(t, uint32(os.Getuid()))
	foreign, untrusted := guest(t, ours), guest(t, theirs)
	for name, r := range map[string]Request{
		"untrusted": {untrusted.PID, untrusted.Start, emulator.Kill}, "used again": {foreign.PID, foreign.Start + 1, emulator.Kill},
		"no emulator": {os.Getpid(), 0, emulator.Kill}, "nobody": {1 << 22, 1, emulator.Kill},
	} {
		if err := Ask(ctx, socket, r); !errors.Is(err, emulator.ErrNotIt) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if ended(foreign.PID) || ended(untrusted.PID) {
		t.Fatal("a process was ended that nobody may end")
	}
	if err := Ask(ctx, socket, Request{foreign.PID, foreign.Start, emulator.Kill}); err != nil {
		t.Fatal(err)
	}
	for !ended(foreign.PID) {
		if ctx := t.Context(); ctx.Err() != nil {
			t.Fatal("it was not ended")
		}
	}
	// Without a registry that can be believed nothing is ended.
	other := guest(t, ours)
	if err := os.WriteFile(s.Registry, []byte("damaged"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := Ask(ctx, socket, Request{other.PID, other.Start, emulator.Kill}); err == nil || errors.Is(err, emulator.ErrNotIt) || ended(other.PID) {
		t.Errorf("by a damaged registry: %v", err)
	}
}

// TestStrangers: another user, and whatever is no request, gets no answer.
func TestStrangers(t *testing.T) {
	send := func(socket, text string) string {
		t.Helper()
		c, err := net.Dial("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := io.WriteString(c, text); err != nil {
			t.Log(err) // it may have hung up
		}
		b, err := io.ReadAll(c)
		if err != nil {
			t.Log(err)
		}
		return string(b)
	}
	foreign := guest(t, ours)
	good := Request{foreign.PID, foreign.Start, emulator.Kill}.encode()
	socket, _ := serve(t, uint32(os.Getuid())+1)
	if got := send(socket, good); got != "" || ended(foreign.PID) {
		t.Errorf("another user was answered %q", got)
	}
	socket, _ = serve(t, uint32(os.Getuid()))
	for _, bad := range []string{"\n", strings.Replace(good, "kill", "term", 1), " " + good, strings.Replace(good, " 1 ", " 2 ", 1), strings.Replace(good, "1 kill ", "1 kill +", 1),
		strings.Replace(good, "kill ", "kill  ", 1), "reap 1 kill 1 1\n", "reap 1 kill -5 1\n", strings.Repeat("x", maxLine) + "\n"} {
		if got := send(socket, bad); got != "" {
			t.Errorf("%q was answered %q", bad, got)
		}
	}
	if ended(foreign.PID) {
		t.Error("it was ended by a malformed request")
	}
}
