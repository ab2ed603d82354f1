package hostd

import (
	"context"
	"log/slog"
	"testing"

	"troth/hooks/ask"
	"troth/launcher"
	"troth/launcher/domain"
	"troth/launcher/emulator"
	"troth/proof"
)

// launching is a launcher that has every domain at work.
type launching struct{}

func (launching) Granted(domain.UUID) bool { return true }
func (launching) Settled(domain.UUID) bool { return false }
func (launching) Holds(int, uint64) bool   { return false }
func (launching) EndStray(context.Context, domain.UUID, string) (bool, error) {
	return false, nil
}
func (launching) NoteStray(string, *proof.Refusal) error { return nil }

// TestTwinBesideLaunch: while a domain is launched its QEMU is left alone, and so is what may be its QEMU; a process of another user than QEMU's is not.
func TestTwinBesideLaunch(t *testing.T) {
	qemu, nobody := uint32(64055), uint32(65534)
	id := domain.UUID{1}
	for name, c := range map[string]struct {
		qemu, has *uint32
		ended     bool
	}{
		"QEMU's user":           {&qemu, &qemu, false},
		"another user":          {&qemu, &nobody, true},
		"QEMU's user not known": {nil, &nobody, false},
	} {
		ended := 0
		s := &Strays{Policy: launcher.StrayDestroy, QEMU: c.qemu, Grants: launching{}, Log: slog.New(slog.DiscardHandler),
			Registry: func() (ask.Registry, error) { return ask.Registry{UUIDs: [][16]byte{id}}, nil },
			Look: func(context.Context, func(emulator.File) bool) (*emulator.Scan, error) {
				return &emulator.Scan{Emulators: []*emulator.Process{{PID: 4711, Start: 1, UID: *c.has, Exe: "/tmp/qemu-system-x86_64", Named: true, UUIDs: [][16]byte{id}}}}, nil
			},
			End: func(_ context.Context, pid int, _ uint64, a emulator.Action) error {
				if pid != 4711 || a != emulator.Kill {
					t.Errorf("%s: %v of process %d", name, a, pid)
				}
				ended++
				return nil
			}}
		s.Scan(t.Context(), nil)
		if (ended == 1) != c.ended || ended > 1 {
			t.Errorf("%s: ended %d times", name, ended)
		}
	}
}
