package stories

import (
	"context"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"troth/test/lab"
)

// TestAttack tells the stories of attacks on a host that runs; each ends with an honest launch.
func TestAttack(t *testing.T) {
	if testing.Short() {
		t.Skip("stories need the lab: make test")
	}
	for id, dir := range map[string]string{"L-HOOKGONE": "testdata/hookgone", "L-RESTORE": "testdata/restore", "L-FILTER": "testdata/filter"} {
		t.Run(id, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
			defer cancel()
			s := newStage(ctx, t, lab.Options{})
			testscript.RunT(oneByOne{t}, testscript.Params{Dir: dir, Setup: s.setUp, Cmds: s.commands(ctx), UpdateScripts: *update})
		})
	}
}

// newStage builds a lab for stories; it stays when one of them went wrong.
func newStage(ctx context.Context, t *testing.T, o lab.Options) *stage {
	t.Helper()
	s := &stage{lab: lab.ForTest(ctx, t, o)}
	if err := s.pin(ctx, t.TempDir()); err != nil {
		t.Fatal(err)
	}
	return s
}
