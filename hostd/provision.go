package hostd

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"

	"troth/proof"
	"troth/tpm"
	"troth/tpm/chip"
	vapi "troth/verifier/api"
)

// Provisioned is what provisioning ended with, for the person who approves it.
type Provisioned struct {
	Name  string   `json:"name"`
	State string   `json:"state"` // at the verifier: pending or approved
	EK    string   `json:"ek"`    // SHA-256 of the public area, hex: what the operator compares
	AK    string   `json:"ak"`    // Name
	SPKI  string   `json:"spki"`
	SRK   tpm.Name `json:"srk"`
}

// Provisioner is what provisioning needs of the chip.
type Provisioner interface {
	Provision(ctx context.Context) (*chip.Identity, error)
	CertifySRK(ctx context.Context, extraData []byte) (tpm.Quote, error)
	ActivateCredential(ctx context.Context, blob, encrypted []byte) ([]byte, error)
}

// Provision makes the TPM's keys and enrols the host. It may be repeated: keys that are there stay, and the verifier knows the same identity again.
func Provision(ctx context.Context, name string, c Provisioner, v *Verifiers, id *Identity) (*Provisioned, error) {
	// A crash after this leaves keys in the TPM that the next call finds.
	keys, err := c.Provision(ctx)
	if err != nil {
		return nil, chipRefusal(err)
	}
	ak, err := tpm.ParseAK(keys.AKPublic)
	if err != nil {
		return nil, fmt.Errorf("cannot read the attestation key: %w", err)
	}
	srk, err := tpm.ParseSRK(keys.SRKPublic)
	if err != nil {
		return nil, fmt.Errorf("cannot read the storage key: %w", err)
	}
	ek := keys.EKs[0] // the one that ActivateCredential proves; another would count for nothing
	if len(ek.Certificate) == 0 {
		return nil, proof.Refuse(proof.EvidenceInvalid, "the TPM has no EK certificate, so nobody can say what it is")
	}
	sum := sha256.Sum256(ek.Public)
	out := &Provisioned{Name: name, EK: hex.EncodeToString(sum[:]), AK: ak.Name().String(), SPKI: id.SPKI.String(), SRK: srk.Name()}
	request := vapi.EnrolmentRequest{Name: name, Eks: []vapi.EK{{Certificate: ek.Certificate, Public: ek.Public}}, Ak: keys.AKPublic, Srk: keys.SRKPublic}
	challenge, err := v.Challenge(ctx)
	if err != nil {
		return nil, err
	}
	request.Challenge = challenge.Challenge
	certification, err := c.CertifySRK(ctx, proof.EnrolExtraData(challenge.Challenge, id.SPKI))
	if err != nil {
		return nil, chipRefusal(err)
	}
	request.SrkCertification = vapi.Signed{Message: certification.Message, Signature: certification.Signature}
	// A crash from here on leaves an enrolment at the verifier that expires by itself.
	enrolment, err := v.Enrol(ctx, request)
	if err != nil {
		return nil, err
	}
	secret, err := c.ActivateCredential(ctx, enrolment.Credential, enrolment.EncryptedSecret)
	if err != nil {
		return nil, chipRefusal(err)
	}
	defer clear(secret)
	out.State, err = v.Activate(ctx, enrolment.Id, secret)
	return out, err
}
