package proof

import (
	"fmt"

	"troth/proof/strict"
)

const trustVersion = "troth-trust/v1"

// Trust is what a tenant pins (trust.json): the verifier's root, and the key
// set that the root signed.
type Trust struct {
	Version          string `json:"version"`
	Verifier         string `json:"verifier"` // the issuer's name
	Root             JWK    `json:"root"`
	Keys             string `json:"keys"` // key set, JWS
	AllowSoftwareTPM bool   `json:"allow_software_tpm"`
}

// ParseTrust reads trust.json. A line end after the document is accepted, since
// people edit and copy this file.
func ParseTrust(b []byte) (*Trust, error) {
	var t Trust
	if err := strict.JSON(b, MaxTrust, &t); err != nil {
		return nil, fmt.Errorf("cannot read trust: %w", err)
	}
	if err := checkVersion(t.Version, trustVersion); err != nil {
		return nil, fmt.Errorf("cannot read trust: %w", err)
	}
	if _, err := t.KeySet(); err != nil {
		return nil, fmt.Errorf("cannot read trust: %w", err)
	}
	return &t, nil
}

// KeySet verifies the key set against the root, and the issuer's name.
func (t *Trust) KeySet() (*KeySet, error) {
	k, err := ParseKeySet(t.Keys, t.Root)
	if err != nil {
		return nil, err
	}
	if k.Issuer != t.Verifier {
		return nil, fmt.Errorf("cannot trust key set: iss: %q is not the pinned verifier %q", k.Issuer, t.Verifier)
	}
	return k, nil
}

// Encode writes trust.json. Version is filled in.
func (t *Trust) Encode() ([]byte, error) {
	t.Version = trustVersion
	if _, err := t.KeySet(); err != nil {
		return nil, err
	}
	return strict.Encode(t)
}
