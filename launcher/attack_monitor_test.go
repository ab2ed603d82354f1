package launcher

import (
	"bytes"
	"strings"
	"testing"

	"troth/proof"
)

// testReachedWhilePaused: a monitor command on the guest that stands paused, or runs without a proof yet, is never part of what is proved, whenever it comes.
func testReachedWhilePaused(t *testing.T) {
	strike := func(w *world) func() {
		return func() {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.taints = append(w.taints, monitored)
		}
	}
	strikeAt := func(w *world, at string, f func()) {
		w.failAt(at, false, false)
		w.strike = f
	}
	refused := func(t *testing.T, w *world, refusal *proof.Refusal) {
		t.Helper()
		expect(t, refusal, proof.ConfigurationChanged)
		if !strings.Contains(refusal.Error(), "custom monitor") {
			t.Errorf("the refusal does not say what was done: %v", refusal)
		}
		for _, e := range w.entries {
			if strings.Contains(string(e), `"what":"proved"`) {
				t.Error("a proof is in the journal")
			}
		}
		w.gone(nil)
	}
	// The first look at what was done comes last of all comparisons, the second before the proof.
	for _, at := range []string{"live#1", "process#0", "taints#0", "live#2", "process#1", "taints#1"} {
		t.Run(at, func(t *testing.T) {
			w := newWorld(t)
			token := w.token()
			strikeAt(w, at, strike(w))
			_, refusal := w.launch(token)
			refused(t, w, refusal)
			w.heal()
			w.taints = nil
			if _, refusal := w.launch(token); refusal != nil {
				t.Fatal(refusal)
			}
			w.running(token)
		})
	}
	t.Run("another process before the proof", func(t *testing.T) {
		w := newWorld(t)
		strikeAt(w, "live#2", func() { w.process = func(p *Process) { p.Start++ } })
		_, refusal := w.launch(w.token())
		expect(t, refusal, proof.ConfigurationChanged)
		w.gone(nil)
	})
	t.Run("another definition before the proof", func(t *testing.T) {
		w := newWorld(t)
		strikeAt(w, "live#2", func() {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.live[guestUUID] = bytes.ReplaceAll(w.live[guestUUID], []byte("console=ttyS0"), []byte("init=/bin/sh"))
		})
		_, refusal := w.launch(w.token())
		expect(t, refusal, proof.ConfigurationChanged)
		w.gone(nil)
	})
	t.Run("once it is proved", func(t *testing.T) {
		w := newWorld(t)
		token := w.token()
		strikeAt(w, "journal proved#0", strike(w))
		if _, refusal := w.launch(token); refusal != nil {
			t.Fatal(refusal)
		}
		if err := w.l.Watch(t.Context(), guestUUID); err != nil {
			t.Fatal(err)
		}
		if d := w.l.Book.Domain(guestUUID); d.State != StateBroken {
			t.Errorf("the first look found nothing: %s", d.State)
		}
	})
	t.Run("what a start does by itself", func(t *testing.T) {
		w := newWorld(t)
		token := w.token()
		w.taints = []string{"tainted: running with undesirable elevated privileges", "tainted: potentially unsafe use of host CPU passthrough"}
		if _, refusal := w.launch(token); refusal != nil {
			t.Fatal(refusal)
		}
		w.running(token)
	})
	for _, at := range []string{"process#1", "taints#0", "taints#1"} {
		t.Run("a start by another client, "+at, func(t *testing.T) {
			s := newSim(t)
			if refusal := s.register(guestUUID, s.token); refusal != nil {
				t.Fatal(refusal)
			}
			seen := map[string]int{}
			s.world.around = func(name string, do func() error) error {
				s.world.mu.Lock()
				now := name + "#" + string(rune('0'+seen[name]))
				seen[name]++
				s.world.mu.Unlock()
				if now == at {
					strike(s.world)()
				}
				return do()
			}
			if err := s.world.startOther(guestUUID); err != nil {
				t.Fatal(err)
			}
			d := s.world.l.Book.Domain(guestUUID)
			if d.State != StateRefused || d.Refusal == nil || d.Refusal.Code != proof.ConfigurationChanged || !strings.Contains(d.Refusal.Error(), "custom monitor") || s.world.live[guestUUID] != nil {
				t.Fatalf("%s: %v, runs %v", d.State, d.Refusal, s.world.live[guestUUID] != nil)
			}
		})
	}
}
