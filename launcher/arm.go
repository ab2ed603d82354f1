package launcher

import (
	"context"
	"errors"

	"troth/launcher/domain"
	"troth/proof"
)

// armed is what was measured of a domain that any libvirt client may start, so that the hook need not wait for it.
type armed struct {
	config   *domain.Config
	images   *held
	measured *Measured
	first    bool // for the first link of the token's chain: what the guest writes to is measured too
}

// Arm defines a domain so that any libvirt client may start it, through the hook: read, measured, defined, with its token in the book. It launches
// nothing, and asks the verifier for nothing. A domain that was armed before is armed anew.
func (l *Launcher) Arm(ctx context.Context, req Request, w Watcher) (out *Outcome, refusal *proof.Refusal) {
	req.Mode = proof.ModeHook
	a := &attempt{Launcher: l, req: req, w: w, images: &held{}, unsealing: func() {}, quoting: func() {}}

	// Step 1: read strictly. A crash here loses a request.
	w.Step(StepRead)
	if refusal := a.read(); refusal != nil {
		return nil, refusal
	}
	free, refusal := l.claim(a.config.UUID)
	if refusal != nil {
		return nil, refusal
	}
	defer free()
	out, refusal = a.guarded(ctx, a.arm)
	if refusal != nil {
		a.undo(ctx, refusal)
		a.letGo()
	}
	return out, refusal
}

func (a *attempt) arm(ctx context.Context) (*Outcome, *proof.Refusal) {
	l, c, w := a.Launcher, a.config, a.w
	uuid := c.UUID.String()
	if refusal := unsealable(c); refusal != nil {
		return nil, refusal
	}
	if refusal := l.room(ctx, uuid); refusal != nil {
		return nil, refusal
	}

	// Still step 1: measure, and check what can be checked without the verifier. A crash here changes nothing.
	w.Step(StepMeasure)
	first, refusal := a.measureFree(ctx)
	if refusal != nil {
		return nil, refusal
	}
	if refusal := a.rehearse(ctx); refusal != nil {
		return nil, refusal
	}
	before, err := l.Virt.Inactive(ctx, c.UUID)
	if err != nil {
		return nil, Refusal(StepGrant, err)
	}
	added, err := l.additions(uuid)
	if err != nil {
		return nil, Refusal(StepDefine, err)
	}

	// Step 2: note it, then define, then note that. A crash between: Rearm defines it. Until it is noted, nobody's start is permitted.
	w.Step(StepGrant)
	config := c.Digest()
	if err := a.publish(&Entry{What: WroteArmed, UUID: uuid, Name: c.Name, Request: domain.Emit(c, domain.Additions{}),
		TokenText: a.req.Token, Token: &a.facts.Token, Configuration: &config}); err != nil {
		return nil, Refusal(StepGrant, err)
	}
	w.Step(StepDefine)
	if err := l.defineArmed(ctx, c, added); err != nil {
		refusal := Refusal(StepDefine, err)
		// What was there before comes back, then it is noted. If it cannot come back, libvirt is away, and Rearm defines the domain when it is here.
		back, cancel := a.undoing(ctx)
		defer cancel()
		err := l.restore(back, c.UUID, before)
		if err == nil {
			err = l.Book.Write(&Entry{What: WroteDisarmed, UUID: uuid, Refusal: refusal})
		}
		if err != nil {
			l.Log.Error("cannot undo the arming of a domain", "uuid", uuid, "error", err.Error())
		}
		return nil, refusal
	}
	if err := l.Book.Write(&Entry{What: WroteDefined, UUID: uuid}); err != nil {
		return nil, Refusal(StepDefine, err)
	}
	l.keep(&armed{config: c, images: a.images, measured: a.measured, first: first})
	w.Step(StepDone)
	return &Outcome{UUID: uuid}, nil
}

// measureFree measures the images of a domain that does not run and whose name nobody else has. first says that the token's chain has no link yet.
func (a *attempt) measureFree(ctx context.Context) (first bool, refusal *proof.Refusal) {
	l, c := a.Launcher, a.config
	if d := l.Book.Domain(c.UUID.String()); d != nil && d.State == StateSaved && a.req.Action != proof.ActionRestore {
		return false, proof.Refuse(proof.RequestInvalid, "the domain is saved: restore it, or stop it first, which gives up its memory", proof.Fact{Name: "uuid", Value: d.UUID})
	}
	if live, err := l.Virt.Live(ctx, c.UUID); err != nil {
		return false, Refusal(StepMeasure, err)
	} else if live != nil {
		return false, proof.Refuse(proof.RequestInvalid, "the domain runs already: stop it first", proof.Fact{Name: "uuid", Value: c.UUID.String()})
	}
	if other, err := l.Virt.Named(ctx, c.Name); err != nil {
		return false, Refusal(StepMeasure, err)
	} else if !other.IsZero() && other != c.UUID {
		return false, proof.Refuse(proof.RequestInvalid, "another domain has this name: choose another, or undefine that one",
			proof.Fact{Name: "name", Value: c.Name}, proof.Fact{Name: "uuid", Want: c.UUID.String(), Got: other.String()})
	} else if other.IsZero() {
		// libvirt renames nothing by a definition.
		if before, err := l.Virt.Inactive(ctx, c.UUID); err != nil {
			return false, Refusal(StepMeasure, err)
		} else if before != nil {
			return false, proof.Refuse(proof.RequestInvalid, "this domain is defined by another name: ask for it by that name, or undefine it",
				proof.Fact{Name: "name", Value: c.Name}, proof.Fact{Name: "uuid", Value: c.UUID.String()})
		}
	}
	if refusal := a.closeGone(); refusal != nil {
		return false, refusal
	}
	return a.measureNow(ctx)
}

// closeGone closes the link of a guest that is known to be gone and that nobody has noted yet: once another launch has begun, nobody would.
func (a *attempt) closeGone() *proof.Refusal {
	if a.req.DryRun {
		return nil
	}
	d := a.Book.Domain(a.config.UUID.String())
	if d.Live() == nil {
		return nil
	}
	if err := a.Launcher.close(d, proof.Refuse(proof.NotRegistered, "the guest ended by itself or was ended by another client")); err != nil {
		return Refusal(StepMeasure, err)
	}
	return nil
}

// measureNow measures the images, whatever runs.
func (a *attempt) measureNow(ctx context.Context) (first bool, refusal *proof.Refusal) {
	previous, _ := a.Book.Next(a.facts.Token)
	images, measured, err := a.Launcher.measure(ctx, a.config, previous == nil, a.w)
	if err != nil {
		return false, Refusal(StepMeasure, err)
	}
	a.images, a.measured, a.facts.Measured = images, measured, measured
	return previous == nil, nil
}

// rehearse runs the checks that need no answer of the verifier, against the newest verdict.
func (a *attempt) rehearse(ctx context.Context) *proof.Refusal {
	asked := a.req.DryRun
	a.req.DryRun = true
	defer func() { a.req.DryRun = asked }()
	_, refusal := a.obtain(ctx)
	return refusal
}

// additions are what an armed domain has beside its configuration: paths that stay the same from start to start.
func (l *Launcher) additions(uuid string) (domain.Additions, error) {
	channel, err := l.Secrets.Channel(uuid)
	return domain.Additions{ChannelPath: channel, GuestSecretFile: l.Secrets.File(uuid)}, err
}

// defineArmed makes the definition and asks for it again.
func (l *Launcher) defineArmed(ctx context.Context, c *domain.Config, added domain.Additions) error {
	if err := l.Virt.Define(ctx, domain.Emit(c, added)); err != nil {
		return err
	}
	back, err := l.Virt.Inactive(ctx, c.UUID)
	if err != nil {
		return err
	}
	if back == nil {
		return proof.Refuse(proof.ConfigurationChanged, "libvirt does not have the definition that it took")
	}
	return compareInactive(back, c, added)
}

// keep holds what was measured until the domain is started, in place of what was held before.
func (l *Launcher) keep(a *armed) {
	l.mu.Lock()
	old := l.arms[a.config.UUID]
	l.arms[a.config.UUID] = a
	l.mu.Unlock()
	l.drop(old)
}

// take gives what is held of a domain to the caller, who closes it; nil when nothing is.
func (l *Launcher) take(id domain.UUID) *armed {
	l.mu.Lock()
	defer l.mu.Unlock()
	a := l.arms[id]
	delete(l.arms, id)
	return a
}

func (l *Launcher) drop(a *armed) {
	if a == nil {
		return
	}
	if err := a.images.close(); err != nil {
		l.Log.Warn("cannot close an image", "uuid", a.config.UUID.String(), "error", err.Error())
	}
}

// Rearm measures armed domains of which nothing is held: after hostd's start, after a guest has ended, after an image changed. It goes through all of them and
// returns what failed; what could not be measured is tried again at the next call, and at the start at the latest. It claims no domain while it measures:
// whatever else happens to one goes first.
func (l *Launcher) Rearm(ctx context.Context) error {
	var errs []error
	armedNow := map[domain.UUID]bool{}
	for _, d := range l.Book.Domains() {
		id, err := domain.ParseUUID(d.UUID)
		if err != nil || !d.Armed {
			errs = append(errs, err)
			continue
		}
		armedNow[id] = true
		if d.State == StateProved || d.State == StateLaunching || l.Busy(id) || l.holds(id) {
			continue
		}
		errs = append(errs, l.rearm(ctx, id, d))
	}
	l.mu.Lock()
	var gone []*armed
	for id, a := range l.arms {
		if !armedNow[id] {
			gone = append(gone, a)
			delete(l.arms, id)
		}
	}
	l.mu.Unlock()
	for _, a := range gone {
		l.drop(a)
	}
	return errors.Join(errs...)
}

// holds says that what was measured of the domain still counts; what does not is dropped.
func (l *Launcher) holds(id domain.UUID) bool {
	a := l.take(id) // nobody closes it under our hands; a start that comes now measures by itself
	if a == nil {
		return false
	}
	if len(a.images.recheck()) > 0 {
		l.drop(a)
		return false
	}
	l.keep(a)
	return true
}

func (l *Launcher) rearm(ctx context.Context, id domain.UUID, d *Domain) error {
	c, err := d.configuration()
	if err != nil {
		return err
	}
	if runs, err := l.Virt.Runs(ctx, id, l.QEMU); err != nil || runs {
		return err
	}
	a := &attempt{Launcher: l, req: Request{Token: d.TokenText, Action: proof.ActionStart, Mode: proof.ModeHook}, w: unwatched{}, images: &held{}, config: c}
	if refusal := a.read(); refusal != nil {
		return refusal
	}
	first, refusal := a.measureNow(ctx)
	if refusal != nil {
		return refusal
	}
	// No claim while libvirt is asked: it may be starting this very domain, and wait for a hook that waits for the claim.
	before, err := l.Virt.Inactive(ctx, id)
	if err == nil && (before == nil || !d.Defined) {
		err = l.defineAgain(ctx, c, d)
	}
	if err != nil {
		a.letGo()
		return err
	}
	l.keep(&armed{config: c, images: a.images, measured: a.measured, first: first})
	return nil
}

// defineAgain brings back a definition that libvirt lost, or that a crash kept from it. One that somebody changed stays as it is, and is refused at its start.
func (l *Launcher) defineAgain(ctx context.Context, c *domain.Config, d *Domain) error {
	free, refusal := l.claim(c.UUID)
	if refusal != nil {
		return nil // something happens to it: at its end it is looked at again
	}
	defer free()
	if now := l.Book.Domain(d.UUID); now == nil || !now.Armed || now.Token != d.Token || now.Since != d.Since {
		return nil
	}
	added, err := l.additions(d.UUID)
	if err != nil {
		return err
	}
	if err := l.defineArmed(ctx, c, added); err != nil {
		return err
	}
	return l.Book.Write(&Entry{What: WroteDefined, UUID: d.UUID})
}

// configuration is what the domain was armed or proved with. It was written in full explicit form, so it is read as such: what a request may leave out
// is not filled in once more.
func (d *Domain) configuration() (*domain.Config, error) {
	return domain.Read(d.Request, domain.Inactive)
}

// letGo closes what the attempt holds open.
func (a *attempt) letGo() {
	if a.saved != nil {
		if err := a.saved.Close(); err != nil {
			a.Log.Warn("cannot close a save image", "launch", a.req.ID, "error", err.Error())
		}
		a.saved = nil
	}
	if err := a.images.close(); err != nil {
		a.Log.Warn("cannot close an image", "launch", a.req.ID, "error", err.Error())
	}
}

// unwatched is the watcher of a start that nobody asked us for.
type unwatched struct{}

func (unwatched) Step(string)           {}
func (unwatched) Domain(string, string) {}
func (unwatched) Hashed(int64, int64)   {}
