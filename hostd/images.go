package hostd

import (
	"context"
	"os"

	"troth/launcher"
	"troth/launcher/image"
	"troth/proof"
)

// Images measures real files.
type Images struct{}

type heldFile struct{ held *image.Held }

// Measure implements launcher.Images.
func (Images) Measure(ctx context.Context, path string, progress func(done, total int64)) (launcher.Image, error) {
	h, err := image.Measure(ctx, path, progress)
	if err != nil {
		return nil, err
	}
	return heldFile{h}, nil
}

// Open implements launcher.Images.
func (Images) Open(path string) (launcher.Image, error) {
	h, err := image.Open(path)
	if err != nil {
		return nil, err
	}
	return heldFile{h}, nil
}

func (f heldFile) Digest() proof.Digest { return f.held.Digest }
func (f heldFile) Recheck() error       { return f.held.Recheck() }
func (f heldFile) Close() error         { return f.held.Close() }

// File tells a block device by its path; Recheck says whether the path still names what is held.
func (f heldFile) File() (launcher.File, bool) {
	info, err := os.Lstat(f.held.Path)
	device := err == nil && info.Mode()&os.ModeDevice != 0
	return launcher.File{Path: f.held.Path, Dev: f.held.Device(), Ino: f.held.Inode()}, device
}
