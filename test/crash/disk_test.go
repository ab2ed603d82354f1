package crash

import (
	"context"
	"strings"
	"testing"
	"time"

	"troth/proof"
)

// small puts hostd's state on a file system of 1 MiB, without the journal of before; full leaves it no byte.
const (
	small = `set -e
mkdir /tmp/kept
cp -a /var/lib/troth/. /tmp/kept/
rm -rf /tmp/kept/journal
mount -t tmpfs -o size=1m,mode=755 none /var/lib/troth
cp -a /tmp/kept/. /var/lib/troth/`
	full = `dd if=/dev/zero of=/var/lib/troth/filler bs=512 2>/dev/null; test $(df --output=avail /var/lib/troth | tail -1) = 0`
)

// fullDisk launches on a host whose journal has no room, gives it room, and launches again: hostd is never restarted in between.
func (s *stage) fullDisk(ctx context.Context, t *testing.T) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	do := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	do(s.rest(ctx, false, true))
	do(s.newToken(ctx, "full"))
	do(s.Host.StopHostd(ctx))
	s.Sh(ctx, t, small)
	do(s.Host.StartHostd(ctx))
	do(s.Host.AwaitReady(ctx))
	s.Sh(ctx, t, full)

	id, err := s.submit(ctx)
	do(err)
	var v launchView
	do(s.call(ctx, "GET", "/v1/launches/"+id+"?wait=30s", "", nil, &v))
	if v.State != "refused" || v.Refusal == nil || v.Refusal.Code != proof.Internal || !strings.Contains(v.Refusal.Detail+v.Refusal.Title, "journal cannot be written") {
		t.Fatalf("a launch without room for its journal: %s: %+v", v.State, v.Refusal)
	}
	all, err := s.Host.Virsh(ctx, "list", "--all", "--uuid")
	do(err)
	if strings.Contains(all, uuid) {
		t.Fatal("libvirt has heard of it")
	}
	c, err := s.chain(ctx)
	do(err)
	if c.State != "free" {
		t.Fatalf("the verifier has heard of it: %+v", c)
	}

	s.Sh(ctx, t, "rm /var/lib/troth/filler")
	do(s.launched(ctx))
	end, err := s.settled(ctx, "")
	do(err)
	if end != "proved" {
		t.Fatalf("with room again: %s", end)
	}
	do(s.check(ctx, end))

	// Stopped while the disk is full, the guest is gone; its link is closed when there is room.
	s.Sh(ctx, t, full)
	// Whether it can be noted depends on what is left of the journal's last page.
	noted := s.call(ctx, "POST", "/v1/domains/"+uuid+"/stop", "", nil, nil)
	t.Logf("a stop on a full disk: %v", noted)
	s.Sh(ctx, t, "rm /var/lib/troth/filler")
	end, err = s.settledAs(ctx, "gone")
	do(err)
	do(s.check(ctx, end))
	do(s.rest(ctx, false, true))
	do(s.Host.StopHostd(ctx))
	s.Sh(ctx, t, "umount /var/lib/troth")
	do(s.Host.StartHostd(ctx))
}

// settledAs waits for one of the two states.
func (s *stage) settledAs(ctx context.Context, want string) (string, error) {
	for {
		end, err := s.settled(ctx, "")
		if err != nil || end == want {
			return end, err
		}
		select {
		case <-ctx.Done():
			return end, ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
}
