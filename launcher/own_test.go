package launcher

import (
	"context"
	"maps"
	"slices"
	"strings"
	"testing"

	"troth/proof"
)

// TestSecretIsShort: the file with a guest's secret lies there while QEMU starts. libvirt shows its name to whoever may see the definition.
func TestSecretIsShort(t *testing.T) {
	for _, mode := range []struct {
		name  string
		start func(w *world, token string) error
		there []string // calls that have it there, and no other has
	}{
		{"own", func(w *world, token string) error {
			if _, refusal := w.launch(token); refusal != nil {
				return refusal
			}
			return nil
		}, []string{"create"}},
		{"hook", func(w *world, token string) error {
			request := Request{ID: "arm", Token: token, Domain: guestXML(w.t), Action: proof.ActionStart, Arm: true}
			if _, refusal := w.l.Arm(context.Background(), request, quiet{}); refusal != nil {
				return refusal
			}
			return w.startOther(guestUUID)
		}, []string{"process", "started"}}, // the process is looked at when libvirt asks about "started", too
	} {
		t.Run(mode.name, func(t *testing.T) {
			w := newWorld(t)
			there := map[string]bool{}
			w.around = func(name string, do func() error) error {
				w.mu.Lock()
				if len(w.secrets) > 0 && name != "remove secret" && name != "remove keys" {
					there[name] = true
				}
				w.mu.Unlock()
				return do()
			}
			if err := mode.start(w, w.token()); err != nil {
				t.Fatal(err)
			}
			delete(there, "quote") // beside
			if got := slices.Sorted(maps.Keys(there)); !slices.Equal(got, mode.there) {
				t.Errorf("the secret lies there at %q, want %q", got, mode.there)
			}
		})
	}
}

// TestOwnFiles: a domain with a token may not have what the gate stands on either, nor write its serial port there.
func TestOwnFiles(t *testing.T) {
	for _, own := range []string{"/images/initrd", "console.log"} {
		w := newWorld(t)
		w.l.Kept = func(path string) bool { return strings.HasSuffix(path, own) }
		_, refusal := w.launch(w.token())
		expect(t, refusal, proof.ConfigurationNotAllowed)
		w.gone(nil)
	}
}
