package tpm

import (
	"crypto/rand"
	"fmt"

	"github.com/google/go-tpm/tpm2"
)

// MakeCredential encrypts a secret of at most 32 bytes so that only the TPM with the EK recovers it, and only if an
// object of the Name is loaded in it (TPM 2.0 Part 1, 24.6): blob is the TPM2B_ID_OBJECT's buffer, encrypted the
// TPM2B_ENCRYPTED_SECRET's. The caller has parsed the AK of that Name: its attributes are what the proof is about.
func MakeCredential(ek *EK, ak Name, secret []byte) (blob, encrypted []byte, err error) {
	if len(secret) == 0 || len(secret) > 32 {
		return nil, nil, fmt.Errorf("cannot make credential of %d bytes: want 1 to 32", len(secret))
	}
	public, err := unmarshalPublic(ek.public)
	if err != nil {
		return nil, nil, fmt.Errorf("cannot make credential: %w", err)
	}
	key, err := tpm2.ImportEncapsulationKey(public)
	if err != nil {
		return nil, nil, fmt.Errorf("cannot make credential: %w", err)
	}
	blob, encrypted, err = tpm2.CreateCredential(rand.Reader, key, ak[:], secret)
	if err != nil {
		return nil, nil, fmt.Errorf("cannot make credential: %w", err)
	}
	return blob, encrypted, nil
}
