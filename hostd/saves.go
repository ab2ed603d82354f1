package hostd

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"troth/launcher/domain"
)

// saves is the folder state_dir/saved with one save image for each saved domain. An image is a guest's memory in clear, with whatever secrets are in
// it: the folder is hostd's alone, and a tenant's token has to allow it. libvirt, which is root, writes and reads the images.
type saves struct{ dir string }

// savedSuffix ends the name of every image.
const savedSuffix = ".save"

func openSaves(stateDir string) (saves, error) {
	s := saves{filepath.Join(stateDir, "saved")}
	if err := os.Mkdir(s.dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return s, fmt.Errorf("cannot make the folder of save images: %w", err)
	}
	if info, err := os.Lstat(s.dir); err != nil || !info.IsDir() || info.Mode().Perm()&0o077 != 0 {
		return s, fmt.Errorf("cannot use the folder of save images: it must be a folder that nobody else can enter: %s", s.dir)
	}
	return s, nil
}

// Path implements launcher.Saves.
func (s saves) Path(uuid string) string { return filepath.Join(s.dir, uuid+savedSuffix) }

// Remove implements launcher.Saves.
func (s saves) Remove(uuid string) error {
	if _, err := domain.ParseUUID(uuid); err != nil {
		return err
	}
	if err := os.Remove(s.Path(uuid)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("cannot remove a save image: %w", err)
	}
	return nil
}

// List implements launcher.Saves.
func (s saves) List() ([]string, error) {
	found, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, fmt.Errorf("cannot list save images: %w", err)
	}
	var all []string
	for _, f := range found {
		if uuid, ok := strings.CutSuffix(f.Name(), savedSuffix); ok {
			all = append(all, uuid)
		}
	}
	return all, nil
}
