// Package strict reads the three outer forms of every Troth document,
// base64url, JSON and JWS, so narrowly that each value has one encoding.
//
// It promises: what it accepts, written again, gives the same base64url and
// the same three JWS parts; JSON has no key twice, no unknown or
// differently-cased key, no missing field, bounded depth and size, nothing
// trailing, and every refusal names the field. The libraries that read on
// afterwards (encoding/json, go-jose) accept more, so they never read first.
//
// It trusts nothing and keeps nothing; only the standard library is imported.
package strict

import (
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
)

var b64 = base64.RawURLEncoding.Strict()

// Base64 decodes base64url without padding (RFC 4648 chapter 5). Newlines,
// padding and non-zero spare bits are refused.
func Base64(text string) ([]byte, error) {
	if strings.ContainsAny(text, "\r\n") {
		return nil, errors.New("cannot read base64url: it contains a newline")
	}
	b, err := b64.DecodeString(text)
	if err != nil {
		return nil, fmt.Errorf("cannot read base64url: %w", err)
	}
	return b, nil
}

// EncodeBase64 is the inverse of Base64.
func EncodeBase64(b []byte) string { return b64.EncodeToString(b) }

// Parts splits text at dots into exactly n non-empty parts of base64url, and
// decodes each. A total above max bytes is refused.
func Parts(text string, n, max int) ([][]byte, error) {
	if len(text) > max {
		return nil, fmt.Errorf("it has %d bytes, more than the %d allowed", len(text), max)
	}
	texts := strings.SplitN(text, ".", n+1)
	if len(texts) != n {
		return nil, fmt.Errorf("it does not have %d parts between dots", n)
	}
	parts := make([][]byte, n)
	for i, t := range texts {
		b, err := Base64(t)
		if err != nil {
			return nil, fmt.Errorf("part %d: %w", i+1, err)
		}
		if len(b) == 0 {
			return nil, fmt.Errorf("part %d is empty", i+1)
		}
		parts[i] = b
	}
	return parts, nil
}

// Signed is a JWS in compact form, split but not verified (RFC 7515 chapter 7.1).
type Signed struct {
	Header, Payload, Signature []byte
	Input                      string // what is signed: the first two parts as they stand
}

// JWS splits text into three strict parts. The signature has to be 64 bytes,
// the r‖s of ES256 (RFC 7518 chapter 3.4).
func JWS(text string, max int) (*Signed, error) {
	parts, err := Parts(text, 3, max)
	if err != nil {
		return nil, fmt.Errorf("cannot read JWS: %w", err)
	}
	if len(parts[2]) != 64 {
		return nil, fmt.Errorf("cannot read JWS: the signature has %d bytes, not 64", len(parts[2]))
	}
	return &Signed{parts[0], parts[1], parts[2], text[:strings.LastIndexByte(text, '.')]}, nil
}
