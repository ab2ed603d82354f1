package strays

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"

	"troth/proof"
	"troth/test/cast"
	"troth/test/lab"
	"troth/test/scene"
)

// volume: an engine, or another client of libvirt, names a disk that is not his as one for his own trusted domain.
func (s *stage) volume(ctx context.Context, t *testing.T) {
	const thiefUUID, ownerUUID = "10000000-0000-4000-8000-00000000d011", "10000000-0000-4000-8000-00000000d012"
	shared, owned := images+"shared.raw", images+"kept.raw"
	t.Run("open in an untrusted guest", func(t *testing.T) {
		from := len(s.Logged(t, 0))
		s.Sh(ctx, t, "truncate -s 1M "+shared)
		s.create(ctx, t, s.xml(lab.Domain{Name: "reader", UUID: "10000000-0000-4000-8000-00000000d013", Disks: []lab.Disk{{Source: shared, Format: "raw", ReadOnly: true}}}))
		d := lab.Domain{Name: "grabber", UUID: thiefUUID, Disks: []lab.Disk{{Source: shared, Format: "raw"}}}
		for _, how := range []string{"register", "launch"} {
			s.refused(ctx, t, how, d, "open in another guest", shared, "10000000-0000-4000-8000-00000000d013")
		}
		time.Sleep(byScan) // as long as a stray lives
		if state := strings.TrimSpace(scene.Must[string](t)(s.Host.Virsh(ctx, "domstate", "reader"))); state != "running" {
			t.Errorf("the untrusted guest is %s: %s", state, s.Logged(t, from))
		}
		s.Sh(ctx, t, virsh+"destroy reader")
		s.Ask(ctx, t, "launch", d, "--force", "--disk", "vda=initial:empty.raw")
		s.Do(ctx, t, s.Engine, nil, "domain", "remove", thiefUUID)
		s.untouched(ctx, t, from)
	})
	t.Run("of a stopped trusted domain", func(t *testing.T) {
		s.launch(ctx, t, "keeper", ownerUUID, proof.TrustLostReport, owned)
		s.Do(ctx, t, s.Engine, nil, "domain", "stop", ownerUUID)
		s.Sh(ctx, t, "ln "+owned+" "+images+"kept-too.raw")
		for _, path := range []string{owned, images + "kept-too.raw"} {
			d := lab.Domain{Name: "taker", UUID: thiefUUID, Disks: []lab.Disk{{Source: path, Format: "raw"}}}
			for _, how := range []string{"register", "launch"} {
				s.refused(ctx, t, how, d, "belongs to another registered domain", owned, ownerUUID)
			}
			// By libvirt, with the token in the definition.
			d.MetadataText = `<troth:launch xmlns:troth="urn:troth:launch:v1" token="` + s.token(ctx, t, d) + `"/>`
			said, err := s.Host.Exec(ctx, "sh", "-c", virsh+"create "+s.File(t, s.xml(d))+" 2>&1")
			if err == nil || !strings.Contains(said+err.Error(), string(proof.ConfigurationNotAllowed)) {
				t.Errorf("%s: %s%v", path, said, err)
			}
		}
		s.Do(ctx, t, s.Engine, nil, "domain", "start", "--wait", ownerUUID)
		s.Do(ctx, t, s.Engine, nil, "domain", "stop", ownerUUID)
	})
}

// token makes one that says nothing of disks.
func (s *stage) token(ctx context.Context, t *testing.T, d lab.Domain) string {
	t.Helper()
	s.Do(ctx, t, s.Tenant, nil, cast.NewToken(s.Lab.Guest, d, s.Profile, d.Name+".key", d.Name+".token", "--force")...)
	return strings.TrimSpace(string(scene.Must[[]byte](t)(os.ReadFile(s.Tenant.Path(d.Name + ".token")))))
}

// refused asks for a domain, which must be refused in these words.
func (s *stage) refused(ctx context.Context, t *testing.T, how string, d lab.Domain, words ...string) {
	t.Helper()
	s.token(ctx, t, d)
	scene.Write(t, s.Engine.Path(d.Name+".xml"), s.xml(d))
	args := []string{"domain", how, "--token", d.Name + ".token", "--domain", d.Name + ".xml"}
	if how == "launch" {
		args = append(args, "--proof-out", d.Name+".proof") // waits
	}
	a := scene.Must[*cast.Answer](t)(s.Engine.Troth(ctx, s.Host, args...))
	r := a.Refusal()
	if r == nil || r.Code != proof.ConfigurationNotAllowed {
		t.Fatalf("%s: %v: %s%s", how, r, a.Stdout, a.Stderr)
	}
	for _, word := range words {
		if !strings.Contains(r.Error(), word) {
			t.Errorf("%s: %s: says nothing of %q", how, r.Error(), word)
		}
	}
}
