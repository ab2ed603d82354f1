package proof

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"

	"troth/proof/strict"
)

const trustLostVersion = "troth-trust-lost/v1"

// MaxTrustLost bounds a signed report of lost trust.
const MaxTrustLost = 64 << 10

// maxLostFacts bounds what one report tells.
const maxLostFacts = 33

// TrustLost is a host's word that a guest which was proved is not what was proved any more: its proof is broken from At on. The host signs it
// with its TLS key, which the verdict names (`cnf`): the one key of hostd that others know. A host that lies says nothing; so a report is a
// reason to distrust, and its absence proves nothing.
type TrustLost struct {
	UUID     string
	Link     Digest // of the statement that was proved
	Token    Digest
	At       int64  // unix seconds, when it was seen
	Code     Code   // configuration-changed, image-changed or verdict-missing
	Sentence string // what was seen
	Facts    []Fact
	Reaction string // report | pause | destroy, of the token's policy
}

type trustLostBody struct {
	Version  string `json:"version"`
	UUID     string `json:"uuid"`
	Link     Digest `json:"link"`
	Token    Digest `json:"token"`
	At       int64  `json:"at"`
	Code     Code   `json:"code"`
	Sentence string `json:"sentence"`
	Facts    []Fact `json:"facts,omitempty"`
	Reaction string `json:"reaction"`
}

// trustLostEnvelope is the report's exact bytes, the public key (SubjectPublicKeyInfo, DER), and the signature over
// Frame(LabelTrustLost, bytes): ECDSA in DER over its SHA-256, or Ed25519 over itself.
type trustLostEnvelope struct {
	Report    Bytes `json:"report"`
	Key       Bytes `json:"key"`
	Signature Bytes `json:"signature"`
}

func (t *TrustLost) check() error {
	if t.Link.IsZero() || t.Token.IsZero() {
		return errors.New("link: it is zero")
	}
	if t.Code.Order() < 0 {
		return fmt.Errorf("code: %q is not one", t.Code)
	}
	if len(t.Facts) > maxLostFacts {
		return errors.New("facts: too many")
	}
	return firstError(
		checkName("uuid", t.UUID),
		checkTime("at", t.At),
		checkOneOf("reaction", t.Reaction, TrustLostReport, TrustLostPause, TrustLostDestroy),
	)
}

// Sign writes the signed report.
func (t *TrustLost) Sign(key crypto.Signer) ([]byte, error) {
	fail := func(err error) ([]byte, error) { return nil, fmt.Errorf("cannot sign report of lost trust: %w", err) }
	if err := t.check(); err != nil {
		return fail(err)
	}
	report, err := strict.Encode(trustLostBody{trustLostVersion, t.UUID, t.Link, t.Token, t.At, t.Code, t.Sentence, t.Facts, t.Reaction})
	if err != nil {
		return fail(err)
	}
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return fail(err)
	}
	// The frame's first byte is the label's length, which begins no message of TLS 1.3 that this key signs (RFC 8446 chapter 4.4.3: 64 spaces).
	message, hash := Frame(LabelTrustLost, report), crypto.Hash(0)
	switch key.Public().(type) {
	case *ecdsa.PublicKey:
		sum := sha256.Sum256(message)
		message, hash = sum[:], crypto.SHA256
	case ed25519.PublicKey:
	default:
		return fail(fmt.Errorf("a key of type %T is not used for reports", key.Public()))
	}
	sig, err := key.Sign(rand.Reader, message, hash)
	if err != nil {
		return fail(err)
	}
	b, err := strict.Encode(trustLostEnvelope{report, spki, sig})
	if err == nil && len(b) > MaxTrustLost {
		err = errors.New("it is too long")
	}
	if err != nil {
		return fail(err)
	}
	return b, nil
}

// ParseTrustLost reads a signed report and checks that the key which a verdict names (Verdict.Confirmation) signed it.
func ParseTrustLost(b []byte, confirmation Digest) (*TrustLost, error) {
	fail := func(err error) (*TrustLost, error) {
		return nil, fmt.Errorf("cannot read report of lost trust: %w", err)
	}
	var e trustLostEnvelope
	if err := strict.Document(b, MaxTrustLost, &e); err != nil {
		return fail(err)
	}
	if got := Digest(sha256.Sum256(e.Key)); got != confirmation {
		return fail(fmt.Errorf("key: it is not the host's key that the verdict names: want %s, got %s", confirmation, got))
	}
	key, err := x509.ParsePKIXPublicKey(e.Key)
	if err != nil {
		return fail(fmt.Errorf("key: %w", err))
	}
	message := Frame(LabelTrustLost, e.Report)
	good := false
	switch k := key.(type) {
	case *ecdsa.PublicKey:
		sum := sha256.Sum256(message)
		good = ecdsa.VerifyASN1(k, sum[:], e.Signature)
	case ed25519.PublicKey:
		good = ed25519.Verify(k, message, e.Signature)
	}
	if !good {
		return fail(errors.New("signature: it is not the key's over this report"))
	}
	var d trustLostBody
	if err := strict.Document(e.Report, MaxTrustLost, &d); err != nil {
		return fail(err)
	}
	if err := checkVersion(d.Version, trustLostVersion); err != nil {
		return fail(err)
	}
	t := &TrustLost{d.UUID, d.Link, d.Token, d.At, d.Code, d.Sentence, d.Facts, d.Reaction}
	if err := t.check(); err != nil {
		return fail(err)
	}
	return t, nil
}
