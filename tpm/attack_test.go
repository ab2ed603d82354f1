package tpm_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"troth/test/lab/txt"
	"troth/tpm"
	"troth/tpm/pcr"
)

// TestAttack changes real bytes of a real TPM, and does to the TPM what root can. Ids as in docs/attacks.md.
func TestAttack(t *testing.T) {
	for _, a := range []struct {
		id  string
		run func(*testing.T, *captured)
	}{
		{"A-MAGIC", attackMagic},
		{"A-SIGALG", attackSignature},
		{"A-SELECT", attackSelect},
		{"A-AKATTR", attackAttributes},
		{"A-EKCERT", attackCertificate},
	} {
		t.Run(a.id, func(t *testing.T) { a.run(t, real(t)) })
	}
}

// refused asserts that err is a failure of the check.
func refused(t *testing.T, what string, err error, check string) {
	t.Helper()
	var e *tpm.CheckError
	if !errors.As(err, &e) || e.Check != check {
		t.Errorf("%s: %v, want check %q to fail", what, err, check)
	}
}

func attackMagic(t *testing.T, c *captured) {
	f := newForger(t)
	message := f.own(c, c.quote.Message)
	a, err := f.ak.VerifyQuote(f.sign(message))
	if err := must(t, a, err).CheckPCRs(drtm, c.values); err != nil {
		t.Fatalf("unchanged, but signed by the forger: %v", err)
	}
	change := func(at int, to ...byte) []byte {
		m := bytes.Clone(message)
		copy(m[at:], to)
		return m
	}
	safe := 6 + 2 + 34 + 2 + len("challenge") + 8 + 4 + 4
	selection := safe + 1 + 8
	for _, x := range []struct {
		name    string
		message []byte
		check   string
	}{
		{"magic", change(0, 0xfe), tpm.CheckMagic},
		{"magic of nothing", nil, tpm.CheckMagic},
		{"type certify", change(4, 0x80, 0x17), tpm.CheckType},
		{"type time", change(4, 0x80, 0x19), tpm.CheckType},
		{"trailing byte", append(bytes.Clone(message), 0), tpm.CheckForm},
		{"trailing quote", append(bytes.Clone(message), message...), tpm.CheckForm},
		{"truncated", message[:len(message)-1], tpm.CheckForm},
		{"truncated in the clock", message[:safe-10], tpm.CheckForm},
		{"safe is 2", change(safe, 2), tpm.CheckForm},
		{"huge selection count", change(selection, 0xff), tpm.CheckForm},
		{"17 selections", change(selection+3, 17), tpm.CheckForm},
		{"digest of 31 bytes", change(len(message)-34, 0, 31)[:len(message)-1], tpm.CheckForm},
		{"too large", withExtraData(message, make([]byte, 1024)), tpm.CheckForm},
		{"qualified name of the owner's hierarchy", bytes.Replace(message, qualified(tpm2.TPMRHEndorsement, f.ak.Name()), qualified(tpm2.TPMRHOwner, f.ak.Name()), 1), tpm.CheckQualifiedSigner},
		{"the real AK's qualified name", c.quote.Message, tpm.CheckQualifiedSigner},
		{"no qualified name", append(change(6, 0, 0)[:8], message[42:]...), tpm.CheckQualifiedSigner},
	} {
		_, err := f.ak.VerifyQuote(f.sign(x.message))
		refused(t, x.name, err, x.check)
	}
	// Every bit of the real message and signature: the signature covers it.
	for i := range 8 * len(c.quote.Message) {
		q := tpm.Quote{Message: bytes.Clone(c.quote.Message), Signature: c.quote.Signature}
		q.Message[i/8] ^= 1 << (i % 8)
		if i%16 != 0 && i/8 > 8 {
			continue // 73 µs each; all bits of a whole proof are flipped in package proof
		}
		_, err := c.ak.VerifyQuote(q)
		refused(t, fmt.Sprint("bit ", i), err, tpm.CheckSignature)
	}
	certify := f.own(c, c.certify.Message)
	srk, err := tpm.ParseSRK(c.identity.SRKPublic)
	must(t, srk, err)
	if err := f.ak.VerifyCertify(f.sign(certify), []byte("challenge"), srk.Name()); err != nil {
		t.Errorf("the certification, signed by the forger: %v", err)
	}
	refused(t, "certification with a trailing byte", f.ak.VerifyCertify(f.sign(append(certify, 0)), []byte("challenge"), srk.Name()), tpm.CheckForm)
}

// withExtraData returns a well-formed message with other extraData.
func withExtraData(message, extra []byte) []byte {
	const at = 6 + 2 + 34
	m := append(bytes.Clone(message[:at]), byte(len(extra)>>8), byte(len(extra)))
	return append(append(m, extra...), message[at+2+len("challenge"):]...)
}

func attackSignature(t *testing.T, c *captured) {
	good := c.quote.Signature
	n := elliptic.P256().Params().N
	r, s := new(big.Int).SetBytes(good[:32]), new(big.Int).SetBytes(good[32:])
	join := func(r, s *big.Int) []byte {
		b := make([]byte, 64)
		r.FillBytes(b[:32])
		s.FillBytes(b[32:])
		return b
	}
	der, err := asn1.Marshal(struct{ R, S *big.Int }{r, s})
	must(t, der, err)
	zero, high := new(big.Int), new(big.Int).Sub(n, s)
	digest := sha256.Sum256(c.quote.Message)
	if !ecdsa.Verify(c.ak.PublicKey(), digest[:], r, high) {
		t.Error("(r, n-s) is no attack: it does not verify")
	}
	sum := sha512.Sum384(c.quote.Message)
	f := newForger(t)
	r384, s384, err := ecdsa.Sign(rand.Reader, f.key, sum[:])
	must(t, r384, err)
	for name, sig := range map[string][]byte{
		"(r, n-s)": join(r, high), "r zero": join(zero, s), "s zero": join(r, zero), "both zero": make([]byte, 64),
		"r is n": join(n, s), "s is n": join(r, n), "swapped": join(s, r), "DER": der, "63 bytes": good[:63],
		"65 bytes": append(bytes.Clone(good), 0), "leading zero": append([]byte{0}, good...), "empty": nil,
		"TPMT_SIGNATURE":  append([]byte{0, 0x18, 0, 0x0B, 0, 32}, good...),
		"of another key":  f.sign(c.quote.Message).Signature,
		"of another text": c.certify.Signature,
	} {
		_, err := c.ak.VerifyQuote(tpm.Quote{Message: c.quote.Message, Signature: sig})
		refused(t, name, err, tpm.CheckSignature)
	}
	if s384.Cmp(high) != 0 { // over SHA-384, by the forger's own key
		sig, err := tpm.NormalizeSignature(&f.key.PublicKey, r384.Bytes(), s384.Bytes())
		must(t, sig, err)
		_, err = f.ak.VerifyQuote(tpm.Quote{Message: f.own(c, c.quote.Message), Signature: sig})
		refused(t, "over another hash", err, tpm.CheckSignature)
	}
	if _, err := c.ak.VerifyQuote(c.quote); err != nil {
		t.Errorf("the real quote: %v", err)
	}
}

// attackSelect has the real AK sign what root asks it to.
func attackSelect(t *testing.T, c *captured) {
	script := txt.Example(txt.TbootLegacy)
	// Root rebuilds PCR 17 and 18 in 16 and 23, from the log, at locality 0.
	raw, err := script.Log()
	extends := rebuild(t, must(t, raw, err))
	for _, e := range extends {
		if err := c.txt.Extend(0, e.index, e.digest); err != nil {
			t.Fatal(err)
		}
	}
	defer func() {
		for _, index := range []uint32{16, 23} {
			_, err := tpm2.PCRReset{PCRHandle: tpm2.AuthHandle{Handle: tpm2.TPMHandle(index), Auth: tpm2.PasswordAuth(nil)}}.Execute(c.raw)
			must(t, 0, err)
		}
	}()
	two, err := pcr.Parse("sha256:17,18")
	must(t, two, err)
	a, err := c.ak.VerifyQuote(signSelection(t, c, tpm2.TPMSPCRSelection{Hash: tpm2.TPMAlgSHA256, PCRSelect: []byte{0, 0, 0x81}}))
	want, err2 := c.values.Digest(two)
	if must(t, a, err).PCRDigest != must(t, want, err2) {
		t.Error("PCR 16 and 23 do not hold what 17 and 18 hold: the attack is none")
	}
	refused(t, "PCR 16 and 23 for 17 and 18", a.CheckPCRs(two, c.values), tpm.CheckSelection)

	sha256, sha1 := tpm2.TPMAlgSHA256, tpm2.TPMAlgSHA1
	for _, x := range []struct {
		name      string
		selection []tpm2.TPMSPCRSelection
		check     string
	}{
		{"subset", []tpm2.TPMSPCRSelection{{Hash: sha256, PCRSelect: []byte{0, 0, 0x06}}}, tpm.CheckSelection},
		{"extra", []tpm2.TPMSPCRSelection{{Hash: sha256, PCRSelect: []byte{0, 0, 0x0F}}}, tpm.CheckSelection},
		{"entry twice", []tpm2.TPMSPCRSelection{{Hash: sha256, PCRSelect: []byte{0, 0, 0x0E}}, {Hash: sha256, PCRSelect: []byte{0, 0, 0x0E}}}, tpm.CheckSelection},
		{"empty entry besides", []tpm2.TPMSPCRSelection{{Hash: sha256, PCRSelect: []byte{0, 0, 0x0E}}, {Hash: sha1, PCRSelect: []byte{0, 0, 0}}}, tpm.CheckSelection},
		{"split in two", []tpm2.TPMSPCRSelection{{Hash: sha256, PCRSelect: []byte{0, 0, 0x06}}, {Hash: sha256, PCRSelect: []byte{0, 0, 0x08}}}, tpm.CheckSelection},
		{"none", nil, tpm.CheckBank},
		{"no PCR", []tpm2.TPMSPCRSelection{{Hash: sha256, PCRSelect: []byte{0, 0, 0}}}, tpm.CheckBank},
		{"sha1", []tpm2.TPMSPCRSelection{{Hash: sha1, PCRSelect: []byte{0, 0, 0x0E}}}, tpm.CheckBank},
		{"sha384", []tpm2.TPMSPCRSelection{{Hash: tpm2.TPMAlgSHA384, PCRSelect: []byte{0, 0, 0x0E}}}, tpm.CheckBank},
	} {
		a, err := c.ak.VerifyQuote(signSelection(t, c, x.selection...))
		refused(t, x.name, must(t, a, err).CheckPCRs(drtm, c.values), x.check)
	}
	// Sizes that no TPM signs, but a forger could.
	f := newForger(t)
	entry := []byte{0, 0, 0, 1, 0, 0x0B, 3, 0, 0, 0x0E}
	for name, forged := range map[string][]byte{
		"sizeofSelect 0": {0, 0, 0, 1, 0, 0x0B, 0}, "sizeofSelect 1": {0, 0, 0, 1, 0, 0x0B, 1, 0x0E},
		"sizeofSelect 4": {0, 0, 0, 1, 0, 0x0B, 4, 0, 0, 0x0E, 0},
	} {
		a, err := f.ak.VerifyQuote(f.sign(bytes.Replace(f.own(c, c.quote.Message), entry, forged, 1)))
		if err := must(t, a, err).CheckPCRs(drtm, c.values); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
	a, err = c.ak.VerifyQuote(c.quote)
	if err := must(t, a, err).CheckPCRs(drtm, c.values); err != nil {
		t.Errorf("the real quote: %v", err)
	}
	other := pcr.Values{17: c.values[17], 18: c.values[18], 19: {1}}
	refused(t, "other values", a.CheckPCRs(drtm, other), tpm.CheckPCRDigest)
	refused(t, "a value missing", a.CheckPCRs(drtm, pcr.Values{17: c.values[17], 18: c.values[18]}), tpm.CheckPCRDigest)
}

type extend struct {
	index  int
	digest [32]byte
}

// rebuild returns the extends that give PCR 16 and 23 the values of 17 and 18.
func rebuild(t *testing.T, log []byte) (extends []extend) {
	t.Helper()
	for _, e := range parsed(t, log) {
		if to := map[int]int{17: 16, 18: 23}[e.Index]; to != 0 && e.Extended() {
			extends = append(extends, extend{to, e.Digest})
		}
	}
	return extends
}

// signSelection quotes any selection with the persistent AK.
func signSelection(t *testing.T, c *captured, selection ...tpm2.TPMSPCRSelection) tpm.Quote {
	t.Helper()
	r, err := tpm2.Quote{
		SignHandle: tpm2.AuthHandle{Handle: 0x81005402, Name: tpm2.TPM2BName{Buffer: nameBytes(c.ak)}, Auth: tpm2.PasswordAuth(nil)},
		InScheme:   tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull}, PCRSelect: tpm2.TPMLPCRSelection{PCRSelections: selection},
	}.Execute(c.raw)
	return toQuote(t, c.ak, must(t, r, err))
}

func toQuote(t *testing.T, ak *tpm.AK, r *tpm2.QuoteResponse) tpm.Quote {
	t.Helper()
	s, err := r.Signature.Signature.ECDSA()
	sig, err2 := tpm.NormalizeSignature(ak.PublicKey(), must(t, s, err).SignatureR.Buffer, s.SignatureS.Buffer)
	return tpm.Quote{Message: r.Quoted.Bytes(), Signature: must(t, sig, err2)}
}

func nameBytes(ak *tpm.AK) []byte {
	n := ak.Name()
	return n[:]
}
