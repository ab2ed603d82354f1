package bypass

import (
	"context"
	"testing"
	"time"

	"troth/test/lab"
	"troth/test/scene"
)

// stage is a host as it is installed, which launches, with its people: troth-hostd runs as the user and with the capabilities of its unit, and
// libvirt asks polkit.
type stage struct {
	*scene.Scene
	t   *testing.T
	ctx context.Context
}

func newStage(t *testing.T, o lab.Options) *stage {
	t.Helper()
	if testing.Short() {
		t.Skip("makes namespaces: not with -short")
	}
	o.Polkit = true
	ctx := deadline(t)
	return &stage{Scene: scene.New(ctx, t, o), t: t, ctx: ctx}
}

// in is the same stage for a subtest.
func (s *stage) in(t *testing.T) *stage {
	sub := *s
	sub.t = t
	return &sub
}

// answers waits until the guest has answered with the secret of the launch that a proof is of.
func (s *stage) answers(id, name, proof string) {
	s.t.Helper()
	scene.Until(s.t, 30*time.Second, func() error {
		return s.Tenant.Do(s.ctx, s.Host, nil, "domain", "challenge", id, "--trust", "trust.json", "--key", name+".key", "--proof", proof)
	})
}
