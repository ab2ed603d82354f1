package tpm

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math/big"

	"github.com/google/go-tpm/tpm2"

	"troth/tpm/pcr"
)

// maxAttest bounds a TPMS_ATTEST; a quote of this project has 145 bytes.
const maxAttest = 1024

// Counters tell launches apart that left the same PCR values (TPM 2.0 Part 1, 36.4).
type Counters struct {
	Reset   uint32 // resetCount: TPM resets since TPM2_Clear
	Restart uint32 // restartCount: suspends and dynamic launches since the reset
}

// Quote is a TPMS_ATTEST and its signature.
type Quote struct {
	Message   []byte // TPMS_ATTEST
	Signature []byte // ECDSA P-256 over SHA-256: r ‖ s, 64 bytes, 0 < r < n, 0 < s ≤ n/2
}

// Attested is what a verified quote says.
type Attested struct {
	ExtraData []byte
	Clock     uint64 // ms; the owner can slow it or set it forward
	Counters  Counters
	Safe      bool   // no later clock was ever reported
	Selection []byte // exact TPML_PCR_SELECTION
	PCRDigest [32]byte
}

// VerifyQuote checks, in this order: the signature, before a byte of the message is read; magic; type; that the
// message was read to its end and has no second encoding; that the AK lives in the endorsement hierarchy (elsewhere
// the counters are obfuscated). The caller compares ExtraData, Selection, PCRDigest and Counters.
func (a *AK) VerifyQuote(q Quote) (*Attested, error) {
	m, err := a.verify(q, tpm2.TPMSTAttestQuote)
	if err != nil {
		return nil, fmt.Errorf("cannot accept quote: %w", err)
	}
	return &m.Attested, nil
}

// VerifyCertify checks as VerifyQuote does, that extraData is in the certification and that it is of the object of
// this Name.
func (a *AK) VerifyCertify(q Quote, extraData []byte, certified Name) error {
	m, err := a.verify(q, tpm2.TPMSTAttestCertify)
	switch {
	case err != nil:
	case subtle.ConstantTimeCompare(m.ExtraData, extraData) != 1:
		err = failed(CheckExtraData, hex.EncodeToString(extraData), "%x", m.ExtraData)
	case !bytes.Equal(m.name, certified[:]):
		err = failed(CheckCertified, certified.String(), "%x", m.name)
	}
	if err != nil {
		return fmt.Errorf("cannot accept certification: %w", err)
	}
	return nil
}

// CheckPCRs compares what was quoted with what was asked for: the signed selection byte for byte (PCR 16 and 23 can
// hold what 17 and 18 hold, and then the digest is the same), then the digest with the values.
func (a *Attested) CheckPCRs(sel pcr.Selection, values pcr.Values) error {
	if err := a.CheckSelection(sel); err != nil {
		return err
	}
	want, err := values.Digest(sel)
	if err != nil {
		return failed(CheckPCRDigest, hex.EncodeToString(a.PCRDigest[:]), "%v", err)
	}
	if want != a.PCRDigest {
		return failed(CheckPCRDigest, hex.EncodeToString(a.PCRDigest[:]), "%x from the values", want)
	}
	return nil
}

// CheckSelection compares the signed selection with the one asked for, byte for byte. A selection that was asked of
// a bank which the TPM has not allocated comes back signed and empty: that, and another bank, is CheckBank.
func (a *Attested) CheckSelection(sel pcr.Selection) error {
	want := sel.Marshal()
	if bytes.Equal(a.Selection, want) {
		return nil
	}
	check := CheckSelection
	if !selectsFrom(a.Selection, sel.Bank) {
		check = CheckBank
	}
	return failed(check, fmt.Sprintf("%x (%v)", want, sel), "%x", a.Selection)
}

// selectsFrom tells whether a TPML_PCR_SELECTION, already read once, selects any PCR of the bank.
func selectsFrom(selection []byte, bank pcr.Bank) bool {
	r := &reader{rest: selection}
	for range r.u32() {
		b := pcr.Bank(r.u16())
		for _, m := range r.bytes(int(r.u8())) {
			if b == bank && m != 0 {
				return true
			}
		}
	}
	return false
}

// message is a TPMS_ATTEST (TPM 2.0 Part 2, 10.12.12).
type message struct {
	Attested
	signer []byte // qualifiedSigner
	name   []byte // of the certified object; only in a certification
}

func (a *AK) verify(q Quote, typ tpm2.TPMST) (*message, error) {
	if len(q.Message) > maxAttest {
		return nil, failed(CheckForm, fmt.Sprintf("at most %d bytes of TPMS_ATTEST", maxAttest), "%d", len(q.Message))
	}
	if err := verifySignature(a.key, q.Message, q.Signature); err != nil {
		return nil, err
	}
	m, err := parseAttest(q.Message, typ)
	if err != nil {
		return nil, err
	}
	if want := qualifiedName(a.Name()); !bytes.Equal(m.signer, want[:]) {
		return nil, failed(CheckQualifiedSigner, want.String()+", an AK of the endorsement hierarchy", "%x", m.signer)
	}
	return m, nil
}

// verifySignature accepts one encoding of a signature only: (r, n-s) verifies as well as (r, s), so s must be low.
func verifySignature(key *ecdsa.PublicKey, msg, sig []byte) error {
	if len(sig) != 64 {
		return failed(CheckSignature, "r ‖ s of 64 bytes", "%d bytes", len(sig))
	}
	r, s := new(big.Int).SetBytes(sig[:32]), new(big.Int).SetBytes(sig[32:])
	n := key.Curve.Params().N
	if r.Sign() == 0 || s.Sign() == 0 || r.Cmp(n) >= 0 || s.Cmp(new(big.Int).Rsh(n, 1)) > 0 {
		return failed(CheckSignature, "0 < r < n and 0 < s ≤ n/2", "%x", sig)
	}
	digest := sha256.Sum256(msg)
	if !ecdsa.Verify(key, digest[:], r, s) {
		return failed(CheckSignature, "", "not this AK's signature of this message")
	}
	return nil
}

// NormalizeSignature returns r ‖ s with low s from the two numbers that a TPM signed with.
func NormalizeSignature(key *ecdsa.PublicKey, r, s []byte) ([]byte, error) {
	rn, sn, n := new(big.Int).SetBytes(r), new(big.Int).SetBytes(s), key.Curve.Params().N
	if n.BitLen() != 256 || rn.Cmp(n) >= 0 || sn.Cmp(n) >= 0 {
		return nil, failed(CheckSignature, "a P-256 signature", "r %x, s %x", r, s)
	}
	if sn.Cmp(new(big.Int).Rsh(n, 1)) > 0 {
		sn.Sub(n, sn)
	}
	sig := make([]byte, 64)
	rn.FillBytes(sig[:32])
	sn.FillBytes(sig[32:])
	return sig, nil
}

// qualifiedName returns the qualified Name of a primary of the endorsement hierarchy (TPM 2.0 Part 1, 16).
func qualifiedName(n Name) Name {
	return nameOf(append(binary.BigEndian.AppendUint32(nil, uint32(tpm2.TPMRHEndorsement)), n[:]...))
}

// parseAttest reads a TPMS_ATTEST of the type to its last byte. Each field has one encoding, so the message has.
func parseAttest(b []byte, typ tpm2.TPMST) (*message, error) {
	r, m := &reader{rest: b}, &message{}
	if magic := r.u32(); magic != uint32(tpm2.TPMGeneratedValue) {
		return nil, failed(CheckMagic, fmt.Sprintf("%08x", uint32(tpm2.TPMGeneratedValue)), "%08x", magic)
	}
	if t := r.u16(); t != uint16(typ) {
		return nil, failed(CheckType, fmt.Sprintf("%04x", uint16(typ)), "%04x", t)
	}
	m.signer = r.sized()
	m.ExtraData = r.sized()
	m.Clock = r.u64()
	m.Counters = Counters{Reset: r.u32(), Restart: r.u32()}
	safe := r.u8()
	m.Safe = safe == 1
	r.u64() // firmwareVersion
	if typ == tpm2.TPMSTAttestCertify {
		m.name = r.sized()
		r.sized() // qualifiedName: the caller knows the object by its Name
	} else {
		m.Selection = r.selection()
		digest := r.sized()
		if !r.failed && len(digest) != len(m.PCRDigest) {
			return nil, failed(CheckForm, "pcrDigest of 32 bytes", "%d", len(digest))
		}
		copy(m.PCRDigest[:], digest)
	}
	if r.failed || len(r.rest) > 0 || safe > 1 {
		return nil, failed(CheckForm, "", "TPMS_ATTEST is truncated, has trailing bytes or a bad boolean")
	}
	return m, nil
}

// reader takes big-endian fields from the front; once a field is missing, all later ones are, and failed is set.
type reader struct {
	rest   []byte
	failed bool
}

func (r *reader) bytes(n int) []byte {
	if r.failed || n > len(r.rest) {
		r.failed, r.rest = true, nil
		return nil
	}
	b := r.rest[:n:n]
	r.rest = r.rest[n:]
	return b
}

func (r *reader) number(n int) (v uint64) {
	for _, b := range r.bytes(n) {
		v = v<<8 | uint64(b)
	}
	return v
}

func (r *reader) u8() uint8     { return uint8(r.number(1)) }
func (r *reader) u16() uint16   { return uint16(r.number(2)) }
func (r *reader) u32() uint32   { return uint32(r.number(4)) }
func (r *reader) u64() uint64   { return r.number(8) }
func (r *reader) sized() []byte { return bytes.Clone(r.bytes(int(r.u16()))) }

// selection reads a TPML_PCR_SELECTION and returns its bytes.
func (r *reader) selection() []byte {
	start := r.rest
	count := r.u32()
	if count > 16 { // HASH_COUNT of no TPM is larger
		r.failed = true
		return nil
	}
	for range count {
		r.u16()
		r.bytes(int(r.u8()))
	}
	return bytes.Clone(start[:len(start)-len(r.rest)])
}
