package lab

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// mountNode makes the mounts of a node, in its own mount namespace, where they end with it.
func mountNode(c *initConfig) error {
	// Nothing that we mount may reach the machine's namespace, whatever its propagation is.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("cannot make the mounts private: %w", err)
	}
	if c.Root == "" {
		if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
			return fmt.Errorf("cannot mount /proc: %w", err)
		}
		return bindAll("/", c.Files)
	}
	if err := mountRoot(c); err != nil {
		return err
	}
	if err := bindAll(c.Root, c.Files); err != nil {
		return err
	}
	// pivot_root(2), NOTES: with "." twice the old root lies under the new one, and is detached from there.
	if err := unix.Chdir(c.Root); err != nil {
		return fmt.Errorf("cannot enter the node's root: %w", err)
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("cannot change the root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("cannot leave the machine's root: %w", err)
	}
	return unix.Chdir("/")
}

// mountRoot fills a new root: the machine's programs and devices, and a tree of the node's own for what is written to.
func mountRoot(c *initConfig) error {
	if err := unix.Mount("root", c.Root, "tmpfs", unix.MS_NODEV, "mode=755,size=16m"); err != nil {
		return fmt.Errorf("cannot mount the node's root: %w", err)
	}
	if err := mountPrograms(c.Root); err != nil {
		return err
	}
	steps := []struct {
		source, target, kind string
		flags                uintptr
		data                 string
	}{
		{"dev", "dev", "tmpfs", unix.MS_NOSUID | unix.MS_NOEXEC, "mode=755,size=1m"},
		{"devpts", "dev/pts", "devpts", unix.MS_NOSUID | unix.MS_NOEXEC, "newinstance,ptmxmode=0666,mode=620,gid=5"},
		{"shm", "dev/shm", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=1777"},
		{"proc", "proc", "proc", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
		// Mounted in this network namespace, so that it shows this node's interfaces; and no control group is in it.
		{"sysfs", "sys", "sysfs", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC | unix.MS_RDONLY, ""},
		{filepath.Join(c.Tree, "etc"), "etc", "", unix.MS_BIND, ""},
		{filepath.Join(c.Tree, "run"), "run", "", unix.MS_BIND, ""},
		{filepath.Join(c.Tree, "tmp"), "tmp", "", unix.MS_BIND, ""},
		{filepath.Join(c.Tree, "var"), "var", "", unix.MS_BIND, ""},
		{filepath.Join(c.Tree, "root"), "root", "", unix.MS_BIND, ""},
	}
	for _, s := range steps {
		target := filepath.Join(c.Root, s.target)
		if err := os.MkdirAll(target, 0o755); err != nil {
			return fmt.Errorf("cannot make /%s: %w", s.target, err)
		}
		if err := unix.Mount(s.source, target, s.kind, s.flags, s.data); err != nil {
			return fmt.Errorf("cannot mount /%s: %w", s.target, err)
		}
	}
	if err := makeDevices(filepath.Join(c.Root, "dev"), c.Devices); err != nil {
		return err
	}
	for _, dir := range c.Binds {
		if err := bindOne(dir, filepath.Join(c.Root, dir), false); err != nil {
			return err
		}
	}
	return nil
}

// makeDevices fills a /dev with the machine's devices of these names and with the usual links.
func makeDevices(dev string, names []string) error {
	for _, name := range names {
		var st unix.Stat_t
		if err := unix.Stat("/dev/"+name, &st); err != nil {
			return fmt.Errorf("cannot find /dev/%s: %w", name, err)
		}
		if err := unix.Mknod(filepath.Join(dev, name), unix.S_IFCHR|0o666, int(st.Rdev)); err != nil {
			return fmt.Errorf("cannot make /dev/%s: %w", name, err)
		}
		if err := os.Chmod(filepath.Join(dev, name), 0o666); err != nil {
			return fmt.Errorf("cannot make /dev/%s: %w", name, err)
		}
	}
	for name, target := range map[string]string{"ptmx": "pts/ptmx", "fd": "/proc/self/fd", "stdin": "fd/0", "stdout": "fd/1", "stderr": "fd/2"} {
		if err := os.Symlink(target, filepath.Join(dev, name)); err != nil {
			return fmt.Errorf("cannot make /dev/%s: %w", name, err)
		}
	}
	return nil
}

// mountPrograms makes the machine's programs and libraries appear, read-only.
func mountPrograms(root string) error {
	entries, err := os.ReadDir("/")
	if err != nil {
		return fmt.Errorf("cannot read /: %w", err)
	}
	for _, e := range entries {
		switch e.Name() {
		case "bin", "sbin", "lib", "lib32", "lib64", "libx32", "usr":
		default:
			continue
		}
		from, to := "/"+e.Name(), filepath.Join(root, e.Name())
		if e.Type()&fs.ModeSymlink != 0 {
			link, err := os.Readlink(from)
			if err == nil {
				err = os.Symlink(link, to)
			}
			if err != nil {
				return fmt.Errorf("cannot link %s: %w", from, err)
			}
			continue
		}
		if err := bindOne(from, to, true); err != nil {
			return err
		}
	}
	return nil
}

func bindAll(root string, binds []bind) error {
	for _, b := range binds {
		if err := bindOne(b.Source, filepath.Join(root, b.Target), b.ReadOnly); err != nil {
			return err
		}
	}
	return nil
}

// bindOne binds a file or directory, making the mount point if there is none.
func bindOne(source, target string, readOnly bool) error {
	info, err := os.Stat(source)
	if err != nil {
		return fmt.Errorf("cannot bind: %w", err)
	}
	if _, err := os.Stat(target); errors.Is(err, fs.ErrNotExist) {
		if info.IsDir() {
			err = os.MkdirAll(target, 0o755)
		} else if err = os.MkdirAll(filepath.Dir(target), 0o755); err == nil {
			err = os.WriteFile(target, nil, 0o644)
		}
		if err != nil {
			return fmt.Errorf("cannot make the mount point %s: %w", target, err)
		}
	}
	if err := unix.Mount(source, target, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("cannot bind %s: %w", source, err)
	}
	if !readOnly {
		return nil
	}
	if err := unix.Mount("", target, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""); err != nil {
		return fmt.Errorf("cannot make %s read-only: %w", source, err)
	}
	return nil
}
