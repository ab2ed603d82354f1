package virt_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	"troth/hooks/ask"
	"troth/launcher/virt"
)

// TestLaunch goes through steps 3, 4 and 6 of a launch.
func TestLaunch(t *testing.T) {
	n := newNode(t)
	v := n.virt
	w := v.Watch()
	defer w.Close()

	if _, err := v.InactiveXML(n.deadline(), uuid); !errors.Is(err, virt.ErrNoDomain) {
		t.Fatalf("before: %v", err)
	}
	must(t, v.Define(n.deadline(), n.xml(mark)))
	defined, err := v.InactiveXML(n.deadline(), uuid)
	must(t, err)
	must(t, v.Define(n.deadline(), defined))
	again, err := v.InactiveXML(n.deadline(), uuid)
	must(t, err)
	if !bytes.Equal(defined, again) {
		t.Errorf("what libvirt reads back is no fixed point:\n%s\n%s", defined, again)
	}
	if len(n.questions()) != 0 {
		t.Error("define ran the hook")
	}
	if _, err := v.LiveXML(n.deadline(), uuid); !errors.Is(err, virt.ErrState) {
		t.Errorf("live XML of what does not run: %v", err)
	}

	// Paused, with the launch id in the live XML alone; the hook calls back with it.
	must(t, v.CreatePaused(n.deadline(), bytes.Replace(defined, []byte(`urn:troth:launch:v1"`), []byte(`urn:troth:launch:v1" id="`+launchID+`"`), 1)))
	n.want("paused")
	id, err := hex.DecodeString(launchID)
	must(t, err)
	var ops []string
	for _, q := range n.questions() {
		ops = append(ops, q.Op.String())
		if !bytes.Equal(q.LaunchID[:], id) || !q.Flags.Has(ask.Marked) {
			t.Errorf("%v: launch id %x, flags %b", q.Op, q.LaunchID, q.Flags)
		}
	}
	if want := []string{"prepare", "start", "started"}; !slices.Equal(ops, want) {
		t.Errorf("the hook asked about %v, want %v", ops, want)
	}
	live, err := v.LiveXML(n.deadline(), uuid)
	must(t, err)
	inactive, err := v.InactiveXML(n.deadline(), uuid)
	must(t, err)
	if !bytes.Contains(live, []byte(launchID)) || bytes.Contains(inactive, []byte(launchID)) {
		t.Errorf("launch id: in live XML %v, in inactive XML %v", bytes.Contains(live, []byte(launchID)), bytes.Contains(inactive, []byte(launchID)))
	}
	if !bytes.Equal(inactive, defined) {
		t.Errorf("the start changed the definition:\n%s", inactive)
	}
	if err := v.CreatePaused(n.deadline(), n.xml(mark)); !errors.Is(err, virt.ErrState) {
		t.Errorf("created twice: %v", err)
	}

	checkProcess(t, n)
	must(t, v.Resume(n.deadline(), uuid))
	n.want("running")
	must(t, v.Pause(n.deadline(), uuid))
	n.want("paused")
	must(t, v.Resume(n.deadline(), uuid))
	must(t, v.Shutdown(n.deadline(), uuid)) // there is no guest to hear it
	list, err := v.List(n.deadline())
	must(t, err)
	if want := []virt.Domain{{UUID: uuid, Name: "-rf --x $(id) ..", State: "running", Persistent: true}}; !slices.Equal(list, want) {
		t.Errorf("list %+v, want %+v", list, want)
	}
	must(t, v.Destroy(n.deadline(), uuid))
	n.want("shutoff")
	must(t, v.Destroy(n.deadline(), uuid)) // nothing runs: nothing to do
	if _, err := virt.FindProcess(t.Context(), uuid, nil); !errors.Is(err, virt.ErrNoProcess) {
		t.Errorf("after destroy: %v", err)
	}
	n.heard(w, "stopped")
	must(t, v.Undefine(n.deadline(), uuid))
	n.heard(w, "undefined")
	for what, err := range map[string]error{
		"resume": v.Resume(n.deadline(), uuid), "destroy": v.Destroy(n.deadline(), uuid), "undefine": v.Undefine(n.deadline(), uuid),
	} {
		if !errors.Is(err, virt.ErrNoDomain) {
			t.Errorf("%s after undefine: %v", what, err)
		}
	}
}

// heard waits until the newest event of the domain is of that kind.
func (n *node) heard(w *virt.Watch, kind string) {
	n.t.Helper()
	for {
		events, _, err := w.Next(n.deadline())
		if err != nil {
			n.t.Fatalf("%s not heard: %v", kind, err)
		}
		for _, e := range events {
			if e.UUID == uuid && e.Kind == kind {
				return
			}
		}
	}
}

func checkProcess(t *testing.T, n *node) {
	t.Helper()
	p, err := virt.FindProcess(t.Context(), uuid, nil)
	must(t, err)
	if !strings.Contains(p.Exe, "qemu-system-x86_64") || p.UID != 0 || p.PID == 0 || p.Start == 0 || !slices.Contains(p.Args, "-S") {
		t.Errorf("process %+v", p)
	}
	var st syscall.Stat_t
	must(t, syscall.Stat(n.disk, &st))
	if !slices.ContainsFunc(p.Open, func(f virt.File) bool {
		return f.Dev == st.Dev && f.Ino == st.Ino && f.Path == n.disk && f.Size == st.Size && f.Writable
	}) {
		t.Errorf("the disk is not among the open files %+v", p.Open)
	}
	for option, path := range map[string]string{"-blockdev": n.disk, "-fw_cfg": n.secret} {
		must(t, syscall.Stat(path, &st))
		if !slices.ContainsFunc(p.Named, func(f virt.File) bool {
			return f.Option == option && f.Path == path && f.Dev == st.Dev && f.Ino == st.Ino
		}) {
			t.Errorf("%s %s is not among the named files %+v", option, path, p.Named)
		}
	}
	// The image swapped by rename: the open file is the old one, the name leads to the new one.
	fresh := n.disk + ".fresh"
	must(t, os.WriteFile(fresh, make([]byte, 1<<20), 0o600))
	must(t, os.Rename(fresh, n.disk))
	swapped, err := virt.FindProcess(t.Context(), uuid, nil)
	must(t, err)
	var now syscall.Stat_t
	must(t, syscall.Stat(n.disk, &now))
	open := slices.ContainsFunc(swapped.Open, func(f virt.File) bool { return f.Ino == now.Ino && f.Dev == now.Dev })
	named := slices.ContainsFunc(swapped.Named, func(f virt.File) bool { return f.Ino == now.Ino && f.Dev == now.Dev })
	if open || !named {
		t.Errorf("swapped image: open %v, named %v; want the old one open, the new one named", open, named)
	}
}
