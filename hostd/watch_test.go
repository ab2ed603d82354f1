package hostd

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// installed makes a folder with a hook.
func installed(t *testing.T) (script string, in *Installed) {
	t.Helper()
	script = filepath.Join(t.TempDir(), "hooks", "qemu")
	if err := os.Mkdir(filepath.Dir(script), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(script, []byte("#!/bin/true\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	in, err := Inspect(script, nil)
	if err != nil {
		t.Fatal(err)
	}
	return script, in
}

// changes are what an attacker, or a package, does to the hook.
var changes = []struct {
	name string
	gone bool // libvirt would not run it
	do   func(script string) error
}{
	{"deleted", true, os.Remove},
	{"folder moved away", true, func(s string) error { return os.Rename(filepath.Dir(s), filepath.Dir(s)+".old") }},
	{"chmod -x", true, func(s string) error { return os.Chmod(s, 0o644) }},
	{"a folder in its place", true, func(s string) error {
		if err := os.Remove(s); err != nil {
			return err
		}
		return os.Mkdir(s, 0o755)
	}},
	{"another mode", false, func(s string) error { return os.Chmod(s, 0o700) }},
	{"overwritten with as many bytes", false, func(s string) error { return os.WriteFile(s, []byte("#!/bin/trux\n"), 0o755) }},
	{"overwritten, times put back", false, func(s string) error {
		info, err := os.Stat(s)
		if err != nil {
			return err
		}
		if err := os.WriteFile(s, []byte("#!/bin/trux\n"), 0o755); err != nil {
			return err
		}
		return os.Chtimes(s, info.ModTime(), info.ModTime())
	}},
	{"replaced by rename", false, func(s string) error {
		if err := os.WriteFile(s+".new", []byte("#!/bin/true\n"), 0o755); err != nil {
			return err
		}
		return os.Rename(s+".new", s)
	}},
	{"replaced by a link to itself", false, func(s string) error {
		if err := os.Rename(s, s+".real"); err != nil {
			return err
		}
		return os.Symlink(s+".real", s)
	}},
	{"moved away and back", false, func(s string) error {
		if err := os.Rename(s, s+".old"); err != nil {
			return err
		}
		return os.Rename(s+".old", s)
	}},
	{"entry in qemu.d", false, func(s string) error {
		if err := os.Mkdir(s+".d", 0o755); err != nil {
			return err
		}
		return os.WriteFile(s+".d/50-site", []byte("#!/bin/true\n"), 0o755)
	}},
}

// ticked waits until a change of a file has another time than these: until Linux 6.13 two within one tick (1 to 10 ms) have one.
func ticked(t *testing.T, past ...unix.Timespec) {
	t.Helper()
	other := filepath.Join(t.TempDir(), "other")
	for now := past[0]; slices.Contains(past, now); {
		if err := os.WriteFile(other, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := statHook(other)
		if err != nil {
			t.Fatal(err)
		}
		now = f.Changed
	}
}

// TestInspect: every change is seen by the next look.
func TestInspect(t *testing.T) {
	for _, c := range changes {
		script, before := installed(t)
		if again, err := Inspect(script, before); err != nil || before.differs(again) != nil {
			t.Fatalf("nothing changed: %v, %v", err, before.differs(again))
		}
		if !strings.Contains(c.name, "bytes") { // whose content is read again; all else shows by its time, which has to be another
			ticked(t, before.Folder.Changed, before.Hook.Changed)
		}
		if err := c.do(script); err != nil {
			t.Fatal(err)
		}
		after, err := Inspect(script, before)
		if n, is := err.(*NotLive); (err != nil) != c.gone || err != nil && (!is || n.Undecided) { //nolint:errorlint // Inspect wraps nothing
			t.Errorf("%s: %v", c.name, err)
		}
		if err == nil && before.differs(after) == nil {
			t.Errorf("%s: not seen", c.name)
		}
	}
}

func TestEntriesThatLibvirtRuns(t *testing.T) {
	script, _ := installed(t)
	for name, mode := range map[string]os.FileMode{"b": 0o755, "a": 0o700, "readme": 0o644} {
		if err := os.MkdirAll(script+".d/folder", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(script+".d", name), nil, mode); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("nowhere", script+".d/c"); err != nil {
		t.Fatal(err)
	}
	if in, err := Inspect(script, nil); err != nil || in.others() != `"a", "b"` {
		t.Errorf("%v, %v", in, err)
	}
}

// TestWatch: the kernel rings for each change, also for those after a folder was made anew.
func TestWatch(t *testing.T) {
	for _, c := range changes {
		script, _ := installed(t)
		m := newMachine()
		l := m.liveness()
		l.Script = script
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); l.watch(ctx, l.Log) }()
		<-l.kick // it listens
		l.mu.Lock()
		l.aim()
		l.mu.Unlock()
		if err := c.do(script); err != nil {
			t.Fatal(err)
		}
		select {
		case <-l.kick:
		case <-time.After(10 * time.Second):
			t.Errorf("%s: not heard", c.name)
		}
		cancel()
		<-done
		if !l.heardChange.Load() {
			t.Errorf("%s: the content would not be read again", c.name)
		}
	}
}
