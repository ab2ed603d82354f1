package bypass

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"strings"
	"testing"

	"troth/hostd"
	"troth/test/lab"
)

// sockets tries libvirt's other doors: read-only, admin, TCP. The guests run; libvirtd is started anew for TCP.
func sockets(ctx context.Context, t *testing.T, h *lab.Host) {
	readOnly := func(user string, args ...string) (string, error) {
		return h.Exec(ctx, lab.As(user, append([]string{"virsh", "-q", "-r", "-c", "qemu:///system"}, args...)...)...)
	}
	t.Run("read-only", func(t *testing.T) {
		if _, err := readOnly(lab.Stranger, "domstate", "ours"); err != nil {
			t.Errorf("who may look may not: %v", err)
		}
		for _, args := range [][]string{{"dumpxml", "ours", "--security-info"}, {"destroy", "ours"}, {"resume", "ours"}, {"screenshot", "ours", "/tmp/x"}, {"qemu-monitor-command", "ours", "{}"}} {
			if _, err := readOnly(lab.Operator, args...); err == nil {
				t.Errorf("%v is let through", args)
			}
		}
	})
	t.Run("admin", func(t *testing.T) {
		if _, err := h.Exec(ctx, lab.As(lab.Operator, "virt-admin", "-c", "libvirtd:///system", "srv-list")...); err == nil {
			t.Error("an operator reaches the admin socket")
		}
	})
	t.Run("as somebody else", func(t *testing.T) { pretend(ctx, t, h) })
	t.Run("TCP", func(t *testing.T) { tcp(ctx, t, h) })
}

// pretend lets an operator with all rights tell libvirt that he is root (virConnectSetIdentity, which virtproxyd uses for its clients), and then read
// a guest's memory. Root itself may, so that the way is seen to be one.
func pretend(ctx context.Context, t *testing.T, h *lab.Host) {
	by := reach(t, h)
	const line = "troth: refused " + lab.Operator + " connect.write"
	refused := func() int {
		text, err := os.ReadFile(h.Log("polkitd"))
		if err != nil {
			t.Fatal(err)
		}
		return strings.Count(string(text), line)
	}
	for i, domain := range []string{"ours", "theirs"} {
		out, err := h.Exec(ctx, by(lab.Operator, "as-root", domain)...)
		if err == nil || !strings.Contains(out, denied) || refused() <= i {
			t.Errorf("an operator as root, at %s: %q, %v", domain, out, err)
		}
		if out, err := h.Exec(ctx, "/tmp/reach", "as-root", domain); err != nil {
			t.Errorf("root as root, at %s: %q, %v", domain, out, err)
		}
	}
}

// tcp starts libvirtd with a listener that asks for nothing: polkit cannot tell who calls, and libvirt denies them all. The doctor names it.
func tcp(ctx context.Context, t *testing.T, h *lab.Host) {
	if err := h.StopLibvirtd(ctx); err != nil {
		t.Fatal(err)
	}
	conf := h.Path("/etc/libvirt/libvirtd.conf")
	appendTo(t, conf, "listen_tls = 0\nlisten_tcp = 1\nauth_tcp = \"none\"\n")
	if err := h.StartLibvirtdWith(ctx, "--listen"); err != nil {
		t.Fatal(err)
	}
	for _, user := range []string{lab.Operator, "root"} {
		for _, args := range [][]string{{"list", "--all"}, {"domstate", "theirs"}, {"suspend", "ours"}} {
			_, err := h.Exec(ctx, lab.As(user, append([]string{"virsh", "-q", "-c", "qemu+tcp://127.0.0.1/system"}, args...)...)...)
			if err == nil || !strings.Contains(err.Error(), "denied") && !strings.Contains(err.Error(), "Policy kit denied") && !strings.Contains(err.Error(), "PID") {
				t.Errorf("%v over TCP by %s: %v", args, user, err)
			}
		}
	}
	if f := finding(ctx, t, h, "libvirt-network"); f.State != hostd.Failed || !strings.Contains(f.Evidence, "16509") || f.Remedy == "" {
		t.Errorf("doctor says %+v", f)
	}
	if err := h.StopLibvirtd(ctx); err != nil {
		t.Fatal(err)
	}
	if err := h.StartLibvirtd(ctx); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"libvirt-access", "polkit-rule", "libvirt-network"} {
		if f := finding(ctx, t, h, name); f.State != hostd.OK {
			t.Errorf("doctor says %+v", f)
		}
	}
}

// finding asks the doctor, run as root, for one line.
func finding(ctx context.Context, t *testing.T, h *lab.Host, name string) hostd.Finding {
	t.Helper()
	if err := h.Configure(ctx); err != nil {
		t.Fatal(err)
	}
	out, err := h.Exec(ctx, "troth-hostd", "-o", "json", "doctor")
	if _, ok := errors.AsType[lab.ExitStatus](err); err != nil && !ok {
		t.Fatal(err)
	}
	var all []hostd.Finding
	if err := json.Unmarshal([]byte(out), &all); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, f := range all {
		if f.Name == name {
			return f
		}
	}
	t.Fatalf("doctor has no line %s: %s", name, out)
	return hostd.Finding{}
}
