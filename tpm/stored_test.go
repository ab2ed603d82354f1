package tpm_test

import (
	"bytes"
	"crypto/x509"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"troth/test/lab/txt"
	"troth/tpm"
	"troth/tpm/pcr"
)

// What a real swtpm made once, in testdata/stored: it must stay readable, so that it is never written again. A new
// kind of file is written when it is missing and -short is not set.
const stored = "testdata/stored"

func TestStored(t *testing.T) {
	if _, err := os.Stat(stored); errors.Is(err, os.ErrNotExist) && !testing.Short() {
		store(t, real(t))
	}
	read := func(name string) []byte {
		b, err := os.ReadFile(filepath.Join(stored, name))
		return must(t, b, err)
	}
	ak, err := tpm.ParseAK(read("ak"))
	a, err2 := must(t, ak, err).VerifyQuote(tpm.Quote{Message: read("quote.msg"), Signature: read("quote.sig")})
	must(t, a, err2)
	expected, err := txt.Example(txt.TbootLegacy).Expected()
	if err := a.CheckPCRs(drtm, pcr.Values(must(t, expected, err))); err != nil {
		t.Error(err)
	}
	if string(a.ExtraData) != "challenge" || a.Counters.Restart != 1 || a.Clock == 0 {
		t.Errorf("%+v", a)
	}
	srk, err := tpm.ParseSRK(read("srk"))
	if err := ak.VerifyCertify(tpm.Quote{Message: read("certify.msg"), Signature: read("certify.sig")}, []byte("challenge"), must(t, srk, err).Name()); err != nil {
		t.Error(err)
	}
	root, err := x509.ParseCertificate(read("root.der"))
	issuer, err2 := x509.ParseCertificate(read("issuer.der"))
	must(t, root, err)
	must(t, issuer, err2)
	for _, n := range []string{"0", "1"} {
		ek, err := tpm.ParseEK(read("ek" + n))
		class, err2 := must(t, ek, err).CheckCertificate(read("ek"+n+".der"), tpm.Roots{Software: []*x509.Certificate{root}}, issuer)
		if must(t, class, err2) != tpm.Software {
			t.Errorf("class %q", class)
		}
	}
}

func store(t *testing.T, c *captured) {
	t.Helper()
	if err := os.MkdirAll(stored, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{
		"ak": c.identity.AKPublic, "srk": c.identity.SRKPublic,
		"quote.msg": c.quote.Message, "quote.sig": c.quote.Signature, "certify.msg": c.certify.Message, "certify.sig": c.certify.Signature,
		"ek0": c.identity.EKs[0].Public, "ek1": c.identity.EKs[1].Public, "ek0.der": c.identity.EKs[0].Certificate, "ek1.der": c.identity.EKs[1].Certificate,
		"root.der": c.root.Raw, "issuer.der": c.issuer.Raw,
	} {
		if err := os.WriteFile(filepath.Join(stored, name), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func TestName(t *testing.T) {
	b, err := os.ReadFile(filepath.Join(stored, "ak"))
	ak, err2 := tpm.ParseAK(must(t, b, err))
	name := must(t, ak, err2).Name()
	text, err := name.MarshalText()
	var again tpm.Name
	if err := again.UnmarshalText(must(t, text, err)); err != nil || again != name {
		t.Errorf("%s reads as %v, %v", text, again, err)
	}
	for _, bad := range [][]byte{nil, text[1:], append([]byte("0"), text...), bytes.ToUpper(text), append([]byte("000c"), text[4:]...), append([]byte("000g"), text[4:]...)} {
		if err := again.UnmarshalText(bad); err == nil {
			t.Errorf("%q was read as %v", bad, again)
		}
	}
}

func TestCredentialSize(t *testing.T) {
	b, err := os.ReadFile(filepath.Join(stored, "ek0"))
	ek, err2 := tpm.ParseEK(must(t, b, err))
	must(t, ek, err2)
	for n, want := range map[int]bool{0: false, 1: true, 32: true, 33: false} {
		if _, _, err := tpm.MakeCredential(ek, tpm.Name{}, make([]byte, n)); (err == nil) != want {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
}

func TestSeal(t *testing.T) {
	b, err := os.ReadFile(filepath.Join(stored, "srk"))
	srk, err2 := tpm.ParseSRK(must(t, b, err))
	must(t, srk, err2)
	policy := tpm.ReleasePolicy(drtm, [32]byte{1}, tpm.Counters{Reset: 2, Restart: 3})
	s, err := tpm.SealSeed(srk, []byte("seed"), policy)
	if got, err := must(t, s, err).Check(); err != nil || got != policy {
		t.Errorf("policy %x, %v, want %x", got, err, policy)
	}
	if bytes.Contains(append(append(s.Public, s.Duplicate...), s.EncryptedSeed...), []byte("seed")) {
		t.Error("the seed is in the clear")
	}
	for i := range s.Public[:10] { // type, nameAlg, attributes, size of the policy
		changed := tpm.SealedSeed{Public: bytes.Clone(s.Public)}
		changed.Public[i] ^= 0x40
		if _, err := changed.Check(); err == nil {
			t.Errorf("byte %d changed: accepted", i)
		}
	}
	for _, c := range []struct {
		seed   []byte
		policy [32]byte
	}{{nil, policy}, {make([]byte, tpm.MaxSeed+1), policy}, {[]byte("seed"), [32]byte{}}} {
		if _, err := tpm.SealSeed(srk, c.seed, c.policy); err == nil {
			t.Errorf("%d bytes were sealed under %x", len(c.seed), c.policy)
		}
	}
	// Every operand is in the policy.
	other, err := pcr.Select(pcr.SHA256, 17, 18)
	must(t, other, err)
	for _, p := range [][32]byte{
		tpm.ReleasePolicy(other, [32]byte{1}, tpm.Counters{Reset: 2, Restart: 3}), tpm.ReleasePolicy(drtm, [32]byte{2}, tpm.Counters{Reset: 2, Restart: 3}),
		tpm.ReleasePolicy(drtm, [32]byte{1}, tpm.Counters{Reset: 3, Restart: 3}), tpm.ReleasePolicy(drtm, [32]byte{1}, tpm.Counters{Reset: 2, Restart: 2}),
	} {
		if p == policy {
			t.Error("another policy has the same digest")
		}
	}
}
