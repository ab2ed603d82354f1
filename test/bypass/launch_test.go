package bypass

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"troth/hostd"
	"troth/test/cast"
	"troth/test/lab"
)

// TestUnprivilegedLaunch launches a proven guest on a host as it is installed: troth-hostd runs as the user and with the capabilities
// of its unit, libvirt asks polkit, and an operator who may do everything with libvirt cannot touch the guest.
func TestUnprivilegedLaunch(t *testing.T) {
	for daemon, o := range map[string]lab.Options{"libvirtd": {}, "virtqemud": {Modular: true}} {
		t.Run(daemon, func(t *testing.T) { unprivilegedLaunch(t, daemon, o) })
	}
}

func unprivilegedLaunch(t *testing.T, daemon string, o lab.Options) {
	l, h := host(t, o)
	ctx := deadline(t)
	const id = "6cf3a1f8-0f41-4f6e-9a5e-6f8f7a2b9c11"
	dir := t.TempDir()
	person := func(role lab.Role) *cast.Person {
		p, err := cast.New(l, role, dir)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	operator, tenant, engine := person(lab.RoleOperator), person(lab.RoleTenant), person(lab.RoleEngine)
	var profile struct{ Name, Digest string }
	do := func(p *cast.Person, v any, args ...string) {
		t.Helper()
		if err := p.Do(ctx, h, v, args...); err != nil {
			t.Fatal(err)
		}
	}
	do(operator, &profile, "profile", "show", "lab")
	do(tenant, nil, "trust", "fetch", "--out", "trust.json", "--allow-software-tpm", "--yes")
	g := l.Guest
	do(tenant, nil, "token", "new", "--trust", "trust.json", "--profile", profile.Name+"@"+profile.Digest, "--kernel", filepath.Join(g.Outside, "vmlinuz"),
		"--initrd", filepath.Join(g.Outside, "initrd"), "--cmdline", g.CommandLine, "--interactive", "no", "--key-out", "g.key", "--token-out", "g.token")
	// An image as libvirt leaves images: of another owner, readable by nobody else.
	kernel, err := os.ReadFile(filepath.Join(g.Outside, "vmlinuz"))
	if err != nil {
		t.Fatal(err)
	}
	const private = "/var/lib/libvirt/images/vmlinuz"
	if err := os.MkdirAll(filepath.Dir(h.Path(private)), 0o711); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(h.Path(private), kernel, 0o600); err != nil {
		t.Fatal(err)
	}
	xml := g.XML(lab.Domain{Name: "bound", UUID: id, Kernel: private})
	if err := os.WriteFile(filepath.Join(dir, "g.xml"), []byte(xml), 0o644); err != nil {
		t.Fatal(err)
	}
	do(engine, nil, "domain", "launch", "--token", "g.token", "--domain", "g.xml", "--wait", "--proof-out", "g.proof")
	do(tenant, nil, "proof", "verify", "--trust", "trust.json", "--key", "g.key", "g.proof")
	if err := h.AwaitConsole(ctx, "bound", lab.UserSpaceUp); err != nil {
		t.Fatal(err)
	}
	until(t, "the guest does not answer", func() error {
		return tenant.Do(ctx, h, nil, "domain", "challenge", id, "--trust", "trust.json", "--key", "g.key", "--proof", "g.proof")
	})
	status, err := h.Exec(ctx, "sh", "-c", "cat /proc/$(pidof troth-hostd)/status")
	if err != nil {
		t.Fatal(err)
	}
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
	do(engine, nil, "domain", "stop", id)
	for _, name := range []string{"libvirt", "libvirt-access", "polkit-rule", "libvirt-network"} {
		f := finding(ctx, t, h, name)
		if f.State != hostd.OK || name == "libvirt-access" && !strings.Contains(f.Evidence, daemon+" asks polkit ("+h.LibvirtConfig()+")") {
			t.Errorf("doctor says %+v", f)
		}
	}
}
