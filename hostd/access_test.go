package hostd

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"troth/systemd/polkit"
)

// machine is a made-up host on which libvirt's clients are bound as docs/polkit.md says.
func machine(t *testing.T) string {
	t.Helper()
	root := t.TempDir()
	for path, text := range map[string]string{
		"/etc/libvirt/libvirtd.conf":                 "# access_drivers = []\naccess_drivers = [ \"polkit\" ]\n",
		"/run/libvirt/libvirt-sock":                  "",
		"/run/libvirt/libvirt-sock-ro":               "",
		"/etc/polkit-1/rules.d/49-local.rules":       "",
		"/usr/share/polkit-1/rules.d/" + polkit.Name: string(polkit.Rules),
		polkit.Helper:      "",
		"/proc/stat":       fmt.Sprintf("cpu 1\nbtime %d\n", time.Now().Add(-time.Hour).Unix()),
		"/proc/net/tcp":    "  sl  local_address\n   0: 0100007F:0016 00000000:0000 0A 0 0 0 0 0 111 1\n",
		"/proc/40/comm":    "libvirtd\n",
		"/proc/40/cmdline": "/usr/sbin/libvirtd\x00--timeout\x00120\x00",
		"/proc/40/stat":    "40 (libvirtd) S 1 " + strings.Repeat("0 ", 17) + "460200 0\n", // 4602 s after boot
		"/proc/41/comm":    "bash\n",
	} {
		put(t, root, path, text)
	}
	if err := os.Chmod(root+polkit.Helper, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(root+"/proc/40/fd", 0o755); err != nil {
		t.Fatal(err)
	}
	for fd, to := range map[string]string{"0": "/dev/null", "7": "socket:[222]"} {
		if err := os.Symlink(to, root+"/proc/40/fd/"+fd); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func put(t *testing.T, root, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(root+path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(root+path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// modular makes it a host of modular daemons: libvirtd is gone, with its configuration and sockets.
func modular(t *testing.T, root string) {
	t.Helper()
	for _, gone := range []string{"/etc/libvirt/libvirtd.conf", "/run/libvirt/libvirt-sock", "/run/libvirt/libvirt-sock-ro"} {
		if err := os.Remove(root + gone); err != nil {
			t.Fatal(err)
		}
	}
	put(t, root, "/proc/40/comm", "virtqemud\n")
	put(t, root, "/etc/libvirt/virtqemud.conf", "access_drivers = [ \"polkit\" ]\n")
	put(t, root, "/run/libvirt/virtqemud-sock", "")
	put(t, root, "/run/libvirt/virtqemud-sock-ro", "")
}

// TestAccess breaks one thing at a time and expects one line to say so.
func TestAccess(t *testing.T) {
	conf, rule := "/etc/libvirt/libvirtd.conf", "/usr/share/polkit-1/rules.d/"+polkit.Name
	for _, c := range []struct {
		name   string
		breaks func(t *testing.T, root string)
		line   string // that is not OK; empty: all are
		says   string
	}{
		{"bound", func(*testing.T, string) {}, "", ""},
		{"no access driver", func(t *testing.T, root string) { put(t, root, conf, "#access_drivers = [ \"polkit\" ]\n") }, nameAccess, "may change trusted domains"},
		{"another access driver", func(t *testing.T, root string) { put(t, root, conf, `access_drivers = ["nop"]`) }, nameAccess, "nop"},
		{"set twice", func(t *testing.T, root string) {
			put(t, root, conf, "access_drivers = [\"polkit\"]\naccess_drivers = []\n")
		}, nameAccess, "more than once"},
		{"over lines", func(t *testing.T, root string) {
			put(t, root, conf, "access_drivers = [\n  # ours\n  'polkit',\n]\n")
		}, "", ""},
		{"no configuration", func(t *testing.T, root string) { os.Remove(root + conf) }, nameAccess, "no configuration"},
		{"another configuration", func(t *testing.T, root string) {
			put(t, root, "/proc/40/cmdline", "libvirtd\x00--config\x00/srv/other.conf\x00")
			put(t, root, "/srv/other.conf", "")
		}, nameAccess, "/srv/other.conf"},
		{"changed after the start", func(t *testing.T, root string) {
			put(t, root, "/proc/40/stat", "40 (libvirtd) S 1 "+strings.Repeat("0 ", 17)+"100 0\n")
		}, nameAccess, "has run since"},
		{"virtqemud", func(t *testing.T, root string) {
			put(t, root, "/proc/40/comm", "virtqemud\n")
			put(t, root, "/etc/libvirt/virtqemud.conf", "")
		}, nameAccess, "virtqemud.conf"},
		{"virtqemud, bound as libvirtd would be", func(t *testing.T, root string) { modular(t, root) }, "", ""},
		{"virtqemud runs, virtsecretd is called next", func(t *testing.T, root string) {
			modular(t, root)
			put(t, root, "/run/libvirt/virtsecretd-sock", "")
			put(t, root, "/etc/libvirt/virtsecretd.conf", "")
		}, nameAccess, "virtsecretd.conf"},
		{"virtstoraged runs", func(t *testing.T, root string) {
			modular(t, root)
			put(t, root, "/proc/41/comm", "virtstoraged\n")
			put(t, root, "/proc/41/cmdline", "/usr/sbin/virtstoraged\x00")
			put(t, root, "/proc/41/stat", "41 (virtstoraged) S 1 "+strings.Repeat("0 ", 17)+"460200 0\n")
			put(t, root, "/proc/41/fd/0", "")
			put(t, root, "/etc/libvirt/virtstoraged.conf", "")
		}, nameAccess, "virtstoraged.conf"},
		{"libvirtd runs, and virtqemud would be called", func(t *testing.T, root string) {
			put(t, root, "/run/libvirt/virtqemud-sock", "")
			put(t, root, "/etc/libvirt/virtqemud.conf", "")
		}, nameAccess, "virtqemud.conf"},
		{"virtqemud ended after its last client", func(t *testing.T, root string) {
			modular(t, root)
			put(t, root, "/proc/40/comm", "sleep\n")
		}, "", ""},
		{"nothing runs, virtqemud is called next", func(t *testing.T, root string) {
			put(t, root, "/proc/40/comm", "sleep\n")
			put(t, root, "/run/libvirt/virtqemud-sock", "")
			put(t, root, "/etc/libvirt/virtqemud.conf", "")
		}, nameAccess, "virtqemud.conf"},
		{"no rule", func(t *testing.T, root string) { os.Remove(root + rule) }, nameRule, "has no"},
		{"another rule", func(t *testing.T, root string) { put(t, root, rule, string(polkit.Rules)+"\n") }, nameRule, "SHA-256"},
		{"another rule of its name", func(t *testing.T, root string) { put(t, root, "/etc/polkit-1/rules.d/"+polkit.Name, "") }, nameRule, "SHA-256"},
		{"a rule before it", func(t *testing.T, root string) { put(t, root, "/etc/polkit-1/rules.d/00-all.rules", "") }, nameRule, "is asked before"},
		{"a file before it that is no rule", func(t *testing.T, root string) { put(t, root, "/etc/polkit-1/rules.d/00-all.bak", "") }, "", ""},
		{"no helper", func(t *testing.T, root string) { os.Remove(root + polkit.Helper) }, nameRule, "cannot run"},
		{"a helper that others write", func(t *testing.T, root string) {
			if err := os.Chmod(root+polkit.Helper, 0o777); err != nil {
				t.Fatal(err)
			}
		}, nameRule, "cannot run"},
		{"TCP", func(t *testing.T, root string) { put(t, root, "/proc/net/tcp6", listener("407D", "333")) }, nameNetwork, "port 16509"},
		{"TLS", func(t *testing.T, root string) { put(t, root, "/proc/net/tcp", listener("4082", "333")) }, nameNetwork, "port 16514"},
		{"another port", func(t *testing.T, root string) { put(t, root, "/proc/net/tcp", listener("1F90", "222")) }, nameNetwork, "libvirtd listens on port 8080"},
		{"descriptors that cannot be read", func(t *testing.T, root string) { os.RemoveAll(root + "/proc/40/fd") }, nameNetwork, "cannot look"},
	} {
		t.Run(c.name, func(t *testing.T) {
			root := machine(t)
			c.breaks(t, root)
			findings := Access{Root: root}.Findings()
			if len(findings) != 3 {
				t.Fatalf("%d findings", len(findings))
			}
			for _, f := range findings {
				if (f.State != OK) != (f.Name == c.line) {
					t.Errorf("%s is %s: %s", f.Name, f.State, f.Evidence)
				}
				if f.Name == c.line && (!strings.Contains(f.Evidence, c.says) || f.Remedy == "") {
					t.Errorf("%s says %q, remedy %q", f.Name, f.Evidence, f.Remedy)
				}
			}
		})
	}
}

func listener(port, inode string) string {
	return "  sl  local_address\n   0: 00000000:" + port + " 00000000:0000 0A 0 0 0 0 0 " + inode + " 1\n"
}

// TestAccessOfRootAlone: where only root can open libvirt's sockets, there is nobody to bind.
func TestAccessOfRootAlone(t *testing.T) {
	if testing.Short() {
		t.Skip("needs root, whose the sockets must be")
	}
	root := machine(t)
	put(t, root, "/etc/libvirt/libvirtd.conf", "")
	sockets := []string{"/run/libvirt/libvirt-sock", "/run/libvirt/libvirt-sock-ro"}
	for i, s := range sockets {
		if state := (Access{Root: root}).Findings()[0].State; state != Failed {
			t.Errorf("with %d sockets closed: %s", i, state)
		}
		if err := os.Chmod(root+s, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range (Access{Root: root}).Findings() {
		if f.State != OK {
			t.Errorf("%s is %s: %s", f.Name, f.State, f.Evidence)
		}
	}
}
