package proof

import (
	"bytes"
	"testing"

	"troth/proof/strict"
)

// Every decoder accepts one form only: decode, encode, equal.

func seeds(f *testing.F, name string) {
	for _, p := range papers(f) {
		if p.name == name {
			f.Add(p.text)
			return
		}
	}
	f.Fatalf("no paper %s", name)
}

func canonical[T any](f *testing.F, name string, parse func([]byte) (T, error), encode func(T) ([]byte, error)) {
	seeds(f, name)
	f.Fuzz(func(t *testing.T, b []byte) {
		v, err := parse(b)
		if err != nil {
			return
		}
		again, err := encode(v)
		if err != nil || !bytes.Equal(again, b) {
			t.Errorf("%q was written again as %q (%v)", b, again, err)
		}
	})
}

// claims reads a payload as its signed document does after the signature.
func claims[T any](check func(*T) error) func([]byte) (*T, error) {
	return func(b []byte) (*T, error) {
		v := new(T)
		if err := strict.Document(b, MaxKeySet, v); err != nil {
			return nil, err
		}
		return v, check(v)
	}
}

func encoded[T any](v T) ([]byte, error) { return strict.Encode(v) }

func FuzzProof(f *testing.F)     { canonical(f, "proof", ParseProof, (*Proof).Encode) }
func FuzzStatement(f *testing.F) { canonical(f, "statement", ParseStatement, (*Statement).Encode) }
func FuzzEvidence(f *testing.F)  { canonical(f, "evidence", ParseEvidence, (*Evidence).Encode) }
func FuzzReceipt(f *testing.F)   { canonical(f, "receipt", claims((*Receipt).check), encoded) }
func FuzzKeySet(f *testing.F)    { canonical(f, "key set", claims((*KeySet).check), encoded) }
func FuzzHeader(f *testing.F) {
	canonical(f, "token header", claims(func(h *Header) error { return h.check() }), encoded)
}
func FuzzGuestCredential(f *testing.F) {
	canonical(f, "guest credential", func(b []byte) (*GuestCredential, error) {
		if bytes.HasSuffix(b, []byte("\n")) {
			b = b[:0] // a newline at the end is for people and shells
		}
		return ParseGuestCredential(b)
	}, (*GuestCredential).EncodePrivate)
}

func FuzzVerdict(f *testing.F) {
	canonical(f, "verdict", claims(func(c *verdictClaims) error { return c.verdict().check() }), func(c *verdictClaims) ([]byte, error) {
		again := c.verdict().claims() // through the Go struct and back
		again.Profile, again.Verifier, again.Submods.Host.Vector = c.Profile, c.Verifier, c.Submods.Host.Vector
		return strict.Encode(again)
	})
}

func FuzzToken(f *testing.F) {
	f.Add(must[string](f)(NewToken(sceneToken(), testTokenKey(f, "token key").Public())))
	f.Fuzz(func(t *testing.T, text string) {
		s, err := ParseToken(text)
		if err != nil {
			return
		}
		again := strict.EncodeBase64(must[[]byte](t)(strict.Encode(s.Header))) + "." + strict.EncodeBase64(s.enc) + "." + strict.EncodeBase64(s.sealed)
		if again != text {
			t.Errorf("%q has another form %q", text, again)
		}
	})
}

// Verify neither panics nor accepts anything but the one proof.
func FuzzVerify(f *testing.F) {
	s := newScene(f)
	b, trust, key := s.make(f), s.trust(f), s.key()
	f.Add(b)
	f.Fuzz(func(t *testing.T, x []byte) {
		if _, err := Verify(x, trust, key); err == nil && !bytes.Equal(x, b) {
			t.Errorf("accepted %q", x)
		}
	})
}
