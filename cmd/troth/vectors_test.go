package main

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestVectors runs the published vectors of proof through the command: each file
// is named for the check that it must not pass.
func TestVectors(t *testing.T) {
	t.Setenv("XDG_CONFIG_HOME", t.TempDir())
	const dir = "../../proof/testdata/vectors"
	files := need[[]string](t)(filepath.Glob(filepath.Join(dir, "*.json")))
	own := func(name, ext, common string) string {
		path := filepath.Join(dir, name+ext)
		if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
			return filepath.Join(dir, common)
		}
		return path
	}
	ran := 0
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".json")
		if name == "labels" {
			continue // the table of labels, no proof
		}
		ran++
		check, _, _ := strings.Cut(name, ".")
		o := troth(t, "", "proof", "verify", "--trust", own(name, ".trust", "trust"), "--key", own(name, ".key", "nonce.key"),
			"--domain", "6f1e2c1a-0000-4000-8000-000000000001", file)
		switch {
		case name == "genuine":
			o.want(t, exitYes, "GENUINE AND WANTED")
		case check == "trust-keys":
			o.want(t, exitUndecided, "cannot read trust")
		case strings.HasPrefix(check, "unwanted-"):
			o.want(t, exitNo, "NOT WANTED", ", "+strings.TrimPrefix(check, "unwanted-"))
		default:
			o.want(t, exitNo, "NOT GENUINE", "("+check+")")
		}
		if t.Failed() {
			t.Fatalf("vector %s", name)
		}
	}
	if ran < 60 {
		t.Errorf("only %d vectors ran", ran)
	}
}
