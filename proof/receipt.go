package proof

import (
	"errors"
	"fmt"
)

// Receipt is the verifier's signed word that it released a token's nonce for
// one statement under one verdict.
type Receipt struct {
	Issuer    string  `json:"iss"`
	IssuedAt  int64   `json:"iat"`
	Token     Digest  `json:"token"`
	Statement Digest  `json:"statement"` // the link
	Verdict   Digest  `json:"verdict"`
	Link      uint32  `json:"link"` // number of the link in the token's chain, from 1
	Previous  *Digest `json:"previous,omitempty"`
	Attempt   uint32  `json:"attempt"`
	Policy    Policy  `json:"policy"`
}

func (r *Receipt) check() error {
	if err := firstError(checkName("iss", r.Issuer), checkTime("iat", r.IssuedAt), r.Policy.check()); err != nil {
		return err
	}
	if r.Link == 0 || r.Attempt == 0 {
		return errors.New("link: links and attempts are counted from 1")
	}
	if (r.Link == 1) != (r.Previous == nil) {
		return errors.New("previous: the first link has none, every other one has")
	}
	return nil
}

// SignReceipt writes the receipt as a JWS of type troth-receipt+jwt.
func SignReceipt(r *Receipt, k *SigningKey) (string, error) {
	if err := r.check(); err != nil {
		return "", fmt.Errorf("cannot sign receipt: %w", err)
	}
	return signJWS(typeReceipt, r, k)
}

// ParseReceipt verifies the signature and reads the receipt.
func ParseReceipt(jws string, keys *VerdictKeys) (*Receipt, error) {
	var r Receipt
	if err := readJWS(jws, MaxReceipt, typeReceipt, keys, &r); err != nil {
		return nil, fmt.Errorf("cannot read receipt: %w", err)
	}
	if err := r.check(); err != nil {
		return nil, fmt.Errorf("cannot read receipt: %w", err)
	}
	return &r, nil
}

// ReceiptDigest is the digest of a receipt's exact text.
func ReceiptDigest(jws string) Digest { return Hash(LabelReceipt, []byte(jws)) }
