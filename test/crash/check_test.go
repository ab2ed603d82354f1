package crash

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"troth/test/standstill"
)

// settled waits until the host is in one of the two states, and says which.
func (s *stage) settled(ctx context.Context, launch string) (string, error) {
	var last error
	for begun := time.Now(); standstill.Since(begun) < 15*time.Second; time.Sleep(10 * time.Millisecond) {
		var end string
		if end, last = s.state(ctx, launch); last == nil {
			return end, nil
		}
	}
	return "", fmt.Errorf("it does not settle: %w", last)
}

// state is "proved" or "gone", or an error that says what is in between still.
func (s *stage) state(ctx context.Context, launch string) (string, error) {
	d, err := s.domain(ctx)
	if err != nil {
		return "", err
	}
	c, err := s.chain(ctx)
	if err != nil {
		return "", err
	}
	if launch != "" {
		var v launchView
		err := s.call(ctx, "GET", "/v1/launches/"+launch, "", nil, &v)
		switch {
		case missing(err): // hostd died before the journal heard of it: the request is lost, and nothing has changed
		case err != nil:
			return "", err
		case v.State == "running":
			return "", fmt.Errorf("the launch is at %s", v.Step)
		case v.State == "refused" && (v.Refusal == nil || v.Refusal.Code == ""):
			return "", errors.New("the launch was refused without a reason")
		}
	}
	if d != nil && d.State == "proved" {
		if c.State != "open" || c.Link != d.Link {
			return "", fmt.Errorf("proved with link %s, and the verifier has %+v", d.Link, *c)
		}
		// Asked for last: hostd learns only a moment later that a guest was ended.
		state, err := s.Host.Virsh(ctx, "domstate", uuid)
		if err != nil {
			return "", err
		}
		if state = strings.TrimSpace(state); state != "running" {
			return "", fmt.Errorf("proved, and %s", state)
		}
		return "proved", nil
	}
	if c.State == "open" || c.State == "reserved" {
		return "", fmt.Errorf("the domain is %+v, and its chain is %s", d, c.State)
	}
	if d != nil && d.State != "refused" && d.State != "stopped" {
		return "", fmt.Errorf("the domain is %s", d.State)
	}
	if d != nil && d.State == "refused" && d.Refusal == nil {
		return "", errors.New("the domain was refused without a reason")
	}
	return "gone", nil
}

// check proves what must hold of a host that has settled, by libvirt, the files and the tenant.
func (s *stage) check(ctx context.Context, end string) error {
	list, err := s.Host.Virsh(ctx, "list", "--uuid")
	if err != nil {
		return err
	}
	live := strings.Contains(list, uuid)
	if secrets, err := filepath.Glob(s.Host.Path("/run/troth/guest") + "/*.secret"); err != nil || len(secrets) != 0 {
		return fmt.Errorf("a guest's secret is left: %v %w", secrets, err)
	}
	if end == "gone" {
		if live {
			return errors.New("the guest is gone for hostd, and there for libvirt")
		}
		return s.definedAs(ctx)
	}
	if !live {
		return errors.New("the guest is proved, and libvirt has none")
	}
	return s.verified(ctx)
}

// definedAs: what was proved once stays defined until it is forgotten, what never was is not.
func (s *stage) definedAs(ctx context.Context) error {
	d, err := s.domain(ctx)
	if err != nil {
		return err
	}
	all, err := s.Host.Virsh(ctx, "list", "--all", "--uuid")
	if err != nil {
		return err
	}
	if defined, known := strings.Contains(all, uuid), d != nil && d.Link != ""; defined != known {
		return fmt.Errorf("hostd has it as proved before: %v, libvirt as defined: %v (%+v)", known, defined, d)
	}
	return nil
}

// verified lets the tenant check the proof that hostd keeps.
func (s *stage) verified(ctx context.Context) error {
	a, err := s.Tenant.Troth(ctx, s.Host, "domain", "proof", uuid, "--out", "now.proof")
	if err != nil {
		return err
	}
	if err := a.Err(); err != nil {
		return err
	}
	defer os.Remove(s.Tenant.Path("now.proof"))
	return s.Tenant.Do(ctx, s.Host, nil, "proof", "verify", "--trust", "trust.json", "--key", s.key(), "now.proof")
}

func (s *stage) key() string {
	for _, file := range []string{"crash", "full"} {
		if b, err := os.ReadFile(s.Tenant.Path(file + ".token")); err == nil && strings.TrimSpace(string(b)) == s.token {
			return file + ".key"
		}
	}
	return "no.key"
}
