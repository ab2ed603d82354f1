// Package scene sets the scene of a test on a real host: a lab that ends with the test, its people, and the profile that the lab's
// hosts meet; and what such tests do again and again. Whatever goes wrong in it ends the test, with what was said.
//
// It promises no check but that: a test brings its own guests, and looks for itself what became of them.
package scene

import (
	"context"
	"fmt"
	"os"
	"testing"
	"time"

	"troth/test/cast"
	"troth/test/lab"
	"troth/test/standstill"
)

// Scene is a lab, its first host and its people.
type Scene struct {
	Lab            *lab.Lab
	Host           *lab.Host
	Operator       *cast.Person
	Tenant, Engine *cast.Person // they share a directory, in which the tenant's trust.json lies
	Profile        string       // NAME@DIGEST
	files          int
}

// New builds the lab.
func New(ctx context.Context, t *testing.T, o lab.Options) *Scene {
	t.Helper()
	if err := standstill.Watch(); err != nil {
		t.Fatal(err)
	}
	l := lab.ForTest(ctx, t, o)
	s := &Scene{Lab: l, Host: l.Host(1)}
	s.Operator = Must[*cast.Person](t)(cast.New(l, lab.RoleOperator, t.TempDir()))
	s.Tenant = Must[*cast.Person](t)(cast.New(l, lab.RoleTenant, t.TempDir()))
	s.Engine = Must[*cast.Person](t)(cast.New(l, lab.RoleEngine, s.Tenant.Dir))
	s.Profile = Must[string](t)(s.Operator.Profile(ctx, s.Host, lab.Golden))
	if err := s.Tenant.FetchTrust(ctx, s.Host); err != nil {
		t.Fatal(err)
	}
	return s
}

// Must gives the value of a call that must not fail.
func Must[T any](t *testing.T) func(v T, err error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// stood is how long the machine has to stand still for what failed meanwhile to be asked once more: verdicts are fresh for seconds.
const stood = time.Second

// Do lets a person run troth, which must end with exit 0; v, if not nil, takes its answer.
func (s *Scene) Do(ctx context.Context, t *testing.T, p *cast.Person, v any, args ...string) {
	t.Helper()
	for {
		begun := time.Now()
		err := p.Do(ctx, s.Host, v, args...)
		if err == nil {
			return
		}
		if time.Since(begun)-standstill.Since(begun) < stood || ctx.Err() != nil {
			t.Fatal(err)
		}
		t.Logf("once more, since the machine stood still: %v", err)
	}
}

// Sh runs a script on the host that must succeed, and returns what it printed.
func (s *Scene) Sh(ctx context.Context, t *testing.T, script string) string {
	t.Helper()
	return Must[string](t)(s.Host.Exec(ctx, "sh", "-c", script))
}

// Write writes a file that everybody may read.
func Write(t *testing.T, file, text string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// File puts a text where the host sees it and returns its path there.
func (s *Scene) File(t *testing.T, text string) string {
	t.Helper()
	s.files++
	inside := fmt.Sprintf("/srv/troth/scene%d.xml", s.files)
	Write(t, s.Host.Path(inside), text)
	return inside
}

// Logged is the log of the host's hostd from an offset on.
func (s *Scene) Logged(t *testing.T, from int) string {
	t.Helper()
	b := Must[[]byte](t)(os.ReadFile(s.Host.Log("hostd")))
	return string(b[min(from, len(b)):])
}

// Ask lets the engine ask hostd for a domain, to launch or to register it, with a token that the tenant makes for it; more are words
// for the token. NAME.key, .token, .xml and .proof stay with tenant and engine.
func (s *Scene) Ask(ctx context.Context, t *testing.T, how string, d lab.Domain, more ...string) {
	t.Helper()
	g := s.Lab.Guest
	s.Do(ctx, t, s.Tenant, nil, cast.NewToken(g, d, s.Profile, d.Name+".key", d.Name+".token", more...)...)
	Write(t, s.Engine.Path(d.Name+".xml"), g.XML(d))
	args := []string{"domain", how, "--token", d.Name + ".token", "--domain", d.Name + ".xml"}
	if how == "launch" {
		args = append(args, "--proof-out", d.Name+".proof")
	}
	s.Do(ctx, t, s.Engine, nil, args...)
}

// Until tries until there is no error, and fails the test when that takes longer than the limit.
func Until(t *testing.T, limit time.Duration, try func() error) {
	t.Helper()
	await(t, limit, time.Now(), try)
}

// Within is Until for what must have happened within a limit since begun. It returns how long that took, and waits longer than the
// limit, so that a failure tells how long it took in truth.
func Within(t *testing.T, limit time.Duration, begun time.Time, try func() error) time.Duration {
	t.Helper()
	took, why := await(t, 3*limit, begun, try)
	if took > limit {
		t.Errorf("it took %v, more than %v; until then: %s", took.Round(time.Millisecond), limit, why)
	}
	return took
}

// await returns how long it took since begun, and what was wrong until then. A time in which the machine stood still does not count.
func await(t *testing.T, limit time.Duration, begun time.Time, try func() error) (took time.Duration, why string) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := try()
		took = standstill.Since(begun)
		switch {
		case err == nil:
			return took, why
		case took > limit:
			t.Fatalf("after %v: %v", took.Round(time.Millisecond), err)
		}
		why = err.Error()
		<-tick.C
	}
}
