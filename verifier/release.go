package verifier

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"

	"troth/proof"
	"troth/tpm"
	"troth/verifier/store"
)

// swapTries is how often a release or an event reads the chain again after another was first.
const swapTries = 8

// Release is what a host gets for a token and a statement.
type Release struct {
	Receipt string
	Sealed  proof.Bytes
}

// chainRecord is one line of a chain's history.
type chainRecord struct {
	Time    int64        `json:"time"`
	Event   string       `json:"event"`
	Link    proof.Digest `json:"link"`
	Number  uint32       `json:"number"`
	Attempt uint32       `json:"attempt"`
	Host    tpm.Name     `json:"host"`
	Detail  string       `json:"detail,omitempty"`
}

// Release judges a token against a statement, moves the token's chain by one link, and releases the nonce to this host.
// Statement are the exact bytes. The same host and statement get the same answer for as long as the link stands.
func (v *Verifier) Release(ctx context.Context, spki proof.Digest, tokenText string, statement []byte, consent *proof.Consent) (*Release, error) {
	// Form first: nothing below sees bytes that have a second reading.
	s, err := proof.ParseStatement(statement)
	if err != nil {
		return nil, proof.Refuse(proof.RequestInvalid, err.Error(), proof.Fact{Name: "statement", Value: "refused"})
	}
	sealed, err := proof.ParseToken(tokenText)
	if err != nil {
		return nil, proof.Refuse(proof.TokenInvalid, err.Error(), proof.Fact{Name: "token", Value: "refused"})
	}
	host := v.hostBySPKI(spki)
	if r := releaseHost(&ReleaseFacts{Host: host, SPKI: spki}); r != nil { // before any private key is used
		return nil, r
	}
	key := v.keys.Load().Token[sealed.Header.KeyID]
	if key == nil {
		return nil, proof.Refuse(proof.TokenInvalid, "the token is encrypted to a key that this verifier does not have", proof.Fact{Name: "kid", Got: sealed.Header.KeyID})
	}
	token, err := sealed.Open(key)
	if err != nil {
		return nil, proof.Refuse(proof.TokenInvalid, err.Error(), proof.Fact{Name: "token", Value: "refused"})
	}
	defer token.Nonce.Forget()
	defer token.Secret.Forget()
	want := Want{Host: host.AKName, Link: proof.Link(statement), Statement: s, Policy: token.Policy()}
	for range swapTries {
		out, err := v.release(ctx, host, spki, token, sealed.Digest(), want, consent)
		if errors.Is(err, store.ErrConflict) {
			continue
		}
		var refusal *proof.Refusal
		if errors.As(err, &refusal) {
			v.log.Warn("release refused", "host", strconv.Quote(host.Name), "token", sealed.Digest().String(), "uuid", s.UUID, "code", string(refusal.Code), "cause", strconv.Quote(refusal.Error()))
		}
		return out, err
	}
	return nil, internal("cannot release", errRace)
}

// release is one try: read the chain, judge, and reserve the link by compare-and-swap. If we crash before the swap nothing was
// promised; after it, the answer is stored and the host gets it by asking again.
func (v *Verifier) release(ctx context.Context, host *Host, spki proof.Digest, token *proof.Token, digest proof.Digest, want Want, consent *proof.Consent) (*Release, error) {
	chain, rev, err := v.chain(ctx, digest)
	if err != nil {
		return nil, err
	}
	if chain.Link != nil {
		want.Consented = consent.Check(token.Nonce, host.AKName, *chain.Link)
	} else {
		want.Consented = errors.New("there is no present host")
	}
	f := &ReleaseFacts{Now: v.now(), Host: host, SPKI: spki, Token: token, Digest: digest, Statement: want.Statement, Chain: chain}
	v.mu.RLock()
	f.Verdict, f.Standing = v.verdicts[want.Statement.Verdict], v.standing[host.AKName]
	if v.bySPKI[spki] != host {
		f.Host = v.bySPKI[spki] // changed since: judge what is now
	}
	v.mu.RUnlock()
	if r := JudgeRelease(f, ReleaseChecks); r != nil {
		return nil, r
	}
	if chain.Repeats(want) {
		return &Release{chain.Receipt, chain.Sealed}, nil
	}
	next, refusal := chain.Next(want)
	if refusal != nil {
		return nil, refusal
	}
	next.TokenID = token.ID
	previous := chain.head()
	receipt := &proof.Receipt{Issuer: v.cfg.Issuer, IssuedAt: f.Now.Unix(), Token: digest, Statement: want.Link, Verdict: f.Verdict.Digest,
		Link: next.Number, Previous: previous, Attempt: next.Attempt, Policy: token.Policy()}
	jws, err := proof.SignReceipt(receipt, v.keys.Load().signer(f.Verdict.KeyID))
	if err != nil {
		return nil, internal("cannot sign receipt", err)
	}
	out := proof.Released{Nonce: token.Nonce, GuestAllowed: token.GuestAllowed()}
	if out.GuestAllowed {
		out.Secret = token.Secret
	}
	box, err := proof.SealRelease(f.Verdict.V.Release, proof.ReceiptDigest(jws), out)
	if err != nil {
		return nil, internal("cannot seal release", err)
	}
	next.Receipt, next.Sealed = jws, box
	if err := v.swap(ctx, next, rev, chainRecord{f.Now.Unix(), "reserved", want.Link, next.Number, next.Attempt, host.AKName, want.Statement.Action}); err != nil {
		return nil, err
	}
	v.log.Info("released", "host", strconv.Quote(host.Name), "token", digest.String(), "id", strconv.Quote(token.ID), "uuid", want.Statement.UUID,
		"action", want.Statement.Action, "link", want.Link.String(), "number", next.Number, "attempt", next.Attempt)
	return &Release{jws, box}, nil
}

// chain reads a token's chain; one that nobody used yet is free, at revision 0.
func (v *Verifier) chain(ctx context.Context, token proof.Digest) (*Chain, int64, error) {
	d, err := v.store.Get(ctx, kindChain, token.String())
	if errors.Is(err, store.ErrNotFound) {
		return &Chain{Token: token, Place: Place{State: Free}}, 0, nil
	}
	if err != nil {
		return nil, 0, internal("cannot read chain", err)
	}
	c := &Chain{}
	if err := json.Unmarshal(d.Body, c); err != nil {
		return nil, 0, internal("stored chain is damaged", err)
	}
	return c, d.Rev, nil
}

// swap stores a chain in place of the revision it came from, with its record, or neither.
func (v *Verifier) swap(ctx context.Context, c *Chain, rev int64, r chainRecord) error {
	c.Events++
	err := v.store.Apply(ctx,
		store.Write{Kind: kindChain, Name: c.Token.String(), Rev: rev, Body: encode(c)},
		store.Write{Kind: kindChainEvent, Name: fmt.Sprintf("%s/%010d", c.Token, c.Events), Body: encode(r)})
	if err != nil {
		return fmt.Errorf("cannot keep chain: %w", err)
	}
	return nil
}

// ChainEvent takes a host's report of its own link. A revoked host may still report: what it says only ends links.
func (v *Verifier) ChainEvent(ctx context.Context, spki proof.Digest, e Event) (*Chain, error) {
	host := v.hostBySPKI(spki)
	if host == nil {
		return nil, releaseHost(&ReleaseFacts{SPKI: spki})
	}
	if len(e.Detail) > 256 {
		return nil, proof.Refuse(proof.RequestInvalid, "the detail is too long", proof.Fact{Name: "detail", Want: "at most 256 bytes", Got: itoa(len(e.Detail))})
	}
	for range swapTries {
		chain, rev, err := v.chain(ctx, e.Token)
		if err != nil {
			return nil, err
		}
		next, repeated, refusal := chain.After(host.AKName, e)
		if refusal != nil {
			v.log.Warn("chain event refused", "host", strconv.Quote(host.Name), "token", e.Token.String(), "event", strconv.Quote(cut(e.Event, 40)), "cause", strconv.Quote(refusal.Error()))
			return nil, refusal
		}
		if repeated {
			return chain, nil
		}
		err = v.swap(ctx, next, rev, chainRecord{v.now().Unix(), e.Event, e.Link, chain.Number, e.Attempt, host.AKName, e.Detail})
		if errors.Is(err, store.ErrConflict) {
			continue
		}
		if err != nil {
			return nil, err
		}
		v.log.Info("chain event", "host", strconv.Quote(host.Name), "token", e.Token.String(), "event", e.Event, "link", e.Link.String(), "detail", strconv.Quote(e.Detail))
		return next, nil
	}
	return nil, internal("cannot take chain event", errRace)
}

// ChainView is a chain with its history and what became of its host.
type ChainView struct {
	*Chain
	HostName string
	Revoked  bool // the present host was revoked
	Records  []chainRecord
}

// Chain tells where a token's chain stands; a token that was never used is free.
func (v *Verifier) Chain(ctx context.Context, token proof.Digest) (*ChainView, error) {
	c, _, err := v.chain(ctx, token)
	if err != nil {
		return nil, err
	}
	view := &ChainView{Chain: c}
	if c.Link != nil {
		view.Revoked = true // gone, or enrolled with another AK, is as good as revoked
		v.mu.RLock()
		for _, h := range v.hosts {
			if h.AKName == c.Host {
				view.HostName, view.Revoked = h.Name, h.State != Approved
			}
		}
		v.mu.RUnlock()
	}
	err = each(ctx, v.store, kindChainEvent, token.String()+"/", func(_ store.Doc, r *chainRecord) error {
		view.Records = append(view.Records, *r)
		return nil
	})
	return view, err
}
