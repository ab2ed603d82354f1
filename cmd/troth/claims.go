package main

import (
	"encoding/json"

	"troth/proof"
	"troth/proof/strict"
	"troth/tpm"
	"troth/tpm/pcr"
)

// hostClaims are the claims of a verdict about its host, for reading a verdict
// whose signature nobody checked.
type hostClaims struct {
	Status    string             `json:"ear_status"`
	AK        tpm.Name           `json:"troth_ak_name"`
	Class     tpm.Class          `json:"troth_tpm_class"`
	Selection pcr.Selection      `json:"troth_selection"`
	PCRDigest proof.Digest       `json:"troth_pcr_digest"`
	Reset     uint32             `json:"troth_reset_count"`
	Restart   uint32             `json:"troth_restart_count"`
	Profiles  []proof.ProfileRef `json:"troth_profiles"`
	Failed    []string           `json:"troth_failed"`
	NextCheck int64              `json:"troth_next_check"`
}

// claimedVerdict reads what a verdict claims: enough to look at, never enough to
// decide on.
func claimedVerdict(jws string) (*proof.Verdict, error) {
	parts, err := strict.Parts(jws, 3, proof.MaxVerdict)
	if err != nil {
		return nil, nof("cannot read verdict: %w", err)
	}
	var c struct {
		Issuer   string `json:"iss"`
		IssuedAt int64  `json:"iat"`
		Expires  int64  `json:"exp"`
		Submods  struct {
			Host hostClaims `json:"host"`
		} `json:"submods"`
	}
	if err := json.Unmarshal(parts[1], &c); err != nil {
		return nil, nof("cannot read verdict: %w", err)
	}
	h := c.Submods.Host
	return &proof.Verdict{
		Issuer: c.Issuer, IssuedAt: c.IssuedAt, Expires: c.Expires, Host: h.AK, Class: h.Class, Selection: h.Selection,
		PCRDigest: h.PCRDigest, Counters: tpm.Counters{Reset: h.Reset, Restart: h.Restart},
		Profiles: h.Profiles, Status: h.Status, Failed: h.Failed, NextCheck: h.NextCheck,
	}, nil
}

// claimed reads what a proof claims when there is no trust file to check it with.
func claimed(b []byte) (*proof.Public, error) {
	p, err := proof.ParseProof(b)
	if err != nil {
		return nil, nof("%w", err)
	}
	s, err := proof.ParseStatement(p.Statement)
	if err != nil {
		return nil, nof("%w", err)
	}
	v, err := claimedVerdict(p.Verdict)
	if err != nil {
		return nil, err
	}
	parts, err := strict.Parts(p.Receipt, 3, proof.MaxReceipt)
	if err != nil {
		return nil, nof("cannot read receipt: %w", err)
	}
	var r proof.Receipt
	if err := json.Unmarshal(parts[1], &r); err != nil {
		return nil, nof("cannot read receipt: %w", err)
	}
	return &proof.Public{
		Proof: p, Statement: s, Link: proof.Link(p.Statement), Verdict: v, Receipt: &r, AK: s.Host,
		Window: proof.Window{From: r.IssuedAt, To: max(r.IssuedAt, v.Expires)},
	}, nil
}
