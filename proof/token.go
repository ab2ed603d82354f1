package proof

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"

	"troth/proof/strict"
)

// Versions of the documents made here.
const (
	TokenVersion = "troth-token/v1"
)

// NonceSize is the length of every nonce.
const NonceSize = 32

// What a token allows.
const (
	MigrationAllow = "allow"
	MigrationDeny  = "deny"

	RestartsClosedFirst = "closed-first" // another launch only after this one is closed
	RestartsAny         = "any"          // another launch at any time
	RestartsNone        = "0"            // one launch in all

	SavesAllow = "allow" // hostd may save the guest to a file, which holds its memory in clear

	TrustLostReport  = "report"
	TrustLostPause   = "pause"
	TrustLostDestroy = "destroy"
)

// ProfileRef names a profile and, by digest, what it meant when it was named.
type ProfileRef struct {
	Name   string `json:"name"`
	Digest Digest `json:"digest"`
}

func (p ProfileRef) check(field string) error {
	if err := checkID(field+".name", p.Name); err != nil {
		return err
	}
	if p.Digest.IsZero() {
		return fmt.Errorf("%s.digest: it is zero", field)
	}
	return nil
}

// Header is the part of a token that everyone can read: the verifier finds its
// key, the engine a host of the profile, and both see the expiries.
type Header struct {
	Version     string     `json:"version"`
	ID          string     `json:"id"`
	Profile     ProfileRef `json:"profile"`
	Expiry      int64      `json:"expiry"`       // limits the first release
	ChainExpiry int64      `json:"chain_expiry"` // limits every later one
	KeyID       string     `json:"kid"`          // of the TokenKey
}

func (h Header) check() error {
	err := firstError(
		checkVersion(h.Version, TokenVersion),
		checkID("id", h.ID),
		h.Profile.check("profile"),
		checkTime("expiry", h.Expiry),
		checkTime("chain_expiry", h.ChainExpiry),
	)
	if err != nil {
		return err
	}
	if h.ChainExpiry < h.Expiry {
		return errors.New("chain_expiry: it is before expiry")
	}
	if _, err := ParseDigest(h.KeyID); err != nil {
		return fmt.Errorf("kid: %w", err)
	}
	return nil
}

// Policy is what the tenant allows after the first launch.
type Policy struct {
	Migration   string `json:"migration"`       // allow | deny
	Restarts    string `json:"restarts"`        // closed-first | any | 0
	OnTrustLost string `json:"on_trust_lost"`   // report | pause | destroy
	MaxUnproven int64  `json:"max_unproven"`    // seconds without a verdict until on_trust_lost; 0: no limit
	Saves       string `json:"saves,omitempty"` // allow; absent: no
}

func (p Policy) check() error {
	if p.MaxUnproven < 0 || p.MaxUnproven >= maxSeconds {
		return fmt.Errorf("max_unproven: %d is not a number of seconds", p.MaxUnproven)
	}
	return firstError(
		checkOneOf("migration", p.Migration, MigrationAllow, MigrationDeny),
		checkOneOf("restarts", p.Restarts, RestartsClosedFirst, RestartsAny, RestartsNone),
		checkOneOf("on_trust_lost", p.OnTrustLost, TrustLostReport, TrustLostPause, TrustLostDestroy),
		checkOneOf("saves", p.Saves, "", SavesAllow),
	)
}

// Token is what a tenant gives: a nonce, and what may run with it.
type Token struct {
	Header
	Nonce       Secret // NonceSize random bytes, one per token
	Secret      Secret // optional: the guest's disk key or the like
	Pins        *Pins  // nil: the host proves the launch and gives the guest nothing
	Migration   string
	Restarts    string
	OnTrustLost string
	MaxUnproven int64
	Saves       string
}

// Policy collects what the tenant allows.
func (t *Token) Policy() Policy {
	return Policy{t.Migration, t.Restarts, t.OnTrustLost, t.MaxUnproven, t.Saves}
}

// GuestAllowed reports whether anything may leave hostd towards the guest:
// only if everything that the guest boots is pinned.
func (t *Token) GuestAllowed() bool { return t.Pins != nil && t.Pins.Complete() }

func (t *Token) check() error {
	if err := firstError(t.Header.check(), t.Policy().check()); err != nil {
		return err
	}
	if t.Nonce.Len() != NonceSize {
		return fmt.Errorf("nonce: it has %d bytes, not %d", t.Nonce.Len(), NonceSize)
	}
	if t.Secret.Len() > 4096 {
		return errors.New("secret: it has more than 4096 bytes")
	}
	if t.Pins != nil {
		if err := t.Pins.check(); err != nil {
			return err
		}
	}
	if t.Secret.IsZero() || t.GuestAllowed() {
		return nil
	}
	lacks := []string{"pins"}
	if t.Pins != nil {
		lacks = t.Pins.Lacks()
	}
	return fmt.Errorf("secret: a token with a secret pins all that the guest boots; it lacks %s", strings.Join(lacks, ", "))
}

// tokenBody is the encrypted part of a token.
type tokenBody struct {
	Header      Header `json:"header"`
	Nonce       Bytes  `json:"nonce"`
	Secret      Bytes  `json:"secret,omitempty"`
	Pins        *Pins  `json:"pins,omitempty"`
	Migration   string `json:"migration"`
	Restarts    string `json:"restarts"`
	OnTrustLost string `json:"on_trust_lost"`
	MaxUnproven int64  `json:"max_unproven"`
	Saves       string `json:"saves,omitempty"`
}

// NewToken encrypts t to a verifier's token key. Version, KeyID, and ID, nonce
// where they are empty, are filled in; t itself is changed so, for the tenant's
// own record (NewKey).
func NewToken(t *Token, to TokenKey) (text string, err error) {
	if err := to.check(); err != nil {
		return "", err
	}
	t.Version, t.KeyID = TokenVersion, to.KeyID
	if t.ID == "" {
		id := make([]byte, 16)
		rand.Read(id)
		t.ID = hex.EncodeToString(id)
	}
	if t.Nonce.IsZero() {
		t.Nonce = RandomSecret(NonceSize)
	}
	if err := t.check(); err != nil {
		return "", fmt.Errorf("cannot make token: %w", err)
	}
	header, err := strict.Encode(t.Header)
	if err != nil {
		return "", err
	}
	body, err := strict.Encode(tokenBody{t.Header, t.Nonce.raw(), t.Secret.raw(), t.Pins,
		t.Migration, t.Restarts, t.OnTrustLost, t.MaxUnproven, t.Saves})
	if err != nil {
		return "", err
	}
	defer clear(body)
	enc, sealed, err := seal(to.Public, LabelTokenSeal, header, body)
	if err != nil {
		return "", fmt.Errorf("cannot make token: %w", err)
	}
	text = strict.EncodeBase64(header) + "." + strict.EncodeBase64(enc) + "." + strict.EncodeBase64(sealed)
	if len(text) > MaxToken {
		return "", fmt.Errorf("cannot make token: it has %d bytes, more than the %d allowed", len(text), MaxToken)
	}
	return text, nil
}

// SealedToken is a token of which only the header has been read.
type SealedToken struct {
	Header      Header
	text        string
	header      []byte
	enc, sealed []byte
}

// ParseToken reads a token's form and header.
func ParseToken(text string) (*SealedToken, error) {
	parts, err := strict.Parts(text, 3, MaxToken)
	if err != nil {
		return nil, fmt.Errorf("cannot read token: %w", err)
	}
	s := &SealedToken{text: text, header: parts[0], enc: parts[1], sealed: parts[2]}
	if err := strict.Document(s.header, 4096, &s.Header); err != nil {
		return nil, fmt.Errorf("cannot read token header: %w", err)
	}
	if err := s.Header.check(); err != nil {
		return nil, fmt.Errorf("cannot read token header: %w", err)
	}
	if len(s.enc) != encapsulated || len(s.sealed) <= gcmTag {
		return nil, errors.New("cannot read token: a part has a wrong length")
	}
	return s, nil
}

// Digest names the token in statements and receipts.
func (s *SealedToken) Digest() Digest { return TokenDigest(s.text) }

// Text is the token as it was given.
func (s *SealedToken) Text() string { return s.text }

// TokenDigest is the digest of a token's exact text.
func TokenDigest(text string) Digest { return Hash(LabelToken, []byte(text)) }

// Open decrypts the token. The header is authenticated (it is the AAD) and has
// to stand inside as well.
func (s *SealedToken) Open(k *TokenPrivateKey) (*Token, error) {
	if s.Header.KeyID != k.KeyID() {
		return nil, fmt.Errorf("cannot open token: it is encrypted to key %s, not %s", s.Header.KeyID, k.KeyID())
	}
	plaintext, err := open(k.key, LabelTokenSeal, s.enc, s.header, s.sealed)
	if err != nil {
		return nil, fmt.Errorf("cannot open token: %w", err)
	}
	defer clear(plaintext)
	var b tokenBody
	if err := strict.Document(plaintext, MaxToken, &b); err != nil {
		return nil, fmt.Errorf("cannot read token: %w", err)
	}
	if b.Header != s.Header {
		return nil, errors.New("cannot read token: header: the one inside differs from the one outside")
	}
	t := &Token{b.Header, secretOf(b.Nonce), secretOf(b.Secret), b.Pins, b.Migration, b.Restarts, b.OnTrustLost, b.MaxUnproven, b.Saves}
	if err := t.check(); err != nil {
		return nil, fmt.Errorf("cannot read token: %w", err)
	}
	return t, nil
}
