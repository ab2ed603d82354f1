package bypass

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"troth/test/lab"
)

// TestOwnFiles: an operator with every right of libvirt reaches for what the gate stands on, on a host without a registry where no hostd runs: through a
// domain that nobody trusts, and through a storage pool. libvirt as root would open all of it.
func TestOwnFiles(t *testing.T) {
	l, h := host(t, lab.Options{Until: lab.Libvirt})
	ctx := deadline(t)
	for _, file := range []string{"/etc/troth/hostd.key", "/run/troth/guest/" + ours + ".secret", "/tmp/plain.img"} {
		if err := os.MkdirAll(filepath.Dir(h.Path(file)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(h.Path(file), make([]byte, 1<<20), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	try := func(name string, d lab.Domain) error {
		d.Name, d.UUID, d.ChannelPath = name, theirs, "/tmp/"+name+".sock"
		text := l.Guest.XML(d)
		if err := os.WriteFile(h.Path("/tmp/"+name+".xml"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := h.VirshAs(ctx, lab.Operator, "define", "/tmp/"+name+".xml"); err != nil {
			t.Fatal(err)
		}
		_, err := h.VirshAs(ctx, lab.Operator, "start", "--paused", name)
		if err == nil {
			_, derr := h.VirshAs(ctx, lab.Operator, "destroy", name)
			if derr != nil {
				t.Error(derr)
			}
		}
		if _, err := h.VirshAs(ctx, lab.Operator, "undefine", name); err != nil {
			t.Error(err)
		}
		return err
	}
	raw := func(file string) lab.Domain { return lab.Domain{Disks: []lab.Disk{{Source: file, Format: "raw"}}} }
	const chip = "<tpm model='tpm-tis'><backend type='passthrough'><device path='/dev/tpm0'/></backend></tpm>"
	for name, d := range map[string]lab.Domain{
		"key": raw("/etc/troth/hostd.key"), "secret": raw("/run/troth/guest/" + ours + ".secret"), "hook": raw("/etc/libvirt/hooks/qemu"),
		"fwcfg": {Sysinfo: "/run/troth/guest/" + ours + ".secret"}, "chip": {Extra: chip},
	} {
		if err := try(name, d); err == nil || !strings.Contains(err.Error(), "troth: refused: hostd-unreachable") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := try("plain", raw("/tmp/plain.img")); err != nil {
		t.Errorf("another disk: %v", err)
	}
	for pool, volume := range map[string]string{"/etc/troth": "hostd.key", "/run/troth/guest": ours + ".secret"} {
		name := filepath.Base(pool)
		if _, err := h.VirshAs(ctx, lab.Operator, "pool-create-as", name, "dir", "--target", pool); err != nil {
			t.Fatal(err)
		}
		for _, way := range [][]string{
			{"vol-download", "--pool", name, volume, "/tmp/stolen"}, {"vol-upload", "--pool", name, volume, "/tmp/plain.xml"}, {"vol-delete", "--pool", name, volume},
		} {
			if out, err := h.VirshAs(ctx, lab.Operator, way...); err == nil || !strings.Contains(out+err.Error(), denied) {
				t.Errorf("%q: %q, %v", way, out, err)
			}
		}
	}
}
