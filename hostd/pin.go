package hostd

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"troth/tpm"
)

// PinSRK keeps the Name of the TPM's storage key, which the verifier has seen certified, in the state folder: from now on no other key is taken for it. Without
// that a chip that somebody put between the TPM and the bus could pass its own, and read what sessions encrypt to it.
func PinSRK(c *Config, name tpm.Name) error {
	if err := os.MkdirAll(c.StateDir, 0o700); err != nil {
		return fmt.Errorf("cannot make the state folder: %w", err)
	}
	// A crash in between leaves the pin before, or none; provisioning is repeated.
	fresh := pinFile(c) + ".new"
	err := os.WriteFile(fresh, []byte(name.String()+"\n"), 0o644)
	if err == nil {
		err = os.Rename(fresh, pinFile(c))
	}
	if err != nil {
		return fmt.Errorf("cannot keep the name of the TPM's storage key: %w", err)
	}
	return nil
}

// PinnedSRK reads it; zero where this host was provisioned before there was a pin.
func PinnedSRK(c *Config) (name tpm.Name, err error) {
	b, err := os.ReadFile(pinFile(c))
	if errors.Is(err, fs.ErrNotExist) {
		return tpm.Name{}, nil
	}
	if err == nil {
		err = name.UnmarshalText(bytes.TrimSpace(b))
	}
	if err != nil {
		return tpm.Name{}, fmt.Errorf("cannot read the name of the TPM's storage key, %s (troth-hostd provision writes it anew): %w", pinFile(c), err)
	}
	return name, nil
}

func pinFile(c *Config) string { return filepath.Join(c.StateDir, "srk") }
