package launcher

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"strings"
	"testing"

	"troth/launcher/domain"
	"troth/proof"
)

// sealedXML is the guest with a sealed disk.
func sealedXML(t *testing.T) []byte {
	return bytes.Replace(guestXML(t), []byte("<serial "), []byte("<disk type='file'><driver type='raw'/><source file='/images/data.luks'><encryption format='luks'/></source><target dev='vdb'/></disk><serial "), 1)
}

// sealedToken pins it, with the secret that opens it.
func (w *world) sealedToken(secret string) string {
	w.files["/images/data.luks"] = []byte("LUKS header")
	return w.token(func(t *proof.Token) {
		c, err := domain.Read(sealedXML(w.t), domain.Request)
		if err != nil {
			w.t.Fatal(err)
		}
		d := c.Digest()
		t.Pins.Configuration = &d
		t.Pins.Disks = []proof.Disk{{Target: "vdb", Mode: proof.DiskSealed, Digest: sha256.Sum256([]byte("LUKS header"))}}
		t.Secret = proof.NewSecret([]byte(secret))
		t.Saves = proof.SavesAllow
	})
}

func (w *world) launchSealed(token string) (*Outcome, *proof.Refusal) {
	launchNumber++
	return w.l.Launch(context.Background(), Request{ID: fmt.Sprint("sealed", launchNumber), Token: token, Domain: sealedXML(w.t), Action: proof.ActionStart}, quiet{})
}

// TestSealedDisk: libvirt has the key while QEMU starts, and at no other time; nothing else ever has it.
func TestSealedDisk(t *testing.T) {
	w := newWorld(t)
	token := w.sealedToken("the tenant's")
	key := string(proof.DiskKey(proof.NewSecret([]byte("the tenant's")), "vdb").Reveal())
	var during string
	w.strikeAt("create", func() { during = w.diskKeys[guestUUID+"/vdb"] })
	if _, refusal := w.launchSealed(token); refusal != nil {
		t.Fatal(refusal)
	}
	if during != key {
		t.Errorf("when QEMU started libvirt had the key %q", during)
	}
	w.running(token)
	for _, where := range append(w.entries, w.live[guestUUID], w.inactive[guestUUID]) {
		if bytes.Contains(where, []byte(key)) {
			t.Error("the key stands in XML or journal")
		}
	}
	if !bytes.Contains(w.inactive[guestUUID], []byte(domain.KeyID(mustUUID(guestUUID), "vdb").String())) {
		t.Error("the definition does not name hostd's secret")
	}
	// The next link opens it again, after the guest has written to it.
	if refusal := w.l.Stop(t.Context(), guestUUID); refusal != nil {
		t.Fatal(refusal)
	}
	if _, refusal := w.launchSealed(token); refusal != nil {
		t.Fatal(refusal)
	}
	w.running(token)
}

func TestSealedRefused(t *testing.T) {
	w := newWorld(t)
	token := w.sealedToken("the tenant's")
	w.files["/images/data.luks"] = []byte("another header")
	_, refusal := w.launchSealed(token)
	expect(t, refusal, proof.TokenConstraint)
	w.gone(nil)
	w = newWorld(t)
	token = w.sealedToken("the tenant's")
	w.strikeAt("create", func() { w.files["/images/data.luks"] = []byte("another header") })
	_, refusal = w.launchSealed(token)
	expect(t, refusal, proof.ImageChanged)
	w.gone(nil)
	w = newWorld(t)
	_, refusal = w.launchSealed(w.sealedToken(""))
	expect(t, refusal, proof.TokenConstraint)
	w.gone(nil)
	w = newWorld(t)
	xml := strings.Replace(string(sealedXML(t)), "<encryption format='luks'/>", "<encryption format='luks'><secret type='passphrase' uuid='"+guestUUID+"'/></encryption>", 1)
	_, refusal = w.l.Launch(t.Context(), Request{ID: "own", Token: w.sealedToken("x"), Domain: []byte(xml), Action: proof.ActionStart}, quiet{})
	expect(t, refusal, proof.ConfigurationNotAllowed)
}

// TestSealedFaults makes every call fail, and kills the daemon in every call: no key is left, and the next launch works.
func TestSealedFaults(t *testing.T) {
	plain := newWorld(t)
	if _, refusal := plain.launchSealed(plain.sealedToken("s")); refusal != nil {
		t.Fatal(refusal)
	}
	for _, call := range plain.calls {
		for n, mode := range [][2]bool{{false, false}, {true, false}, {false, true}, {true, true}} {
			w := newWorld(t)
			token := w.sealedToken("s")
			w.failAt(call, mode[0], mode[1])
			_, refusal := w.launchSealed(token)
			w.heal()
			if mode[1] {
				w.opened = 0
				w.restart()
			}
			if err := w.l.Recover(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := w.l.Tell(t.Context()); err != nil {
				t.Fatal(err)
			}
			if len(w.diskKeys) > 0 {
				t.Errorf("%s, %d: the key is left with libvirt (%v)", call, n, refusal)
			}
			if d := w.l.Book.Domain(guestUUID); d != nil && d.State == StateProved {
				w.running(token)
				continue
			}
			w.gone(nil)
			if _, refusal := w.launchSealed(token); refusal != nil {
				t.Errorf("%s, %d: the next honest launch: %v", call, n, refusal)
			}
		}
	}
}

// savedSealed is a world with a saved guest that has a sealed disk.
func savedSealed(t *testing.T) (w *world, token string) {
	t.Helper()
	w = newWorld(t)
	token = w.sealedToken("s")
	if _, refusal := w.launchSealed(token); refusal != nil {
		t.Fatal(refusal)
	}
	if refusal := w.l.Save(t.Context(), guestUUID); refusal != nil {
		t.Fatal(refusal)
	}
	if len(w.diskKeys) > 0 {
		t.Fatal("libvirt has the key of a guest that is saved")
	}
	return w, token
}

// TestSealedRestored: libvirt has the key while QEMU loads the image, and at no other time.
func TestSealedRestored(t *testing.T) {
	w, token := savedSealed(t)
	var during string
	w.strikeAt("restore", func() { during = w.diskKeys[guestUUID+"/vdb"] })
	if _, refusal := (&sim{world: w}).restore(guestUUID); refusal != nil {
		t.Fatal(refusal)
	}
	if want := string(proof.DiskKey(proof.NewSecret([]byte("s")), "vdb").Reveal()); during != want {
		t.Errorf("when QEMU loaded the image libvirt had the key %q", during)
	}
	w.running(token)
}

// TestSealedRestoreFaults makes every call of a restore fail, and kills the daemon in every call: no key is left, and the guest goes on, or is saved
// still, or can start afresh.
func TestSealedRestoreFaults(t *testing.T) {
	plain, _ := savedSealed(t)
	plain.heal()
	if _, refusal := (&sim{world: plain}).restore(guestUUID); refusal != nil {
		t.Fatal(refusal)
	}
	for _, call := range plain.calls {
		for n, mode := range [][2]bool{{false, false}, {true, false}, {false, true}, {true, true}} {
			w, token := savedSealed(t)
			w.failAt(call, mode[0], mode[1])
			_, refusal := (&sim{world: w}).restore(guestUUID)
			if !w.struck {
				t.Errorf("%s did not happen", call)
			}
			w.heal()
			if mode[1] {
				w.opened = 0
				w.restart()
			}
			if err := w.l.Recover(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := w.l.Tell(t.Context()); err != nil {
				t.Fatal(err)
			}
			if len(w.diskKeys) > 0 {
				t.Errorf("%s, %d: the key is left with libvirt (%v)", call, n, refusal)
			}
			var again *proof.Refusal
			switch w.l.Book.Domain(guestUUID).State {
			case StateProved:
			case StateSaved:
				_, again = (&sim{world: w}).restore(guestUUID)
			default:
				_, again = w.launchSealed(token)
			}
			if again != nil {
				t.Errorf("%s, %d: %v; and then: %v", call, n, refusal, again)
				continue
			}
			w.running(token)
		}
	}
}

// TestSweepKeys takes what no launch needs.
func TestSweepKeys(t *testing.T) {
	w := newWorld(t)
	w.diskKeys["11111111-4c55-4a53-9d5c-0d8b6f1f2a11/vda"] = "left"
	token := w.sealedToken("s")
	w.strikeAt("create", func() {
		if err := w.l.SweepKeys(context.Background()); err != nil {
			t.Error(err)
		}
		if len(w.diskKeys) != 1 || w.diskKeys[guestUUID+"/vdb"] == "" {
			t.Errorf("after a sweep libvirt has %d keys", len(w.diskKeys))
		}
	})
	if _, refusal := w.launchSealed(token); refusal != nil {
		t.Fatal(refusal)
	}
	w.running(token)
}
