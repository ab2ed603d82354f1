package launcher

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"troth/launcher/image"
)

// TestFilesWithoutVerity: where no file has fs-verity, as on the machines that test this, the kernel is asked and every file is hashed each time.
func TestFilesWithoutVerity(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "disk")
	files := Files{Verity: image.NewVerity(image.MeasureVerity)}
	seen := map[string]bool{}
	for _, content := range []string{"one", "two"} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		i, err := files.Measure(context.Background(), path, func(int64, int64) {})
		if err != nil {
			t.Fatal(err)
		}
		again, err := i.Hash(context.Background())
		if err != nil || again != i.Digest() {
			t.Errorf("hashed again: %v, %v", again, err)
		}
		seen[again.String()] = true
		if err := i.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if len(seen) != 2 {
		t.Error("a file that was changed has its old digest")
	}
}

// TestFilesWithVerity: while the kernel names the same fixed content it is hashed once, and anew when it names another.
func TestFilesWithVerity(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "disk")
	tree := [32]byte{1}
	files := Files{Verity: image.NewVerity(func(int) ([32]byte, bool) { return tree, true })}
	measure := func() (digest, again string) {
		t.Helper()
		i, err := files.Measure(context.Background(), path, func(int64, int64) {})
		if err != nil {
			t.Fatal(err)
		}
		d, err := i.Hash(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(i.Recheck(), i.Close()); err != nil {
			t.Fatal(err)
		}
		return i.Digest().String(), d.String()
	}
	write := func(content string) {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("one")
	one, _ := measure()
	write("two") // which a kernel with fs-verity would not allow: so it shows that nobody reads the file
	if d, again := measure(); d != one || again != one {
		t.Error("hashed again, though the kernel holds the content fixed")
	}
	tree[0]++
	if d, again := measure(); d == one || again != d {
		t.Error("another content has the old digest")
	}
}
