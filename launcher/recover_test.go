package launcher

import (
	"bytes"
	"context"
	"regexp"
	"strings"
	"testing"

	"troth/proof"
)

// TestRecoveryOfAnother: hostd was killed between the proof and the note that the guest runs, and what is found afterwards is not that guest: another launch id, another
// process, another memory, or somebody reached into it. It is not resumed, and nothing of it is left.
func TestRecoveryOfAnother(t *testing.T) {
	id := regexp.MustCompile(`id=["'][0-9a-f]{64}["']`)
	for name, strike := range map[string]func(w *world){
		"that guest": nil,
		"launch id": func(w *world) {
			was := id.Find(w.live[guestUUID])
			if was == nil {
				t.Fatal("the guest has no launch id")
			}
			w.live[guestUUID] = bytes.Replace(w.live[guestUUID], was, []byte(`id="`+strings.Repeat("ab", 32)+`"`), 1)
		},
		"process": func(w *world) { w.process = func(p *Process) { p.Start++ } },
		"memory":  func(w *world) { w.process = func(p *Process) { p.Loads = "-incoming" } },
		"open file": func(w *world) {
			w.process = func(p *Process) { p.Open = append(p.Open, File{Path: "/tmp/x", Dev: 9, Ino: 9}) }
		},
		"monitor command": func(w *world) { w.taints = []string{monitored} },
		"no grant": func(w *world) {
			for i := range w.entries {
				w.entries[i] = bytes.Replace(w.entries[i], []byte(`"grant":`), []byte(`"from_before":`), 1)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			token := w.token()
			w.failAt("resume#0", false, true)
			if _, refusal := w.launch(token); refusal == nil {
				t.Fatal("hostd was not killed")
			}
			w.heal()
			if strike != nil {
				strike(w)
			}
			w.restart()
			w.opened = 0 // what was held ended with hostd
			if err := w.l.Recover(context.Background()); err != nil {
				t.Fatal(err)
			}
			if strike == nil {
				w.running(token)
				return
			}
			w.gone(nil)
			if d := w.l.Book.Domain(guestUUID); d.Refusal.Code != proof.ConfigurationChanged && d.Refusal.Code != proof.GrantMissing {
				t.Errorf("the reason is %v", d.Refusal)
			}
			w.process, w.taints = nil, nil
			if _, refusal := w.launch(token); refusal != nil {
				t.Fatal(refusal)
			}
			w.running(token)
		})
	}
}

// TestRecoveryUndecided: a fault of libvirt or of the kernel while the guest is compared decides nothing, and the next recovery resumes it.
func TestRecoveryUndecided(t *testing.T) {
	for _, at := range []string{"live#0", "process#0", "taints#0", "resume#0"} {
		w := newWorld(t)
		token := w.token()
		w.failAt("resume#0", false, true)
		if _, refusal := w.launch(token); refusal == nil {
			t.Fatal("hostd was not killed")
		}
		w.heal()
		w.restart()
		w.opened = 0
		w.failAt(at, false, false)
		if err := w.l.Recover(context.Background()); err == nil || w.live[guestUUID] == nil {
			t.Fatalf("%s: %v, runs %v", at, err, w.live[guestUUID] != nil)
		}
		w.heal()
		if err := w.l.Recover(context.Background()); err != nil {
			t.Fatal(err)
		}
		w.running(token)
	}
}
