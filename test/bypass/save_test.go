package bypass

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"troth/test/lab"
)

// TestUnprivilegedSave saves and restores guests on a host as it is installed: libvirt writes the image as root into a folder of troth-hostd's user, who
// has to read, hold and remove it with the capabilities of its unit, and every call passes polkit. An operator who may do everything with libvirt
// cannot bring the saved guest back, or change what is restored.
func TestUnprivilegedSave(t *testing.T) {
	s := newStage(t)
	t.Run("plain", func(t *testing.T) {
		s := s.in(t)
		s.token("plain", "--saves", "allow")
		s.savedAndRestored(lab.Domain{Name: "plain", UUID: "6cf3a1f8-0f41-4f6e-9a5e-6f8f7a2b9c21"})
	})
	t.Run("sealed disk", func(t *testing.T) {
		s := s.in(t)
		const disk = "/var/lib/libvirt/images/sealed.luks"
		s.sealed(disk)
		s.token("sealed", "--saves", "allow", "--secret-file", "secret", "--disk", "vda=sealed:"+s.host.Path(disk))
		s.savedAndRestored(lab.Domain{Name: "sealed", UUID: "6cf3a1f8-0f41-4f6e-9a5e-6f8f7a2b9c22", Extra: "<disk type='file'><driver type='raw'/><source file='" + disk +
			"'><encryption format='luks'/></source><target dev='vda'/></disk>"})
	})
}

// sealed makes a volume that opens with the tenant's secret, as libvirt leaves images: readable by nobody else.
func (s *stage) sealed(disk string) {
	t := s.t
	t.Helper()
	if err := os.WriteFile(filepath.Join(s.dir, "secret"), []byte("my-very-own-secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	s.do(s.tenant, nil, "token", "disk-key", "--secret-file", "secret", "--disk", "vda", "--out", "vda.pass")
	outside := s.host.Path(disk)
	if err := os.MkdirAll(filepath.Dir(outside), 0o711); err != nil {
		t.Fatal(err)
	}
	qemu := exec.CommandContext(s.ctx, "qemu-img", "create", "-q", "--object", "secret,id=k,file="+filepath.Join(s.dir, "vda.pass"), "-f", "luks",
		"-o", "key-secret=k,hash-alg=sha512,iter-time=10", outside, "4M")
	if out, err := qemu.CombinedOutput(); err != nil {
		t.Fatalf("qemu-img: %v: %s", err, out)
	}
	if err := os.Chmod(outside, 0o600); err != nil {
		t.Fatal(err)
	}
}

// savedAndRestored launches a domain with the token of its name, saves it, lets an operator try what is his no more, and restores it.
func (s *stage) savedAndRestored(d lab.Domain) {
	t := s.t
	id, xml, first, second := d.UUID, d.Name+".xml", d.Name+"-1.proof", d.Name+"-2.proof"
	if err := os.WriteFile(filepath.Join(s.dir, xml), []byte(s.lab.Guest.XML(d)), 0o644); err != nil {
		t.Fatal(err)
	}
	s.do(s.engine, nil, "domain", "launch", "--token", d.Name+".token", "--domain", xml, "--wait", "--proof-out", first)
	if err := s.host.AwaitConsole(s.ctx, d.Name, lab.UserSpaceUp); err != nil {
		t.Fatal(err)
	}
	s.answers(id, d.Name, first)
	s.do(s.engine, nil, "domain", "save", id)
	s.is(id, "saved")
	s.noKeys()

	image := "/var/lib/troth/saved/" + id + ".save"
	for _, try := range [][]string{{"restore", image}, {"start", d.Name}, {"undefine", d.Name}, {"save-image-define", image, "/tmp/another.xml"}} {
		if err := os.WriteFile(s.host.Path("/tmp/another.xml"), []byte(s.lab.Guest.XML(d)), 0o644); err != nil {
			t.Fatal(err)
		}
		out, err := s.host.VirshAs(s.ctx, lab.Operator, try...)
		if err == nil || !strings.Contains(err.Error(), denied) {
			t.Errorf("%v by the operator: %s, %v", try, out, err)
		}
	}
	for _, user := range []string{lab.Operator, lab.Stranger} {
		if _, err := s.host.Exec(s.ctx, lab.As(user, "head", "-c", "1", image)...); err == nil {
			t.Errorf("%s reads the guest's memory", user)
		}
	}

	s.do(s.engine, nil, "domain", "restore", id, "--wait", "--proof-out", second)
	s.is(id, "proved")
	s.do(s.tenant, nil, "proof", "verify", "--trust", "trust.json", "--key", d.Name+".key", second)
	s.answers(id, d.Name, first) // the guest that goes on is the one that booted
	s.noKeys()
	if _, err := os.Stat(s.host.Path(image)); !os.IsNotExist(err) {
		t.Errorf("the image that was used up is there still: %v", err)
	}
	// Saved once more and given up: its image goes, which is nobody's but hostd's to remove.
	s.do(s.engine, nil, "domain", "save", id)
	s.do(s.engine, nil, "domain", "stop", id)
	if _, err := os.Stat(s.host.Path(image)); !os.IsNotExist(err) {
		t.Errorf("the image that was given up is there still: %v", err)
	}
	s.do(s.engine, nil, "domain", "remove", id)
}

// is demands a state of a domain.
func (s *stage) is(id, want string) {
	s.t.Helper()
	var d struct{ State string }
	if s.do(s.engine, &d, "domain", "show", id); d.State != want {
		s.t.Errorf("the domain is %s, want %s", d.State, want)
	}
}

// noKeys demands that libvirt has no secret.
func (s *stage) noKeys() {
	s.t.Helper()
	out, err := s.host.Virsh(s.ctx, "secret-list")
	if err != nil || strings.TrimSpace(out) != "" {
		s.t.Errorf("libvirt has secrets: %q, %v", out, err)
	}
}
