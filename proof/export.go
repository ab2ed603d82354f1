package proof

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"

	"troth/proof/strict"
	"troth/tpm/pcr"
)

// Export gives a proof's parts in other tools' forms, by file name:
//
//	quote.msg quote.sig pcrs.bin ak.pem qualification.hex   tpm2_checkquote
//	verdict.jwt verdict.tbs verdict.sig verdict.pem         openssl dgst -verify
//	receipt.jwt receipt.tbs receipt.sig receipt.pem         likewise
//	jwks.json                                               any JWT library
//	statement.json                                          what ran
//
// The proof has to pass VerifyPublic first, so that no file says what is not so.
func Export(p []byte, t *Trust) (map[string][]byte, error) {
	v := &verification{raw: p, trust: t}
	if _, err := v.run(publicSteps); err != nil {
		return nil, fmt.Errorf("cannot export: %w", err)
	}
	pcrs, err := pcrsBin(v.verdict.Selection, v.pcrs)
	if err != nil {
		return nil, fmt.Errorf("cannot export: %w", err)
	}
	ak, err := publicPEM(v.ak.PublicKey())
	if err != nil {
		return nil, fmt.Errorf("cannot export: %w", err)
	}
	jwks, err := strict.Encode(struct {
		Keys []JWK `json:"keys"`
	}{v.set.VerdictKeys})
	if err != nil {
		return nil, fmt.Errorf("cannot export: %w", err)
	}
	files := map[string][]byte{
		"quote.msg":         v.proof.Quote.Message,
		"quote.sig":         tpmtSignature(v.proof.Quote.Signature),
		"pcrs.bin":          pcrs,
		"ak.pem":            ak,
		"qualification.hex": []byte(hex.EncodeToString(v.quote.ExtraData)),
		"statement.json":    v.proof.Statement,
		"jwks.json":         jwks,
	}
	if err := exportJWS(files, "verdict", v.proof.Verdict, v.set); err != nil {
		return nil, fmt.Errorf("cannot export: %w", err)
	}
	if err := exportJWS(files, "receipt", v.proof.Receipt, v.set); err != nil {
		return nil, fmt.Errorf("cannot export: %w", err)
	}
	return files, nil
}

func exportJWS(files map[string][]byte, name, jws string, set *KeySet) error {
	s, err := strict.JWS(jws, MaxVerdict)
	if err != nil {
		return err
	}
	var h jwsHeader
	if err := strict.Document(s.Header, 512, &h); err != nil {
		return err
	}
	der, err := signatureDER(s.Signature)
	if err != nil {
		return err
	}
	for _, k := range set.VerdictKeys {
		if k.KeyID != h.KeyID {
			continue
		}
		text, err := k.PEM()
		if err != nil {
			return err
		}
		files[name+".jwt"] = []byte(jws)
		files[name+".tbs"] = []byte(s.Input)
		files[name+".sig"] = der
		files[name+".pem"] = text
		return nil
	}
	return errors.New("the signing key is not in the key set")
}

// tpmtSignature writes r‖s as TPMT_SIGNATURE: ECDSA, SHA-256, two TPM2Bs
// (TPM 2.0 Part 2, 11.3.4).
func tpmtSignature(raw []byte) []byte {
	b := binary.BigEndian.AppendUint16(nil, 0x0018) // TPM_ALG_ECDSA
	b = binary.BigEndian.AppendUint16(b, 0x000B)    // TPM_ALG_SHA256
	for _, n := range [][]byte{raw[:32], raw[32:]} {
		b = binary.BigEndian.AppendUint16(b, uint16(len(n)))
		b = append(b, n...)
	}
	return b
}

// Sizes of tpm2-tools' C structs, which it writes to pcrs.bin as they are in
// memory, little-endian (tpm2-tools 5.4, lib/pcr.c).
const (
	cSelections   = 16 // TPMS_PCR_SELECTION in TPML_PCR_SELECTION, 8 bytes each
	cDigests      = 8  // TPM2B_DIGEST in TPML_DIGEST
	cDigestBuffer = 64
)

// pcrsBin writes TPML_PCR_SELECTION (132 bytes), u32 count, and the values in
// TPML_DIGESTs of 532 bytes.
func pcrsBin(s pcr.Selection, values pcr.Values) ([]byte, error) {
	le := binary.LittleEndian
	b := le.AppendUint32(nil, 1)
	b = le.AppendUint16(b, uint16(s.Bank))
	b = append(b, 3, s.Mask[0], s.Mask[1], s.Mask[2], 0, 0)
	b = append(b, make([]byte, 8*(cSelections-1))...)
	indexes := s.Indexes()
	lists := (len(indexes) + cDigests - 1) / cDigests
	b = le.AppendUint32(b, uint32(lists))
	for n := range lists {
		part := indexes[n*cDigests : min(len(indexes), (n+1)*cDigests)]
		b = le.AppendUint32(b, uint32(len(part)))
		for i := range cDigests {
			var d [cDigestBuffer]byte
			size := 0
			if i < len(part) {
				v, ok := values[part[i]]
				if !ok {
					return nil, fmt.Errorf("no value of PCR %d", part[i])
				}
				size = copy(d[:], v[:])
			}
			b = le.AppendUint16(b, uint16(size))
			b = append(b, d[:]...)
		}
	}
	return b, nil
}
