package tpm

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"

	"github.com/google/go-tpm/tpm2"
)

// Name is a TPM object's Name: nameAlg (SHA-256, 0x000B) and the digest of its public area (TPM 2.0 Part 1, 16).
// Its text is 68 digits of lower-case hex.
type Name [34]byte

// String returns the hex text.
func (n Name) String() string { return hex.EncodeToString(n[:]) }

// MarshalText implements encoding.TextMarshaler.
func (n Name) MarshalText() ([]byte, error) { return []byte(n.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler: lower-case hex of a SHA-256 Name only.
func (n *Name) UnmarshalText(text []byte) error {
	var m Name
	if len(text) != 2*len(m) {
		return fmt.Errorf("cannot read TPM name: %d characters, want %d", len(text), 2*len(m))
	}
	if _, err := hex.Decode(m[:], text); err != nil {
		return fmt.Errorf("cannot read TPM name: %w", err)
	}
	if m.String() != string(text) || tpm2.TPMAlgID(binary.BigEndian.Uint16(m[:])) != tpm2.TPMAlgSHA256 {
		return fmt.Errorf("cannot read TPM name %q: want lower-case hex of a SHA-256 name", text)
	}
	*n = m
	return nil
}

// nameOf returns the Name of a public area with nameAlg SHA-256.
func nameOf(public []byte) Name {
	d := sha256.Sum256(public)
	return Name(append(binary.BigEndian.AppendUint16(nil, uint16(tpm2.TPMAlgSHA256)), d[:]...))
}

// CheckError says which check failed, and what was expected and seen.
type CheckError struct {
	Check     string // a Check* constant
	Want, Got string
}

func (e *CheckError) Error() string {
	switch {
	case e.Want == "":
		return fmt.Sprintf("check %q failed: %s", e.Check, e.Got)
	case e.Got == "":
		return fmt.Sprintf("check %q failed: want %s", e.Check, e.Want)
	}
	return fmt.Sprintf("check %q failed: want %s, got %s", e.Check, e.Want, e.Got)
}

// The checks that a CheckError names.
const (
	CheckForm            = "form"             // the bytes are no, or not the only, encoding of what they claim to be
	CheckAttributes      = "attributes"       // object attributes of a key
	CheckKey             = "key"              // algorithm, curve, size, scheme, point of a key
	CheckSignature       = "signature"        // the attestation's signature
	CheckMagic           = "magic"            // TPM_GENERATED_VALUE
	CheckType            = "type"             // quote or certify
	CheckQualifiedSigner = "qualified-signer" // the AK lives in the endorsement hierarchy
	CheckExtraData       = "extra-data"
	CheckSelection       = "selection"
	CheckBank            = "bank" // the quote covers nothing: the bank is not allocated
	CheckPCRDigest       = "pcr-digest"
	CheckCertified       = "certified"
	CheckCertificate     = "ek-certificate"
)

func failed(check, want, gotFormat string, args ...any) error {
	return &CheckError{Check: check, Want: want, Got: fmt.Sprintf(gotFormat, args...)}
}
