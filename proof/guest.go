package proof

import (
	"bytes"
	"errors"
	"fmt"

	"troth/proof/strict"
)

// MaxGuestLine bounds one line, with its newline, on the channel troth.guest.0.
const MaxGuestLine = 1024

// Bounds of a tenant's challenge to the guest.
const (
	MinGuestChallenge = 16
	MaxGuestChallenge = 64
)

const (
	guestCredentialVersion = "troth-guest/v1"
	guestChallengeVersion  = "troth-guest-challenge/v1"
	guestAnswerVersion     = "troth-guest-answer/v1"
)

// GuestSecret derives what the guest of one link is given.
func GuestSecret(nonce Secret, link Digest) Secret { return Derive(nonce, LabelGuest, link[:]) }

// GuestAnswer is HMAC(guest secret, challenge ‖ link), framed and labelled.
func GuestAnswer(secret Secret, challenge []byte, link Digest) []byte {
	d := MAC(secret, LabelAnswer, challenge, link[:])
	return d[:]
}

// CheckGuestAnswer is the tenant's side: it says only that some guest with this
// link's secret answered.
func CheckGuestAnswer(nonce Secret, link Digest, challenge, answer []byte) error {
	if len(answer) != 32 || !Digest(answer).Equal(Digest(GuestAnswer(GuestSecret(nonce, link), challenge, link))) {
		return errors.New("the answer was not made with the guest secret of this link")
	}
	return nil
}

// GuestCredential is the content of the fw_cfg file
// opt/io.systemd.credentials/troth.guest: the guest's secret and its link.
type GuestCredential struct {
	Link   Digest
	Secret Secret // GuestSecret
	Token  Secret // the token's own secret, if it has one
}

type guestCredentialBody struct {
	Version string `json:"version"`
	Link    Digest `json:"link"`
	Secret  Bytes  `json:"secret"`
	Token   Bytes  `json:"token_secret,omitempty"`
}

// EncodePrivate writes the credential, secrets included: what strict.Encode makes of a guestCredentialBody, but of the secrets
// no copy stays, as one does in the buffers of encoding/json.
func (c *GuestCredential) EncodePrivate() ([]byte, error) {
	head := `{"version":"` + guestCredentialVersion + `","link":"` + c.Link.String() + `","secret":"`
	b := make([]byte, 0, len(head)+64+base64Len(c.Secret)+base64Len(c.Token))
	b = c.Secret.appendBase64(append(b, head...))
	if !c.Token.IsZero() {
		b = c.Token.appendBase64(append(b, `","token_secret":"`...))
	}
	return append(b, `"}`...), nil
}

// ParseGuestCredential reads what EncodePrivate wrote.
func ParseGuestCredential(b []byte) (*GuestCredential, error) {
	var d guestCredentialBody
	if err := strict.Document(bytes.TrimSuffix(b, []byte("\n")), 16<<10, &d); err != nil {
		return nil, fmt.Errorf("cannot read guest credential: %w", err)
	}
	if err := checkVersion(d.Version, guestCredentialVersion); err != nil {
		return nil, fmt.Errorf("cannot read guest credential: %w", err)
	}
	if len(d.Secret) != 32 {
		return nil, errors.New("cannot read guest credential: secret: it does not have 32 bytes")
	}
	return &GuestCredential{d.Link, secretOf(d.Secret), secretOf(d.Token)}, nil
}

type guestChallenge struct {
	Version   string `json:"version"`
	Challenge Bytes  `json:"challenge"`
}

type guestAnswer struct {
	Version   string `json:"version"`
	Challenge Bytes  `json:"challenge"`
	Link      Digest `json:"link"`
	Answer    Digest `json:"answer"`
}

// EncodeGuestChallenge writes the line, newline included, that goes to the guest.
func EncodeGuestChallenge(challenge []byte) ([]byte, error) {
	if err := checkGuestChallenge(challenge); err != nil {
		return nil, err
	}
	return line(guestChallenge{guestChallengeVersion, challenge})
}

// ParseGuestChallenge reads such a line.
func ParseGuestChallenge(l []byte) ([]byte, error) {
	var c guestChallenge
	if err := unline(l, &c); err != nil {
		return nil, fmt.Errorf("cannot read guest challenge: %w", err)
	}
	if err := firstError(checkVersion(c.Version, guestChallengeVersion), checkGuestChallenge(c.Challenge)); err != nil {
		return nil, fmt.Errorf("cannot read guest challenge: %w", err)
	}
	return c.Challenge, nil
}

// EncodeGuestAnswer writes the guest's line: the challenge repeated, its link, the answer.
func EncodeGuestAnswer(c *GuestCredential, challenge []byte) ([]byte, error) {
	if err := checkGuestChallenge(challenge); err != nil {
		return nil, err
	}
	return line(guestAnswer{guestAnswerVersion, challenge, c.Link, Digest(GuestAnswer(c.Secret, challenge, c.Link))})
}

// ParseGuestAnswer reads the guest's line and asks that it repeats challenge,
// so that a late answer to an earlier one is not taken.
func ParseGuestAnswer(l, challenge []byte) (link Digest, answer []byte, err error) {
	var a guestAnswer
	if err := unline(l, &a); err != nil {
		return link, nil, fmt.Errorf("cannot read guest answer: %w", err)
	}
	if err := checkVersion(a.Version, guestAnswerVersion); err != nil {
		return link, nil, fmt.Errorf("cannot read guest answer: %w", err)
	}
	if !bytes.Equal(a.Challenge, challenge) {
		return link, nil, errors.New("cannot read guest answer: challenge: it answers another one")
	}
	return a.Link, a.Answer[:], nil
}

func checkGuestChallenge(c []byte) error {
	if len(c) < MinGuestChallenge || len(c) > MaxGuestChallenge {
		return fmt.Errorf("challenge: it has %d bytes, not %d-%d", len(c), MinGuestChallenge, MaxGuestChallenge)
	}
	return nil
}

func line(v any) ([]byte, error) {
	b, err := strict.Encode(v)
	return append(b, '\n'), err
}

func unline(l []byte, v any) error {
	if len(l) > MaxGuestLine {
		return fmt.Errorf("the line has more than %d bytes", MaxGuestLine)
	}
	body, ok := bytes.CutSuffix(l, []byte("\n"))
	if !ok {
		return errors.New("the line does not end")
	}
	return strict.Document(body, MaxGuestLine, v)
}
