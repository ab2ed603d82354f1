package journal

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// FS is the little of a file system that the journal needs; tests supply one that tears writes and runs out of space.
type FS interface {
	// Open opens path for reading and appending, and makes it (mode 0600) when it is not there.
	Open(path string) (File, error)
	// Create makes an empty file (mode 0600) at path, in place of whatever was there.
	Create(path string) (File, error)
	// Rename moves from over to, and returns when the directory that holds both is on the disk.
	Rename(from, to string) error
}

// File is one open file.
type File interface {
	io.Reader
	io.Writer
	io.Closer
	Sync() error
	// Truncate cuts the file at size and puts the write position there.
	Truncate(size int64) error
}

// OS is the real file system.
type OS struct{}

type osFile struct{ *os.File }

func (f osFile) Truncate(size int64) error {
	if err := f.File.Truncate(size); err != nil {
		return err
	}
	_, err := f.Seek(size, io.SeekStart)
	return err
}

// Open opens or makes path; a file that it made is in its directory for good when Open returns.
func (OS) Open(path string) (File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syncDir(filepath.Dir(path)); err != nil {
		return nil, closeAfter(f, err)
	}
	return osFile{f}, nil
}

// Create makes an empty file.
func (OS) Create(path string) (File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, err
	}
	return osFile{f}, nil
}

// Rename renames and syncs the directory.
func (OS) Rename(from, to string) error {
	if err := os.Rename(from, to); err != nil {
		return err
	}
	return syncDir(filepath.Dir(to))
}

// MakeDir makes a folder and those above it that are missing, and returns when each is in its parent for good.
func MakeDir(dir string, mode os.FileMode) error {
	if info, err := os.Stat(dir); err == nil && info.IsDir() {
		return nil
	}
	parent := filepath.Dir(dir)
	if err := MakeDir(parent, mode); err != nil {
		return err
	}
	if err := os.Mkdir(dir, mode); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return syncDir(parent)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	if err := d.Sync(); err != nil {
		return closeAfter(d, fmt.Errorf("cannot sync %s: %w", dir, err))
	}
	return d.Close()
}

// closeAfter closes c on the way out of a failure, and keeps the failure.
func closeAfter(c io.Closer, err error) error {
	if cerr := c.Close(); cerr != nil {
		return fmt.Errorf("%w (and cannot close: %w)", err, cerr)
	}
	return err
}
