package hooks_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"troth/hooks"
	"troth/hooks/ask"
)

// TestRegistered asks in every state of the registry. Whatever is no answer ends with a status other than 0, which polkit's rule takes for 'ours'.
func TestRegistered(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "registry")
	image := filepath.Join(dir, "disk.img")
	for _, f := range []string{image, filepath.Join(dir, "other.img")} {
		if err := os.WriteFile(f, nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(image, filepath.Join(dir, "alias.img")); err != nil {
		t.Fatal(err)
	}
	const in, out = "6cf3a1f8-0f41-4f6e-9a5e-6f8f7a2b9c01", "6cf3a1f8-0f41-4f6e-9a5e-6f8f7a2b9c02"
	id := [16]byte{0x6c, 0xf3, 0xa1, 0xf8, 0x0f, 0x41, 0x4f, 0x6e, 0x9a, 0x5e, 0x6f, 0x8f, 0x7a, 0x2b, 0x9c, 0x01}
	write := func(r ask.Registry) func() error { return func() error { return ask.WriteRegistry(path, r) } }
	dev, ino := identity(t, image)
	registered := ask.Registry{UUIDs: [][16]byte{id}, Volumes: []ask.Volume{{Path: image, Dev: dev, Ino: ino}}}
	for _, c := range []struct {
		name     string
		registry func() error
		args     []string
		says     string // empty: no answer
	}{
		{"no registry", func() error { return nil }, []string{"domain", in}, "untrusted\n"},
		{"no registry", func() error { return nil }, []string{"volume", image}, "untrusted\n"},
		{"no registry", func() error { return nil }, []string{"volume", "/run/troth/guest/" + in + ".secret"}, "registered\n"},
		{"no registry", func() error { return nil }, []string{"volume", "pool/etc/troth/hostd.key"}, "registered\n"},
		{"registered", write(registered), []string{"domain", in}, "registered\n"},
		{"registered", write(registered), []string{"domain", out}, "untrusted\n"},
		{"registered", write(registered), []string{"volume", image}, "registered\n"},
		{"registered", write(registered), []string{"volume", dir + "/./disk.img"}, "registered\n"},
		{"registered", write(registered), []string{"volume", dir + "/alias.img"}, "registered\n"},
		{"registered", write(registered), []string{"volume", "disk.img"}, "registered\n"},
		{"registered", write(registered), []string{"volume", "pool" + image}, "registered\n"},
		{"registered", write(registered), []string{"volume", "kZq3Pv-1a2b", "disk.img"}, "registered\n"}, // of a logical pool
		{"registered", write(registered), []string{"volume", "made-up", "other.img"}, "untrusted\n"},
		{"registered", write(registered), []string{"volume", image, "other.img"}, "registered\n"},
		{"registered", write(registered), []string{"volume", dir + "/other.img"}, "untrusted\n"},
		{"registered", write(registered), []string{"volume", "other.img"}, "untrusted\n"},
		{"all", write(ask.Registry{All: true}), []string{"domain", out}, "registered\n"},
		{"damaged", func() error { return os.WriteFile(path, []byte("troth registry 1\n"), 0o644) }, []string{"domain", out}, "registered\n"},
		{"damaged", func() error { return os.WriteFile(path, nil, 0o644) }, []string{"volume", "other.img"}, "registered\n"},
		{"writable by others", func() error { return os.Chmod(path, 0o666) }, []string{"domain", out}, "registered\n"},
		{"no question", write(registered), nil, ""},
		{"no question", write(registered), []string{"domain"}, ""},
		{"no question", write(registered), []string{"domain", in, in}, ""},
		{"no question", write(registered), []string{"host", in}, ""},
		{"no UUID", write(registered), []string{"domain", strings.ReplaceAll(in, "-", "")}, ""},
		{"no UUID", write(registered), []string{"domain", ""}, ""},
		{"no volume", write(registered), []string{"volume", ""}, ""},
		{"no volume", write(registered), []string{"volume", "made-up", ""}, ""},
		{"no volume", write(registered), []string{"volume", "made-up", "other.img", "more"}, ""},
	} {
		if err := c.registry(); err != nil {
			t.Fatal(err)
		}
		var said strings.Builder
		status := hooks.Gate{Registry: path}.Registered(c.args, &said)
		if said.String() != c.says || (status == 0) != (c.says != "") {
			t.Errorf("%s: %q: says %q and ends %d", c.name, c.args, said.String(), status)
		}
	}
}

// TestRegisteredProgram runs the real one, whose path to the registry is fixed.
func TestRegisteredProgram(t *testing.T) {
	program := filepath.Join(t.TempDir(), "troth-registered")
	build := exec.Command("go", "build", "-o", program, "troth/cmd/troth-registered")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if err := os.MkdirAll(filepath.Dir(hooks.RegistryPath), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := ask.WriteRegistry(hooks.RegistryPath, ask.Registry{UUIDs: [][16]byte{{1}}}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Remove(hooks.RegistryPath) })
	for id, want := range map[string]string{"01000000-0000-0000-0000-000000000000": "registered\n", "02000000-0000-0000-0000-000000000000": "untrusted\n"} {
		if out, err := exec.Command(program, "domain", id).Output(); err != nil || string(out) != want {
			t.Errorf("%s: %q, %v", id, out, err)
		}
	}
	if out, err := exec.Command(program).Output(); err == nil || len(out) > 0 {
		t.Errorf("without a question: %q, %v", out, err)
	}
}
