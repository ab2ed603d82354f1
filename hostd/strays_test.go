package hostd

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
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
func (launching) Ending(domain.UUID) bool  { return false }
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

// cutShort is a launcher that recovers one domain, and has another at work.
type cutShort struct {
	launching
	id domain.UUID
}

func (c cutShort) Ending(id domain.UUID) bool { return id == c.id }
func (cutShort) Holds(pid int, _ uint64) bool { return pid == 4713 }

// TestOverdue: of what libvirt was to end for a launch that was cut short the emulators are ended, also where the policy lets strays run, and no others.
func TestOverdue(t *testing.T) {
	id, other := domain.UUID{1}, domain.UUID{2}
	var ended []int
	s := &Strays{Policy: launcher.StrayReport, Grants: cutShort{id: id}, Log: slog.New(slog.DiscardHandler),
		Look: func(context.Context, func(emulator.File) bool) (*emulator.Scan, error) {
			return &emulator.Scan{Emulators: []*emulator.Process{
				{PID: 4710, Start: 1}, {PID: 4711, Start: 1, UUIDs: [][16]byte{id}}, {PID: 4712, Start: 1, UUIDs: [][16]byte{other}}, {PID: 4713, Start: 1, UUIDs: [][16]byte{id}},
			}}, nil
		},
		End: func(_ context.Context, pid int, start uint64, a emulator.Action) error {
			if a != emulator.Kill || start != 1 {
				t.Errorf("%v of process %d/%d", a, pid, start)
			}
			ended = append(ended, pid)
			return nil
		}}
	s.Overdue(t.Context())
	if !slices.Equal(ended, []int{4711}) {
		t.Errorf("ended %v", ended)
	}
}

// TestStraysAreAudited: every stray has one record, also one that the book does not know, and one that stays has no other until something else was done with it.
func TestStraysAreAudited(t *testing.T) {
	l, lines := auditLog(t)
	d := &Daemon{Audit: l}
	id, failed := domain.UUID{1}, error(nil)
	named := &emulator.Process{PID: 4711, Start: 1, Exe: "/usr/bin/qemu-system-x86_64", Named: true, UUIDs: [][16]byte{id}}
	holds := &emulator.Process{PID: 4712, Start: 1, Exe: "/usr/bin/qemu-system-x86_64", Named: true, Open: []emulator.File{{Path: "/disk", Dev: 7, Ino: 8}}}
	s := &Strays{Policy: launcher.StrayReport, Grants: stopped{}, Log: slog.New(slog.DiscardHandler), Note: d.strayed,
		Registry: func() (ask.Registry, error) {
			return ask.Registry{UUIDs: [][16]byte{id}, Volumes: []ask.Volume{{Path: "/disk", Dev: 7, Ino: 8}}}, nil
		},
		Live: func(context.Context, domain.UUID) ([]byte, error) { return []byte("<domain/>"), nil },
		Look: func(context.Context, func(emulator.File) bool) (*emulator.Scan, error) {
			return &emulator.Scan{Emulators: []*emulator.Process{named, holds}}, nil
		},
		End: func(context.Context, int, uint64, emulator.Action) error { return failed }}
	scan := func() {
		for range 3 {
			s.Scan(t.Context(), []domain.UUID{id})
		}
	}
	scan()
	s.Policy = launcher.StrayDestroy
	for _, why := range []string{"busy", "busy still"} {
		failed = errors.New(why)
		scan()
	}
	failed = nil
	scan()
	// Any user of the host can have as many processes as he likes.
	for pid := range 1000 {
		p := *named
		p.PID = 5000 + pid
		named = &p
		s.Scan(t.Context(), nil)
	}
	got := lines()
	record := func(uuid, done string) string {
		return `"stray","actor":"hostd","code":"grant-missing",` + uuid + `"route":"` + done + `"`
	}
	of := `"uuid":"` + id.String() + `",`
	for want, n := range map[string]int{
		record(of, "reported"): 1, // the domain; the process is its own
		record("", "reported"): 1, record("", "not ended"): 1, record("", "destroyed"): 1,
		record(of, "not ended"): 1, // the process
	} {
		if strings.Count(got, want) != n {
			t.Errorf("%d times %s, want %d", strings.Count(got, want), want, n)
		}
	}
	if strings.Count(got, record(of, "destroyed")) > 102 || !strings.Contains(got, `"stray","actor":"processes","code":"grant-missing","count":9`) || strings.Count(got, "\n") > 110 {
		t.Error(got)
	}
}

// stopped is a launcher that has nothing at work, and whose book knows no domain.
type stopped struct{ launching }

func (stopped) Granted(domain.UUID) bool { return false }
func (stopped) Settled(domain.UUID) bool { return true }
func (stopped) Ending(domain.UUID) bool  { return false }
func (stopped) EndStray(context.Context, domain.UUID, string) (bool, error) {
	return true, nil
}
