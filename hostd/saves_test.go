package hostd

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

const savedUUID = "6a0f0a5e-4c55-4a53-9d5c-0d8b6f1f2a11"

func TestSaves(t *testing.T) {
	dir := t.TempDir()
	s, err := openSaves(dir)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(filepath.Join(dir, "saved")); err != nil || info.Mode().Perm() != 0o700 {
		t.Fatalf("%v, %v", info.Mode(), err)
	}
	if _, err := openSaves(dir); err != nil {
		t.Errorf("the second start: %v", err)
	}
	for _, name := range []string{savedUUID + ".save", "else"} {
		if err := os.WriteFile(filepath.Join(dir, "saved", name), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if all, err := s.List(); err != nil || !slices.Equal(all, []string{savedUUID}) {
		t.Errorf("%q, %v", all, err)
	}
	for range 2 { // one that is gone is no error
		if err := s.Remove(savedUUID); err != nil {
			t.Error(err)
		}
	}
	if s.Remove("../journal") == nil {
		t.Error("something else than a UUID was removed")
	}
	if err := os.Chmod(filepath.Join(dir, "saved"), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := openSaves(dir); err == nil {
		t.Error("a folder that everyone can enter was taken")
	}
}
