// Package secret puts what a guest may know where QEMU reads it, and carries challenges to the guest.
//
// It promises that a guest's secret stands in one file, readable by its owner alone, in a folder that nobody else can list, on a file system that
// is memory (run_dir), from just before QEMU starts until just after; and that what it says to a guest and hears from it is bounded in bytes and time.
// It trusts the kernel, and libvirt to hand the file to QEMU's user. Root on this host can read the file: what root may be is what was measured.
package secret

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"troth/proof"
)

// Room is the folder run_dir/guest with one folder for each domain.
type Room struct {
	dir string
	uid int // who QEMU runs as, -1 when it is not known
	gid int
}

// Open makes the folder if it is not there. uid and gid are QEMU's, who makes the channel's socket in a domain's folder; -1: ours.
func Open(dir string, uid, gid int) (*Room, error) {
	r := &Room{dir: filepath.Join(dir, "guest"), uid: uid, gid: gid}
	if err := os.MkdirAll(r.dir, 0o711); err != nil {
		return nil, fmt.Errorf("cannot make the folder of guests: %w", err)
	}
	// Names inside are UUIDs that libvirt shows anyway; QEMU's user has to pass through.
	if err := os.Chmod(r.dir, 0o711); err != nil {
		return nil, fmt.Errorf("cannot make the folder of guests: %w", err)
	}
	return r, nil
}

func (r *Room) of(uuid string) string { return filepath.Join(r.dir, uuid) }

// check keeps everything but a UUID in libvirt's text form out of paths.
func check(uuid string) error {
	if len(uuid) != 36 || strings.Trim(uuid, "0123456789abcdef-") != "" {
		return fmt.Errorf("cannot keep anything for %q: not a UUID", uuid)
	}
	return nil
}

// ChannelPath is where the socket of a domain's channel is or would be.
func (r *Room) ChannelPath(uuid string) string { return filepath.Join(r.of(uuid), "channel.sock") }

// Channel makes the domain's folder and returns where the socket of its channel will be.
func (r *Room) Channel(uuid string) (string, error) {
	if err := check(uuid); err != nil {
		return "", err
	}
	dir := r.of(uuid)
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return "", fmt.Errorf("cannot make the folder of a guest: %w", err)
	}
	info, err := os.Lstat(dir)
	if err != nil || !info.IsDir() {
		return "", fmt.Errorf("cannot use the folder of a guest: %w", errors.Join(err, fs.ErrInvalid))
	}
	if err := r.give(dir, info); err != nil {
		return "", fmt.Errorf("cannot give the folder of a guest to QEMU: %w", err)
	}
	path := r.ChannelPath(uuid)
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("cannot remove an old channel: %w", err)
	}
	return path, nil
}

// give makes QEMU's user the owner of a domain's folder, to make the socket in it; we keep in by our group. The mode comes first: who
// has CAP_CHOWN may give a folder away, and without CAP_FOWNER cannot change what is not theirs any more. A crash between the two
// leaves a folder that is still ours, and a folder that was given is left as it is.
func (r *Room) give(dir string, info fs.FileInfo) error {
	if r.uid < 0 {
		return nil
	}
	const mode = 0o770
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return fs.ErrInvalid
	}
	if int(st.Uid) == r.uid && int(st.Gid) == os.Getegid() && info.Mode().Perm() == mode {
		return nil
	}
	if err := os.Chmod(dir, mode); err != nil {
		return err
	}
	return os.Chown(dir, r.uid, os.Getegid())
}

// File is where the guest's secret stands while QEMU starts. It is beside the domain's folder, which QEMU's user could fill with links.
func (r *Room) File(uuid string) string { return filepath.Join(r.dir, uuid+".secret") }

// Put writes the file, mode 0600. Whatever stood there before is removed first.
func (r *Room) Put(uuid string, content proof.Secret) error {
	if err := r.Remove(uuid); err != nil {
		return err
	}
	fd, err := unix.Open(r.File(uuid), unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return fmt.Errorf("cannot make the file of a guest's secret: %w", err)
	}
	f := os.NewFile(uintptr(fd), "guest secret")
	_, err = f.Write(content.Reveal())
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("cannot write the file of a guest's secret: %w", errors.Join(err, r.Remove(uuid)))
	}
	return nil
}

// Remove removes the file.
func (r *Room) Remove(uuid string) error {
	if err := check(uuid); err != nil {
		return err
	}
	if err := os.Remove(r.File(uuid)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("cannot remove the file of a guest's secret: %w", err)
	}
	return nil
}

// Forget removes the domain's folder and file.
func (r *Room) Forget(uuid string) error {
	if err := r.Remove(uuid); err != nil {
		return err
	}
	if err := os.RemoveAll(r.of(uuid)); err != nil {
		return fmt.Errorf("cannot remove the folder of a guest: %w", err)
	}
	return nil
}

// Sweep removes every secret that a crash left behind. It runs at start, before anything else uses the room.
func (r *Room) Sweep() error {
	left, err := filepath.Glob(filepath.Join(r.dir, "*.secret"))
	if err != nil {
		return fmt.Errorf("cannot look for old secrets: %w", err)
	}
	for _, path := range left {
		if err := os.Remove(path); err != nil {
			return fmt.Errorf("cannot remove an old secret: %w", err)
		}
	}
	return nil
}
