package hooks_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
)

// The hook's paths are constants, so the tests run in a mount namespace of their own, in which /run and /var/lib
// are empty directories. Without root they make a user namespace first.

const inNamespace = "TROTH_HOOKS_TEST_NAMESPACE"

// hookBinary is the real static program, built once.
var hookBinary string

func TestMain(m *testing.M) {
	if os.Getenv(inNamespace) == "" {
		os.Exit(enter())
	}
	code, err := prepare(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "cannot prepare tests:", err)
		code = 1
	}
	os.Exit(code)
}

// enter runs this test binary again in new namespaces.
func enter() int {
	self, err := os.Executable()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	c := exec.Command(self, os.Args[1:]...)
	c.Stdin, c.Stdout, c.Stderr = os.Stdin, os.Stdout, os.Stderr
	c.Env = append(os.Environ(), inNamespace+"=1")
	c.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	if os.Getuid() != 0 {
		c.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		c.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
		c.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	err = c.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return max(exit.ExitCode(), 1)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "cannot enter a mount namespace:", err)
		return 1
	}
	return 0
}

func prepare(m *testing.M) (code int, err error) {
	dir, err := os.MkdirTemp("", "troth-hooks")
	if err != nil {
		return 1, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	hookBinary = filepath.Join(dir, "troth-hook")
	linked := hookBinary + ".linked"
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", linked, "troth/cmd/troth-hook")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return 1, fmt.Errorf("cannot build troth-hook: %w: %s", err, out)
	}
	// As an installer does. The linker writes by mmap(2), page by page, and the page cache keeps such a file in small
	// pieces, which a program that lives for a millisecond feels at each page that it touches first.
	program, err := os.ReadFile(linked)
	if err != nil {
		return 1, err
	}
	if err := os.WriteFile(hookBinary, program, 0o755); err != nil {
		return 1, err
	}
	if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		return 1, err
	}
	for _, at := range []string{"/run", "/var/lib"} {
		own := filepath.Join(dir, filepath.Base(at))
		if err := os.MkdirAll(own, 0o755); err != nil {
			return 1, err
		}
		if err := syscall.Mount(own, at, "", syscall.MS_BIND, ""); err != nil {
			return 1, err
		}
		defer func() { err = errors.Join(err, syscall.Unmount(at, 0)) }()
	}
	return m.Run(), nil
}
