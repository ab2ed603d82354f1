package strays

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"troth/proof"
	"troth/test/lab"
	"troth/test/scene"
)

// launches is how often a guest is launched at most until a monitor command has come in between.
const launches = 20

// whileLaunched has another client give monitor commands to a guest without end while it is launched. One that comes in before there is a proof ends the launch;
// one that comes later breaks the proof; and none is ever part of what is proved.
func (s *stage) whileLaunched(ctx context.Context, t *testing.T) {
	const name, uuid = "pestered", "10000000-0000-4000-8000-00000000d001"
	s.launch(ctx, t, name, uuid, proof.TrustLostReport)
	s.Do(ctx, t, s.Engine, nil, "domain", "stop", uuid)
	rest := s.pester(ctx, t, name)
	refused := 0
	for n := 0; n < launches && refused < 3; n++ {
		err := s.Engine.Do(ctx, s.Host, nil, "domain", "start", "--wait", uuid)
		if err == nil {
			s.broken(ctx, t, uuid)
			s.Do(ctx, t, s.Engine, nil, "domain", "stop", uuid)
			continue
		}
		refused++
		if !strings.Contains(err.Error(), string(proof.ConfigurationChanged)) || !strings.Contains(err.Error(), "custom monitor") {
			t.Fatalf("refused for another reason: %v", err)
		}
		s.off(ctx, t, name)
	}
	if refused == 0 {
		t.Errorf("no command came in during %d launches", launches)
	}
	rest()
	s.Do(ctx, t, s.Engine, nil, "domain", "start", "--wait", uuid)
	s.Do(ctx, t, s.Engine, nil, "domain", "stop", uuid)
	s.untouched(ctx, t, 0)
}

// whileStarted is the same for a domain that another client starts.
func (s *stage) whileStarted(ctx context.Context, t *testing.T) {
	const name, uuid = "teased", "10000000-0000-4000-8000-00000000d002"
	s.Ask(ctx, t, "register", lab.Domain{Name: name, UUID: uuid}, "--on-trust-lost", proof.TrustLostReport)
	rest := s.pester(ctx, t, name)
	refused := 0
	for n := 0; n < launches && refused < 3; n++ {
		if _, err := s.Host.Virsh(ctx, "start", name); err != nil {
			t.Log(err)
			if strings.Contains(err.Error(), "troth: refused: ") {
				continue // it did not start
			}
			// hostd ended the guest before libvirt had said that it runs.
		}
		if why := s.broken(ctx, t, uuid); why == "refused" {
			refused++
			s.off(ctx, t, name)
			continue
		}
		s.Do(ctx, t, s.Engine, nil, "domain", "stop", uuid)
	}
	if refused == 0 {
		t.Errorf("no command came in during %d starts", launches)
	}
	rest()
	s.Do(ctx, t, s.Engine, nil, "domain", "remove", uuid)
	s.untouched(ctx, t, 0)
}

// pester gives monitor commands to a guest until the function that it returns is called.
func (s *stage) pester(ctx context.Context, t *testing.T, name string) (rest func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(ctx)
	cmd := s.Host.Command(ctx, "sh", "-c", "while :; do "+virsh+"qemu-monitor-command "+name+" --hmp info version; done >/dev/null 2>&1")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return func() {
		cancel()
		if err := cmd.Wait(); err == nil {
			t.Error("nobody gave commands any more")
		}
	}
}

// broken waits until hostd has found that somebody reached into a guest, which was refused for it, or whose proof was broken.
func (s *stage) broken(ctx context.Context, t *testing.T, uuid string) (state string) {
	t.Helper()
	scene.Until(t, time.Minute, func() error {
		var d struct {
			State   string
			Refusal struct {
				Code, Detail string
				Facts        []proof.Fact
			}
		}
		s.Do(ctx, t, s.Engine, &d, "domain", "show", uuid)
		if (d.State != "refused" && d.State != "broken") || d.Refusal.Code != string(proof.ConfigurationChanged) {
			return errors.New("the domain is " + d.State + ": " + d.Refusal.Code + " " + d.Refusal.Detail)
		}
		state = d.State
		for _, f := range d.Refusal.Facts {
			if strings.Contains(f.Value, "custom monitor") {
				return nil
			}
		}
		t.Fatalf("it is %s for another reason: %s", d.State, d.Refusal.Detail)
		return nil
	})
	return state
}

// off demands that nothing is left of a guest whose launch was refused.
func (s *stage) off(ctx context.Context, t *testing.T, name string) {
	t.Helper()
	scene.Until(t, byScan, func() error {
		state, err := s.Host.Virsh(ctx, "domstate", name)
		if err != nil {
			return err
		}
		if strings.TrimSpace(state) != "shut off" {
			return errors.New("it is " + state)
		}
		return nil
	})
}
