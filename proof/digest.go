package proof

import (
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"

	"troth/proof/strict"
)

// Digest is a SHA-256 value; as text, 64 lower-case hex digits.
type Digest [32]byte

// ParseDigest reads 64 lower-case hex digits.
func ParseDigest(s string) (d Digest, err error) {
	err = d.UnmarshalText([]byte(s))
	return d, err
}

func (d Digest) String() string { return hex.EncodeToString(d[:]) }

// IsZero reports whether every byte is zero.
func (d Digest) IsZero() bool { return d == Digest{} }

// Equal compares in constant time.
func (d Digest) Equal(o Digest) bool { return subtle.ConstantTimeCompare(d[:], o[:]) == 1 }

// MarshalText implements encoding.TextMarshaler.
func (d Digest) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText accepts lower-case hex only.
func (d *Digest) UnmarshalText(text []byte) error {
	var v Digest
	if len(text) != 2*len(v) {
		return fmt.Errorf("a digest has %d hex digits, not %d", 2*len(v), len(text))
	}
	if _, err := hex.Decode(v[:], text); err != nil {
		return fmt.Errorf("cannot read digest: %w", err)
	}
	if hex.EncodeToString(v[:]) != string(text) {
		return errors.New("a digest is written in lower-case hex")
	}
	*d = v
	return nil
}

// Bytes is a blob; as text, strict base64url without padding.
type Bytes []byte

func (b Bytes) String() string { return strict.EncodeBase64(b) }

// MarshalText implements encoding.TextMarshaler.
func (b Bytes) MarshalText() ([]byte, error) { return []byte(b.String()), nil }

// UnmarshalText refuses padding, newlines and spare bits.
func (b *Bytes) UnmarshalText(text []byte) error {
	v, err := strict.Base64(string(text))
	if err != nil {
		return err
	}
	*b = v
	return nil
}
