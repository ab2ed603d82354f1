package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"math/big"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"troth/proof"
	"troth/tpm"
	"troth/tpm/pcr"
)

// scene is one launch, made with the same exported calls as tenant, verifier and
// host make it, and an AK in software: the files that a tenant ends with.
type scene struct {
	trust, key, proof string // files
	record            *proof.Key
	statement         *proof.Statement
	link              proof.Digest
	pcrs              pcr.Values
	host              *ecdsa.PrivateKey // its TLS key
}

func need[T any](t testing.TB) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// newScene writes trust.json, nonce.key and proof.json into dir. change may spoil
// the statement before anything is signed.
func newScene(t testing.TB, dir string, change func(*proof.Statement)) *scene {
	t.Helper()
	now := time.Now()
	root, signer := need[*proof.SigningKey](t)(proof.GenerateSigningKey()), need[*proof.SigningKey](t)(proof.GenerateSigningKey())
	to := need[*proof.TokenPrivateKey](t)(proof.GenerateTokenKey())
	set := need[string](t)(proof.SignKeySet(&proof.KeySet{
		Issuer: "https://verifier.example", IssuedAt: now.Unix(), NotBefore: now.Add(-time.Hour).Unix(), NotAfter: now.Add(time.Hour).Unix(),
		VerdictKeys: []proof.JWK{signer.JWK()}, TokenKeys: []proof.TokenKey{to.Public()},
	}, root))
	trust := need[[]byte](t)((&proof.Trust{Verifier: "https://verifier.example", Root: root.JWK(), Keys: set, AllowSoftwareTPM: true}).Encode())

	kernel, initrd, cmdline := sha256Text("kernel"), sha256Text("initrd"), sha256Text("quiet")
	profile := proof.ProfileRef{Name: "gold", Digest: proof.Digest{1}}
	tok := &proof.Token{
		Pins:      &proof.Pins{Kernel: &kernel, Initrd: &initrd, CommandLine: &cmdline, Interactive: "no"},
		Migration: "deny", Restarts: "closed-first", OnTrustLost: "report",
	}
	tok.Profile, tok.Expiry, tok.ChainExpiry = profile, now.Add(time.Hour).Unix(), now.Add(24*time.Hour).Unix()
	text := need[string](t)(proof.NewToken(tok, to.Public()))
	key := proof.NewKey(tok, text)

	akKey := need[*ecdsa.PrivateKey](t)(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	ak := need[*tpm.AK](t)(tpm.ParseAK(akPublic(t, akKey)))
	sel := need[pcr.Selection](t)(pcr.Parse("sha256:17,18,19"))
	pcrs := pcr.Values{17: sha256Text("17"), 18: sha256Text("18"), 19: sha256Text("19")}
	digest := need[pcr.Digest](t)(pcrs.Digest(sel))
	host := need[*ecdsa.PrivateKey](t)(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	spki := need[[]byte](t)(x509.MarshalPKIXPublicKey(&host.PublicKey))
	seed := make([]byte, 32)
	verdict := need[string](t)(proof.SignVerdict(&proof.Verdict{
		Issuer: "https://verifier.example", Host: ak.Name(), Confirmation: sha256.Sum256(spki), Class: tpm.Software, Selection: sel, PCRDigest: digest,
		Counters: tpm.Counters{Reset: 7, Restart: 3}, Clock: 1000, Profiles: []proof.ProfileRef{profile}, Status: proof.Affirming,
		Release: need[proof.Bytes](t)(proof.ReleasePublic(seed)), IssuedAt: now.Unix(), Expires: now.Unix() + 180, NextCheck: now.Unix() + 60,
	}, signer))
	st := &proof.Statement{
		UUID: testUUID, Name: "web", Action: "start", Mode: "paused", Configuration: proof.Digest{2}, Interactive: "no",
		Measurements: proof.Measurements{Kernel: &kernel, Initrd: &initrd, CommandLine: &cmdline},
		Token:        key.Token, Host: ak.Name(), Verdict: proof.VerdictDigest(verdict), Attempt: 1, Blinder: proof.NewBlinder(),
	}
	if change != nil {
		change(st)
	}
	statement := need[[]byte](t)(st.Encode())
	link := proof.Link(statement)
	receipt := need[string](t)(proof.SignReceipt(&proof.Receipt{
		Issuer: "https://verifier.example", IssuedAt: now.Unix() + 1, Token: key.Token, Statement: link, Verdict: proof.VerdictDigest(verdict),
		Link: 1, Attempt: 1, Policy: tok.Policy(),
	}, signer))
	batch := need[*proof.Batch](t)(proof.NewBatch([]proof.Digest{link}))
	extra := proof.QuoteExtraData(batch.Root(), batch.Count(), proof.VerdictDigest(verdict))
	p := &proof.Proof{
		Statement: statement, Count: batch.Count(), Path: batch.Path(0), Quote: softQuote(t, akKey, ak, sel, digest, extra),
		AK: ak.Public(), PCRs: proof.PCRList(pcrs, sel), Verdict: verdict, Receipt: receipt,
	}
	if err := p.Seal(key.Nonce); err != nil {
		t.Fatal(err)
	}
	s := &scene{filepath.Join(dir, "trust.json"), filepath.Join(dir, "nonce.key"), filepath.Join(dir, "proof.json"), key, st, link, pcrs, host}
	for name, b := range map[string][]byte{s.trust: trust, s.key: need[[]byte](t)(key.EncodePrivate()), s.proof: need[[]byte](t)(p.Encode())} {
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

func akPublic(t testing.TB, k *ecdsa.PrivateKey) []byte {
	t.Helper()
	point := need[[]byte](t)(k.PublicKey.Bytes())
	p := tpm.AKTemplate(nil)
	p.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
		X: tpm2.TPM2BECCParameter{Buffer: point[1:33]}, Y: tpm2.TPM2BECCParameter{Buffer: point[33:]},
	})
	return tpm2.Marshal(p)
}

// softQuote writes and signs a TPMS_ATTEST (TPM 2.0 Part 2, 10.12.8).
func softQuote(t testing.TB, k *ecdsa.PrivateKey, ak *tpm.AK, sel pcr.Selection, digest pcr.Digest, extra []byte) proof.QuoteDoc {
	t.Helper()
	be := binary.BigEndian
	name := ak.Name()
	signer := sha256.Sum256(append(be.AppendUint32(nil, 0x4000000B), name[:]...))
	m := be.AppendUint16(be.AppendUint32(nil, 0xFF544347), 0x8018)
	m = append(append(m, 0, 34, 0, 0x0B), signer[:]...)
	m = append(be.AppendUint16(m, uint16(len(extra))), extra...)
	m = be.AppendUint32(be.AppendUint32(be.AppendUint64(m, 2000), 7), 3)
	m = append(m, 1, 0, 0, 0, 0, 0, 0, 0, 1)
	m = append(m, sel.Marshal()...)
	m = append(append(m, 0, 32), digest[:]...)
	h := sha256.Sum256(m)
	r, s, err := ecdsa.Sign(rand.Reader, k, h[:])
	if err != nil {
		t.Fatal(err)
	}
	if n := elliptic.P256().Params().N; s.Cmp(new(big.Int).Rsh(n, 1)) > 0 {
		s.Sub(n, s)
	}
	sig := make([]byte, 64)
	r.FillBytes(sig[:32])
	s.FillBytes(sig[32:])
	return proof.QuoteDoc{Message: m, Signature: sig}
}
