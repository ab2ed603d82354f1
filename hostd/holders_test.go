package hostd

import (
	"context"
	"errors"
	"testing"

	"troth/launcher"
	"troth/launcher/domain"
	"troth/launcher/emulator"
)

// TestHolders: who has a file open is told as the scan for strays would find it, and nobody else.
func TestHolders(t *testing.T) {
	id := domain.UUID{1}
	open := func(pid int, f emulator.File) *emulator.Process {
		return &emulator.Process{PID: pid, Start: 7, Exe: "/usr/bin/qemu-system-x86_64", Named: true, UUIDs: [][16]byte{id}, Open: []emulator.File{f}, Guest: true}
	}
	sameRoot := open(3, emulator.File{Path: "/images/a", Dev: 9, Ino: 9})
	sameRoot.SameRoot = true
	cat := open(5, emulator.File{Path: "/images/a", Dev: 1, Ino: 2})
	cat.Named = false
	scan := &emulator.Scan{Emulators: []*emulator.Process{
		open(1, emulator.File{Path: "/elsewhere/a", Dev: 1, Ino: 2}),
		open(2, emulator.File{Path: "/images/a", Dev: 9, Ino: 9}), // in a container: its own /images/a
		sameRoot,
		open(4, emulator.File{Path: "/images/b", Dev: 1, Ino: 3}),
	}, Others: []*emulator.Process{cat}, Unseen: 1, Why: "closed"}
	h := holders{func(_ context.Context, want func(emulator.File) bool) (*emulator.Scan, error) {
		if !want(emulator.File{Dev: 1, Ino: 2}) || want(emulator.File{Dev: 1, Ino: 3}) {
			t.Error("other files are looked for")
		}
		return scan, nil
	}}
	volumes := []launcher.Volume{{Path: "/images/a", Dev: 1, Ino: 2}}
	all, err := h.Holding(t.Context(), volumes)
	if err != nil || len(all) != 2 || all[0].PID != 1 || all[1].PID != 3 || all[0].Path != "/images/a" || all[0].Start != 7 || len(all[0].UUIDs) != 1 || all[0].UUIDs[0] != id {
		t.Errorf("%+v, %v", all, err)
	}
	h.look = func(context.Context, func(emulator.File) bool) (*emulator.Scan, error) {
		return nil, errors.New("no /proc")
	}
	if _, err := h.Holding(t.Context(), volumes); err == nil {
		t.Error("nobody could look, and nobody says so")
	}
}
