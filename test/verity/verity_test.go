// Package verity boots a kernel that has fs-verity, as few machines that run tests do, and has the program below guest try it there on ext4:
// what Troth remembers of a file that the kernel holds fixed is right, and nothing that lies about its content is believed.
package verity

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"troth/test/lab"
)

func TestVerity(t *testing.T) {
	if testing.Short() {
		t.Skip("needs root, and a kernel to boot: make test")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	l := lab.ForTest(ctx, t, lab.Options{Until: lab.Libvirt}) // for the guest's kernel
	dir := t.TempDir()
	program, disk, initrd := filepath.Join(dir, "guest"), filepath.Join(dir, "disk"), filepath.Join(dir, "initrd")
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", program, "troth/test/verity/guest")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	output(t, build)
	cache, err := lab.DefaultCache()
	if err != nil {
		t.Fatal(err)
	}
	image, err := lab.BuildInitrd(filepath.Join(cache, "kernel", "modules"), program) // the program stands where a guest has troth
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(initrd, image, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(disk, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(disk, 64<<20); err != nil {
		t.Fatal(err)
	}
	output(t, exec.CommandContext(ctx, "mkfs.ext4", "-q", "-b", "4096", "-O", "verity", disk))

	qemu := exec.CommandContext(ctx, "qemu-system-x86_64", "-accel", "tcg", "-m", "512", "-nodefaults", "-display", "none", "-no-reboot", "-serial", "stdio",
		"-kernel", filepath.Join(l.Guest.Outside, "vmlinuz"), "-initrd", initrd, "-append", l.Guest.CommandLine,
		"-drive", "if=virtio,format=raw,file="+disk)
	qemu.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	console := output(t, qemu)
	var said []string
	for line := range strings.Lines(console) {
		if s, ok := strings.CutPrefix(strings.TrimSpace(line), "verity: "); ok {
			said = append(said, s)
		}
	}
	if len(said) < 8 || said[len(said)-1] != "end" {
		t.Fatalf("the guest did not come to its end:\n%s", console)
	}
	for _, s := range slices.Clone(said)[:len(said)-1] {
		if t.Log(s); !strings.HasSuffix(s, ": ok") {
			t.Errorf("%s", s)
		}
	}
}

// output runs a command that must succeed.
func output(t *testing.T, c *exec.Cmd) string {
	t.Helper()
	out, err := c.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %v\n%s", c.Args, err, out)
	}
	return string(out)
}
