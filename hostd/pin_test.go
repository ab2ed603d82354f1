package hostd

import (
	"errors"
	"os"
	"testing"

	"troth/tpm"
	"troth/tpm/chip"
)

// TestPinSRK: the TPM with which the host was provisioned is taken, another storage key is not, and neither is a pin that cannot be read.
func TestPinSRK(t *testing.T) {
	r := newRig(t)
	id, err := r.chip.Identity(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	srk, err := tpm.ParseSRK(id.SRKPublic)
	if err != nil {
		t.Fatal(err)
	}
	c := &Config{StateDir: t.TempDir()}
	if pin, err := PinnedSRK(c); err != nil || pin != (tpm.Name{}) {
		t.Errorf("before provisioning: %v, %v", pin, err)
	}
	if err := r.chip.Close(); err != nil {
		t.Fatal(err)
	}
	open := func(name tpm.Name) error {
		t.Helper()
		if err := PinSRK(c, name); err != nil {
			t.Fatal(err)
		}
		pin, err := PinnedSRK(c)
		if err != nil || pin != name {
			t.Fatalf("pinned %v, read %v, %v", name, pin, err)
		}
		k, err := chip.Open(t.Context(), chip.Config{Socket: r.swtpm.Socket(), SRK: pin})
		if err != nil {
			return err
		}
		_, err = k.Identity(t.Context())
		return errors.Join(err, k.Close())
	}
	if err := open(srk.Name()); err != nil {
		t.Error(err)
	}
	other := srk.Name()
	other[20] ^= 1
	if err := open(other); !errors.Is(err, chip.ErrNotProvisioned) {
		t.Errorf("another storage key: %v", err)
	}
	if err := os.WriteFile(pinFile(c), []byte("torn"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := PinnedSRK(c); err == nil {
		t.Error("a torn pin was read")
	}
}
