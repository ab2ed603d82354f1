package stories

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"troth/test/lab"
	"troth/test/standstill"
)

// TestAttack tells the stories of attacks on a host that runs; each ends with an honest launch.
func TestAttack(t *testing.T) {
	if testing.Short() {
		t.Skip("stories need the lab: make test")
	}
	t.Parallel() // each has hosts of its own
	ctx, cancel := context.WithTimeout(t.Context(), 25*time.Minute)
	defer cancel()
	s := newStage(ctx, t, lab.Options{})
	tell := func(id, dir string) {
		t.Run(id, func(t *testing.T) {
			testscript.RunT(oneByOne{t}, testscript.Params{Dir: "testdata/" + dir, Setup: s.setUp, Cmds: s.commands(ctx), UpdateScripts: *update})
		})
	}
	tell("L-HOOKGONE", "hookgone")
	tell("L-RESTORE", "restore")
	tell("L-FILTER", "filter")
	tell("N-ENGINE", "engine")
	tell("K-ROTATE", "rotate")
	tell("K-COMPROMISE", "compromise")
	// What hostd depends on goes away; it waits less long than others do.
	if err := s.impatient(ctx); err != nil {
		t.Fatal(err)
	}
	tell("L-AUTOSTART", "autostart")
	tell("R-VERDOWN", "verdown")
	tell("R-TPMDOWN", "tpmdown")
}

// impatient lets hostd wait 3 s for verifier and TPM, so that the stories of their absence are short.
func (s *stage) impatient(ctx context.Context) error {
	h := s.lab.Host(1)
	if err := h.StopHostd(ctx); err != nil {
		return err
	}
	dir := h.Path("/etc/troth/hostd.toml.d")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "impatient.toml"), []byte("[verifier]\ntimeout = \"3s\"\n[tpm]\ntimeout = \"3s\"\n"), 0o644); err != nil {
		return err
	}
	if err := h.StartHostd(ctx); err != nil {
		return err
	}
	return h.AwaitReady(ctx)
}

// newStage builds a lab for stories; it stays when one of them went wrong.
func newStage(ctx context.Context, t *testing.T, o lab.Options) *stage {
	t.Helper()
	if err := standstill.Watch(); err != nil {
		t.Fatal(err)
	}
	s := &stage{lab: lab.ForTest(ctx, t, o)}
	if err := s.pin(ctx, t.TempDir()); err != nil {
		t.Fatal(err)
	}
	return s
}
