package lab

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
)

// qemuUser is who QEMU runs as in the lab's hosts, with the number that Debian gives it.
const (
	qemuUser = "libvirt-qemu"
	qemuID   = "64055"
)

// makeTree makes what a node with a root of its own writes to: a copy of the machine's /etc without any libvirt or troth
// configuration, and an empty /run, /tmp, /var and /root.
func makeTree(ctx context.Context, tree, name string) error {
	for _, d := range []struct {
		path string
		mode os.FileMode
	}{
		{"etc", 0o755}, {"root", 0o700}, {"run", 0o755}, {"run/lock", 0o1777}, {"tmp", 0o1777},
		{"var/cache/libvirt", 0o755}, {"var/lib/libvirt", 0o755}, {"var/log/libvirt/qemu", 0o755},
		{"var/lib/troth", 0o755}, {"var/tmp", 0o1777}, {"run/troth", 0o755},
	} {
		path := filepath.Join(tree, d.path)
		if err := os.MkdirAll(path, 0o755); err != nil {
			return fmt.Errorf("cannot make /%s of %s: %w", d.path, name, err)
		}
		mode := d.mode.Perm()
		if d.mode&0o1000 != 0 {
			mode |= os.ModeSticky
		}
		if err := os.Chmod(path, mode); err != nil {
			return fmt.Errorf("cannot make /%s of %s: %w", d.path, name, err)
		}
	}
	if err := os.Symlink("/run", filepath.Join(tree, "var/run")); err != nil {
		return fmt.Errorf("cannot link /var/run of %s: %w", name, err)
	}
	etc := filepath.Join(tree, "etc")
	if out, err := dying(exec.CommandContext(ctx, "cp", "-a", "/etc/.", etc)).CombinedOutput(); err != nil {
		return fmt.Errorf("cannot copy /etc for %s: %w: %s", name, err, out)
	}
	for _, gone := range []string{"libvirt", "troth", "mtab"} {
		if err := os.RemoveAll(filepath.Join(etc, gone)); err != nil {
			return fmt.Errorf("cannot clear /etc of %s: %w", name, err)
		}
	}
	for file, text := range map[string]string{
		"libvirt/hooks/.keep": "", "troth/.keep": "", "hostname": name + "\n",
		"machine-id": strings.ReplaceAll(nodeUUID(name), "-", "") + "\n",
	} {
		if err := writeFile(filepath.Join(etc, file), text, 0o644); err != nil {
			return err
		}
	}
	if err := appendMissing(filepath.Join(etc, "group"), qemuUser+":x:"+qemuID+":"); err != nil {
		return err
	}
	return appendMissing(filepath.Join(etc, "passwd"), qemuUser+":x:"+qemuID+":"+qemuID+":QEMU:/var/lib/libvirt:/usr/sbin/nologin")
}

// nodeUUID is the same for a node in every lab, and different for two nodes.
func nodeUUID(name string) string {
	var n uint32
	for _, c := range []byte(name) {
		n = n*31 + uint32(c)
	}
	return fmt.Sprintf("7a0b1ab0-0000-4000-8000-%012x", n)
}

// appendMissing adds a line to passwd or group unless its name is there.
func appendMissing(file, line string) error {
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	key, _, _ := strings.Cut(line, ":")
	if strings.HasPrefix(string(data), key+":") || strings.Contains(string(data), "\n"+key+":") {
		return nil
	}
	return writeFile(file, strings.TrimRight(string(data), "\n")+"\n"+line+"\n", 0o644)
}

// writeFile writes a file and the directories above it.
func writeFile(path, text string, mode os.FileMode) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("cannot write %s: %w", path, err)
	}
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		return fmt.Errorf("cannot write %s: %w", path, err)
	}
	return os.Chmod(path, mode)
}

// copyFile copies a file's content.
func copyFile(from, to string, mode os.FileMode) error {
	data, err := os.ReadFile(from)
	if err != nil {
		return fmt.Errorf("cannot copy %s: %w", from, err)
	}
	return writeFile(to, string(data), mode)
}

// dying makes a short program of the machine end with us. (The kernel sends the signal when the thread ends that started
// it, which may be earlier: what is long runs in a node.)
func dying(cmd *exec.Cmd) *exec.Cmd {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}
