package launcher

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"strings"
	"testing"
	"time"

	"troth/launcher/domain"
	"troth/proof"
)

// sign is the daemon's: with a TLS key.
func (w *world) sign(r *proof.TrustLost) ([]byte, error) {
	if w.tlsKey == nil {
		var err error
		if w.tlsKey, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
			return nil, err
		}
	}
	return r.Sign(w.tlsKey)
}

func (w *world) confirmation() proof.Digest {
	der, err := x509.MarshalPKIXPublicKey(&w.tlsKey.PublicKey)
	if err != nil {
		w.t.Fatal(err)
	}
	return sha256.Sum256(der)
}

// monitored is libvirt's word for a monitor command of another client.
const monitored = "tainted: custom monitor control commands issued"

func onTrustLost(reaction string) func(*proof.Token) {
	return func(t *proof.Token) { t.OnTrustLost = reaction }
}

// drifts are what an attacker does to a proved guest, with a word of what the report has to say.
var drifts = map[string]struct {
	strike func(w *world)
	says   string
}{
	"device attached": {func(w *world) {
		w.rewrite = func(xml []byte) []byte {
			return bytes.Replace(xml, []byte("</devices>"), []byte("<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='/etc/shadow'/><target dev='vdz' bus='virtio'/></disk></devices>"), 1)
		}
	}, "vdz"},
	"kernel updated": {func(w *world) {
		w.rewrite = func(xml []byte) []byte {
			return bytes.ReplaceAll(xml, []byte("console=ttyS0"), []byte("init=/bin/sh"))
		}
	}, "init=/bin/sh"},
	"mark stripped": {func(w *world) {
		w.rewrite = func(xml []byte) []byte {
			a, b := bytes.Index(xml, []byte("<metadata>")), bytes.Index(xml, []byte("</metadata>"))
			return append(bytes.Clone(xml[:a]), xml[b+len("</metadata>"):]...)
		}
	}, "mark"},
	"not allowed": {func(w *world) {
		w.rewrite = func(xml []byte) []byte {
			return bytes.Replace(xml, []byte("</devices>"), []byte("<hub type='usb'/></devices>"), 1)
		}
	}, "may not have"},
	"monitor command": {func(w *world) { w.taints = []string{monitored} }, "monitor"},
	"file opened": {func(w *world) {
		w.process = func(p *Process) { p.Open = append(p.Open, File{Path: "/srv/copy.raw", Dev: 9, Ino: 9}) }
	}, "/srv/copy.raw"},
}

func TestDrift(t *testing.T) {
	ctx := context.Background()
	for name, drift := range drifts {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			token := w.token()
			if _, refusal := w.launch(token); refusal != nil {
				t.Fatal(refusal)
			}
			for range 2 { // nothing has happened: nothing is found, by the first look and by one that knows the definition
				if err := w.l.Watch(ctx, guestUUID); err != nil {
					t.Fatal(err)
				}
			}
			w.running(token)
			drift.strike(w)
			w.restart() // the grant is in the journal
			if err := w.l.Watch(ctx, guestUUID); err != nil {
				t.Fatal(err)
			}
			if err := w.l.Tell(ctx); err != nil {
				t.Fatal(err)
			}
			d := w.l.Book.Domain(guestUUID)
			if d.State != StateBroken || d.Refusal == nil || !strings.Contains(d.Refusal.Error(), drift.says) {
				t.Fatalf("the domain is %s: %v", d.State, d.Refusal)
			}
			if c := w.chains[proof.TokenDigest(token)]; c.state != "broken" {
				t.Errorf("the chain is %s", c.state)
			}
			lost, err := proof.ParseTrustLost(d.Report, w.confirmation())
			if err != nil {
				t.Fatal(err)
			}
			if lost.Link != *d.Link || lost.Token != d.Token || lost.UUID != guestUUID || lost.Code != proof.ConfigurationChanged || lost.Reaction != proof.TrustLostReport {
				t.Errorf("the report is %+v", lost)
			}
			if w.live[guestUUID] == nil || w.paused[guestUUID] {
				t.Error("the tenant asked for a report alone")
			}
			// It stays broken, though the difference is taken back, until it is stopped; then it is launched anew.
			w.rewrite, w.taints, w.process = nil, nil, nil
			if err := w.l.Watch(ctx, guestUUID); err != nil {
				t.Fatal(err)
			}
			if w.l.Book.Domain(guestUUID).State != StateBroken {
				t.Error("a broken proof mended itself")
			}
			if refusal := w.l.Stop(ctx, guestUUID); refusal != nil {
				t.Fatal(refusal)
			}
			if d := w.l.Book.Domain(guestUUID); d.State != StateStopped || d.Refusal == nil || d.Report == nil {
				t.Errorf("stopped, the reason is gone: %+v", d)
			}
			if _, refusal := w.launch(token); refusal != nil {
				t.Fatal(refusal)
			}
			w.running(token)
			if d := w.l.Book.Domain(guestUUID); d.Report != nil || d.Refusal != nil {
				t.Error("the new launch has the old one's report")
			}
		})
	}
}

// TestTrustLost does what the tenant wants.
func TestTrustLost(t *testing.T) {
	ctx := context.Background()
	for reaction, want := range map[string]struct{ runs, paused bool }{
		proof.TrustLostReport: {true, false}, proof.TrustLostPause: {true, true}, proof.TrustLostDestroy: {false, false},
	} {
		t.Run(reaction, func(t *testing.T) {
			w := newWorld(t)
			token := w.token(onTrustLost(reaction))
			if _, refusal := w.launch(token); refusal != nil {
				t.Fatal(refusal)
			}
			w.taints = []string{monitored}
			look := func() {
				t.Helper()
				if err := w.l.Watch(ctx, guestUUID); err != nil {
					t.Fatal(err)
				}
				if runs := w.live[guestUUID] != nil; runs != want.runs || w.paused[guestUUID] != want.paused {
					t.Fatalf("runs %v, paused %v", runs, w.paused[guestUUID])
				}
			}
			look()
			if want.paused { // somebody resumes it
				id, err := domain.ParseUUID(guestUUID)
				if err != nil {
					t.Fatal(err)
				}
				if err := w.Resume(ctx, id); err != nil {
					t.Fatal(err)
				}
				look()
			}
			if !want.runs {
				if err := w.l.Gone(ctx, guestUUID, proof.Refuse(proof.NotRegistered, "ended")); err != nil {
					t.Fatal(err)
				}
				if err := w.l.Tell(ctx); err != nil {
					t.Fatal(err)
				}
				d := w.l.Book.Domain(guestUUID)
				if d.State != StateStopped || d.Refusal.Code != proof.ConfigurationChanged || w.chains[proof.TokenDigest(token)].state != "closed" {
					t.Errorf("after its end: %s, %v", d.State, d.Refusal)
				}
			}
		})
	}
}

// TestUnproven: a guest whose token says how long its host may be without a verdict. It runs on until then, and a verdict in time begins anew.
func TestUnproven(t *testing.T) {
	ctx := context.Background()
	for reaction, want := range map[string]struct{ runs, paused bool }{
		proof.TrustLostReport: {true, false}, proof.TrustLostPause: {true, true}, proof.TrustLostDestroy: {false, false},
	} {
		t.Run(reaction, func(t *testing.T) {
			w := newWorld(t)
			token := w.token(onTrustLost(reaction), func(t *proof.Token) { t.MaxUnproven = 30 })
			if _, refusal := w.launch(token); refusal != nil {
				t.Fatal(refusal)
			}
			look := func(without time.Duration) *Domain {
				t.Helper()
				w.boot = w.Proven() + without
				if err := w.l.Watch(ctx, guestUUID); err != nil {
					t.Fatal(err)
				}
				return w.l.Book.Domain(guestUUID)
			}
			for range 2 { // the second time after a verdict that came in time
				if d := look(30 * time.Second); d.State != StateProved {
					t.Fatalf("at its limit: %s, %v", d.State, d.Refusal)
				}
				w.attest()
			}
			d := look(31 * time.Second)
			if d.State != StateBroken || d.Refusal.Code != proof.VerdictMissing || !strings.Contains(d.Refusal.Error(), "31") {
				t.Fatalf("after its limit: %s, %v", d.State, d.Refusal)
			}
			if runs := w.live[guestUUID] != nil; runs != want.runs || w.paused[guestUUID] != want.paused {
				t.Errorf("runs %v, paused %v", runs, w.paused[guestUUID])
			}
			lost, err := proof.ParseTrustLost(d.Report, w.confirmation())
			if err != nil {
				t.Fatal(err)
			}
			if lost.Code != proof.VerdictMissing || lost.Reaction != reaction {
				t.Errorf("the report is %+v", lost)
			}
			if err := w.l.Tell(ctx); err != nil {
				t.Fatal(err)
			}
			if c := w.chains[proof.TokenDigest(token)]; c.state != "broken" {
				t.Errorf("the chain is %s", c.state)
			}
		})
	}
	t.Run("no limit", func(t *testing.T) {
		w := newWorld(t)
		if _, refusal := w.launch(w.token(onTrustLost(proof.TrustLostDestroy))); refusal != nil {
			t.Fatal(refusal)
		}
		w.boot = w.Proven() + 1000*time.Hour
		if err := w.l.Watch(ctx, guestUUID); err != nil {
			t.Fatal(err)
		}
		if d := w.l.Book.Domain(guestUUID); d.State != StateProved || w.live[guestUUID] == nil {
			t.Errorf("%s, %v", d.State, d.Refusal)
		}
	})
}

// TestDriftFaults makes every call of breaking a proof fail, before and after it took effect, and as a crash: the next look ends it.
func TestDriftFaults(t *testing.T) {
	ctx := context.Background()
	broken := func() (*world, string) {
		w := newWorld(t)
		token := w.token(onTrustLost(proof.TrustLostDestroy))
		if _, refusal := w.launch(token); refusal != nil {
			t.Fatal(refusal)
		}
		w.taints = []string{monitored}
		w.heal()
		return w, token
	}
	plain, _ := broken()
	if err := plain.l.Watch(ctx, guestUUID); err != nil {
		t.Fatal(err)
	}
	calls := plain.calls
	if len(calls) < 6 {
		t.Fatalf("only %v", calls)
	}
	for _, call := range calls {
		for _, mode := range []struct{ after, dead bool }{{false, false}, {true, false}, {false, true}, {true, true}} {
			w, token := broken()
			w.failAt(call, mode.after, mode.dead)
			if err := w.l.Watch(ctx, guestUUID); err == nil {
				t.Errorf("%s: the fault was not seen", call)
			}
			w.heal()
			if mode.dead {
				w.restart()
			}
			for range 2 { // the second look is of a guest that may have ended at the first
				if err := w.l.Watch(ctx, guestUUID); err != nil {
					t.Fatal(err)
				}
				if err := w.l.Gone(ctx, guestUUID, proof.Refuse(proof.NotRegistered, "ended")); err != nil {
					t.Fatal(err)
				}
			}
			if err := w.l.Tell(ctx); err != nil {
				t.Fatal(err)
			}
			if d := w.l.Book.Domain(guestUUID); w.live[guestUUID] != nil || d.State != StateStopped || w.chains[proof.TokenDigest(token)].state != "closed" {
				t.Errorf("%s %+v: %s, chain %s", call, mode, d.State, w.chains[proof.TokenDigest(token)].state)
			}
		}
	}
}

// TestReplaced: the proved process is gone, and libvirt runs another one under the UUID. That is no drift, since that guest was never granted.
func TestReplaced(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	token := w.token()
	if _, refusal := w.launch(token); refusal != nil {
		t.Fatal(refusal)
	}
	w.process = func(p *Process) { p.Start++ }
	if err := w.l.Watch(ctx, guestUUID); err != nil {
		t.Fatal(err)
	}
	id, err := domain.ParseUUID(guestUUID)
	if err != nil {
		t.Fatal(err)
	}
	if d := w.l.Book.Domain(guestUUID); d.State != StateStopped || d.Refusal.Code != proof.GrantMissing || w.l.Granted(id) {
		t.Fatalf("%s: %v", d.State, d.Refusal)
	}
	for policy, runs := range map[string]bool{StrayReport: true, StrayPause: true, StrayDestroy: false} {
		w.live[guestUUID] = []byte("<domain/>")
		if done, err := w.l.EndStray(ctx, id, policy); err != nil || !done || (w.live[guestUUID] != nil) != runs {
			t.Errorf("%s: done %v, %v, runs %v", policy, done, err, w.live[guestUUID] != nil)
		}
	}
	// A proved guest is never ended as a stray.
	w.process = nil
	delete(w.live, guestUUID)
	if _, refusal := w.launch(token); refusal != nil {
		t.Fatal(refusal)
	}
	if done, err := w.l.EndStray(ctx, id, StrayDestroy); done || err != nil {
		t.Errorf("a proved guest was ended: %v", err)
	}
	w.running(token)
}

// TestUnseenOnce: a guest whose process was not seen once is neither replaced nor a stray: it runs on, proved.
func TestUnseenOnce(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	token := w.token()
	if _, refusal := w.launch(token); refusal != nil {
		t.Fatal(refusal)
	}
	w.unseen = 1
	if err := w.l.Watch(ctx, guestUUID); err == nil {
		t.Error("what could not be decided was not said")
	}
	if ended, err := w.l.Stray(ctx, guestUUID); ended || err != nil {
		t.Fatal(err)
	}
	w.running(token)
	// libvirt has not noticed its end yet.
	w.unseen = 1
	w.around = func(name string, do func() error) error {
		if name != "runs" {
			return do()
		}
		w.mu.Lock()
		live := w.live[guestUUID]
		delete(w.live, guestUUID)
		w.mu.Unlock()
		err := do()
		w.mu.Lock()
		w.live[guestUUID] = live
		w.mu.Unlock()
		return err
	}
	if err := w.l.Watch(ctx, guestUUID); err != nil {
		t.Fatal(err)
	}
	w.around = nil
	w.running(token)
}
