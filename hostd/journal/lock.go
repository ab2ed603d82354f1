package journal

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// ErrInUse says that another process writes into the folder.
var ErrInUse = errors.New("another process uses the folder")

// Lock keeps a second process from the journals below a folder, until it is closed or the process ends. Two writers of one journal would each chain
// their lines to what they have read, and the one that wrote first would go on in a file that lost its name. It does not wait.
func Lock(dir string) (*os.File, error) {
	// The file stays: removing it would let two processes lock two files.
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("cannot open the lock of %s: %w", dir, err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = ErrInUse
		}
		return nil, errors.Join(fmt.Errorf("cannot lock %s: %w", dir, err), f.Close())
	}
	return f, nil
}
