package proof

import (
	"bytes"
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

// releasedBody says what the form is; what opens a release reads it without encoding/json, whose buffers nobody can clear.
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
	body := r.encode()
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
	r, err := parseReleased(plaintext)
	if err == nil {
		err = r.check()
	}
	if err != nil {
		r.Nonce.Forget()
		r.Secret.Forget()
		return nil, fmt.Errorf("cannot open release: %w", err)
	}
	return &r, nil
}

// parseReleased takes the one form apart and asks that putting it together again gives the same bytes. No copy of a secret
// stays but the two that it returns.
func parseReleased(b []byte) (r Released, err error) {
	rest, _ := bytes.CutPrefix(b, []byte(`{"nonce":"`))
	nonce, rest, _ := bytes.Cut(rest, []byte(`"`))
	var secret []byte
	if s, ok := bytes.CutPrefix(rest, []byte(`,"secret":"`)); ok {
		secret, rest, _ = bytes.Cut(s, []byte(`"`))
	}
	r.GuestAllowed = string(rest) == `,"guest_allowed":true}`
	if r.Nonce, err = secretFrom(nonce); err == nil {
		r.Secret, err = secretFrom(secret)
	}
	again := r.encode()
	defer clear(again)
	if err == nil && bytes.Equal(again, b) {
		return r, nil
	}
	// It is none that a verifier made. What is wrong with it, strict says.
	if err := strict.Document(b, MaxToken, new(releasedBody)); err != nil {
		return r, err
	}
	return r, errors.New("it is not in the one form that is accepted")
}

// encode writes what strict.Encode makes of a releasedBody, and leaves no copy.
func (r Released) encode() []byte {
	b := make([]byte, 0, 64+base64Len(r.Nonce)+base64Len(r.Secret))
	b = r.Nonce.appendBase64(append(b, `{"nonce":"`...))
	if !r.Secret.IsZero() {
		b = r.Secret.appendBase64(append(b, `","secret":"`...))
	}
	return fmt.Appendf(b, `","guest_allowed":%t}`, r.GuestAllowed)
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
