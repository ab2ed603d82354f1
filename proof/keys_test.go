package proof

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"math/big"
	"strings"
	"testing"

	"troth/proof/strict"
)

// RFC 7638 chapter 3.1 gives an RSA example only; this is the rule spelled out
// for EC: SHA-256 of the required members in lexical order.
func TestKeyIDIsTheThumbprint(t *testing.T) {
	j := testSigningKey(t, "root").JWK()
	sum := sha256.Sum256([]byte(`{"crv":"P-256","kty":"EC","x":"` + j.X.String() + `","y":"` + j.Y.String() + `"}`))
	if want := strict.EncodeBase64(sum[:]); j.KeyID != want {
		t.Errorf("kid %s, want %s", j.KeyID, want)
	}
}

func TestSignaturesAreLowSAndDeterministic(t *testing.T) {
	for i := range 64 {
		k := must[*SigningKey](t)(GenerateSigningKey())
		a, b := must[[]byte](t)(k.sign([]byte{byte(i)})), must[[]byte](t)(k.sign([]byte{byte(i)}))
		if !lowS(a) || string(a) != string(b) {
			t.Fatalf("signature %x, then %x", a, b)
		}
		pub := must[*ecdsa.PublicKey](t)(k.JWK().PublicKey())
		h := sha256.Sum256([]byte{byte(i)})
		if !ecdsa.Verify(pub, h[:], new(big.Int).SetBytes(a[:32]), new(big.Int).SetBytes(a[32:])) {
			t.Fatal("it does not verify")
		}
	}
	half := make([]byte, 64)
	halfOrder.FillBytes(half[32:])
	if !lowS(half) {
		t.Error("n/2 is not low")
	}
	new(big.Int).Add(halfOrder, big.NewInt(1)).FillBytes(half[32:])
	if lowS(half) || lowS(make([]byte, 64)) {
		t.Error("n/2+1 or zero is low")
	}
}

func TestKeysInFiles(t *testing.T) {
	s := must[*SigningKey](t)(GenerateSigningKey())
	again := must[*SigningKey](t)(ParseSigningKey(must[[]byte](t)(s.PEM())))
	if again.KeyID() != s.KeyID() {
		t.Error("another signing key comes back")
	}
	k := must[*TokenPrivateKey](t)(GenerateTokenKey())
	back := must[*TokenPrivateKey](t)(ParseTokenPrivateKey(must[[]byte](t)(k.PEM())))
	if back.KeyID() != k.KeyID() {
		t.Error("another token key comes back")
	}
	text := must[[]byte](t)(s.PEM())
	for name, bad := range map[string][]byte{"empty": nil, "two": append(text, text...), "token key": must[[]byte](t)(k.PEM()), "public": must[[]byte](t)(s.JWK().PEM())} {
		if _, err := ParseSigningKey(bad); err == nil {
			t.Errorf("%s: read as a signing key", name)
		}
	}
	if _, err := ParseTokenPrivateKey(text); err == nil {
		t.Error("a signing key was read as a token key")
	}
}

func TestJWKIsExact(t *testing.T) {
	good := testSigningKey(t, "root").JWK()
	for name, spoil := range map[string]func(*JWK){
		"kty": func(j *JWK) { j.Type = "RSA" }, "crv": func(j *JWK) { j.Curve = "P-384" }, "alg": func(j *JWK) { j.Algorithm = "ES384" },
		"use": func(j *JWK) { j.Use = "enc" }, "kid": func(j *JWK) { j.KeyID = "mine" },
		"x short": func(j *JWK) { j.X = j.X[1:] }, "not on the curve": func(j *JWK) { j.Y = append(Bytes{}, j.X...) },
	} {
		j := good
		spoil(&j)
		if _, err := j.PublicKey(); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	p384 := must[*ecdsa.PrivateKey](t)(ecdsa.GenerateKey(elliptic.P384(), rand.Reader))
	if _, err := NewSigningKey(p384); err == nil {
		t.Error("a P-384 key signs")
	}
	if _, err := NewVerdictKeys(good, good); err == nil {
		t.Error("a key stands twice")
	}
}

func TestTokenKeyIsNamedByItsDigest(t *testing.T) {
	k := testTokenKey(t, "a").Public()
	k.KeyID = testTokenKey(t, "b").KeyID()
	if _, err := NewToken(sceneToken(), k); err == nil || !strings.Contains(err.Error(), "kid") {
		t.Errorf("a token for a key of another name: %v", err)
	}
	k = testTokenKey(t, "a").Public()
	k.Public = k.Public[1:]
	if _, err := NewToken(sceneToken(), k); err == nil {
		t.Error("a token for a short key")
	}
	text := must[string](t)(NewToken(sceneToken(), testTokenKey(t, "a").Public()))
	if _, err := must[*SealedToken](t)(ParseToken(text)).Open(testTokenKey(t, "b")); err == nil {
		t.Error("another verifier opens the token")
	}
}

// The header is authenticated: the readable part cannot be changed.
func TestTokenHeaderIsBound(t *testing.T) {
	k := testTokenKey(t, "a")
	text := must[string](t)(NewToken(sceneToken(), k.Public()))
	s := must[*SealedToken](t)(ParseToken(text))
	h := s.Header
	h.Expiry++
	header := must[[]byte](t)(strict.Encode(h))
	forged := strict.EncodeBase64(header) + "." + strict.EncodeBase64(s.enc) + "." + strict.EncodeBase64(s.sealed)
	if _, err := must[*SealedToken](t)(ParseToken(forged)).Open(k); err == nil {
		t.Error("a token with a later expiry opens")
	}
	// The holder of the verifier's public key can seal a body under a header of
	// its choice; the one inside has to be the same.
	tok := must[*Token](t)(s.Open(k))
	inside := must[[]byte](t)(strict.Encode(tokenBody{tok.Header, tok.Nonce.raw(), nil, tok.Pins, tok.Migration, tok.Restarts, tok.OnTrustLost, tok.MaxUnproven, tok.Saves}))
	enc, box, err := seal(k.Public().Public, LabelTokenSeal, header, inside)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := (&SealedToken{Header: h, header: header, enc: enc, sealed: box}).Open(k); err == nil || !strings.Contains(err.Error(), "header") {
		t.Errorf("two headers: %v", err)
	}
}
