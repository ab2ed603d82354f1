package proof

import (
	"errors"
	"fmt"

	"troth/proof/strict"
)

const keyVersion = "troth-key/v1"

// Key is the tenant's private record of one token (nonce.key, mode 0600): what
// Verify checks the MAC with, and what Validate compares with.
type Key struct {
	Token       Digest // of the token's text
	ID          string
	Profile     ProfileRef
	Expiry      int64
	ChainExpiry int64
	Nonce       Secret
	Secret      Secret
	Pins        *Pins
	Policy      Policy
}

type keyBody struct {
	Version     string     `json:"version"`
	Token       Digest     `json:"token"`
	ID          string     `json:"id"`
	Profile     ProfileRef `json:"profile"`
	Expiry      int64      `json:"expiry"`
	ChainExpiry int64      `json:"chain_expiry"`
	Nonce       Bytes      `json:"nonce"`
	Secret      Bytes      `json:"secret,omitempty"`
	Pins        *Pins      `json:"pins,omitempty"`
	Policy      Policy     `json:"policy"`
}

// NewKey records a token that NewToken made.
func NewKey(t *Token, text string) *Key {
	return &Key{TokenDigest(text), t.ID, t.Profile, t.Expiry, t.ChainExpiry, t.Nonce, t.Secret, t.Pins, t.Policy()}
}

func (k *Key) check() error {
	err := firstError(
		checkID("id", k.ID),
		k.Profile.check("profile"),
		checkTime("expiry", k.Expiry),
		checkTime("chain_expiry", k.ChainExpiry),
		k.Policy.check(),
	)
	if err != nil {
		return err
	}
	if k.Nonce.Len() != NonceSize {
		return fmt.Errorf("nonce: it has %d bytes, not %d", k.Nonce.Len(), NonceSize)
	}
	if k.Token.IsZero() {
		return errors.New("token: it is zero")
	}
	if k.Pins != nil {
		return k.Pins.check()
	}
	return nil
}

// EncodePrivate writes the record, secrets included.
func (k *Key) EncodePrivate() ([]byte, error) {
	if err := k.check(); err != nil {
		return nil, fmt.Errorf("cannot write key: %w", err)
	}
	return strict.Encode(keyBody{keyVersion, k.Token, k.ID, k.Profile, k.Expiry, k.ChainExpiry,
		k.Nonce.raw(), k.Secret.raw(), k.Pins, k.Policy})
}

// ParseKey reads what EncodePrivate wrote; white space around it is accepted.
func ParseKey(b []byte) (*Key, error) {
	var d keyBody
	if err := strict.JSON(b, MaxKey, &d); err != nil {
		return nil, fmt.Errorf("cannot read key: %w", err)
	}
	if err := checkVersion(d.Version, keyVersion); err != nil {
		return nil, fmt.Errorf("cannot read key: %w", err)
	}
	k := &Key{d.Token, d.ID, d.Profile, d.Expiry, d.ChainExpiry, secretOf(d.Nonce), secretOf(d.Secret), d.Pins, d.Policy}
	if err := k.check(); err != nil {
		return nil, fmt.Errorf("cannot read key: %w", err)
	}
	return k, nil
}
