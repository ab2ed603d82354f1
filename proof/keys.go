package proof

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hpke"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"

	"github.com/go-jose/go-jose/v4"

	"troth/proof/strict"
)

// JWK is a public ES256 key (RFC 7517, RFC 7518 chapter 6.2), written in one
// way; KeyID is its RFC 7638 thumbprint.
type JWK struct {
	Type      string `json:"kty"` // EC
	Curve     string `json:"crv"` // P-256
	Algorithm string `json:"alg"` // ES256
	Use       string `json:"use"` // sig
	KeyID     string `json:"kid"`
	X         Bytes  `json:"x"`
	Y         Bytes  `json:"y"`
}

// NewJWK writes a P-256 public key.
func NewJWK(pub *ecdsa.PublicKey) (JWK, error) {
	if pub == nil || pub.Curve != elliptic.P256() {
		return JWK{}, errors.New("cannot write JWK: not a P-256 key")
	}
	point, err := pub.Bytes() // 4 ‖ x ‖ y, SEC 1 chapter 2.3.3
	if err != nil {
		return JWK{}, fmt.Errorf("cannot write JWK: %w", err)
	}
	kid, err := thumbprint(pub)
	if err != nil {
		return JWK{}, fmt.Errorf("cannot write JWK: %w", err)
	}
	return JWK{"EC", "P-256", "ES256", "sig", kid, point[1:33], point[33:]}, nil
}

func thumbprint(pub *ecdsa.PublicKey) (string, error) {
	t, err := (&jose.JSONWebKey{Key: pub}).Thumbprint(crypto.SHA256)
	return strict.EncodeBase64(t), err
}

// PublicKey checks every member and gives the key.
func (j JWK) PublicKey() (*ecdsa.PublicKey, error) {
	if len(j.X) != 32 || len(j.Y) != 32 {
		return nil, errors.New("cannot read JWK: x and y have 32 bytes each")
	}
	pub, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), append(append([]byte{4}, j.X...), j.Y...))
	if err != nil {
		return nil, fmt.Errorf("cannot read JWK: %w", err)
	}
	again, err := NewJWK(pub)
	if err != nil {
		return nil, err
	}
	for _, f := range []struct{ name, got, want string }{
		{"kty", j.Type, again.Type}, {"crv", j.Curve, again.Curve}, {"alg", j.Algorithm, again.Algorithm},
		{"use", j.Use, again.Use}, {"kid", j.KeyID, again.KeyID},
	} {
		if f.got != f.want {
			return nil, fmt.Errorf("cannot read JWK: %s: %q is not %q", f.name, f.got, f.want)
		}
	}
	return pub, nil
}

// PEM writes the public key for openssl.
func (j JWK) PEM() ([]byte, error) {
	pub, err := j.PublicKey()
	if err != nil {
		return nil, err
	}
	return publicPEM(pub)
}

func publicPEM(pub *ecdsa.PublicKey) ([]byte, error) {
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return nil, fmt.Errorf("cannot write public key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), nil
}

// SigningKey is an ES256 key of a verifier: the root, or a verdict key. It
// signs deterministically (RFC 6979) with low S.
type SigningKey struct {
	key *ecdsa.PrivateKey
	jwk JWK
}

// GenerateSigningKey draws a new key.
func GenerateSigningKey() (*SigningKey, error) {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("cannot make signing key: %w", err)
	}
	return NewSigningKey(k)
}

// NewSigningKey takes a P-256 key.
func NewSigningKey(k *ecdsa.PrivateKey) (*SigningKey, error) {
	jwk, err := NewJWK(&k.PublicKey)
	if err != nil {
		return nil, err
	}
	return &SigningKey{k, jwk}, nil
}

// ParseSigningKey reads what PEM wrote.
func ParseSigningKey(text []byte) (*SigningKey, error) {
	block, rest := pem.Decode(text)
	if block == nil || block.Type != "PRIVATE KEY" || len(rest) != 0 {
		return nil, errors.New("cannot read signing key: not one PEM block PRIVATE KEY")
	}
	k, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("cannot read signing key: %w", err)
	}
	ec, ok := k.(*ecdsa.PrivateKey)
	if !ok {
		return nil, errors.New("cannot read signing key: not an EC key")
	}
	return NewSigningKey(ec)
}

// PEM writes the private key (PKCS #8) for a file with mode 0600.
func (k *SigningKey) PEM() ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(k.key)
	if err != nil {
		return nil, fmt.Errorf("cannot write signing key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

// JWK is the public half.
func (k *SigningKey) JWK() JWK { return k.jwk }

// KeyID is the RFC 7638 thumbprint.
func (k *SigningKey) KeyID() string { return k.jwk.KeyID }

// sign gives r‖s with low S over SHA-256 of message.
func (k *SigningKey) sign(message []byte) ([]byte, error) {
	digest := sha256.Sum256(message)
	der, err := k.key.Sign(nil, digest[:], crypto.SHA256)
	if err != nil {
		return nil, fmt.Errorf("cannot sign: %w", err)
	}
	r, s, err := parseDER(der)
	if err != nil {
		return nil, err
	}
	if n := elliptic.P256().Params().N; s.Cmp(halfOrder) > 0 {
		s.Sub(n, s)
	}
	raw := make([]byte, 64)
	r.FillBytes(raw[:32])
	s.FillBytes(raw[32:])
	return raw, nil
}

var halfOrder = new(big.Int).Rsh(elliptic.P256().Params().N, 1)

// lowS reports whether raw, r‖s, has 0 < s ≤ n/2: (r, s) and (r, n-s) are both
// valid ECDSA signatures, and only one of them is a Troth signature.
func lowS(raw []byte) bool {
	s := new(big.Int).SetBytes(raw[32:])
	return s.Sign() > 0 && s.Cmp(halfOrder) <= 0
}

// VerdictKeys are the keys that a verifier's verdicts and receipts may be signed with.
type VerdictKeys struct{ byID map[string]*ecdsa.PublicKey }

// NewVerdictKeys checks every key.
func NewVerdictKeys(keys ...JWK) (*VerdictKeys, error) {
	v := &VerdictKeys{map[string]*ecdsa.PublicKey{}}
	for i, j := range keys {
		pub, err := j.PublicKey()
		if err != nil {
			return nil, fmt.Errorf("key %d: %w", i, err)
		}
		if v.byID[j.KeyID] != nil {
			return nil, fmt.Errorf("key %d: %s stands twice", i, j.KeyID)
		}
		v.byID[j.KeyID] = pub
	}
	return v, nil
}

// Has says whether there is a key of this id.
func (v *VerdictKeys) Has(keyID string) bool { return v.byID[keyID] != nil }

// TokenKey is a verifier's public key that tokens are encrypted to:
// MLKEM768-X25519 (HPKE KEM 0x647a). KeyID is Hash(LabelTokenKey, Public).
type TokenKey struct {
	KeyID  string `json:"kid"`
	Public Bytes  `json:"public"`
}

func (k TokenKey) check() error {
	if _, err := kem.NewPublicKey(k.Public); err != nil {
		return fmt.Errorf("cannot read token key: %w", err)
	}
	if id := Hash(LabelTokenKey, k.Public).String(); k.KeyID != id {
		return fmt.Errorf("cannot read token key: kid: %q is not %q", k.KeyID, id)
	}
	return nil
}

// TokenPrivateKey opens tokens.
type TokenPrivateKey struct {
	key    hpke.PrivateKey
	public TokenKey
}

// GenerateTokenKey draws a new key.
func GenerateTokenKey() (*TokenPrivateKey, error) {
	return NewTokenPrivateKey(RandomSecret(32))
}

// NewTokenPrivateKey takes the 32-byte seed that is the private key.
func NewTokenPrivateKey(seed Secret) (*TokenPrivateKey, error) {
	k, err := kem.NewPrivateKey(seed.raw())
	if err != nil {
		return nil, fmt.Errorf("cannot read token key: %w", err)
	}
	pub := k.PublicKey().Bytes()
	return &TokenPrivateKey{k, TokenKey{Hash(LabelTokenKey, pub).String(), pub}}, nil
}

const tokenKeyBlock = "TROTH TOKEN PRIVATE KEY"

// PEM writes the private key for a file with mode 0600.
func (k *TokenPrivateKey) PEM() ([]byte, error) {
	seed, err := k.key.Bytes()
	if err != nil {
		return nil, fmt.Errorf("cannot write token key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: tokenKeyBlock, Bytes: seed}), nil
}

// ParseTokenPrivateKey reads what PEM wrote.
func ParseTokenPrivateKey(text []byte) (*TokenPrivateKey, error) {
	block, rest := pem.Decode(text)
	if block == nil || block.Type != tokenKeyBlock || len(rest) != 0 {
		return nil, fmt.Errorf("cannot read token key: not one PEM block %s", tokenKeyBlock)
	}
	return NewTokenPrivateKey(NewSecret(block.Bytes))
}

// Public is the half that a key set carries.
func (k *TokenPrivateKey) Public() TokenKey { return k.public }

// KeyID names the key in a token's header.
func (k *TokenPrivateKey) KeyID() string { return k.public.KeyID }

type ecdsaSignature struct{ R, S *big.Int }

func parseDER(der []byte) (r, s *big.Int, err error) {
	var sig ecdsaSignature
	if _, err := asn1.Unmarshal(der, &sig); err != nil {
		return nil, nil, fmt.Errorf("cannot read signature: %w", err)
	}
	return sig.R, sig.S, nil
}

// signatureDER turns r‖s into the DER form that openssl reads.
func signatureDER(raw []byte) ([]byte, error) {
	r, s := new(big.Int).SetBytes(raw[:32]), new(big.Int).SetBytes(raw[32:])
	return asn1.Marshal(ecdsaSignature{r, s})
}
