package proof

import (
	"bytes"
	"crypto/elliptic"
	"math/big"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"troth/proof/strict"
	"troth/tpm/pcr"
)

// A forgery is a proof that is made and signed properly but for one thing, so
// that exactly one check stands between it and being accepted.
type forgery struct {
	name  string // the check that has to find it, "-" and which way
	check string
	spoil func(t testing.TB, s *scene)
	bytes func(b []byte) []byte // change of the encoded proof
}

func highS(raw []byte) []byte {
	out := bytes.Clone(raw)
	s := new(big.Int).SetBytes(out[32:])
	s.Sub(elliptic.P256().Params().N, s).FillBytes(out[32:])
	return out
}

func jwsHighS(t testing.TB, jws string) string {
	s := must[*strict.Signed](t)(strict.JWS(jws, MaxVerdict))
	return s.Input + "." + strict.EncodeBase64(highS(s.Signature))
}

// otherPCRs puts values into quote, verdict and proof alike.
func otherPCRs(t testing.TB, s *scene, v pcr.Values) {
	d := must[[32]byte](t)(v.Digest(sceneSelection))
	s.onVerdict = func(x *Verdict) { x.PCRDigest = d }
	s.onQuote = func(a *attestation) { a.pcrDigest = d }
	s.onProof = func(p *Proof) { p.PCRs = PCRList(v, sceneSelection) }
}

func forgeries() []forgery {
	return []forgery{
		{"proof-form-space", "proof-form", nil, func(b []byte) []byte { return append(b, ' ') }},
		{"proof-form-newline", "proof-form", nil, func(b []byte) []byte { return append(b, '\n') }},
		{"proof-form-escape", "proof-form", nil, func(b []byte) []byte { return bytes.Replace(b, []byte("troth-proof"), []byte(`\u0074roth-proof`), 1) }},
		{"proof-form-version", "proof-form", func(_ testing.TB, s *scene) { s.onProof = func(p *Proof) { p.Version = "troth-proof/v2" } }, nil},
		{"proof-sum", "proof-sum", nil, func(b []byte) []byte { b[len(b)-4] ^= 1; return b }},
		{"trust-keys-root", "trust-keys", func(t testing.TB, s *scene) {
			s.onTrust = func(tr *Trust) { tr.Root = testSigningKey(t, "another root").JWK() }
		}, nil},
		{"trust-keys-issuer", "trust-keys", func(_ testing.TB, s *scene) { s.onKeySet = func(k *KeySet) { k.Issuer = "other.example" } }, nil},
		{"statement-form", "statement-form", func(_ testing.TB, s *scene) { s.onStatement = func(x *Statement) { x.Mode = "running" } }, nil},
		{"verdict-signature-key", "verdict-signature", func(t testing.TB, s *scene) {
			s.onKeySet = func(k *KeySet) { k.VerdictKeys = []JWK{testSigningKey(t, "another verdict key").JWK()} }
		}, nil},
		{"verdict-signature-form", "verdict-signature", func(_ testing.TB, s *scene) { s.onVerdict = func(v *Verdict) { v.Class = "quantum" } }, nil},
		{"receipt-signature-high-s", "receipt-signature", func(t testing.TB, s *scene) { s.onProof = func(p *Proof) { p.Receipt = jwsHighS(t, p.Receipt) } }, nil},
		{"receipt-signature-form", "receipt-signature", func(_ testing.TB, s *scene) { s.onReceipt = func(r *Receipt) { r.Policy.Restarts = "often" } }, nil},
		{"verdict-issuer", "verdict-issuer", func(_ testing.TB, s *scene) { s.onVerdict = func(v *Verdict) { v.Issuer = "other.example" } }, nil},
		{"receipt-issuer", "receipt-issuer", func(_ testing.TB, s *scene) { s.onReceipt = func(r *Receipt) { r.Issuer = "other.example" } }, nil},
		{"keys-valid-before", "keys-valid", func(_ testing.TB, s *scene) { s.onKeySet = func(k *KeySet) { k.NotBefore = sceneTime + 21 } }, nil},
		{"keys-valid-after", "keys-valid", func(_ testing.TB, s *scene) { s.onKeySet = func(k *KeySet) { k.NotAfter = sceneTime + 19 } }, nil},
		{"receipt-token", "receipt-token", func(_ testing.TB, s *scene) { s.onReceipt = func(r *Receipt) { r.Token = testDigest("another token") } }, nil},
		{"receipt-statement", "receipt-statement", func(_ testing.TB, s *scene) {
			s.onReceipt = func(r *Receipt) { r.Statement = testDigest("another statement") }
		}, nil},
		{"receipt-verdict", "receipt-verdict", func(_ testing.TB, s *scene) {
			s.onReceipt = func(r *Receipt) { r.Verdict = testDigest("another verdict") }
		}, nil},
		{"receipt-previous", "receipt-previous", func(_ testing.TB, s *scene) {
			s.onStatement = func(x *Statement) { x.Previous = ptr(testDigest("link before")) }
			s.onReceipt = func(r *Receipt) { r.Previous = ptr(testDigest("another link")) }
		}, nil},
		{"receipt-previous-first", "receipt-previous", func(_ testing.TB, s *scene) {
			s.onStatement = func(x *Statement) { x.Previous = ptr(testDigest("link before")) }
			s.onReceipt = func(r *Receipt) { r.Previous, r.Link = nil, 1 }
		}, nil},
		{"receipt-attempt", "receipt-attempt", func(_ testing.TB, s *scene) { s.onReceipt = func(r *Receipt) { r.Attempt = 2 } }, nil},
		{"receipt-time-before", "receipt-time", func(_ testing.TB, s *scene) {
			s.onReceipt = func(r *Receipt) { r.IssuedAt = sceneTime - replicaSkew - 1 }
		}, nil},
		{"receipt-time-after", "receipt-time", func(_ testing.TB, s *scene) {
			s.onReceipt = func(r *Receipt) { r.IssuedAt = sceneTime + 180 + replicaSkew + 1 }
		}, nil},
		{"verdict-status", "verdict-status", func(_ testing.TB, s *scene) {
			s.onVerdict = func(v *Verdict) {
				v.Status, v.Release, v.Profiles, v.Failed = Contraindicated, nil, nil, []string{"pcr-mismatch"}
			}
		}, nil},
		{"tpm-class", "tpm-class", func(_ testing.TB, s *scene) { s.onTrust = func(tr *Trust) { tr.AllowSoftwareTPM = false } }, nil},
		{"ak-form-unrestricted", "ak-form", func(t testing.TB, s *scene) {
			s.akPublic = testAK(t, s.akKey, func(p *tpm2.TPMTPublic) { p.ObjectAttributes.Restricted = false })
		}, nil},
		{"ak-form-trailing", "ak-form", func(_ testing.TB, s *scene) { s.akPublic = append(s.akPublic, 0) }, nil},
		{"statement-host", "statement-host", func(_ testing.TB, s *scene) { s.onStatement = func(x *Statement) { x.Host[5] ^= 1 } }, nil},
		{"statement-verdict", "statement-verdict", func(_ testing.TB, s *scene) {
			s.onStatement = func(x *Statement) { x.Verdict = testDigest("another verdict") }
		}, nil},
		{"verdict-host", "verdict-host", func(_ testing.TB, s *scene) { s.onVerdict = func(v *Verdict) { v.Host[5] ^= 1 } }, nil},
		{"quote-signature", "quote-signature", func(t testing.TB, s *scene) { s.akKey = testECKey(t, "another ak") }, nil},
		{"quote-signature-high-s", "quote-signature", func(_ testing.TB, s *scene) { s.onQuote = func(a *attestation) { a.highS = true } }, nil},
		{"quote-signature-magic", "quote-signature", func(_ testing.TB, s *scene) { s.onQuote = func(a *attestation) { a.magic = 0xFF544346 } }, nil},
		{"quote-signature-type", "quote-signature", func(_ testing.TB, s *scene) { s.onQuote = func(a *attestation) { a.typ = 0x8017 } }, nil},
		{"quote-signature-hierarchy", "quote-signature", func(_ testing.TB, s *scene) { s.onQuote = func(a *attestation) { a.hierarchy = 0x40000001 } }, nil},
		{"quote-signature-trailing", "quote-signature", func(_ testing.TB, s *scene) { s.onQuote = func(a *attestation) { a.tail = []byte{0} } }, nil},
		{"quote-selection-debug", "quote-selection", func(t testing.TB, s *scene) { selection(t, s, pcr.SHA256, 16, 18, 23) }, nil},
		{"quote-selection-subset", "quote-selection", func(t testing.TB, s *scene) { selection(t, s, pcr.SHA256, 17, 18) }, nil},
		{"quote-selection-bank", "quote-selection", func(t testing.TB, s *scene) { selection(t, s, pcr.SHA1, 17, 18, 19) }, nil},
		{"quote-selection-empty", "quote-selection", func(_ testing.TB, s *scene) {
			s.onQuote = func(a *attestation) { a.selection = []byte{0, 0, 0, 1, 0, 0x0B, 3, 0, 0, 0} }
		}, nil},
		{"pcr-list-more", "pcr-list", func(_ testing.TB, s *scene) {
			s.onProof = func(p *Proof) { p.PCRs = append(p.PCRs, PCR{23, testDigest("pcr 23")}) }
		}, nil},
		{"pcr-values", "pcr-values", func(_ testing.TB, s *scene) { s.onProof = func(p *Proof) { p.PCRs[1].Value[0] ^= 1 } }, nil},
		{"verdict-pcrs", "verdict-pcrs", func(_ testing.TB, s *scene) { s.onVerdict = func(v *Verdict) { v.PCRDigest[0] ^= 1 } }, nil},
		{"batch-path-count", "batch-path", func(_ testing.TB, s *scene) { s.onProof = func(p *Proof) { p.Count = 3 } }, nil},
		{"batch-path-index", "batch-path", func(_ testing.TB, s *scene) { s.onProof = func(p *Proof) { p.Index = 4 } }, nil},
		{"batch-path-short", "batch-path", func(_ testing.TB, s *scene) { s.onProof = func(p *Proof) { p.Path = p.Path[:1] } }, nil},
		{"quote-binding-data", "quote-binding", func(_ testing.TB, s *scene) {
			s.onQuote = func(a *attestation) { a.extraData = testDigestBytes("other") }
		}, nil},
		{"quote-binding-empty", "quote-binding", func(_ testing.TB, s *scene) { s.onQuote = func(a *attestation) { a.extraData = nil } }, nil},
		{"quote-binding-path", "quote-binding", func(_ testing.TB, s *scene) { s.onProof = func(p *Proof) { p.Path[1][0] ^= 1 } }, nil},
		{"quote-binding-index", "quote-binding", func(_ testing.TB, s *scene) { s.onProof = func(p *Proof) { p.Index = 1 } }, nil},
		{"reset-count", "reset-count", func(_ testing.TB, s *scene) { s.onQuote = func(a *attestation) { a.reset++ } }, nil},
		{"restart-count", "restart-count", func(_ testing.TB, s *scene) { s.onQuote = func(a *attestation) { a.restart++ } }, nil},
		{"clock-forward", "clock-forward", func(_ testing.TB, s *scene) { s.onQuote = func(a *attestation) { a.clock = 999_999 } }, nil},
		{"clock-lifetime", "clock-lifetime", func(_ testing.TB, s *scene) { s.onQuote = func(a *attestation) { a.clock = 1_000_000 + 180*1150 + 1 } }, nil},
		{"dynamic-launch-none", "dynamic-launch", func(t testing.TB, s *scene) {
			ones := [32]byte(bytes.Repeat([]byte{0xff}, 32))
			otherPCRs(t, s, pcr.Values{17: ones, 18: ones, 19: ones})
		}, nil},
		{"dynamic-launch-zero", "dynamic-launch", func(t testing.TB, s *scene) { otherPCRs(t, s, pcr.Values{17: {}, 18: {}, 19: {}}) }, nil},
		{"key-token", "key-token", func(_ testing.TB, s *scene) { s.onKey = func(k *Key) { k.Token = testDigest("another token") } }, nil},
		{"mac", "mac", func(_ testing.TB, s *scene) { s.nonce = NewSecret(testScalar("another nonce")) }, nil},
		{"mac-changed-after", "mac", func(_ testing.TB, s *scene) { s.onSealed = func(p *Proof) { p.MAC[31] ^= 1 } }, nil},
	}
}

func testDigestBytes(s string) []byte { d := testDigest(s); return d[:] }

// selection makes a quote over other PCRs that hold the same values, so that
// the signed digest is the expected one.
func selection(t testing.TB, s *scene, bank pcr.Bank, index ...int) {
	sel := must[pcr.Selection](t)(pcr.Select(bank, index...))
	s.onQuote = func(a *attestation) { a.selection = sel.Marshal() }
}

// forge gives the forged proof with the trust and key to verify it with. The
// nonce of the key is always the tenant's own.
func (f forgery) forge(t testing.TB) ([]byte, *Trust, *Key) {
	s := newScene(t)
	key := s.key()
	if f.spoil != nil {
		f.spoil(t, s)
	}
	call(s.onKey, key)
	b := s.make(t)
	if f.bytes != nil {
		b = f.bytes(b)
	}
	return b, s.trust(t), key
}
