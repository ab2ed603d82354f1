package proof

import (
	"fmt"

	"troth/proof/strict"
)

// ProofVersion stands in every proof.
const ProofVersion = "troth-proof/v1"

// Proof is what a launch leaves behind for the tenant: everything that Verify
// needs but the tenant's own key and trust. docs/proof-format.md describes it.
type Proof struct {
	Version   string   `json:"version"`
	Statement Bytes    `json:"statement"` // exact bytes of the statement
	Index     int64    `json:"index"`     // of the link among the leaves
	Count     int64    `json:"count"`     // of leaves
	Path      []Digest `json:"path,omitempty"`
	Quote     QuoteDoc `json:"quote"`
	AK        Bytes    `json:"ak"` // TPMT_PUBLIC
	PCRs      []PCR    `json:"pcrs"`
	Verdict   string   `json:"verdict"` // JWS
	Receipt   string   `json:"receipt"` // JWS
	MAC       Digest   `json:"mac"`     // made with the nonce, over every field above
	Sum       Digest   `json:"sum"`     // made by anyone, over every field above: a damaged proof is seen without the key too
}

// body is a proof without MAC and sum: the bytes that the MAC is over.
type body struct {
	Version   string   `json:"version"`
	Statement Bytes    `json:"statement"`
	Index     int64    `json:"index"`
	Count     int64    `json:"count"`
	Path      []Digest `json:"path,omitempty"`
	Quote     QuoteDoc `json:"quote"`
	AK        Bytes    `json:"ak"`
	PCRs      []PCR    `json:"pcrs"`
	Verdict   string   `json:"verdict"`
	Receipt   string   `json:"receipt"`
}

func (p *Proof) body() ([]byte, error) {
	return strict.Encode(body{p.Version, p.Statement, p.Index, p.Count, p.Path, p.Quote, p.AK, p.PCRs, p.Verdict, p.Receipt})
}

func (p *Proof) mac(nonce Secret) (Digest, error) {
	b, err := p.body()
	return MAC(Derive(nonce, LabelMAC), LabelMAC, b), err
}

func (p *Proof) sum() (Digest, error) {
	b, err := p.body()
	return Hash(LabelProof, b, p.MAC[:]), err
}

// Seal fills in Version, MAC and Sum: the last step, after the domain is
// created paused and before it runs.
func (p *Proof) Seal(nonce Secret) (err error) {
	if nonce.Len() != NonceSize {
		return fmt.Errorf("cannot seal proof: the nonce has %d bytes, not %d", nonce.Len(), NonceSize)
	}
	p.Version = ProofVersion
	if p.MAC, err = p.mac(nonce); err != nil {
		return fmt.Errorf("cannot seal proof: %w", err)
	}
	if p.Sum, err = p.sum(); err != nil {
		return fmt.Errorf("cannot seal proof: %w", err)
	}
	return nil
}

// Encode writes the one form of the proof.
func (p *Proof) Encode() ([]byte, error) { return strict.Encode(p) }

// ParseProof reads what Encode writes and nothing else. Nothing is verified.
func ParseProof(b []byte) (*Proof, error) {
	var p Proof
	if err := strict.Document(b, MaxProof, &p); err != nil {
		return nil, fmt.Errorf("cannot read proof: %w", err)
	}
	if err := checkVersion(p.Version, ProofVersion); err != nil {
		return nil, fmt.Errorf("cannot read proof: %w", err)
	}
	return &p, nil
}
