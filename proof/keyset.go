package proof

import (
	"errors"
	"fmt"
)

const keySetVersion = "troth-keyset/v1"

// KeySet lists a verifier's keys, signed by its root (ES256). Old verdict keys
// stay for as long as proofs made with them are to be verified, with NotBefore
// at the making of the oldest; old token keys stay for open chains.
type KeySet struct {
	Version     string     `json:"version"`
	Issuer      string     `json:"iss"`
	IssuedAt    int64      `json:"iat"`
	NotBefore   int64      `json:"nbf"`
	NotAfter    int64      `json:"exp"`
	VerdictKeys []JWK      `json:"verdict_keys"`
	TokenKeys   []TokenKey `json:"token_keys"` // the first one is for new tokens
}

func (k *KeySet) check() error {
	err := firstError(
		checkVersion(k.Version, keySetVersion),
		checkName("iss", k.Issuer),
		checkTime("iat", k.IssuedAt),
		checkTime("nbf", k.NotBefore),
		checkTime("exp", k.NotAfter),
	)
	if err != nil {
		return err
	}
	if k.NotAfter <= k.NotBefore {
		return errors.New("exp: it is not after nbf")
	}
	if len(k.VerdictKeys) == 0 || len(k.VerdictKeys) > 64 {
		return errors.New("verdict_keys: there are 1-64")
	}
	if len(k.TokenKeys) == 0 || len(k.TokenKeys) > 64 {
		return errors.New("token_keys: there are 1-64")
	}
	for i, t := range k.TokenKeys {
		if err := t.check(); err != nil {
			return fmt.Errorf("token_keys[%d]: %w", i, err)
		}
	}
	if _, err := NewVerdictKeys(k.VerdictKeys...); err != nil {
		return fmt.Errorf("verdict_keys: %w", err)
	}
	return nil
}

// Keys are the verdict keys, to verify with.
func (k *KeySet) Keys() (*VerdictKeys, error) { return NewVerdictKeys(k.VerdictKeys...) }

// TokenKey is the key for new tokens.
func (k *KeySet) TokenKey() TokenKey { return k.TokenKeys[0] }

// ValidAt reports whether t, in unix seconds, lies in the set's validity.
func (k *KeySet) ValidAt(t int64) bool { return k.NotBefore <= t && t <= k.NotAfter }

// SignKeySet writes the set, signed by the root. Version is filled in.
func SignKeySet(k *KeySet, root *SigningKey) (string, error) {
	k.Version = keySetVersion
	if err := k.check(); err != nil {
		return "", fmt.Errorf("cannot sign key set: %w", err)
	}
	return signJWS(typeKeySet, k, root)
}

// ParseKeySet verifies the root's signature and reads the set.
func ParseKeySet(jws string, root JWK) (*KeySet, error) {
	keys, err := NewVerdictKeys(root)
	if err != nil {
		return nil, fmt.Errorf("cannot read key set: root: %w", err)
	}
	var k KeySet
	if err := readJWS(jws, MaxKeySet, typeKeySet, keys, &k); err != nil {
		return nil, fmt.Errorf("cannot read key set: %w", err)
	}
	if err := k.check(); err != nil {
		return nil, fmt.Errorf("cannot read key set: %w", err)
	}
	return &k, nil
}
