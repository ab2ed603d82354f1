// Command guest runs in a virtual machine whose kernel has fs-verity, with an ext4 file system on /dev/vda, and tries there what
// launcher and launcher/image promise of files that the kernel holds fixed. It prints a line for each thing it tried, and the last line.
package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"troth/launcher"
	"troth/launcher/image"
	"troth/proof"
)

const (
	device = "/dev/vda"
	folder = "/data"
	block  = 4096
	size   = 3<<20 + 17 // two levels of its tree, and a last block that is not full
)

func main() {
	g := &guest{path: filepath.Join(folder, "disk.img"), content: make([]byte, size)}
	for _, step := range []struct {
		name string
		do   func() error
	}{
		{"mount", g.mount},
		{"a file without it is hashed each time", g.plain},
		{"enabled, it cannot be opened for writing", g.enable},
		{"the tree is that of its content", g.tree},
		{"hashed once, it is not read again", g.once},
		{"another file in its place is hashed", g.another},
		{"damaged below the file system, it has no digest", g.damage},
	} {
		said := "ok"
		if err := step.do(); err != nil {
			said = strings.ReplaceAll(err.Error(), "\n", "; ")
		}
		fmt.Printf("verity: %s: %s\n", step.name, said)
	}
	fmt.Println("verity: end")
	unix.Sync()
	if err := unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART); err != nil { // which ends the machine (-no-reboot)
		fmt.Println("verity: reboot:", err)
	}
}

type guest struct {
	path    string
	content []byte
	files   launcher.Files
}

func (g *guest) mount() error {
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return err
	}
	return unix.Mount(device, folder, "ext4", 0, "")
}

func (g *guest) plain() error {
	rand.Read(g.content) // never fails since Go 1.24
	if err := os.WriteFile(g.path, g.content, 0o600); err != nil {
		return err
	}
	g.files = launcher.Files{Verity: image.NewVerity(image.MeasureVerity)}
	if err := g.with(func(fd int) error {
		if _, ok := image.MeasureVerity(fd); ok {
			return errors.New("the kernel says that it has fs-verity")
		}
		return nil
	}); err != nil {
		return err
	}
	for range 2 {
		read, err := g.measure(g.files, sha256.Sum256(g.content))
		if err != nil || read < size {
			return fmt.Errorf("%d bytes were read, %w", read, err)
		}
	}
	return nil
}

// enable is FS_IOC_ENABLE_VERITY with struct fsverity_enable_arg (linux/fsverity.h).
func (g *guest) enable() error {
	arg := struct {
		version, algorithm, block, saltSize uint32
		salt                                uint64
		signatureSize, reserved             uint32
		signature                           uint64
		reserved2                           [11]uint64
	}{version: 1, algorithm: unix.FS_VERITY_HASH_ALG_SHA256, block: block}
	if err := g.with(func(fd int) error {
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.FS_IOC_ENABLE_VERITY, uintptr(unsafe.Pointer(&arg))); errno != 0 {
			return errno
		}
		return nil
	}); err != nil {
		return fmt.Errorf("FS_IOC_ENABLE_VERITY: %w", err)
	}
	f, err := os.OpenFile(g.path, os.O_WRONLY, 0)
	if err == nil {
		return errors.Join(errors.New("it was opened"), f.Close())
	}
	if !errors.Is(err, unix.EPERM) {
		return err
	}
	return nil
}

// tree computes the file's fs-verity digest from its content alone (Documentation/filesystems/fsverity.rst, 'Merkle tree', 'fs-verity descriptor').
func (g *guest) tree() error {
	level := g.content
	for {
		var above []byte
		for at := 0; at < len(level); at += block {
			whole := make([]byte, block)
			copy(whole, level[at:])
			sum := sha256.Sum256(whole)
			above = append(above, sum[:]...)
		}
		if level = above; len(level) == sha256.Size {
			break
		}
	}
	descriptor := make([]byte, 256)
	descriptor[0], descriptor[1], descriptor[2] = 1, unix.FS_VERITY_HASH_ALG_SHA256, 12
	binary.LittleEndian.PutUint64(descriptor[8:], size)
	copy(descriptor[16:], level)
	want := sha256.Sum256(descriptor)
	return g.with(func(fd int) error {
		if got, ok := image.MeasureVerity(fd); !ok || got != want {
			return fmt.Errorf("%v %x, want %x", ok, got, want)
		}
		return nil
	})
}

func (g *guest) once() error {
	want := sha256.Sum256(g.content)
	first, err := g.measure(g.files, want)
	if err != nil || first < size {
		return fmt.Errorf("the first time %d bytes were read, %w", first, err)
	}
	again, err := g.measure(g.files, want)
	if err != nil || again >= size {
		return fmt.Errorf("the second time %d bytes were read, %w", again, err)
	}
	return nil
}

func (g *guest) another() error {
	other := bytes.Repeat([]byte("another"), size/7)
	kept := g.path + ".kept"
	if err := os.Rename(g.path, kept); err != nil {
		return err
	}
	if err := os.WriteFile(g.path, other, 0o600); err != nil {
		return err
	}
	if read, err := g.measure(g.files, sha256.Sum256(other)); err != nil || read < int64(len(other)) {
		return fmt.Errorf("%d bytes were read, %w", read, err)
	}
	return os.Rename(kept, g.path)
}

// damage changes one bit of the file where it lies on the disk. The file system cannot know, the kernel's check of what is read can.
func (g *guest) damage() error {
	var at int64
	if err := g.with(func(fd int) error {
		number := int32(5) // of a block of the file
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), 1 /* FIBMAP */, uintptr(unsafe.Pointer(&number))); errno != 0 {
			return errno
		}
		at = int64(number) * block
		return nil
	}); err != nil {
		return fmt.Errorf("FIBMAP: %w", err)
	}
	d, err := os.OpenFile(device, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	b := make([]byte, block)
	if _, err := d.ReadAt(b, at); err != nil {
		return err
	}
	if !bytes.Equal(b, g.content[5*block:6*block]) {
		return fmt.Errorf("the file's block does not lie at %d", at)
	}
	b[100] ^= 1
	if _, err := d.WriteAt(b, at); err != nil {
		return err
	}
	if err := errors.Join(d.Sync(), d.Close(), os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0)); err != nil {
		return err
	}
	// One who has not hashed it yet gets an error, and never a digest.
	fresh := launcher.Files{Verity: image.NewVerity(image.MeasureVerity)}
	i, err := fresh.Measure(context.Background(), g.path, func(int64, int64) {})
	if err == nil {
		return errors.Join(fmt.Errorf("it has the digest %s", i.Digest()), i.Close())
	}
	if !errors.Is(err, &proof.Refusal{Code: proof.ImageNotMeasured}) || !strings.Contains(err.Error(), unix.EIO.Error()) {
		return err
	}
	return nil
}

// with opens the file for reading.
func (g *guest) with(do func(fd int) error) error {
	f, err := os.Open(g.path)
	if err != nil {
		return err
	}
	return errors.Join(do(int(f.Fd())), f.Close())
}

// measure measures the file, and tells how many bytes this process has read for it.
func (g *guest) measure(files launcher.Files, want proof.Digest) (read int64, err error) {
	before, err := readSoFar()
	if err != nil {
		return 0, err
	}
	i, err := files.Measure(context.Background(), g.path, func(int64, int64) {})
	if err != nil {
		return 0, err
	}
	after, err := readSoFar()
	if i.Digest() != want {
		err = errors.Join(err, fmt.Errorf("digest %s, want %s", i.Digest(), want))
	}
	return after - before, errors.Join(err, i.Close())
}

// readSoFar is what read(2) and its kin have given this process (proc(5), /proc/pid/io, rchar).
func readSoFar() (int64, error) {
	b, err := os.ReadFile("/proc/self/io")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if n, ok := strings.CutPrefix(line, "rchar: "); ok {
			return strconv.ParseInt(strings.TrimSpace(n), 10, 64)
		}
	}
	return 0, errors.New("/proc/self/io has no rchar")
}
