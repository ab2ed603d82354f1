package launcher

import (
	"context"
	"errors"

	"troth/launcher/domain"
	"troth/proof"
)

// undo ends a refused launch: nothing of it stays defined, granted or running, and the reason is kept.
func (a *attempt) undo(ctx context.Context, why *proof.Refusal) {
	if a.config == nil || a.req.DryRun {
		return
	}
	ctx, cancel := a.undoing(ctx)
	defer cancel()
	uuid := a.config.UUID.String()
	if !a.intent {
		// Nothing happened yet. The reason is kept, so that a person can ask why.
		if a.Book.Keeps(uuid) {
			a.note(&Entry{What: WroteRefused, Launch: a.req.ID, UUID: uuid, Name: a.config.Name, Asked: a.req.Asked, Refusal: why})
		}
		return
	}
	// A crash from here on finds the reason, and undoes the rest.
	a.note(&Entry{What: WroteFailed, Launch: a.req.ID, UUID: uuid, Refusal: why})
	a.Book.Blame(a.req.ID, why)
	r := &Record{Launch: a.req.ID, UUID: uuid, Token: a.facts.Token, Link: a.link, Attempt: a.number, Mode: a.req.Mode, Previous: a.before, Request: domain.Emit(a.config, domain.Additions{}), Refusal: why, Proof: a.proved, Image: a.image()}
	if err := a.putBack(ctx, r, a.config.UUID, a.granted, a.unmoved); err != nil {
		a.Log.Error("cannot undo a launch, it will be tried again", "launch", a.req.ID, "error", err.Error())
	}
}

func (a *attempt) note(e *Entry) {
	if err := a.Book.Write(e); err != nil {
		a.Log.Error("cannot keep the reason of a refusal", "launch", a.req.ID, "error", err.Error())
	}
}

// putBack makes the world as it was before a launch. Every part of it may be repeated: recovery calls it after a crash at any of its steps.
func (l *Launcher) putBack(ctx context.Context, r *Record, id domain.UUID, granted, unmoved bool) error {
	if granted {
		// The guest first: nothing that was not proved runs on while we tidy up.
		if err := l.Virt.Destroy(ctx, id); err != nil {
			return err
		}
		if r.Mode != proof.ModeHook { // what an armed domain is defined as is not the start's to change
			if err := l.restore(ctx, id, r.Previous); err != nil {
				return err
			}
		}
		if err := l.Secrets.Remove(id.String()); err != nil {
			return err
		}
		if err := l.removeKeysOf(ctx, id, r.Request); err != nil {
			return err
		}
		if r.Previous == nil && r.Mode != proof.ModeHook {
			if err := l.Secrets.Forget(id.String()); err != nil {
				return err
			}
		}
	}
	// A crash between these two tells the verifier twice, which it takes as once.
	if !unmoved {
		what := EventAborted
		if l.Book.opened(r.Token, r.Link) || r.usedUp() {
			what = EventClosed // the verifier knows it as open, or will: only closing ends such a link
		}
		if err := l.owe(ChainEvent{Token: r.Token, Link: r.Link, Event: what, Attempt: r.Attempt, Detail: string(r.Refusal.Code)}); err != nil {
			return err
		}
	}
	if err := l.Book.Write(&Entry{What: WroteRefused, Launch: r.Launch, UUID: r.UUID, Refusal: r.Refusal, Unmoved: unmoved, Used: r.usedUp()}); err != nil {
		return err
	}
	if r.Refusal != nil && r.Refusal.Code == proof.VerifierUnreachable {
		return nil // it did not answer just now; whoever waits for the refusal need not wait for that again
	}
	if err := l.Tell(ctx); err != nil {
		l.Log.Warn("cannot tell the verifier that a link was aborted, it will be tried again", "launch", r.Launch, "error", err.Error())
	}
	return nil
}

// restore brings the definition back that was there before, or none.
func (l *Launcher) restore(ctx context.Context, id domain.UUID, before []byte) error {
	if before == nil {
		return l.Virt.Undefine(ctx, id)
	}
	return l.Virt.Define(ctx, before)
}

// Stop destroys the guest and closes its link. A domain that does not run is closed too, so that its token can be used again.
func (l *Launcher) Stop(ctx context.Context, uuid string) *proof.Refusal {
	_, id, refusal := l.registered(uuid)
	if refusal != nil {
		return refusal
	}
	free, refusal := l.claimSoon(ctx, id, claimWithin)
	if refusal != nil {
		return refusal
	}
	defer free()
	// Read only now: the launch that was waited for has left another link to close.
	d, _, refusal := l.registered(uuid)
	if refusal != nil {
		return refusal
	}
	// A crash here: the event or the reconcile scan finds the guest gone and closes its link.
	if err := l.Virt.Destroy(ctx, id); err != nil {
		return Refusal("stop", err)
	}
	if err := l.giveUp(d); err != nil {
		return Refusal("stop", err)
	}
	if err := l.Tell(ctx); err != nil {
		l.Log.Warn("cannot tell the verifier that a link is closed, it will be tried again", "uuid", uuid, "error", err.Error())
	}
	return nil
}

// Delete stops the guest, removes its definition and forgets the domain.
func (l *Launcher) Delete(ctx context.Context, uuid string) *proof.Refusal {
	_, id, refusal := l.known(uuid)
	if refusal != nil {
		return refusal
	}
	free, refusal := l.claimSoon(ctx, id, claimWithin)
	if refusal != nil {
		return refusal
	}
	defer free()
	d, _, refusal := l.known(uuid) // read only now, as in Stop
	if refusal != nil {
		return refusal
	}
	if d.Registered {
		if err := l.Virt.Destroy(ctx, id); err != nil {
			return Refusal("delete", err)
		}
		if err := l.giveUp(d); err != nil {
			return Refusal("delete", err)
		}
		// Undefined before it is forgotten: a definition that libvirt has and hostd does not know could be started by anyone.
		if err := l.Virt.Undefine(ctx, id); err != nil {
			return Refusal("delete", err)
		}
		if err := l.Secrets.Forget(id.String()); err != nil {
			return Refusal("delete", err)
		}
	}
	if err := l.Book.Write(&Entry{What: WroteForgotten, UUID: d.UUID}); err != nil {
		return Refusal("delete", err)
	}
	if err := l.Tell(ctx); err != nil {
		l.Log.Warn("cannot tell the verifier that a link is closed, it will be tried again", "uuid", uuid, "error", err.Error())
	}
	return nil
}

// Gone notes that a guest which was proved ended by itself; the verifier hears of it by Tell. It asks the kernel, not libvirt.
func (l *Launcher) Gone(ctx context.Context, uuid string, why *proof.Refusal) error {
	d, id, refusal := l.registered(uuid)
	if refusal != nil || d.Live() == nil {
		return nil
	}
	free, refusal := l.claim(id)
	if refusal != nil {
		return nil // whoever has it will say how it ends
	}
	defer free()
	if d = l.Book.Domain(uuid); d.Live() == nil {
		return nil
	}
	runs, err := l.Virt.Runs(ctx, id, l.QEMU)
	if err != nil || runs {
		return err // it runs again, or nobody knows
	}
	return l.close(d, why)
}

// giveUp closes the link of a domain, and its save image goes.
func (l *Launcher) giveUp(d *Domain) error {
	if err := l.close(d, nil); err != nil || d.Saved == nil {
		return err
	}
	return l.Saves.Remove(d.UUID) // a crash before it leaves it to the sweep
}

// close ends the link of a domain that was proved. One whose proof was broken keeps that reason.
func (l *Launcher) close(d *Domain, why *proof.Refusal) error {
	if d.Live() == nil && d.State != StateSaved || d.Link == nil {
		return nil
	}
	if d.State == StateBroken {
		why = d.Refusal
	}
	// A crash between the two: the scan finds a proved domain that does not run, and closes it again, which counts once.
	if err := l.owe(ChainEvent{Token: d.Token, Link: *d.Link, Event: EventClosed, Attempt: d.Attempt}); err != nil {
		return err
	}
	return l.Book.Write(&Entry{What: WroteStopped, Launch: d.Launch, UUID: d.UUID, Refusal: why})
}

func (l *Launcher) known(uuid string) (*Domain, domain.UUID, *proof.Refusal) {
	id, err := domain.ParseUUID(uuid)
	if err != nil {
		return nil, id, proof.Refuse(proof.RequestInvalid, err.Error(), proof.Fact{Name: "uuid", Value: uuid})
	}
	d := l.Book.Domain(id.String())
	if d == nil {
		return nil, id, proof.Refuse(proof.NotRegistered, "no such domain is known here", proof.Fact{Name: "uuid", Value: id.String()})
	}
	return d, id, nil
}

func (l *Launcher) registered(uuid string) (*Domain, domain.UUID, *proof.Refusal) {
	d, id, refusal := l.known(uuid)
	if refusal == nil && !d.Registered {
		refusal = proof.Refuse(proof.NotRegistered, "the domain is not registered here", proof.Fact{Name: "uuid", Value: id.String()})
	}
	return d, id, refusal
}

// Recover ends what a crash cut short. It runs at start, before the API opens, and again while something is left to do.
// Every launch ends either proved and running, or gone with its reason kept.
func (l *Launcher) Recover(ctx context.Context) error {
	var errs []error
	for _, r := range l.Book.Unended() {
		id, err := domain.ParseUUID(r.UUID)
		if err != nil {
			return err
		}
		free, refusal := l.claim(id)
		if refusal != nil {
			continue // it is still at work
		}
		if err := l.recover(ctx, r, id); err != nil {
			errs = append(errs, err)
		}
		free()
	}
	return errors.Join(append(errs, l.sweepSaves())...)
}

func (l *Launcher) recover(ctx context.Context, r *Record, id domain.UUID) error {
	if r.Refusal == nil {
		r.Refusal = proof.Refuse(proof.Internal, "hostd stopped in the middle of the launch", proof.Fact{Name: "reached", Value: r.Reached})
	}
	if r.Reached == WroteProved {
		resumed, err := l.resumeProved(ctx, r, id)
		if resumed || err != nil {
			return err
		}
	}
	defer l.ends(id)()
	// Not granted: libvirt never heard of it, but the chain may have moved.
	return l.putBack(ctx, r, id, r.Granted, false)
}

// resumeProved lets a guest run whose proof was in the journal when hostd stopped. Compared once more, since time has passed: another guest under this UUID is
// not the one that was proved, nor is one that somebody reached into. What runs has to be that very process, with its launch id.
func (l *Launcher) resumeProved(ctx context.Context, r *Record, id domain.UUID) (bool, error) {
	live, err := l.Virt.Live(ctx, id)
	if err != nil || live == nil {
		return false, err
	}
	want, err := domain.Read(r.Request, domain.Inactive)
	if err != nil {
		return false, err
	}
	differs := proof.Refuse(proof.ConfigurationChanged, "nothing was kept of the guest that was proved, so that what was found cannot be compared with it")
	if r.Grant != nil {
		if differs, err = l.differs(ctx, id, live, want, r.Grant, r.Image != nil); err != nil {
			return false, err
		}
	}
	if differs != nil {
		r.Refusal = differs
		return false, nil
	}
	if err := l.Virt.Resume(ctx, id); err != nil {
		return false, err
	}
	l.finish(ctx, r.Launch, r.UUID, ChainEvent{Token: r.Token, Link: r.Link, Event: EventOpen, Attempt: r.Attempt})
	return true, nil
}

// Stray ends a guest of a launch that was refused: when libvirt did not answer in time, the guest may have come up after the launch was undone.
// Only a live launch id, which nobody but a launch writes, makes a guest one of ours. It says whether it ended one.
func (l *Launcher) Stray(ctx context.Context, uuid string) (ended bool, err error) {
	_, id, refusal := l.known(uuid)
	if refusal != nil {
		return false, nil
	}
	turn, ok := l.turn(id)
	if !ok || !l.mayBeStray(uuid) {
		return false, nil
	}
	live, err := l.Virt.Live(ctx, id)
	if err != nil || live == nil {
		return false, err
	}
	got, err := domain.Read(live, domain.Live)
	if err != nil || got.Added.LaunchID == [32]byte{} {
		return false, nil // not ours to end here
	}
	free, ok := l.claimAt(id, turn)
	if !ok {
		return false, nil
	}
	defer free()
	if !l.mayBeStray(uuid) {
		return false, nil
	}
	l.Log.Warn("ending a guest of a launch that was refused", "uuid", uuid)
	err = l.Virt.Destroy(ctx, id)
	return err == nil, err
}

// mayBeStray says that the book knows of no guest of this domain that may run. A domain that somebody has at work is nobody's to judge.
func (l *Launcher) mayBeStray(uuid string) bool {
	d := l.Book.Domain(uuid)
	return d != nil && (d.State == StateRefused || d.State == StateStopped || d.State == StateSaved)
}
