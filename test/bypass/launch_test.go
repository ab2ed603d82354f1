package bypass

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"troth/hostd"
	"troth/test/lab"
	"troth/test/scene"
)

// TestUnprivilegedLaunch launches a proven guest on a host as it is installed: troth-hostd runs as the user and with the capabilities
// of its unit, libvirt asks polkit, and an operator who may do everything with libvirt cannot touch the guest.
func TestUnprivilegedLaunch(t *testing.T) {
	for daemon, o := range map[string]lab.Options{"libvirtd": {}, "virtqemud": {Modular: true}} {
		t.Run(daemon, func(t *testing.T) {
			s := newStage(t, o)
			s.unprivilegedLaunch(t, daemon)
			if daemon == "libvirtd" {
				s.unprivilegedSave(t)
			}
		})
	}
}

func (s *stage) unprivilegedLaunch(t *testing.T, daemon string) {
	ctx, h := s.ctx, s.Host
	const id = "6cf3a1f8-0f41-4f6e-9a5e-6f8f7a2b9c11"
	// An image as libvirt leaves images: of another owner, readable by nobody else.
	kernel := scene.Must[[]byte](t)(os.ReadFile(filepath.Join(s.Lab.Guest.Outside, "vmlinuz")))
	const private = "/var/lib/libvirt/images/vmlinuz"
	if err := os.MkdirAll(filepath.Dir(h.Path(private)), 0o711); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(h.Path(private), kernel, 0o600); err != nil {
		t.Fatal(err)
	}
	s.Ask(ctx, t, "launch", lab.Domain{Name: "bound", UUID: id, Kernel: private})
	s.Do(ctx, t, s.Tenant, nil, "proof", "verify", "--trust", "trust.json", "--key", "bound.key", "bound.proof")
	if err := h.AwaitConsole(ctx, "bound", lab.UserSpaceUp); err != nil {
		t.Fatal(err)
	}
	s.answers(id, "bound", "bound.proof")
	status := s.Sh(ctx, t, "cat /proc/$(pidof troth-hostd)/status")
	// CAP_CHOWN, CAP_DAC_READ_SEARCH, CAP_SYS_PTRACE and CAP_LEASE are bits 0, 2, 19 and 28 (capabilities(7)).
	for _, want := range []string{"Uid:\t64101\t64101\t64101\t64101\n", "CapEff:\t0000000010080005\n", "CapBnd:\t0000000010080005\n", "NoNewPrivs:\t1\n"} {
		if !strings.Contains(status, want) {
			t.Errorf("troth-hostd runs without %q: %s", want, status)
		}
	}
	for _, w := range Held() {
		_, err := h.VirshAs(ctx, lab.Operator, w.For("bound", "/tmp/none.xml", "/tmp")...)
		if err == nil {
			t.Errorf("%v: the operator may", w)
		}
	}
	out, err := h.VirshAs(ctx, lab.Operator, "domstate", "bound")
	if err != nil || strings.TrimSpace(out) != "running" {
		t.Errorf("domstate: %q, %v", out, err)
	}
	s.Do(ctx, t, s.Engine, nil, "domain", "stop", id)
	for _, name := range []string{"libvirt", "libvirt-access", "polkit-rule", "libvirt-network"} {
		f := finding(ctx, t, h, name)
		if f.State != hostd.OK || name == "libvirt-access" && !strings.Contains(f.Evidence, daemon+" asks polkit ("+h.LibvirtConfig()+")") {
			t.Errorf("doctor says %+v", f)
		}
	}
}
