package stories

import (
	"context"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"troth/test/lab"
)

// TestVirtqemud tells stories on a host of libvirt's modular daemons, as an operator installs it, where nothing stands at libvirtd's socket.
func TestVirtqemud(t *testing.T) {
	if testing.Short() {
		t.Skip("stories need the lab: make test")
	}
	t.Parallel() // each has hosts of its own
	ctx, cancel := context.WithTimeout(t.Context(), 25*time.Minute)
	defer cancel()
	s := newStage(ctx, t, lab.Options{Modular: true, Polkit: true})
	testscript.RunT(oneByOne{t}, testscript.Params{Dir: "testdata/virtqemud", Setup: s.setUp, Cmds: s.commands(ctx), UpdateScripts: *update})
}
