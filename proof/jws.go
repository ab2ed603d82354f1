package proof

import (
	"crypto/ecdsa"
	"fmt"

	"github.com/go-jose/go-jose/v4"

	"troth/proof/strict"
)

// Types of signed documents (RFC 8725 chapter 3.11): one document is never
// taken for another.
const (
	typeVerdict = "troth-verdict+jwt"
	typeReceipt = "troth-receipt+jwt"
	typeKeySet  = "troth-keyset+jwt"
)

type jwsHeader struct {
	Algorithm string `json:"alg"`
	KeyID     string `json:"kid"`
	Type      string `json:"typ"`
}

// signJWS writes the compact form (RFC 7515 chapter 7.1) of v's JSON.
func signJWS(typ string, v any, k *SigningKey) (string, error) {
	if k == nil {
		return "", fmt.Errorf("cannot sign %s: %w", typ, errNil)
	}
	payload, err := strict.Encode(v)
	if err != nil {
		return "", err
	}
	return signPayload(jwsHeader{string(jose.ES256), k.KeyID(), typ}, payload, k)
}

func signPayload(h jwsHeader, payload []byte, k *SigningKey) (string, error) {
	header, err := strict.Encode(h)
	if err != nil {
		return "", err
	}
	input := strict.EncodeBase64(header) + "." + strict.EncodeBase64(payload)
	sig, err := k.sign([]byte(input))
	if err != nil {
		return "", err
	}
	return input + "." + strict.EncodeBase64(sig), nil
}

// readJWS reads a signed document into v: three strict parts, the header
// exactly as signJWS writes it, a key of ours, low S, the signature, and only
// then the claims, in their one form.
func readJWS(text string, max int, typ string, keys *VerdictKeys, v any) error {
	s, err := strict.JWS(text, max)
	if err != nil {
		return err
	}
	if err := checkJWS(text, s, typ, keys); err != nil {
		return err
	}
	return strict.Document(s.Payload, max, v)
}

func checkJWS(text string, s *strict.Signed, typ string, keys *VerdictKeys) error {
	var h jwsHeader
	if err := strict.Document(s.Header, 512, &h); err != nil {
		return fmt.Errorf("header: %w", err)
	}
	if h.Algorithm != string(jose.ES256) {
		return fmt.Errorf("header: alg: %q is not %q", h.Algorithm, jose.ES256)
	}
	if h.Type != typ {
		return fmt.Errorf("header: typ: %q is not %q", h.Type, typ)
	}
	var pub *ecdsa.PublicKey
	if keys != nil {
		pub = keys.byID[h.KeyID]
	}
	if pub == nil {
		return fmt.Errorf("header: kid: no trusted key is called %q", h.KeyID)
	}
	if !lowS(s.Signature) {
		return fmt.Errorf("signature: s is not in the lower half of the order")
	}
	parsed, err := jose.ParseSignedCompact(text, []jose.SignatureAlgorithm{jose.ES256})
	if err != nil {
		return fmt.Errorf("signature: %w", err)
	}
	if _, err := parsed.Verify(pub); err != nil {
		return fmt.Errorf("signature: %w", err)
	}
	return nil
}
