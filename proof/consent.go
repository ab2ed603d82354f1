package proof

import (
	"errors"

	"troth/tpm"
)

// Consent is the present host's agreement that a token's chain moves to another
// host: only a host that the nonce was released to can make it.
type Consent struct {
	Destination tpm.Name `json:"destination"` // Name of the destination's AK
	Link        Digest   `json:"link"`        // the source's open link
	Random      Bytes    `json:"random"`      // 32 bytes
	MAC         Digest   `json:"mac"`
}

// NewConsent makes a consent with the nonce in hand.
func NewConsent(nonce Secret, destination tpm.Name, link Digest) *Consent {
	c := &Consent{Destination: destination, Link: link, Random: RandomSecret(32).raw()}
	c.MAC = c.mac(nonce)
	return c
}

func (c *Consent) mac(nonce Secret) Digest {
	return MAC(Derive(nonce, LabelConsent), LabelConsent, c.Destination[:], c.Link[:], c.Random)
}

// Check tells whether the holder of the nonce agreed that link moves to destination.
func (c *Consent) Check(nonce Secret, destination tpm.Name, link Digest) error {
	switch {
	case c == nil:
		return errors.New("there is no consent")
	case c.Destination != destination:
		return errors.New("destination: the consent is for another host")
	case !c.Link.Equal(link):
		return errors.New("link: the consent is for another link")
	case len(c.Random) != 32:
		return errors.New("random: it does not have 32 bytes")
	case !c.mac(nonce).Equal(c.MAC):
		return errors.New("mac: the consent was not made with this nonce")
	}
	return nil
}
