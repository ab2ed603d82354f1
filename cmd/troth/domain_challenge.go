package main

import (
	"context"
	"crypto/rand"
	"net/http"

	"github.com/spf13/cobra"

	"troth/hostd/api"
	"troth/proof"
)

// challengeSize is the number of random bytes in a challenge to a guest.
const challengeSize = 32

type challengeOptions struct{ key, proof, trust string }

type challengeAnswer struct {
	Answered  bool         `json:"answered"`
	UUID      string       `json:"uuid"`
	Link      proof.Digest `json:"link"`
	Says      string       `json:"says"`
	SaysNotIs string       `json:"does_not_say"`
}

func (a *app) domainChallenge() *cobra.Command {
	var o challengeOptions
	c := &cobra.Command{
		Use:   "challenge UUID --key K --proof P",
		Short: "Ask the running guest to show that it holds this launch's secret",
		Long: `Draw a random challenge, send it through hostd and the channel troth.guest.0 to the guest, and
check the answer with the guest secret of the proof's link, which only you, the verifier and that
launch could derive. Exit 0: some guest with this link's secret answered; 1: the answer was made
with another secret; 3: nobody answered. With --trust the proof is verified first.

The answer is not bound to a connection of yours: a challenge inside your own ssh or TLS session
with the guest says more.`,
		Example: "  troth domain challenge 6b1e… --key nonce.key --proof proof.json --trust trust.json",
		Args:    oneUUID,
		RunE:    func(c *cobra.Command, args []string) error { return a.challenge(c.Context(), args[0], o) },
	}
	f := c.Flags()
	f.StringVar(&o.key, "key", "", "your record of the token (nonce.key)")
	f.StringVar(&o.proof, "proof", "", "proof of the launch that is challenged")
	f.StringVar(&o.trust, "trust", "", "verify the proof with this trust file first")
	must(c.MarkFlagRequired("key"))
	must(c.MarkFlagRequired("proof"))
	return c
}

func (a *app) challenge(ctx context.Context, uuid string, o challengeOptions) error {
	key, err := a.readKey(o.key)
	if err != nil {
		return err
	}
	b, err := a.readFile(o.proof)
	if err != nil {
		return usagef("--proof: %w", err)
	}
	if o.trust != "" {
		trust, err := a.readTrust(o.trust)
		if err != nil {
			return err
		}
		if _, err := proof.Verify(b, trust, key); err != nil {
			return err
		}
	}
	p, err := proof.ParseProof(b)
	if err != nil {
		return nof("%w", err)
	}
	s, err := proof.ParseStatement(p.Statement)
	if err != nil {
		return nof("%w", err)
	}
	if s.UUID != uuid {
		return nof("the proof is of the domain %s, not of %s", s.UUID, uuid)
	}
	if s.Token != key.Token {
		return nof("the proof is of another token than the key's")
	}
	link := proof.Link(p.Statement)
	if err := a.askGuest(ctx, uuid, link, key); err != nil {
		return err
	}
	v := challengeAnswer{
		true, uuid, link, "some guest that holds the secret of this launch answered now",
		"that your connections reach that guest; whether the host's root reads its memory",
	}
	return a.answer(v, func(p *printer) {
		p.line("answered: %s", v.Says)
		p.field("domain", v.UUID)
		p.field("link", v.Link)
		p.line("It does not say %s.", v.SaysNotIs)
	})
}

// askGuest sends one challenge and judges the answer. hostd only carries both.
func (a *app) askGuest(ctx context.Context, uuid string, link proof.Digest, key *proof.Key) error {
	h, p, err := a.hostd()
	if err != nil {
		return err
	}
	challenge := make([]byte, challengeSize)
	rand.Read(challenge) // never fails since Go 1.24
	w := a.progress("waiting for the guest of " + uuid)
	got, err := asking[api.ChallengeAnswer](ctx, p, func(ctx context.Context) (*http.Response, error) {
		return h.ChallengeDomain(ctx, uuid, api.ChallengeRequest{Challenge: proof.Bytes(challenge).String()})
	})
	w.stop()
	if err != nil {
		return err
	}
	var answer proof.Bytes
	if err := answer.UnmarshalText([]byte(got.Answer)); err != nil {
		return nof("the guest's answer cannot be read: %w", err)
	}
	if got.Link != link.String() {
		return nof("the guest answered for the link %s, not for the proof's %s: it was started again since, fetch its newest proof", got.Link, link)
	}
	if err := proof.CheckGuestAnswer(key.Nonce, link, challenge, answer); err != nil {
		return nof("%w", err)
	}
	return nil
}

// readKey reads nonce.key.
func (a *app) readKey(path string) (*proof.Key, error) {
	b, err := a.readFile(path)
	if err != nil {
		return nil, undecidedf("key: %w", err)
	}
	k, err := proof.ParseKey(b)
	if err != nil {
		return nil, undecidedf("%s: %w", path, err)
	}
	return k, nil
}
