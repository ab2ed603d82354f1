package bypass

import (
	"context"
	"encoding/xml"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"troth/hooks/ask"
	"troth/test/lab"
)

const (
	ours   = "6cf3a1f8-0f41-4f6e-9a5e-6f8f7a2b9c01"
	theirs = "6cf3a1f8-0f41-4f6e-9a5e-6f8f7a2b9c02"
	denied = "denied access" // libvirt's own words (VIR_ERR_ACCESS_DENIED)
)

// pair is a host with two running guests, of which one will be registered; an operator with all rights of libvirt started both.
func pair(t *testing.T) (context.Context, *lab.Host) {
	t.Helper()
	l, h := host(t, lab.Options{Until: lab.Libvirt})
	ctx := deadline(t)
	for name, id := range map[string]string{"ours": ours, "theirs": theirs} {
		disk := "/tmp/" + name + ".img"
		if err := os.WriteFile(h.Path(disk), make([]byte, 2<<20), 0o666); err != nil {
			t.Fatal(err)
		}
		graphics := "    <graphics type='vnc' socket='/tmp/" + name + ".vnc'/>\n    <video>\n      <model type='vga'/>\n    </video>\n"
		text := l.Guest.XML(lab.Domain{Name: name, UUID: id, Disks: []lab.Disk{{Source: disk, Format: "raw"}}, Extra: graphics, ChannelPath: "/tmp/" + name + ".sock"})
		// A console that can be opened, in place of the file.
		text = strings.ReplaceAll(text, "<serial type='file'>\n      <source path='"+lab.ConsolePath(name)+"'/>", "<serial type='pty'>")
		text = strings.ReplaceAll(text, "<console type='file'>\n      <source path='"+lab.ConsolePath(name)+"'/>", "<console type='pty'>")
		if err := os.WriteFile(h.Path("/tmp/"+name+".xml"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		for _, c := range [][]string{{"define", "/tmp/" + name + ".xml"}, {"start", name}} {
			if _, err := h.VirshAs(ctx, lab.Operator, c...); err != nil {
				t.Fatal(err)
			}
		}
	}
	extra := "<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='/tmp/extra.img'/><target dev='vdy' bus='virtio'/></disk>"
	for file, text := range map[string]string{"/tmp/device.xml": extra, "/tmp/extra.img": string(make([]byte, 1<<20))} {
		if err := os.WriteFile(h.Path(file), []byte(text), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	register(t, h, ask.Registry{UUIDs: uuids(t, ours)})
	return ctx, h
}

// reach compiles testdata/reach.c into a host and returns the words that run it as a user.
func reach(t *testing.T, h *lab.Host) func(user, what, domain string) []string {
	t.Helper()
	flags, err := exec.Command("pkg-config", "--cflags", "--libs", "libvirt").Output()
	if err != nil {
		t.Fatal(err)
	}
	argv := append([]string{"-Wall", "-Werror", "-o", h.Path("/tmp/reach"), "testdata/reach.c"}, strings.Fields(string(flags))...)
	if out, err := exec.Command("gcc", argv...).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return func(user, what, domain string) []string { return lab.As(user, "/tmp/reach", what, domain) }
}

// refusals counts the lines in which polkit's rule says that it refused a permission on a domain.
func refusals(t *testing.T, h *lab.Host, permission, id string) int {
	t.Helper()
	text, err := os.ReadFile(h.Log("polkitd"))
	if err != nil {
		t.Fatal(err)
	}
	return strings.Count(string(text), fmt.Sprintf("troth: refused %s domain.%s of %s (registered)", lab.Operator, permission, id))
}

// TestAttack goes every way that libvirt offers to a client with all its rights: on a registered guest each is refused for the
// permission that it needs; on another guest none is.
func TestAttack(t *testing.T) {
	ctx, h := pair(t)
	// Whatever the way does to a guest that it may touch, libvirt has not denied it.
	compare := func(t *testing.T, permission string, run func(domain string) (string, error), alone bool) {
		t.Helper()
		before := refusals(t, h, permission, ours)
		out, err := run("ours")
		if err == nil || !strings.Contains(out+err.Error(), denied) {
			t.Errorf("on a registered guest: %q, %v", out, err)
		}
		if n := refusals(t, h, permission, ours); n <= before {
			t.Errorf("the rule has not refused %s", permission)
		}
		if alone {
			return
		}
		if out, err := run("theirs"); err != nil && strings.Contains(out+err.Error(), denied) {
			t.Errorf("on another guest: %q, %v", out, err)
		}
	}
	tried := map[string]bool{}
	try := func(t *testing.T, only func(Way) bool) {
		t.Helper()
		n := 0
		for _, w := range Held() {
			if !only(w) || tried[w.Name] {
				continue
			}
			tried[w.Name] = true
			n++
			t.Run(w.Name, func(t *testing.T) {
				compare(t, w.Permission, func(domain string) (string, error) {
					return h.VirshAs(ctx, lab.Operator, w.For(domain, "/tmp/"+domain+".xml", "/tmp")...)
				}, w.Ends)
			})
		}
		if n == 0 {
			t.Error("no way was tried")
		}
	}
	t.Run("L-MEMREAD", func(t *testing.T) {
		by := reach(t, h)
		for _, what := range []string{"mem-read", "block-read", "open-graphics", "open-device"} {
			t.Run(what, func(t *testing.T) {
				compare(t, what, func(domain string) (string, error) { return h.Exec(ctx, by(lab.Operator, what, domain)...) }, false)
			})
		}
		try(t, func(w Way) bool {
			return slices.Contains([]string{"core-dump", "hibernate", "screenshot", "read-secure", "migrate"}, w.Permission)
		})
	})
	t.Run("L-QMP", func(t *testing.T) {
		try(t, func(w Way) bool {
			return slices.Contains([]string{"qemu-monitor-command", "qemu-agent-command"}, w.Args[0])
		})
	})
	t.Run("L-HOTPLUG", func(t *testing.T) {
		try(t, func(w Way) bool {
			return slices.Contains([]string{"write", "block-write", "snapshot", "checkpoint"}, w.Permission) && !strings.HasPrefix(w.Args[0], "qemu-")
		})
	})
	t.Run("L-STEAL", func(t *testing.T) {
		try(t, func(w Way) bool {
			return slices.Contains([]string{"suspend", "reset", "delete"}, w.Permission)
		})
	})
	t.Run("rest", func(t *testing.T) { try(t, func(Way) bool { return true }) })
	t.Run("L-SOCK", func(t *testing.T) { sockets(ctx, t, h) })

	t.Run("left", func(t *testing.T) {
		// Nobody has harmed the guest by all this; who may look still may; hostd's user may all; an emergency stop remains.
		if out, err := h.VirshAs(ctx, lab.Operator, "domstate", "ours"); err != nil || strings.TrimSpace(out) != "running" {
			t.Errorf("domstate: %q, %v", out, err)
		}
		if _, err := h.VirshAs(ctx, lab.Stranger, "destroy", "ours"); err == nil {
			t.Error("a stranger ends a guest")
		}
		for _, c := range [][]string{{"suspend", "ours"}, {"resume", "ours"}, {"dumpxml", "ours", "--security-info"}, {"define", "/tmp/ours.xml"}} {
			if _, err := h.Exec(ctx, append([]string{"setpriv", "--reuid", lab.Hostd, "--regid", lab.Hostd, "--groups", "libvirt", "--inh-caps=-all", "--bounding-set=-all", "--",
				"virsh", "-q", "-c", "qemu:///system"}, c...)...); err != nil {
				t.Error(err)
			}
		}
		if _, err := h.VirshAs(ctx, lab.Operator, "destroy", "ours"); err != nil {
			t.Errorf("the operator's emergency stop: %v", err)
		}
		if _, err := h.VirshAs(ctx, lab.Operator, "start", "ours"); err == nil || !strings.Contains(err.Error(), denied) {
			t.Errorf("the operator starts a registered guest: %v", err)
		}
	})
}

// permissions reads what libvirt can ask polkit about a class of objects.
func permissions(t *testing.T, h *lab.Host, class string) []string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(h.Path("/share-polkit"), "actions/org.libvirt.api.policy"))
	if err != nil {
		t.Fatal(err)
	}
	var policy struct {
		Actions []struct {
			ID string `xml:"id,attr"`
		} `xml:"action"`
	}
	if err := xml.Unmarshal(text, &policy); err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, a := range policy.Actions {
		if p, ok := strings.CutPrefix(a.ID, "org.libvirt.api."+class+"."); ok {
			out = append(out, p)
		}
	}
	return out
}
