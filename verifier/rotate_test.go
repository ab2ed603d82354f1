package verifier

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"troth/proof"
)

func (w *world) keyDir() string { return filepath.Join(w.path, "keys") }

// rotated makes new keys on the disk and has the verifier that runs take them.
func (w *world) rotated(r Rotation) *proof.KeySet {
	w.t.Helper()
	root := must[*proof.SigningKey](w.t)(proof.ParseSigningKey(must[[]byte](w.t)(os.ReadFile(filepath.Join(w.keyDir(), fileRoot)))))
	set := must[*proof.KeySet](w.t)(RotateKeys(w.keyDir(), root, r, time.Now()))
	check(w.t, w.SetKeys(must[*Keys](w.t)(LoadKeys(w.keyDir()))))
	return set
}

// trust is what a tenant has who renewed the trust file now.
func (w *world) trust() *proof.Trust {
	w.t.Helper()
	return must[*proof.Trust](w.t)(proof.ParseTrust(must[[]byte](w.t)(os.ReadFile(filepath.Join(w.keyDir(), fileTrust)))))
}

// attackRotate renews the keys while hosts attest and launch without a pause: nobody is refused anything, and nothing that was good is bad afterwards.
func attackRotate(t *testing.T) {
	w := newWorld(t)
	var hosts []*host
	for n := range 3 {
		hosts = append(hosts, newHost(t, n+1))
		w.good(hosts[n])
	}
	before := w.trust()
	first := w.mustAttest(hosts[0])
	old := w.newAsk(hosts[0], first, nil)
	stop := make(chan struct{})
	var work sync.WaitGroup
	for _, h := range hosts {
		work.Go(func() {
			for {
				a, err := w.attest(h)
				if err != nil {
					t.Errorf("%s: %v", h.name, err)
					return
				}
				ask := w.newAsk(h, a, nil)
				r, err := w.releaseTo(h, ask, nil)
				if err != nil {
					t.Errorf("%s: %v", h.name, err)
					return
				}
				// Whoever has the key of the verdict has the receipt's.
				keys := must[*proof.VerdictKeys](t)(must[*proof.KeySet](t)(proof.ParseKeySet(w.KeySet())).Keys())
				must[*proof.Verdict](t)(proof.ParseVerdict(a.JWS, keys))
				must[*proof.Receipt](t)(proof.ParseReceipt(r.Receipt, keys))
				select {
				case <-stop:
					return
				default:
				}
			}
		})
	}
	for n := range 5 {
		if set := w.rotated(Rotation{Verdict: true, Token: true}); len(set.VerdictKeys) != n+2 || len(set.TokenKeys) != n+2 {
			t.Fatalf("%d verdict keys, %d token keys", len(set.VerdictKeys), len(set.TokenKeys))
		}
	}
	close(stop)
	work.Wait()
	// A verdict and a token of the first keys are good still, with a receipt that a host or tenant can check who knows those alone.
	r := must[*Release](t)(w.releaseTo(hosts[0], old, nil))
	keys := must[*proof.VerdictKeys](t)(must[*proof.KeySet](t)(before.KeySet()).Keys())
	must[*proof.Receipt](t)(proof.ParseReceipt(r.Receipt, keys))
	now := w.trust()
	if _, err := proof.ParseVerdict(first.JWS, must[*proof.VerdictKeys](t)(must[*proof.KeySet](t)(now.KeySet()).Keys())); err != nil {
		t.Errorf("an old verdict by the new trust file: %v", err)
	}
	if now.Root.KeyID != before.Root.KeyID || now.AllowSoftwareTPM != before.AllowSoftwareTPM {
		t.Errorf("the trust file has changed: %+v", now)
	}
	// After a restart too.
	second := w.mustAttest(hosts[0])
	check(t, w.flush(t.Context()))
	w.open()
	must[*Release](t)(w.releaseTo(hosts[0], w.newAsk(hosts[0], second, nil), nil))
}

// attackCompromise has somebody hold the verdict key and the token key: once they are revoked, neither is good for anything.
func attackCompromise(t *testing.T) {
	w, h := newWorld(t), newHost(t, 1)
	w.good(h)
	stolen := w.keys.Load()
	verdict := w.mustAttest(h)
	ask := w.newAsk(h, verdict, nil)
	old := must[*proof.KeySet](t)(proof.ParseKeySet(w.KeySet()))
	set := w.rotated(Rotation{Revoke: []string{old.VerdictKeys[0].KeyID, old.TokenKeys[0].KeyID}})
	if len(set.VerdictKeys) != 1 || len(set.TokenKeys) != 1 || set.VerdictKeys[0].KeyID == old.VerdictKeys[0].KeyID || set.TokenKeys[0].KeyID == old.TokenKeys[0].KeyID {
		t.Fatalf("the set is %+v", set)
	}
	for _, name := range []string{fileVerdict, fileToken} {
		if _, err := os.Stat(filepath.Join(w.keyDir(), name)); !os.IsNotExist(err) {
			t.Errorf("%s is there still: %v", name, err)
		}
	}
	// The token was made for the stolen key, and the verdict by it.
	_, err := w.releaseTo(h, ask, nil)
	refused(t, err, proof.TokenInvalid, "kid")
	_, err = w.releaseTo(h, w.newAsk(h, verdict, nil), nil)
	refused(t, err, proof.VerdictStale, "")
	// A verdict that the thief signs is none for a tenant who renewed.
	forged := must[string](t)(proof.SignVerdict(verdict.Verdict, stolen.Verdict))
	keys := must[*proof.VerdictKeys](t)(must[*proof.KeySet](t)(w.trust().KeySet()).Keys())
	if _, err := proof.ParseVerdict(forged, keys); err == nil || !strings.Contains(err.Error(), "no trusted key") {
		t.Errorf("a verdict by the stolen key: %v", err)
	}
	// Nor can the thief have the old set back, nor one of another root.
	if err := w.SetKeys(stolen); err == nil || !strings.Contains(err.Error(), "older") {
		t.Errorf("the old key set: %v", err)
	}
	other := newWorld(t)
	if err := w.SetKeys(other.keys.Load()); err == nil || !strings.Contains(err.Error(), "root") {
		t.Errorf("keys of another root: %v", err)
	}
	// Honest work goes on with the next evidence, also after a restart.
	must[*Release](t)(w.releaseTo(h, w.newAsk(h, w.mustAttest(h), nil), nil))
	check(t, w.flush(t.Context()))
	w.open()
	_, err = w.releaseTo(h, w.newAsk(h, verdict, nil), nil)
	refused(t, err, proof.VerdictStale, "")
	must[*Release](t)(w.releaseTo(h, w.newAsk(h, w.mustAttest(h), nil), nil))
}

// TestRotateKeys: what cannot be done changes nothing, and a crash before the new set has the name neither.
func TestRotateKeys(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "keys")
	check(t, InitKeys(dir, "auditor.example", false, time.Now()))
	read := func(name string) []byte { return must[[]byte](t)(os.ReadFile(filepath.Join(dir, name))) }
	root := must[*proof.SigningKey](t)(proof.ParseSigningKey(read(fileRoot)))
	set, trust := string(read(fileKeySet)), string(read(fileTrust))
	unchanged := func() {
		t.Helper()
		must[*Keys](t)(LoadKeys(dir))
		if string(read(fileKeySet)) != set || string(read(fileTrust)) != trust {
			t.Fatal("the key set has changed")
		}
	}
	other := must[*proof.SigningKey](t)(proof.GenerateSigningKey())
	for want, f := range map[string]func() (*proof.KeySet, error){
		"tenants pinned": func() (*proof.KeySet, error) { return RotateKeys(dir, other, Rotation{Verdict: true}, time.Now()) },
		"names no": func() (*proof.KeySet, error) {
			return RotateKeys(dir, root, Rotation{Revoke: []string{"x"}}, time.Now())
		},
	} {
		if _, err := f(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want %q, got %v", want, err)
		}
		unchanged()
	}
	// A crash after the private keys were written.
	must[*proof.SigningKey](t)(newKeyFile(dir, fileVerdict, proof.GenerateSigningKey))
	unchanged()
	// A set whose time is over: the service does not start, and rotating mends it.
	late := time.Now().Add(-keySetValidity - time.Hour)
	expired := filepath.Join(t.TempDir(), "keys")
	check(t, InitKeys(expired, "auditor.example", false, late))
	if _, err := LoadKeys(expired); err == nil || !strings.Contains(err.Error(), "keys rotate") {
		t.Errorf("an expired set: %v", err)
	}
	root = must[*proof.SigningKey](t)(proof.ParseSigningKey(must[[]byte](t)(os.ReadFile(filepath.Join(expired, fileRoot)))))
	must[*proof.KeySet](t)(RotateKeys(expired, root, Rotation{Token: true}, time.Now()))
	k := must[*Keys](t)(LoadKeys(expired))
	if len(k.Token) != 2 || len(k.Former) != 0 {
		t.Errorf("%d token keys, %d former verdict keys", len(k.Token), len(k.Former))
	}
	// 64 keys of a kind are the most that a set may name.
	for n := range 63 {
		if _, err := RotateKeys(expired, root, Rotation{Verdict: true}, time.Now()); err != nil {
			t.Fatal(fmt.Errorf("rotation %d: %w", n, err))
		}
	}
	if _, err := RotateKeys(expired, root, Rotation{Verdict: true}, time.Now()); err == nil || !strings.Contains(err.Error(), "1-64") {
		t.Errorf("a 65th key: %v", err)
	}
	if k = must[*Keys](t)(LoadKeys(expired)); len(k.Former) != 63 {
		t.Errorf("%d former verdict keys", len(k.Former))
	}
}
