package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// maxDocument bounds every document that a command reads whole.
const maxDocument = 4 << 20

// readFile reads a bounded regular document; "-" is standard input.
func (a *app) readFile(path string) ([]byte, error) {
	if path == "-" {
		return readBounded(a.stdin, "standard input")
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("cannot open: %w", err)
	}
	defer f.Close()
	return readBounded(f, path)
}

func readBounded(r io.Reader, name string) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, maxDocument+1))
	if err != nil {
		return nil, fmt.Errorf("cannot read %s: %w", name, err)
	}
	if len(b) > maxDocument {
		return nil, fmt.Errorf("cannot read %s: more than %d bytes", name, maxDocument)
	}
	return b, nil
}

// Modes of the files that this program writes.
const (
	private fs.FileMode = 0o600 // holds a secret, or a token that others could use
	public  fs.FileMode = 0o644
)

// absent refuses, before any work is done, an output file that exists.
func absent(force bool, paths ...string) error {
	if force {
		return nil
	}
	for _, p := range paths {
		if p == "" {
			continue
		}
		if _, err := os.Lstat(p); err == nil {
			return nof("%s exists; choose another name, or --force to overwrite it", p)
		} else if !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("cannot look at %s: %w", p, err)
		}
	}
	return nil
}

// writeFile writes a whole file: into a new file beside it, synced, then moved
// to its name, so that a reader sees nothing or all of it. Without force a file
// of that name is never replaced, also when it appears meanwhile (link(2)
// refuses what rename(2) would replace).
func writeFile(path string, b []byte, mode fs.FileMode, force bool) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), ".troth-*")
	if err != nil {
		return fmt.Errorf("cannot write %s: %w", path, err)
	}
	defer func() {
		if e := os.Remove(f.Name()); e != nil && !errors.Is(e, fs.ErrNotExist) && err == nil {
			err = fmt.Errorf("cannot remove %s: %w", f.Name(), e)
		}
	}()
	if err := fill(f, b, mode); err != nil {
		return fmt.Errorf("cannot write %s: %w", path, err)
	}
	if force {
		if err := os.Rename(f.Name(), path); err != nil {
			return fmt.Errorf("cannot write %s: %w", path, err)
		}
		return nil
	}
	if err := os.Link(f.Name(), path); err != nil {
		if errors.Is(err, fs.ErrExist) {
			return nof("%s exists; choose another name, or --force to overwrite it", path)
		}
		return fmt.Errorf("cannot write %s: %w", path, err)
	}
	return nil
}

func fill(f *os.File, b []byte, mode fs.FileMode) error {
	_, err := f.Write(b)
	if err == nil {
		err = f.Chmod(mode)
	}
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}
