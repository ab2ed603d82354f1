package chip

import (
	"bytes"
	"context"
	"fmt"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"troth/tpm"
	"troth/tpm/pcr"
)

// Quote signs the selected PCRs and extraData (at most 64 bytes) with the AK: one command.
func (c *Chip) Quote(ctx context.Context, sel pcr.Selection, extraData []byte) (tpm.Quote, error) {
	return do(ctx, c, "quote", func(d *device) (tpm.Quote, error) {
		k, err := d.load()
		if err != nil {
			return tpm.Quote{}, err
		}
		r, err := tpm2.Quote{
			SignHandle:     named(handleAK, k.ak.Name()),
			QualifyingData: tpm2.TPM2BData{Buffer: extraData},
			InScheme:       tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull},
			PCRSelect:      selection(sel),
		}.Execute(d.tpm)
		if err != nil {
			return tpm.Quote{}, d.missing(err)
		}
		q, err := signed(k.ak, r.Quoted, r.Signature)
		if err != nil {
			return tpm.Quote{}, err
		}
		// A quote that did not survive the bus would be refused far away and much later.
		a, err := k.ak.VerifyQuote(q)
		if err != nil {
			return tpm.Quote{}, fmt.Errorf("%w: %w", ErrUnavailable, err)
		}
		if !bytes.Equal(a.ExtraData, extraData) {
			return tpm.Quote{}, fmt.Errorf("%w: it quoted other data than asked for", ErrUnavailable)
		}
		return q, nil
	})
}

// CertifySRK certifies with the AK, over extraData, that the SRK is an object of this TPM (TPM 2.0 Part 3, 18.2).
func (c *Chip) CertifySRK(ctx context.Context, extraData []byte) (tpm.Quote, error) {
	return do(ctx, c, "certify storage root key", func(d *device) (tpm.Quote, error) {
		k, err := d.load()
		if err != nil {
			return tpm.Quote{}, err
		}
		r, err := tpm2.Certify{
			ObjectHandle:   named(handleSRK, k.srk.Name()),
			SignHandle:     named(handleAK, k.ak.Name()),
			QualifyingData: tpm2.TPM2BData{Buffer: extraData},
			InScheme:       tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull},
		}.Execute(d.tpm)
		if err != nil {
			return tpm.Quote{}, d.missing(err)
		}
		return signed(k.ak, r.CertifyInfo, r.Signature)
	})
}

func signed(ak *tpm.AK, attest tpm2.TPM2BAttest, signature tpm2.TPMTSignature) (tpm.Quote, error) {
	s, err := signature.Signature.ECDSA()
	if err != nil {
		return tpm.Quote{}, fmt.Errorf("%w: its signature is not ECDSA: %w", ErrUnavailable, err)
	}
	raw, err := tpm.NormalizeSignature(ak.PublicKey(), s.SignatureR.Buffer, s.SignatureS.Buffer)
	if err != nil {
		return tpm.Quote{}, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return tpm.Quote{Message: attest.Bytes(), Signature: raw}, nil
}

// ActivateCredential recovers the secret of a credential that was made for the first EK and this AK. The secret comes
// back under a salted session's encryption.
func (c *Chip) ActivateCredential(ctx context.Context, blob, encrypted []byte) ([]byte, error) {
	return do(ctx, c, "activate credential", func(d *device) ([]byte, error) {
		k, err := d.load()
		if err != nil {
			return nil, err
		}
		id, err := d.endorsement(false)
		if err != nil {
			return nil, err
		}
		ek, err := tpm2.Unmarshal[tpm2.TPMTPublic](id.EKs[0].Public)
		if err != nil {
			return nil, err
		}
		name, err := tpm2.ObjectName(ek)
		if err != nil {
			return nil, err
		}
		r, err := tpm2.ActivateCredential{
			ActivateHandle: named(handleAK, k.ak.Name()),
			KeyHandle:      tpm2.AuthHandle{Handle: tpm2.TPMHandle(id.EKs[0].Handle), Name: *name, Auth: d.endorsementAuth(ek)},
			CredentialBlob: tpm2.TPM2BIDObject{Buffer: blob},
			Secret:         tpm2.TPM2BEncryptedSecret{Buffer: encrypted},
		}.Execute(d.tpm, tpm2.HMAC(tpm2.TPMAlgSHA256, 32, k.salted()...))
		if isRC(err, tpm2.TPMRCIntegrity, tpm2.TPMRCValue, tpm2.TPMRCSize) {
			return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
		}
		if err != nil {
			return nil, d.missing(err)
		}
		return r.CertInfo.Buffer, nil
	})
}

// endorsementAuth is the authorization of an EK: an empty password where the template allows one, else
// PolicySecret(endorsement) (TCG EK Credential Profile 2.5, B.6.2).
func (d *device) endorsementAuth(ek *tpm2.TPMTPublic) tpm2.Session {
	if ek.ObjectAttributes.UserWithAuth {
		return tpm2.PasswordAuth(nil)
	}
	return tpm2.Policy(tpm2.TPMAlgSHA256, 32, func(t transport.TPM, session tpm2.TPMISHPolicy, nonce tpm2.TPM2BNonce) error {
		_, err := tpm2.PolicySecret{
			AuthHandle:    tpm2.AuthHandle{Handle: tpm2.TPMRHEndorsement, Auth: tpm2.PasswordAuth(nil)},
			PolicySession: session,
			NonceTPM:      nonce,
		}.Execute(t)
		return err
	})
}

// PCRs reads PCR values of the SHA-256 bank. They are a claim until a quote's digest confirms them.
func (c *Chip) PCRs(ctx context.Context, sel pcr.Selection) (pcr.Values, error) {
	if sel.Bank != pcr.SHA256 {
		return nil, fmt.Errorf("cannot read PCRs %v: only the sha256 bank is read", sel)
	}
	return do(ctx, c, "read PCRs", func(d *device) (pcr.Values, error) {
		const attempts = 8
		for range attempts {
			values, same, err := d.readPCRs(sel)
			if err != nil || same {
				return values, err
			}
		}
		return nil, fmt.Errorf("%w: PCRs change while they are read", ErrBusy)
	})
}

// readPCRs reads in as many commands as the TPM needs, and tells whether no PCR changed in between.
func (d *device) readPCRs(sel pcr.Selection) (values pcr.Values, same bool, err error) {
	values = pcr.Values{}
	left, counter := sel, uint32(0)
	for first := true; left.Mask != [3]byte{}; first = false {
		r, err := tpm2.PCRRead{PCRSelectionIn: selection(left)}.Execute(d.tpm)
		if err != nil {
			return nil, false, err
		}
		if !first && r.PCRUpdateCounter != counter {
			return nil, false, nil
		}
		counter = r.PCRUpdateCounter
		out := r.PCRSelectionOut.PCRSelections
		if len(out) != 1 || len(out[0].PCRSelect) != 3 || [3]byte(out[0].PCRSelect) == [3]byte{} {
			return nil, false, fmt.Errorf("%w: %v", ErrBankUnallocated, sel.Bank)
		}
		got := pcr.Selection{Bank: sel.Bank, Mask: [3]byte(out[0].PCRSelect)}
		index := got.Indexes()
		if len(index) != len(r.PCRValues.Digests) {
			return nil, false, fmt.Errorf("%w: %d values for %d PCRs", ErrUnavailable, len(r.PCRValues.Digests), len(index))
		}
		for n, i := range index {
			v := r.PCRValues.Digests[n].Buffer
			if len(v) != 32 || !left.Contains(i) {
				return nil, false, fmt.Errorf("%w: it returns a PCR that was not asked for", ErrUnavailable)
			}
			values[i] = pcr.Digest(v)
			left.Mask[i/8] &^= 1 << (i % 8)
		}
	}
	return values, true, nil
}

// Banks returns the banks that are allocated, those with at least one PCR.
func (c *Chip) Banks(ctx context.Context) ([]pcr.Bank, error) {
	return do(ctx, c, "list PCR banks", func(d *device) ([]pcr.Bank, error) {
		r, err := tpm2.GetCapability{Capability: tpm2.TPMCapPCRs, PropertyCount: 1}.Execute(d.tpm)
		if err != nil {
			return nil, err
		}
		assigned, err := r.CapabilityData.Data.AssignedPCR()
		if err != nil {
			return nil, err
		}
		var banks []pcr.Bank
		for _, s := range assigned.PCRSelections {
			if len(bytes.Trim(s.PCRSelect, "\x00")) > 0 {
				banks = append(banks, pcr.Bank(s.Hash))
			}
		}
		return banks, nil
	})
}

// Clock returns the TPM's clock in milliseconds and its counters.
func (c *Chip) Clock(ctx context.Context) (clock uint64, counters tpm.Counters, err error) {
	info, err := do(ctx, c, "read clock", func(d *device) (tpm2.TPMSClockInfo, error) {
		r, err := tpm2.ReadClock{}.Execute(d.tpm)
		if err != nil {
			return tpm2.TPMSClockInfo{}, err
		}
		return r.CurrentTime.ClockInfo, nil
	})
	return info.Clock, tpm.Counters{Reset: info.ResetCount, Restart: info.RestartCount}, err
}

func selection(s pcr.Selection) tpm2.TPMLPCRSelection {
	return tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{{Hash: tpm2.TPMAlgID(s.Bank), PCRSelect: s.Mask[:]}}}
}
