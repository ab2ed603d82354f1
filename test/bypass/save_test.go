package bypass

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"troth/test/lab"
)

// unprivilegedSave saves and restores guests on a host as it is installed: libvirt writes the image as root into a folder of troth-hostd's user, who
// has to read, hold and remove it with the capabilities of its unit, and every call passes polkit. An operator who may do everything with libvirt
// cannot bring the saved guest back, or change what is restored.
func (s *stage) unprivilegedSave(t *testing.T) {
	t.Run("save", func(t *testing.T) {
		s := s.in(t)
		s.savedAndRestored(lab.Domain{Name: "plain", UUID: "6cf3a1f8-0f41-4f6e-9a5e-6f8f7a2b9c21"})
	})
	t.Run("save with a sealed disk", func(t *testing.T) {
		s := s.in(t)
		const disk = "/var/lib/libvirt/images/sealed.luks"
		s.sealed(disk)
		s.savedAndRestored(lab.Domain{Name: "sealed", UUID: "6cf3a1f8-0f41-4f6e-9a5e-6f8f7a2b9c22", Extra: "<disk type='file'><driver type='raw'/><source file='" + disk +
			"'><encryption format='luks'/></source><target dev='vda'/></disk>"}, "--secret-file", "secret", "--disk", "vda=sealed:"+s.Host.Path(disk))
	})
}

// sealed makes a volume that opens with the tenant's secret, as libvirt leaves images: readable by nobody else.
func (s *stage) sealed(disk string) {
	t := s.t
	t.Helper()
	if err := os.WriteFile(s.Tenant.Path("secret"), []byte("my-very-own-secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	s.Do(s.ctx, s.t, s.Tenant, nil, "token", "disk-key", "--secret-file", "secret", "--disk", "vda", "--out", "vda.pass")
	outside := s.Host.Path(disk)
	if err := os.MkdirAll(filepath.Dir(outside), 0o711); err != nil {
		t.Fatal(err)
	}
	qemu := exec.CommandContext(s.ctx, "qemu-img", "create", "-q", "--object", "secret,id=k,file="+s.Tenant.Path("vda.pass"), "-f", "luks",
		"-o", "key-secret=k,hash-alg=sha512,iter-time=10", outside, "4M")
	if out, err := qemu.CombinedOutput(); err != nil {
		t.Fatalf("qemu-img: %v: %s", err, out)
	}
	if err := os.Chmod(outside, 0o600); err != nil {
		t.Fatal(err)
	}
}

// savedAndRestored launches a domain that may be saved, saves it, lets an operator try what is his no more, and restores it; more are words for its token.
func (s *stage) savedAndRestored(d lab.Domain, more ...string) {
	t := s.t
	id, first, second := d.UUID, d.Name+".proof", d.Name+"-2.proof"
	s.Ask(s.ctx, t, "launch", d, append([]string{"--saves", "allow"}, more...)...)
	if err := s.Host.AwaitConsole(s.ctx, d.Name, lab.UserSpaceUp); err != nil {
		t.Fatal(err)
	}
	s.answers(id, d.Name, first)
	s.Do(s.ctx, s.t, s.Engine, nil, "domain", "save", id)
	s.is(id, "saved")
	s.noKeys()

	image := "/var/lib/troth/saved/" + id + ".save"
	for _, try := range [][]string{{"restore", image}, {"start", d.Name}, {"undefine", d.Name}, {"save-image-define", image, "/tmp/another.xml"}} {
		if err := os.WriteFile(s.Host.Path("/tmp/another.xml"), []byte(s.Lab.Guest.XML(d)), 0o644); err != nil {
			t.Fatal(err)
		}
		out, err := s.Host.VirshAs(s.ctx, lab.Operator, try...)
		if err == nil || !strings.Contains(err.Error(), denied) {
			t.Errorf("%v by the operator: %s, %v", try, out, err)
		}
	}
	for _, user := range []string{lab.Operator, lab.Stranger} {
		if _, err := s.Host.Exec(s.ctx, lab.As(user, "head", "-c", "1", image)...); err == nil {
			t.Errorf("%s reads the guest's memory", user)
		}
	}

	s.Do(s.ctx, s.t, s.Engine, nil, "domain", "restore", id, "--wait", "--proof-out", second)
	s.is(id, "proved")
	s.Do(s.ctx, s.t, s.Tenant, nil, "proof", "verify", "--trust", "trust.json", "--key", d.Name+".key", second)
	s.answers(id, d.Name, first) // the guest that goes on is the one that booted
	s.noKeys()
	if _, err := os.Stat(s.Host.Path(image)); !os.IsNotExist(err) {
		t.Errorf("the image that was used up is there still: %v", err)
	}
	// Saved once more and given up: its image goes, which is nobody's but hostd's to remove.
	s.Do(s.ctx, s.t, s.Engine, nil, "domain", "save", id)
	s.Do(s.ctx, s.t, s.Engine, nil, "domain", "stop", id)
	if _, err := os.Stat(s.Host.Path(image)); !os.IsNotExist(err) {
		t.Errorf("the image that was given up is there still: %v", err)
	}
	s.Do(s.ctx, s.t, s.Engine, nil, "domain", "remove", id)
}

// is demands a state of a domain.
func (s *stage) is(id, want string) {
	s.t.Helper()
	var d struct{ State string }
	if s.Do(s.ctx, s.t, s.Engine, &d, "domain", "show", id); d.State != want {
		s.t.Errorf("the domain is %s, want %s", d.State, want)
	}
}

// noKeys demands that libvirt has no secret.
func (s *stage) noKeys() {
	s.t.Helper()
	out, err := s.Host.Virsh(s.ctx, "secret-list")
	if err != nil || strings.TrimSpace(out) != "" {
		s.t.Errorf("libvirt has secrets: %q, %v", out, err)
	}
}
