package serve

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"troth/hostd"
	"troth/hostd/journal"
	"troth/launcher"
	"troth/proof"
)

// TestSecondDaemon: two hostds with folders of their own to run in, and so with locks of the TPM of their own, do not write into one journal.
func TestSecondDaemon(t *testing.T) {
	r := newRig(t)
	config := *r.daemon.Config
	config.RunDir = filepath.Join(t.TempDir(), "run")
	config.Hook.Socket = filepath.Join(config.RunDir, "hook.sock")
	launches := filepath.Join(config.StateDir, "journal", "launches")
	entry := &launcher.Entry{What: launcher.WroteRefused, UUID: "6a0f0a5e-4c55-4a53-9d5c-0d8b6f1f2a11", Refusal: proof.Refuse(proof.Internal, "a test")}
	if err := r.daemon.Launcher.Book.Write(entry); err != nil { // an empty journal is not written anew
		t.Fatal(err)
	}
	before, err := os.Stat(launches)
	if err != nil {
		t.Fatal(err)
	}
	second := &hostd.Daemon{Config: &config, Identity: r.daemon.Identity, Log: slog.New(slog.DiscardHandler), Chip: nothing{}, Virt: nothing{}, Judge: nothing{}, Verifier: nothing{},
		Images: hostd.Images{}, Clock: hostd.NewClock()}
	err = second.Open(t.Context())
	if !errors.Is(err, journal.ErrInUse) || !strings.Contains(err.Error(), config.StateDir) {
		t.Errorf("a second hostd on %s: %v", config.StateDir, err)
	}
	after, err := os.Stat(launches)
	if err != nil {
		t.Fatal(err)
	}
	if !os.SameFile(before, after) {
		t.Error("the second hostd made the journal of the first anew")
	}
}
