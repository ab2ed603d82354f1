package proof

import (
	"errors"
	"fmt"

	"troth/tpm"
	"troth/tpm/pcr"
)

// Status of a verdict (AR4SI trust tiers; draft-ietf-rats-ear-04).
const (
	Affirming       = "affirming"
	Contraindicated = "contraindicated"
)

const earProfile = "tag:ietf.org,2026:rats/ear#04"

// Verdict is what a verifier says of a host at one time. It names the host by
// its AK and carries no EK and no check of any profile that was not met.
type Verdict struct {
	Issuer       string
	Host         tpm.Name // Name of the AK
	Confirmation Digest   // SHA-256 of the SPKI of the host's TLS key
	Class        tpm.Class
	Selection    pcr.Selection
	PCRDigest    Digest
	Counters     tpm.Counters
	Clock        uint64       // of the attest quote, ms of TPM time
	Profiles     []ProfileRef // met
	Status       string       // affirming | contraindicated
	Failed       []string     // names of failed checks, when contraindicated
	Release      Bytes        // HPKE public key; its private half is sealed to the host
	IssuedAt     int64
	Expires      int64
	NextCheck    int64
}

// The claims of an EAR (draft-ietf-rats-ear-04 chapter 3) in a JWT; ours begin with troth_.
type verdictClaims struct {
	Profile      string          `json:"eat_profile"`
	Issuer       string          `json:"iss"`
	IssuedAt     int64           `json:"iat"`
	Expires      int64           `json:"exp"`
	Verifier     earVerifier     `json:"ear_verifier_id"`
	Confirmation earConfirmation `json:"cnf"`
	Submods      earSubmods      `json:"submods"`
}

type earVerifier struct {
	Developer string `json:"developer"`
	Build     string `json:"build"`
}

type earConfirmation struct {
	SPKI Digest `json:"spki_sha256"`
}

type earSubmods struct {
	Host earAppraisal `json:"host"`
}

type earAppraisal struct {
	Status    string        `json:"ear_status"`
	Vector    earVector     `json:"ear_trustworthiness_vector"`
	AK        tpm.Name      `json:"troth_ak_name"`
	Class     tpm.Class     `json:"troth_tpm_class"`
	Selection pcr.Selection `json:"troth_selection"`
	PCRDigest Digest        `json:"troth_pcr_digest"`
	Reset     uint32        `json:"troth_reset_count"`
	Restart   uint32        `json:"troth_restart_count"`
	Clock     uint64        `json:"troth_clock"`
	Profiles  []ProfileRef  `json:"troth_profiles,omitempty"`
	Failed    []string      `json:"troth_failed,omitempty"`
	Release   Bytes         `json:"troth_release_key,omitempty"`
	NextCheck int64         `json:"troth_next_check"`
}

// earVector has the two AR4SI claims that a dynamic launch speaks of.
type earVector struct {
	InstanceIdentity int `json:"instance-identity"` // 2: a host that an operator approved
	Executables      int `json:"executables"`       // 2: approved; 96: contraindicated
}

func vectorFor(status string) earVector {
	if status == Affirming {
		return earVector{2, 2}
	}
	return earVector{2, 96}
}

var trothVerifier = earVerifier{"troth", "v1"}

func (v *Verdict) claims() verdictClaims {
	return verdictClaims{
		Profile: earProfile, Issuer: v.Issuer, IssuedAt: v.IssuedAt, Expires: v.Expires,
		Verifier: trothVerifier, Confirmation: earConfirmation{v.Confirmation},
		Submods: earSubmods{earAppraisal{
			v.Status, vectorFor(v.Status), v.Host, v.Class, v.Selection, v.PCRDigest,
			v.Counters.Reset, v.Counters.Restart, v.Clock, v.Profiles, v.Failed, v.Release, v.NextCheck,
		}},
	}
}

func (c *verdictClaims) verdict() *Verdict {
	h := &c.Submods.Host
	return &Verdict{
		c.Issuer, h.AK, c.Confirmation.SPKI, h.Class, h.Selection, h.PCRDigest,
		tpm.Counters{Reset: h.Reset, Restart: h.Restart}, h.Clock, h.Profiles, h.Status, h.Failed, h.Release,
		c.IssuedAt, c.Expires, h.NextCheck,
	}
}

func (v *Verdict) check() error {
	err := firstError(
		checkName("iss", v.Issuer),
		checkTime("iat", v.IssuedAt),
		checkTime("exp", v.Expires),
		checkTime("troth_next_check", v.NextCheck),
		checkOneOf("troth_tpm_class", string(v.Class), string(tpm.Hardware), string(tpm.Software)),
		checkOneOf("ear_status", v.Status, Affirming, Contraindicated),
	)
	if err != nil {
		return err
	}
	if v.Expires <= v.IssuedAt || v.Expires-v.IssuedAt > 24*3600 {
		return errors.New("exp: it is not within a day after iat")
	}
	if v.Clock >= 1<<53 {
		return errors.New("troth_clock: a JSON number cannot hold it")
	}
	if len(v.Profiles) > MaxProfiles || len(v.Failed) > 4*MaxProfiles {
		return errors.New("troth_profiles: too many")
	}
	for i, p := range v.Profiles {
		if err := p.check(fmt.Sprintf("troth_profiles[%d]", i)); err != nil {
			return err
		}
	}
	for i, f := range v.Failed {
		if err := checkName(fmt.Sprintf("troth_failed[%d]", i), f); err != nil {
			return err
		}
	}
	if v.Status == Contraindicated {
		if len(v.Release) != 0 || len(v.Profiles) != 0 {
			return errors.New("troth_release_key: a contraindicated host has no release key and meets no profile")
		}
		return nil
	}
	if len(v.Release) != releasePublic {
		return fmt.Errorf("troth_release_key: it has %d bytes, not %d", len(v.Release), releasePublic)
	}
	if len(v.Failed) != 0 || len(v.Profiles) == 0 {
		return errors.New("troth_profiles: an affirmed host meets one and has no failed check")
	}
	return nil
}

// SignVerdict writes the verdict as a JWS (a JWT of type troth-verdict+jwt).
func SignVerdict(v *Verdict, k *SigningKey) (string, error) {
	if err := v.check(); err != nil {
		return "", fmt.Errorf("cannot sign verdict: %w", err)
	}
	return signJWS(typeVerdict, v.claims(), k)
}

// ParseVerdict verifies the signature and reads the claims. It does not compare
// the times with a clock.
func ParseVerdict(jws string, keys *VerdictKeys) (*Verdict, error) {
	var c verdictClaims
	if err := readJWS(jws, MaxVerdict, typeVerdict, keys, &c); err != nil {
		return nil, fmt.Errorf("cannot read verdict: %w", err)
	}
	v := c.verdict()
	if err := v.check(); err != nil {
		return nil, fmt.Errorf("cannot read verdict: %w", err)
	}
	if again := v.claims(); c.Profile != again.Profile || c.Verifier != again.Verifier || c.Submods.Host.Vector != again.Submods.Host.Vector {
		return nil, errors.New("cannot read verdict: eat_profile, ear_verifier_id or ear_trustworthiness_vector is not of this version")
	}
	return v, nil
}

// VerdictDigest is the digest of a verdict's exact text.
func VerdictDigest(jws string) Digest { return Hash(LabelVerdict, []byte(jws)) }
