package proof

import (
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
)

// Secret holds bytes that must not leave by accident: it prints as a fixed
// word under every verb and refuses to be marshalled. Reveal is the one way
// out, so that a search for Reveal finds every place that uses a secret. The
// bytes are behind a function: fmt prints the unexported fields of a struct
// around a Secret without asking its methods, but of a function only an address.
// A Secret is not comparable with ==; Equal compares.
type Secret struct{ held func() []byte }

func secretOf(b []byte) Secret { return Secret{func() []byte { return b }} }

func (s Secret) raw() []byte {
	if s.held == nil {
		return nil
	}
	return s.held()
}

const hidden = "[secret]"

var errSecret = errors.New("cannot marshal a secret")

// NewSecret copies b.
func NewSecret(b []byte) Secret { return secretOf(append([]byte(nil), b...)) }

// RandomSecret draws n bytes from crypto/rand.
func RandomSecret(n int) Secret {
	b := make([]byte, n)
	rand.Read(b) // never fails since Go 1.24
	return secretOf(b)
}

// secretFrom decodes base64url; unlike strict.Base64 it leaves no copy. Text that has a second reading is for the caller to refuse.
func secretFrom(text []byte) (Secret, error) {
	b := make([]byte, base64.RawURLEncoding.DecodedLen(len(text)))
	n, err := base64.RawURLEncoding.Decode(b, text)
	if err != nil {
		clear(b)
		return Secret{}, errors.New("cannot read a secret: it is not base64url")
	}
	return secretOf(b[:n:n]), nil
}

// base64Len is how many bytes appendBase64 appends: who makes room for them leaves no copy.
func base64Len(s Secret) int { return base64.RawURLEncoding.EncodedLen(s.Len()) }

func (s Secret) appendBase64(b []byte) []byte { return base64.RawURLEncoding.AppendEncode(b, s.raw()) }

// Reveal gives the bytes themselves; the caller does not keep or change them.
func (s Secret) Reveal() []byte { return s.raw() }

// Len is the number of bytes.
func (s Secret) Len() int { return len(s.raw()) }

// IsZero reports whether there is no secret.
func (s Secret) IsZero() bool { return len(s.raw()) == 0 }

// Equal compares in constant time.
func (s Secret) Equal(o Secret) bool { return subtle.ConstantTimeCompare(s.raw(), o.raw()) == 1 }

// Forget overwrites the bytes; every copy of this Secret shares them.
func (s Secret) Forget() { clear(s.raw()) }

// String prints a fixed word, as GoString, Format and LogValue do.
func (s Secret) String() string { return hidden }

// GoString implements fmt.GoStringer.
func (s Secret) GoString() string { return hidden }

// Format implements fmt.Formatter for every verb.
func (s Secret) Format(f fmt.State, _ rune) { fmt.Fprint(f, hidden) }

// LogValue implements slog.LogValuer.
func (s Secret) LogValue() slog.Value { return slog.StringValue(hidden) }

// MarshalText always fails.
func (s Secret) MarshalText() ([]byte, error) { return nil, errSecret }

// MarshalJSON always fails.
func (s Secret) MarshalJSON() ([]byte, error) { return nil, errSecret }

// MarshalBinary always fails.
func (s Secret) MarshalBinary() ([]byte, error) { return nil, errSecret }

// GobEncode always fails.
func (s Secret) GobEncode() ([]byte, error) { return nil, errSecret }

// UnmarshalJSON always fails: secrets are read by the documents' own decoders.
func (s *Secret) UnmarshalJSON([]byte) error { return errors.New("cannot unmarshal a secret") }
