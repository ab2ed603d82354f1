package proof

import (
	"errors"
	"fmt"

	"troth/proof/strict"
)

// SeedSize is the length of a release seed, which the verifier draws and seals
// to a host's TPM.
const SeedSize = 32

// Released is what a release gives to hostd.
type Released struct {
	Nonce        Secret
	Secret       Secret // of the token, if it has one
	GuestAllowed bool   // false: nothing may go to the guest
}

type releasedBody struct {
	Nonce        Bytes `json:"nonce"`
	Secret       Bytes `json:"secret,omitempty"`
	GuestAllowed bool  `json:"guest_allowed"`
}

// ReleasePublic derives the HPKE public key from a release seed.
func ReleasePublic(seed []byte) (Bytes, error) {
	if len(seed) != SeedSize {
		return nil, fmt.Errorf("cannot derive release key: the seed has %d bytes, not %d", len(seed), SeedSize)
	}
	k, err := kem.NewPrivateKey(seed)
	if err != nil {
		return nil, fmt.Errorf("cannot derive release key: %w", err)
	}
	return k.PublicKey().Bytes(), nil
}

// SealRelease encrypts r to a release key; the receipt's digest is the AAD, so
// that what was released opens beside its own receipt only.
func SealRelease(pub Bytes, receipt Digest, r Released) (Bytes, error) {
	if err := r.check(); err != nil {
		return nil, fmt.Errorf("cannot seal release: %w", err)
	}
	body, err := strict.Encode(releasedBody{r.Nonce.raw(), r.Secret.raw(), r.GuestAllowed})
	if err != nil {
		return nil, err
	}
	defer clear(body)
	enc, sealed, err := seal(pub, LabelReleaseSeal, receipt[:], body)
	if err != nil {
		return nil, fmt.Errorf("cannot seal release: %w", err)
	}
	return append(enc, sealed...), nil
}

// OpenRelease opens what SealRelease made, with the seed that the TPM unsealed.
func OpenRelease(seed []byte, receipt Digest, sealed Bytes) (*Released, error) {
	if len(seed) != SeedSize || len(sealed) < encapsulated || len(sealed) > MaxToken {
		return nil, errors.New("cannot open release: seed or sealed message has a wrong length")
	}
	k, err := kem.NewPrivateKey(seed)
	if err != nil {
		return nil, fmt.Errorf("cannot open release: %w", err)
	}
	plaintext, err := open(k, LabelReleaseSeal, sealed[:encapsulated], receipt[:], sealed[encapsulated:])
	if err != nil {
		return nil, fmt.Errorf("cannot open release: %w", err)
	}
	defer clear(plaintext)
	var b releasedBody
	if err := strict.Document(plaintext, MaxToken, &b); err != nil {
		return nil, fmt.Errorf("cannot open release: %w", err)
	}
	r := &Released{secretOf(b.Nonce), secretOf(b.Secret), b.GuestAllowed}
	if err := r.check(); err != nil {
		return nil, fmt.Errorf("cannot open release: %w", err)
	}
	return r, nil
}

func (r Released) check() error {
	if r.Nonce.Len() != NonceSize {
		return fmt.Errorf("nonce: it has %d bytes, not %d", r.Nonce.Len(), NonceSize)
	}
	if !r.GuestAllowed && !r.Secret.IsZero() {
		return errors.New("secret: it may not go to the guest, so it is not released")
	}
	return nil
}
