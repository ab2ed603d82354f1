package hostd

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"

	"troth/launcher"
	"troth/launcher/domain"
)

// lateKeys is a libvirt that takes keys whenever it likes.
type lateKeys struct {
	launcher.Keys
	keys   map[domain.UUID]bool
	failed error
}

func (k *lateKeys) SweepKeys(_ context.Context, take func(domain.UUID) func()) error {
	for id := range k.keys {
		if release := take(id); release != nil && k.failed == nil {
			delete(k.keys, id)
			release()
		}
	}
	return k.failed
}

// TestSweepAgain: a key that comes late, after hostd has looked for keys once or has failed to, is taken back by the next look.
func TestSweepAgain(t *testing.T) {
	id, err := domain.ParseUUID("6a0f0a5e-4c55-4a53-9d5c-0d8b6f1f2a11")
	if err != nil {
		t.Fatal(err)
	}
	k := &lateKeys{keys: map[domain.UUID]bool{}, failed: errors.New("libvirtd hangs")}
	var log bytes.Buffer
	d := &Daemon{Launcher: &launcher.Launcher{Keys: k}, Log: slog.New(slog.NewTextHandler(&log, nil))}
	d.Launcher.Start()
	for range 3 {
		d.sweepKeys(t.Context())
	}
	if n := strings.Count(log.String(), "libvirtd hangs"); n != 1 {
		t.Errorf("told %d times that keys could not be looked for", n)
	}
	k.failed = nil
	for range 2 {
		k.keys[id] = true // came late
		d.sweepKeys(t.Context())
		if len(k.keys) > 0 {
			t.Fatal("the key is left with libvirt")
		}
	}
	if d.Launcher.Busy(id) {
		t.Error("the domain is still claimed")
	}
}
