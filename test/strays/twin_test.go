package strays

import (
	"context"
	"errors"
	"testing"

	"troth/proof"
	"troth/test/lab"
	"troth/test/scene"
)

// respawned has a local user start a process by an emulator's name with a guest's UUID again and again, however often it is ended: the guest starts all the same, by
// hostd and by another client.
func (s *stage) respawned(ctx context.Context, t *testing.T) {
	const name, uuid = "twinned", "10000000-0000-4000-8000-00000000d003"
	s.Ask(ctx, t, "register", lab.Domain{Name: name, UUID: uuid}, "--on-trust-lost", proof.TrustLostReport)
	s.Sh(ctx, t, "mkdir -p /run/twin && cp /bin/bash /run/twin/qemu-system-x86_64 && mkfifo -m 666 /run/twin/never && chmod 755 /run/twin /run/twin/qemu-system-x86_64")
	loop, stop := context.WithCancel(ctx)
	cmd := s.Host.Command(loop, "setpriv", "--reuid", "nobody", "--regid", "nogroup", "--clear-groups", "sh", "-c",
		"while :; do /run/twin/qemu-system-x86_64 -c 'read x </run/twin/never' twin -uuid "+uuid+"; done >/dev/null 2>&1")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	twin := func() bool {
		_, err := s.Host.Exec(ctx, "pgrep", "-f", "^/run/twin/qemu-system-x86_64.*"+uuid)
		return err == nil
	}
	for n := range 6 {
		scene.Until(t, byScan, func() error {
			if !twin() {
				return errors.New("the twin does not run")
			}
			return nil
		})
		if n%2 == 0 {
			s.Do(ctx, t, s.Engine, nil, "domain", "start", "--wait", uuid)
		} else {
			scene.Must[string](t)(s.Host.Virsh(ctx, "start", name))
		}
		scene.Until(t, byScan, func() error {
			var d struct{ State string }
			s.Do(ctx, t, s.Engine, &d, "domain", "show", uuid)
			if d.State != "proved" {
				return errors.New("it is " + d.State)
			}
			return nil
		})
		s.Do(ctx, t, s.Engine, nil, "domain", "stop", uuid)
	}
	stop()
	if err := cmd.Wait(); err == nil {
		t.Error("nobody started the twin any more")
	}
	scene.Until(t, byScan, func() error {
		if twin() {
			return errors.New("the twin runs on")
		}
		return nil
	})
	s.Do(ctx, t, s.Engine, nil, "domain", "remove", uuid)
	s.untouched(ctx, t, 0)
}
