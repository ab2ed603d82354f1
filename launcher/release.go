package launcher

import (
	"context"

	"troth/launcher/domain"
	"troth/proof"
)

// obtain gets verdict, receipt and nonce. A verdict that the verifier finds stale heals itself: attest and ask once more.
func (a *attempt) obtain(ctx context.Context) (*proof.Released, *proof.Refusal) {
	if !a.req.DryRun {
		// An abort of an earlier attempt that was never told would make the verifier refuse this one.
		if err := a.tellToken(ctx, a.facts.Token); err != nil {
			return nil, Refusal(StepRelease, err)
		}
	}
	healed := map[proof.Code]bool{}
	for {
		released, refusal := a.obtainOnce(ctx)
		if refusal == nil || healed[refusal.Code] {
			return released, refusal
		}
		healed[refusal.Code] = true
		switch refusal.Code {
		case proof.VerdictStale, proof.VerdictMissing:
			if err := a.Epochs.Renew(ctx); err != nil {
				return nil, proof.First([]*proof.Refusal{refusal, Refusal(StepVerdict, err)})
			}
		case proof.TokenUsed:
			// The chain was moved by another host: the verifier says which link is the last one. Or by us, after all.
			late, err := a.abortLate(ctx, refusal)
			if err != nil {
				return nil, Refusal(StepRelease, err)
			}
			if !late && !a.follow(refusal) {
				return nil, refusal
			}
		default:
			return nil, refusal
		}
	}
}

// abortLate aborts once more what the verifier has reserved for a launch of ours that is long undone: a slow verifier, or a slow network, may see a release
// only after its abort, which then meant nothing to it. Only what our book knows as refused is aborted.
func (a *attempt) abortLate(ctx context.Context, r *proof.Refusal) (bool, error) {
	for _, f := range r.Facts {
		if f.Name != "present link" {
			continue
		}
		link, err := proof.ParseDigest(f.Value)
		if err != nil {
			return false, nil
		}
		old := a.Book.undone(a.facts.Token, link)
		if old == nil {
			return false, nil
		}
		a.Log.Warn("the verifier holds the token for a launch that was undone: it is told again", "launch", old.Launch, "attempt", old.Attempt)
		event := ChainEvent{Token: old.Token, Link: old.Link, Event: EventAborted, Attempt: old.Attempt, Detail: "late"}
		if err := a.owe(event); err != nil {
			return false, err
		}
		return true, a.tellToken(ctx, a.facts.Token)
	}
	return false, nil
}

// follow takes the last link of the chain from a refusal that names it.
func (a *attempt) follow(r *proof.Refusal) bool {
	for _, f := range r.Facts {
		if f.Name != "previous" {
			continue
		}
		last, err := proof.ParseDigest(f.Want)
		if err == nil {
			a.last = &last
		}
		return err == nil
	}
	return false
}

func (a *attempt) obtainOnce(ctx context.Context) (*proof.Released, *proof.Refusal) {
	// The epoch is held until the nonce is out, so that the release key which it is sealed to stays in the TPM.
	a.w.Step(StepVerdict)
	epoch, done, err := a.Epochs.Hold(ctx)
	if err != nil {
		return nil, Refusal(StepVerdict, err)
	}
	defer done()
	a.epoch, a.facts.Epoch, a.facts.AK, a.facts.SPKI = epoch, epoch, epoch.AK, epoch.SPKI

	a.w.Step(StepStatement)
	if refusal := a.state(); refusal != nil {
		return nil, refusal
	}
	if refusal := a.asOfNow(ctx, StepStatement); refusal != nil {
		return nil, refusal
	}
	if refusal := Rehearse(a.facts); refusal != nil || a.req.DryRun {
		return nil, refusal // before anything leaves this host
	}

	a.w.Step(StepRelease)
	if refusal := a.ask(ctx); refusal != nil {
		return nil, refusal
	}

	a.w.Step(StepUnseal)
	o, err := a.unseals.join(ctx, sealed{proof.ReceiptDigest(a.release.Receipt), a.release.Sealed}, a.unsealing)
	if err != nil {
		return nil, Refusal(StepUnseal, waited(err))
	}
	if o.refusal != nil {
		return nil, o.refusal
	}
	a.facts.Released = o.released
	return o.released, nil
}

// asOfNow asks what may be another by the time it is judged: the images, whose they are, the hook, the clock.
func (a *attempt) asOfNow(ctx context.Context, step string) *proof.Refusal {
	if err := a.whose(ctx); err != nil {
		return Refusal(step, err)
	}
	a.facts.Recheck = a.recheck()
	a.facts.HookFailure = reason(a.Hook.Ready())
	a.facts.Now = a.Clock.Boot()
	return nil
}

// state writes the statement of this attempt.
func (a *attempt) state() *proof.Refusal {
	c, m := a.config, a.measured
	previous, number := a.Book.Next(a.facts.Token)
	if a.last != nil {
		previous = a.last
	}
	if a.intent && a.unmoved {
		number = a.number // the verifier refused this attempt, so it is still to be made
	}
	s := &proof.Statement{
		UUID: c.UUID.String(), Name: c.Name, Action: a.req.Action, Mode: a.facts.Mode, Configuration: c.Digest(),
		Measurements: proof.Measurements{Firmware: m.Firmware, Kernel: m.Kernel, Initrd: m.Initrd, CommandLine: m.CommandLine},
		Disks:        m.Disks, Interactive: interactive(c), Token: a.facts.Token,
		Host: a.epoch.AK, Verdict: a.epoch.Digest, Previous: previous, Attempt: number, Blinder: proof.NewBlinder(),
	}
	if a.facts.Saved != nil {
		s.SavedImage = &a.facts.Saved.Found
	}
	b, err := s.Encode()
	if err != nil {
		return proof.Refuse(proof.RequestInvalid, "the domain cannot be stated", proof.Fact{Name: "cause", Value: err.Error()})
	}
	a.statement, a.link, a.number = b, proof.Link(b), number
	a.facts.Statement, a.facts.Link = s, a.link
	return nil
}

// ask writes the intent and asks for the release.
func (a *attempt) ask(ctx context.Context) *proof.Refusal {
	if refusal := a.room(ctx, a.config.UUID.String()); refusal != nil {
		return refusal
	}
	config := a.config.Digest()
	err := a.Book.Write(&Entry{What: WroteIntent, Launch: a.req.ID, UUID: a.config.UUID.String(), Name: a.config.Name, Request: domain.Emit(a.config, domain.Additions{}), Asked: a.req.Asked,
		TokenText: a.req.Token, Token: &a.facts.Token, Configuration: &config, Link: &a.link, Attempt: a.number, Image: a.facts.Statement.SavedImage})
	if err != nil {
		return Refusal(StepRelease, err)
	}
	a.intent, a.unmoved = true, false
	if a.release, err = a.Verifier.Release(ctx, a.req.Token, a.statement); err != nil {
		refusal := Refusal(StepRelease, err)
		a.unmoved = !passing(refusal.Code)
		return refusal
	}
	receipt, err := proof.ParseReceipt(a.release.Receipt, a.epoch.Keys)
	if err != nil {
		return proof.Refuse(proof.EvidenceInvalid, err.Error())
	}
	a.facts.Receipt = receipt
	return nil
}
