package virt_test

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
)

// The tests have a libvirtd of their own, in namespaces of their own: this test binary runs itself again as the first
// process of a PID namespace, which reaps (or libvirtd would wait for zombie QEMUs), and that one runs the tests.
// When it ends, so does everything. -short runs only what needs neither root nor libvirtd.

const stageVariable = "TROTH_VIRT_TEST_STAGE"

// scratch is a directory that is gone when the tests end.
var scratch string

func TestMain(m *testing.M) {
	flag.Parse()
	if testing.Short() {
		os.Exit(m.Run())
	}
	var code int
	var err error
	switch os.Getenv(stageVariable) {
	case "":
		code, err = outside()
	case "init":
		code, err = first()
	case "tests":
		scratch = filepath.Join("/run", "scratch")
		code = m.Run()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "cannot prepare tests:", err)
		code = 1
	}
	os.Exit(code)
}

// outside builds the hook and enters the namespaces.
func outside() (code int, err error) {
	dir, err := os.MkdirTemp("", "troth-virt")
	if err != nil {
		return 1, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	build := exec.Command("go", "build", "-o", filepath.Join(dir, "qemu"), "troth/cmd/troth-hook")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return 1, fmt.Errorf("cannot build troth-hook: %w: %s", err, out)
	}
	self, err := os.Executable()
	if err != nil {
		return 1, err
	}
	c := exec.Command(self, os.Args[1:]...)
	c.Stdin, c.Stdout, c.Stderr = os.Stdin, os.Stdout, os.Stderr
	c.Env = append(os.Environ(), stageVariable+"=init", hookVariable+"="+filepath.Join(dir, "qemu"))
	c.SysProcAttr = &syscall.SysProcAttr{
		Pdeathsig: syscall.SIGKILL,
		Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWNET |
			syscall.CLONE_NEWIPC | syscall.CLONE_NEWUTS,
	}
	err = c.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return max(exit.ExitCode(), 1), nil
	}
	return 0, err
}

// hookVariable names the built hook for the first process, which copies it before anything is covered.
const hookVariable = "TROTH_VIRT_TEST_HOOK"

// first is the namespace's process 1: mounts, then reaps until the tests have ended.
func first() (int, error) {
	if os.Getpid() != 1 {
		return 1, errors.New("not the first process of a PID namespace")
	}
	hook, err := os.ReadFile(os.Getenv(hookVariable))
	if err != nil {
		return 1, err
	}
	if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		return 1, err
	}
	if err := syscall.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return 1, err
	}
	for _, at := range []string{"/run", "/etc/libvirt", "/var/lib", "/var/log", "/var/cache"} {
		if err := syscall.Mount("tmpfs", at, "tmpfs", 0, "mode=755"); err != nil {
			return 1, fmt.Errorf("cannot cover %s: %w", at, err)
		}
	}
	for _, dir := range []string{
		"/run/scratch", "/run/lock", "/run/troth", "/etc/libvirt/hooks", "/var/lib/libvirt", "/var/lib/troth/gate", "/var/log/libvirt", "/var/cache/libvirt",
	} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return 1, err
		}
	}
	for path, text := range map[string]string{
		"/etc/libvirt/qemu.conf": "user = \"root\"\ngroup = \"root\"\nsecurity_driver = \"none\"\ncgroup_controllers = []\nnamespaces = []\nstdio_handler = \"file\"\n",
		"/etc/libvirt/libvirtd.conf": "host_uuid = \"5f1c6f5e-6d0e-4c66-9a0b-0d6f0c9a7e11\"\n" +
			"auth_unix_rw = \"none\"\nunix_sock_rw_perms = \"0700\"\n",
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			return 1, err
		}
	}
	if err := os.WriteFile("/etc/libvirt/hooks/qemu", hook, 0o755); err != nil {
		return 1, err
	}
	if err := knowUsers(); err != nil {
		return 1, err
	}
	if err := syscall.Sethostname([]byte("troth-virt-test")); err != nil {
		return 1, err
	}
	self, err := os.Executable()
	if err != nil {
		return 1, err
	}
	if err := os.Setenv(stageVariable, "tests"); err != nil {
		return 1, err
	}
	pid, err := syscall.ForkExec(self, os.Args, &syscall.ProcAttr{Env: os.Environ(), Files: []uintptr{0, 1, 2}})
	if err != nil {
		return 1, err
	}
	for {
		var status syscall.WaitStatus
		dead, err := syscall.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, syscall.EINTR):
		case err != nil:
			return 1, err
		case dead == pid && status.Exited():
			return status.ExitStatus(), nil
		case dead == pid:
			return 1, fmt.Errorf("tests ended by signal %v", status.Signal())
		}
	}
}

// knowUsers adds the accounts that libvirtd looks up even if it does not use them, where the machine lacks them.
func knowUsers() error {
	for path, line := range map[string]string{
		"/etc/passwd": "libvirt-qemu:x:64055:64055::/var/lib/libvirt:/usr/sbin/nologin\n",
		"/etc/group":  "libvirt-qemu:x:64055:\nkvm:x:64056:\n",
	} {
		old, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		own := filepath.Join("/run/scratch", filepath.Base(path))
		if err := os.WriteFile(own, append(old, line...), 0o644); err != nil { // of two equal names the first counts
			return err
		}
		if err := syscall.Mount(own, path, "", syscall.MS_BIND, ""); err != nil {
			return err
		}
	}
	return nil
}
