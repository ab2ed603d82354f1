// Package units checks the systemd units with systemd's own tools, which need no running systemd.
package units

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const folder = "../../systemd"

// exposure is how open a unit may be by `systemd-analyze security`, times ten. It is what the unit has now: a line that opens it further fails.
var exposure = map[string]string{"troth-hostd.service": "28", "troth-reaper.service": "21", "troth-verifierd.service": "12"}

// stage copies units to a folder in which what they start exists, with libvirt's units as far as ours speak of them.
func stage(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	write := func(path, text string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, path)), 0o755); err != nil {
			t.Fatal(err)
		}
		mode := os.FileMode(0o644)
		if strings.HasPrefix(path, "bin/") {
			mode = 0o755
		}
		if err := os.WriteFile(filepath.Join(dir, path), []byte(text), mode); err != nil {
			t.Fatal(err)
		}
	}
	read := func(path string) string {
		t.Helper()
		b, err := os.ReadFile(filepath.Join(folder, path))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	services, err := filepath.Glob(filepath.Join(folder, "*.service"))
	if err != nil || len(services) == 0 {
		t.Fatalf("no units: %v", err)
	}
	write("bin/program", "#!/bin/sh\n")
	for _, s := range services {
		var out []string
		for line := range strings.Lines(read(filepath.Base(s))) {
			if key, command, ok := strings.Cut(line, "="); ok && strings.HasPrefix(key, "Exec") {
				_, args, _ := strings.Cut(command, " ")
				line = key + "=" + filepath.Join(dir, "bin/program") + " " + args
			}
			out = append(out, line)
		}
		write(filepath.Base(s), strings.Join(out, ""))
	}
	for _, d := range []string{"libvirtd", "virtqemud", "virtsecretd", "virtstoraged"} {
		write(d+".service", "[Service]\nExecStart=/bin/true\n")
		write(d+".service.d/troth.conf", read("libvirt/daemon.conf"))
	}
	for _, s := range []string{"libvirtd-tcp", "libvirtd-tls", "virtproxyd-tcp", "virtproxyd-tls"} {
		write(s+".socket", "[Socket]\nListenStream=16509\nService=libvirtd.service\n")
		write(s+".socket.d/troth.conf", read("libvirt/network.conf"))
	}
	return dir
}

func analyze(t *testing.T, dir string, args ...string) string {
	t.Helper()
	cmd := exec.Command("systemd-analyze", args...)
	cmd.Env = append(os.Environ(), "SYSTEMD_UNIT_PATH="+dir+":")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("systemd-analyze %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// TestUnitsVerify lets systemd read every unit and drop-in: an unknown key is only a line of its output.
func TestUnitsVerify(t *testing.T) {
	if testing.Short() {
		t.Skip("needs systemd-analyze")
	}
	dir := stage(t)
	var units []string
	for _, kind := range []string{"*.service", "*.socket"} {
		found, err := filepath.Glob(filepath.Join(dir, kind))
		if err != nil || len(found) < 4 {
			t.Fatalf("%d units %s, %v", len(found), kind, err)
		}
		units = append(units, found...)
	}
	for line := range strings.Lines(analyze(t, dir, append([]string{"verify", "--man=no", "--recursive-errors=no"}, units...)...)) {
		if strings.Contains(line, dir) || strings.Contains(line, "troth") {
			t.Error(strings.TrimSpace(line))
		}
	}
}

// TestUnitsAreBound holds each unit to the exposure that it has.
func TestUnitsAreBound(t *testing.T) {
	if testing.Short() {
		t.Skip("needs systemd-analyze")
	}
	dir := stage(t)
	units, err := filepath.Glob(filepath.Join(dir, "troth-*.service"))
	if err != nil {
		t.Fatal(err)
	}
	for _, u := range units {
		most, ok := exposure[filepath.Base(u)]
		if !ok {
			t.Errorf("%s: no exposure is noted for it here", filepath.Base(u))
			continue
		}
		analyze(t, dir, "security", "--no-pager", "--offline=true", "--threshold="+most, u)
	}
}

// TestHostdUnit: troth-hostd is no root, its capabilities are these, each for the reason that the unit gives, and nothing saves its registers on a stack.
func TestHostdUnit(t *testing.T) {
	b, err := os.ReadFile(filepath.Join(folder, "troth-hostd.service"))
	if err != nil {
		t.Fatal(err)
	}
	const named = "CAP_DAC_READ_SEARCH CAP_LEASE CAP_SYS_PTRACE CAP_CHOWN"
	for _, want := range []string{"User=troth", "Group=troth", "CapabilityBoundingSet=" + named, "AmbientCapabilities=" + named, "NoNewPrivileges=yes", "Environment=GODEBUG=asyncpreemptoff=1"} {
		if !strings.Contains(string(b), "\n"+want+"\n") {
			t.Errorf("the unit does not say %q", want)
		}
	}
}
