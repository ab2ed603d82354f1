package bypass

import (
	"context"
	"path/filepath"
	"testing"

	"troth/test/cast"
	"troth/test/lab"
)

// stage is a host as it is installed, which launches, with its people: troth-hostd runs as the user and with the capabilities of its unit, and
// libvirt asks polkit.
type stage struct {
	t              *testing.T
	ctx            context.Context
	lab            *lab.Lab
	host           *lab.Host
	dir            string // of tenant and engine
	tenant, engine *cast.Person
	profile        string
}

func newStage(t *testing.T) *stage {
	t.Helper()
	l, h := host(t, lab.Options{})
	s := &stage{t: t, ctx: deadline(t), lab: l, host: h, dir: t.TempDir()}
	person := func(role lab.Role) *cast.Person {
		p, err := cast.New(l, role, s.dir)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	s.tenant, s.engine = person(lab.RoleTenant), person(lab.RoleEngine)
	var profile struct{ Name, Digest string }
	s.do(person(lab.RoleOperator), &profile, "profile", "show", "lab")
	s.profile = profile.Name + "@" + profile.Digest
	s.do(s.tenant, nil, "trust", "fetch", "--out", "trust.json", "--allow-software-tpm", "--yes")
	return s
}

// in is the same stage for a subtest.
func (s *stage) in(t *testing.T) *stage {
	sub := *s
	sub.t = t
	return &sub
}

// do runs troth as somebody, who must succeed.
func (s *stage) do(p *cast.Person, v any, args ...string) {
	s.t.Helper()
	if err := p.Do(s.ctx, s.host, v, args...); err != nil {
		s.t.Fatal(err)
	}
}

// token lets the tenant make NAME.token and NAME.key, pinned to the lab's guest.
func (s *stage) token(name string, more ...string) {
	s.t.Helper()
	g := s.lab.Guest
	s.do(s.tenant, nil, append([]string{"token", "new", "--trust", "trust.json", "--profile", s.profile, "--kernel", filepath.Join(g.Outside, "vmlinuz"),
		"--initrd", filepath.Join(g.Outside, "initrd"), "--cmdline", g.CommandLine, "--interactive", "no", "--key-out", name + ".key", "--token-out", name + ".token"}, more...)...)
}

// answers waits until the guest has answered with the secret of the launch that a proof is of.
func (s *stage) answers(id, name, proof string) {
	s.t.Helper()
	until(s.t, "the guest does not answer", func() error {
		return s.tenant.Do(s.ctx, s.host, nil, "domain", "challenge", id, "--trust", "trust.json", "--key", name+".key", "--proof", proof)
	})
}
