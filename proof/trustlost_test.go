package proof

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"reflect"
	"testing"
)

func TestTrustLost(t *testing.T) {
	ec := must[*ecdsa.PrivateKey](t)(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	want := &TrustLost{UUID: "6a0f0a5e-4c55-4a53-9d5c-0d8b6f1f2a11", Link: Digest{1}, Token: Digest{2}, At: 1_800_000_000, Code: ConfigurationChanged,
		Sentence: "a disk was added", Facts: []Fact{{Name: "disks[1].path", Got: "/etc/shadow"}}, Reaction: TrustLostPause}
	for name, key := range map[string]crypto.Signer{"ecdsa": ec, "ed25519": ed} {
		t.Run(name, func(t *testing.T) {
			b := must[[]byte](t)(want.Sign(key))
			cnf := Digest(sha256.Sum256(must[[]byte](t)(x509.MarshalPKIXPublicKey(key.Public()))))
			got := must[*TrustLost](t)(ParseTrustLost(b, cnf))
			if !reflect.DeepEqual(got, want) {
				t.Errorf("got %+v", got)
			}
			if _, err := ParseTrustLost(b, Digest{9}); err == nil {
				t.Error("a report by another key than the verdict's was taken")
			}
			// No other bytes are a report: every byte counts.
			for i := range b {
				c := bytes.Clone(b)
				c[i] ^= 1
				if _, err := ParseTrustLost(c, cnf); err == nil {
					t.Fatalf("byte %d of the report is not covered", i)
				}
			}
		})
	}
	for name, change := range map[string]func(*TrustLost){
		"link": func(r *TrustLost) { r.Link = Digest{} }, "code": func(r *TrustLost) { r.Code = "nonsense" }, "reaction": func(r *TrustLost) { r.Reaction = "" },
		"facts": func(r *TrustLost) { r.Facts = make([]Fact, maxLostFacts+1) }, "at": func(r *TrustLost) { r.At = -1 },
	} {
		r := *want
		change(&r)
		if _, err := r.Sign(ec); err == nil {
			t.Errorf("%s: a report without sense was signed", name)
		}
	}
}
