package lab

import (
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// kernelPackage depends on the package of Debian's current kernel for clouds.
const kernelPackage = "linux-image-cloud-amd64"

// guestModules are what the guest needs of what this kernel has as modules; what they depend on is found in them.
var guestModules = []string{"virtio_pci", "virtio_console", "virtio_blk", "qemu_fw_cfg"}

// kernel returns a directory of the cache with vmlinuz and, in order of loading, modules/NN-name.ko. It downloads and
// unpacks Debian's package if the cache has none; nothing is installed.
func (l *Lab) kernel(ctx context.Context) (string, error) {
	cache := l.options.Cache
	dir := filepath.Join(cache, "kernel")
	if _, err := os.Stat(filepath.Join(dir, "vmlinuz")); err == nil {
		return dir, nil
	}
	l.say("fetching a Debian kernel for the guests")
	work, err := os.MkdirTemp(cache, "kernel-*")
	if err != nil {
		return "", fmt.Errorf("cannot make room for the guest's kernel: %w", err)
	}
	defer func() {
		if rerr := os.RemoveAll(work); rerr != nil {
			l.say("cannot remove %s: %v", work, rerr)
		}
	}()
	name, err := l.kernelImage(ctx)
	if err != nil {
		return "", err
	}
	if _, err := l.tool(ctx, work, nil, "apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", name); err != nil {
		return "", fmt.Errorf("cannot download the guest's kernel: %w", err)
	}
	debs, err := filepath.Glob(filepath.Join(work, "*.deb"))
	if err != nil || len(debs) != 1 {
		return "", fmt.Errorf("cannot find the guest's kernel: %d packages downloaded", len(debs))
	}
	root := filepath.Join(work, "root")
	if _, err := l.tool(ctx, work, nil, "dpkg-deb", "-x", debs[0], root); err != nil {
		return "", fmt.Errorf("cannot unpack the guest's kernel: %w", err)
	}
	out := filepath.Join(work, "out")
	images, err := filepath.Glob(filepath.Join(root, "boot/vmlinuz-*"))
	if err != nil || len(images) != 1 {
		return "", fmt.Errorf("cannot find the guest's kernel: %d images in %s", len(images), filepath.Base(debs[0]))
	}
	if err := copyFile(images[0], filepath.Join(out, "vmlinuz"), 0o644); err != nil {
		return "", err
	}
	if err := copyModules(root, filepath.Join(out, "modules")); err != nil {
		return "", err
	}
	// Whole or not at all: the directory appears by one rename. If another lab was quicker, its result is as good.
	if err := os.Rename(out, dir); err != nil && !errors.Is(err, unix.ENOTEMPTY) && !errors.Is(err, fs.ErrExist) {
		return "", fmt.Errorf("cannot keep the guest's kernel: %w", err)
	}
	return dir, nil
}

// kernelImage resolves the package that stands for the current kernel to the one that has it.
func (l *Lab) kernelImage(ctx context.Context) (string, error) {
	out, err := l.tool(ctx, "/", []string{"LC_ALL=C"}, "apt-cache", "depends", kernelPackage)
	if err != nil {
		return "", fmt.Errorf("cannot ask for %s: %w", kernelPackage, err)
	}
	for _, line := range strings.Split(out, "\n") {
		if name, ok := strings.CutPrefix(strings.TrimSpace(line), "Depends: linux-image-"); ok {
			return "linux-image-" + name, nil
		}
	}
	return "", fmt.Errorf("cannot find the kernel that %s depends on: run apt-get update", kernelPackage)
}

// copyModules copies guestModules and all they depend on, numbered in an order in which they load.
func copyModules(root, to string) error {
	files := make(map[string]string)
	err := filepath.WalkDir(filepath.Join(root, "lib/modules"), func(path string, d fs.DirEntry, err error) error {
		if name, ok := strings.CutSuffix(filepath.Base(path), ".ko"); ok && err == nil {
			files[strings.ReplaceAll(name, "-", "_")] = path
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("cannot list the kernel's modules: %w", err)
	}
	done := make(map[string]bool)
	var copyOne func(name string) error
	copyOne = func(name string) error {
		if done[name] {
			return nil
		}
		done[name] = true
		needs, err := moduleNeeds(files[name])
		if err != nil {
			return fmt.Errorf("cannot read the kernel module %s: %w", name, err)
		}
		for _, n := range needs {
			if err := copyOne(n); err != nil {
				return err
			}
		}
		return copyFile(files[name], filepath.Join(to, fmt.Sprintf("%02d-%s.ko", len(done), name)), 0o644)
	}
	for _, m := range guestModules {
		if err := copyOne(m); err != nil {
			return err
		}
	}
	return nil
}

// moduleNeeds reads the names of the modules that a module depends on, from its section .modinfo.
func moduleNeeds(file string) ([]string, error) {
	f, err := elf.Open(file)
	if err != nil {
		return nil, err
	}
	defer hangUp(f)
	s := f.Section(".modinfo")
	if s == nil {
		return nil, errors.New("no .modinfo")
	}
	data, err := s.Data()
	if err != nil {
		return nil, err
	}
	for _, field := range strings.Split(string(data), "\x00") {
		if v, ok := strings.CutPrefix(field, "depends="); ok && v != "" {
			return strings.Split(strings.ReplaceAll(v, "-", "_"), ","), nil
		}
	}
	return nil, nil
}
