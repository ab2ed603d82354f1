package proof

import (
	"crypto/hpke"
	"errors"
	"fmt"
)

// One suite for tokens and releases: MLKEM768-X25519, HKDF-SHA256, AES-256-GCM
// (RFC 9180, draft-ietf-hpke-pq).
var (
	kem  = hpke.MLKEM768X25519()
	kdf  = hpke.HKDFSHA256()
	aead = hpke.AES256GCM()
)

const (
	encapsulated  = 1120 // bytes of an encapsulated key
	releasePublic = 1216 // bytes of a public key
	gcmTag        = 16
)

// seal encrypts one message to pub; Sender is used because one-shot Seal takes no AAD.
func seal(pub []byte, l Label, aad, plaintext []byte) (enc, sealed []byte, err error) {
	k, err := kem.NewPublicKey(pub)
	if err != nil {
		return nil, nil, fmt.Errorf("cannot read HPKE public key: %w", err)
	}
	enc, sender, err := hpke.NewSender(k, kdf, aead, []byte(l))
	if err != nil {
		return nil, nil, fmt.Errorf("cannot encapsulate: %w", err)
	}
	sealed, err = sender.Seal(aad, plaintext)
	if err != nil {
		return nil, nil, fmt.Errorf("cannot seal: %w", err)
	}
	return enc, sealed, nil
}

func open(k hpke.PrivateKey, l Label, enc, aad, sealed []byte) ([]byte, error) {
	if len(enc) != encapsulated || len(sealed) < gcmTag {
		return nil, errors.New("cannot open: the sealed message has a wrong length")
	}
	r, err := hpke.NewRecipient(enc, k, kdf, aead, []byte(l))
	if err != nil {
		return nil, fmt.Errorf("cannot decapsulate: %w", err)
	}
	plaintext, err := r.Open(aad, sealed)
	if err != nil {
		return nil, fmt.Errorf("cannot open: %w", err)
	}
	return plaintext, nil
}
