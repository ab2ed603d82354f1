package tpm

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/big"

	"github.com/google/go-tpm/tpm2"
)

// maxPublic bounds a TPMT_PUBLIC; an RSA-2048 one has about 320 bytes.
const maxPublic = 1024

// AK is an attestation key: P-256, restricted to signing what the TPM itself made. Only ParseAK makes one.
type AK struct {
	public []byte
	key    *ecdsa.PublicKey
}

// SRK is a storage root key: P-256, restricted to decryption, with the TCG's template. Only ParseSRK makes one.
type SRK struct{ public []byte }

// EK is an endorsement key with one of the TCG's default templates. Only ParseEK makes one.
type EK struct {
	public   []byte
	key      any // *rsa.PublicKey or *ecdsa.PublicKey
	template string
}

// ParseAK reads the TPMT_PUBLIC of an AK. It must equal AKTemplate in everything but the point, which must lie on the
// curve: so the key was made inside a TPM (sensitiveDataOrigin), cannot leave it (fixedTPM, fixedParent), signs only
// structures that start with TPM_GENERATED_VALUE (restricted), and fixes its scheme to ECDSA with SHA-256.
func ParseAK(public []byte) (*AK, error) {
	key, err := parseKey(public, AKTemplate(nil))
	if err != nil {
		return nil, fmt.Errorf("cannot accept AK: %w", err)
	}
	return &AK{bytes.Clone(public), key.(*ecdsa.PublicKey)}, nil
}

// Name returns the Name of the AK, by which hosts are known.
func (a *AK) Name() Name { return nameOf(a.public) }

// PublicKey returns the P-256 key that verifies the AK's signatures.
func (a *AK) PublicKey() *ecdsa.PublicKey { return a.key }

// Public returns the TPMT_PUBLIC.
func (a *AK) Public() []byte { return bytes.Clone(a.public) }

// ParseSRK reads the TPMT_PUBLIC of an SRK: SRKTemplate in everything but the point.
func ParseSRK(public []byte) (*SRK, error) {
	if _, err := parseKey(public, SRKTemplate()); err != nil {
		return nil, fmt.Errorf("cannot accept SRK: %w", err)
	}
	return &SRK{bytes.Clone(public)}, nil
}

// Name returns the Name of the SRK.
func (s *SRK) Name() Name { return nameOf(s.public) }

// Public returns the TPMT_PUBLIC.
func (s *SRK) Public() []byte { return bytes.Clone(s.public) }

// ParseEK reads the TPMT_PUBLIC of an EK with a default template of the TCG EK Credential Profile: L-1 (RSA-2048),
// L-2 (P-256) or H-3 (P-384).
func ParseEK(public []byte) (*EK, error) {
	var errs []error
	for _, t := range EKTemplates() {
		key, err := parseKey(public, t.Public)
		if err == nil {
			return &EK{bytes.Clone(public), key, t.Name}, nil
		}
		errs = append(errs, fmt.Errorf("%s: %w", t.Name, err))
	}
	return nil, fmt.Errorf("cannot accept EK: %w", errors.Join(errs...))
}

// Public returns the TPMT_PUBLIC.
func (e *EK) Public() []byte { return bytes.Clone(e.public) }

// Key returns the *rsa.PublicKey or *ecdsa.PublicKey.
func (e *EK) Key() any { return e.key }

// Digest returns SHA-256 of the TPMT_PUBLIC: the identity of the TPM. It is no Name: an EK may have another nameAlg.
func (e *EK) Digest() [32]byte { return sha256.Sum256(e.public) }

// parseKey reads a TPMT_PUBLIC that equals the template but for its unique field, in its only encoding, and returns
// the key: *rsa.PublicKey or *ecdsa.PublicKey.
func parseKey(public []byte, template tpm2.TPMTPublic) (any, error) {
	p, err := unmarshalPublic(public)
	if err != nil {
		return nil, err
	}
	if p.Type != template.Type || p.NameAlg != template.NameAlg {
		return nil, failed(CheckKey, fmt.Sprintf("type %#x, nameAlg %#x", template.Type, template.NameAlg), "type %#x, nameAlg %#x", p.Type, p.NameAlg)
	}
	if want, got := tpm2.Marshal(template.ObjectAttributes), tpm2.Marshal(p.ObjectAttributes); !bytes.Equal(want, got) {
		return nil, failed(CheckAttributes, fmt.Sprintf("%x", want), "%x", got)
	}
	unique := p.Unique
	p.Unique = template.Unique
	if want, got := tpm2.Marshal(template), tpm2.Marshal(*p); !bytes.Equal(want, got) {
		return nil, failed(CheckKey, fmt.Sprintf("parameters and policy of the template %x", want), "%x", got)
	}
	if p.Type == tpm2.TPMAlgRSA {
		return rsaKey(unique)
	}
	parms, err := p.Parameters.ECCDetail()
	if err != nil {
		return nil, failed(CheckForm, "", "%v", err)
	}
	return eccKey(unique, parms.CurveID)
}

// unmarshalPublic reads a TPMT_PUBLIC whose re-marshalling gives the same bytes.
func unmarshalPublic(public []byte) (*tpm2.TPMTPublic, error) {
	if len(public) > maxPublic {
		return nil, failed(CheckForm, fmt.Sprintf("at most %d bytes of TPMT_PUBLIC", maxPublic), "%d", len(public))
	}
	p, err := tpm2.Unmarshal[tpm2.TPMTPublic](public)
	if err != nil {
		return nil, failed(CheckForm, "", "no TPMT_PUBLIC: %v", err)
	}
	if !bytes.Equal(tpm2.Marshal(*p), public) {
		return nil, failed(CheckForm, "", "TPMT_PUBLIC has trailing bytes or a second encoding")
	}
	return p, nil
}

func rsaKey(unique tpm2.TPMUPublicID) (*rsa.PublicKey, error) {
	n, err := unique.RSA()
	if err != nil {
		return nil, failed(CheckForm, "", "%v", err)
	}
	if len(n.Buffer) != 256 || n.Buffer[0]&0x80 == 0 || n.Buffer[255]&1 == 0 {
		return nil, failed(CheckKey, "an odd RSA modulus of 2048 bits", "%d bytes", len(n.Buffer))
	}
	return &rsa.PublicKey{N: new(big.Int).SetBytes(n.Buffer), E: 65537}, nil
}

func eccKey(unique tpm2.TPMUPublicID, id tpm2.TPMECCCurve) (*ecdsa.PublicKey, error) {
	point, err := unique.ECC()
	if err != nil {
		return nil, failed(CheckForm, "", "%v", err)
	}
	curve := elliptic.P256()
	if id == tpm2.TPMECCNistP384 {
		curve = elliptic.P384()
	}
	size := curve.Params().BitSize / 8
	if len(point.X.Buffer) != size || len(point.Y.Buffer) != size {
		return nil, failed(CheckKey, fmt.Sprintf("coordinates of %d bytes", size), "%d and %d", len(point.X.Buffer), len(point.Y.Buffer))
	}
	raw := append(append([]byte{4}, point.X.Buffer...), point.Y.Buffer...)
	key, err := ecdsa.ParseUncompressedPublicKey(curve, raw)
	if err != nil { // on the curve, not the point at infinity
		return nil, failed(CheckKey, "a point on the curve", "%v", err)
	}
	return key, nil
}

// Template returns the profile's name of the EK's template: "L-1", "L-2" or "H-3".
func (e *EK) Template() string { return e.template }
