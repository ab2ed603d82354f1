package launcher

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"

	"troth/launcher/domain"
	"troth/proof"
)

// attempt is one launch under way: what it knows, and how far the world has changed because of it.
type attempt struct {
	*Launcher
	req Request
	w   Watcher

	token    *proof.SealedToken
	config   *domain.Config
	images   *held
	saved    Image // the save image of a restore; nil: the guest boots
	measured *Measured
	epoch    *Epoch
	facts    Facts

	statement []byte
	link      proof.Digest
	number    uint32
	unsealing func() // the batches need not wait for this launch any more
	quoting   func()
	last      *proof.Digest // of the chain, when the verifier knows better than our book
	release   Release
	permit    Permit
	grant     *Grant

	intent  bool // the journal says that the chain may move
	unmoved bool // the verifier refused, so that it did not
	granted bool // the journal says that libvirt may hear of the domain
	before  []byte
	proved  []byte // the journal has it: the guest may run
}

// Launch runs one launch to its end: the guest runs and its proof is in the journal, or nothing is left of the launch but the refusal.
func (l *Launcher) Launch(ctx context.Context, req Request, w Watcher) (out *Outcome, refusal *proof.Refusal) {
	a := &attempt{Launcher: l, req: req, w: w, images: &held{}}
	defer a.letGo()

	// Step 1: read strictly. A crash here loses a request; nothing has changed.
	w.Step(StepRead)
	if refusal := a.read(); refusal != nil {
		return nil, refusal
	}
	free, refusal := l.claim(a.config.UUID)
	if refusal != nil {
		return nil, refusal
	}
	defer free()
	// Said early, so that the chip serves launches that came together in one go.
	a.unsealing, a.quoting = func() {}, func() {}
	if !req.DryRun {
		a.unsealing, a.quoting = l.unseals.announce(), l.quotes.announce()
	}
	out, refusal = a.guarded(ctx, a.run)
	a.unsealing()
	a.quoting()
	if refusal != nil {
		a.undo(ctx, refusal)
		return nil, refusal
	}
	return out, nil
}

// guarded makes a panic a refusal, so that it is undone like every other.
func (a *attempt) guarded(ctx context.Context, run func(context.Context) (*Outcome, *proof.Refusal)) (out *Outcome, refusal *proof.Refusal) {
	defer func() {
		if p := recover(); p != nil {
			a.Log.Error("panic in a launch", "launch", a.req.ID, "panic", fmt.Sprint(p))
			out, refusal = nil, proof.Refuse(proof.Internal, "the launch failed in a way that nobody foresaw")
		}
	}()
	return run(ctx)
}

// read reads token and domain.
func (a *attempt) read() *proof.Refusal {
	var err error
	if a.token, err = proof.ParseToken(a.req.Token); err != nil {
		return proof.Refuse(proof.TokenInvalid, err.Error())
	}
	if a.config == nil {
		if a.config, err = domain.Read(a.req.Domain, domain.Request); err != nil {
			return Refusal(StepRead, err)
		}
	}
	if a.config.UUID.IsZero() {
		var id domain.UUID
		rand.Read(id[:])
		id[6], id[8] = id[6]&0x0f|0x40, id[8]&0x3f|0x80 // RFC 9562, version 4
		a.config.SetUUID(id)
	}
	if n := len(domain.Emit(a.config, domain.Additions{})); n > domain.MaxXML {
		// Libvirt would give back more than can be read, and the journal keeps it.
		return proof.Refuse(proof.RequestInvalid, "the domain's XML is too long in full explicit form",
			proof.Fact{Name: "bytes", Want: fmt.Sprintf("at most %d", domain.MaxXML), Got: fmt.Sprint(n)})
	}
	a.w.Domain(a.config.UUID.String(), a.config.Name)
	a.facts = Facts{Action: a.req.Action, Mode: a.req.mode(), Config: a.config, Token: a.token.Digest(), Header: &a.token.Header}
	return nil
}

// run is PROTOCOL.md §6 from measuring to the running guest. Each step says what holds if we crash in it.
func (a *attempt) run(ctx context.Context) (*Outcome, *proof.Refusal) {
	l, c, w := a.Launcher, a.config, a.w
	uuid := c.UUID.String()

	// Still step 1: measure through open descriptors. A crash here gives the leases back; nothing has changed.
	w.Step(StepMeasure)
	if _, refusal := a.measureFree(ctx); refusal != nil {
		return nil, refusal
	}
	if a.req.Action == proof.ActionRestore {
		if refusal := a.holdSaved(ctx); refusal != nil {
			return nil, refusal
		}
	}

	// Step 2: verdict, statement, release, unseal. A crash before the intent is written changes nothing; after it the token's chain may have
	// moved by a link of ours: recovery reports that link aborted. Libvirt has not heard of the domain.
	released, refusal := a.obtain(ctx)
	if refusal != nil || a.req.DryRun {
		return &Outcome{UUID: uuid, Would: a.facts.Statement}, refusal
	}
	defer released.Nonce.Forget()
	defer released.Secret.Forget()

	// Still step 2: the decision. Images and hook are asked once more, since hashing and the network took their time.
	w.Step(StepDecide)
	if refusal := a.asOfNow(ctx, StepDecide); refusal != nil {
		return nil, refusal
	}
	if a.permit, refusal = Decide(a.facts); refusal != nil {
		return nil, refusal
	}

	// Step 2 ends: the grant, with what is to be put back. A crash after it: recovery destroys, puts back, reports aborted.
	w.Step(StepGrant)
	var err error
	if a.before, err = l.Virt.Inactive(ctx, c.UUID); err != nil {
		return nil, Refusal(StepGrant, err)
	}
	if err := a.publish(&Entry{What: WroteGranted, Launch: a.req.ID, UUID: uuid, Previous: a.before}); err != nil {
		return nil, Refusal(StepGrant, err)
	}
	a.granted = true

	// Step 5 begins early: the quote is with the chip while libvirt works. It names a link that has no MAC yet; a crash loses it.
	quoted := a.quote(ctx)

	// Step 3: define what we emit, and read it back. A crash here leaves our definition with nothing running: recovery puts the previous one back.
	w.Step(StepDefine)
	added, err := a.addGuest(released)
	if err != nil {
		return nil, Refusal(StepDefine, err)
	}
	if err := l.define(ctx, a.permit, c, added); err != nil {
		return nil, Refusal(StepDefine, err)
	}

	// Step 4: create paused, under an id that only this start carries. A crash here leaves a paused guest that never ran, and the guest's secret in a
	// file of its owner alone: recovery destroys and removes them.
	w.Step(StepCreate)
	rand.Read(added.LaunchID[:])
	called, err := a.create(ctx, added, released)
	if err != nil {
		return nil, Refusal(StepCreate, err)
	}
	if !called {
		return nil, proof.Refuse(proof.HookNotLive, "libvirt started the domain without asking the hook")
	}

	// Still step 4: compare what runs with what was permitted. A crash here is the same as one at creating.
	w.Step(StepCompare)
	if err := a.compare(ctx, added); err != nil {
		return nil, Refusal(StepCompare, err)
	}

	// Step 5: quote, MAC, journal. A crash before the journal has the proof: no proof exists, recovery destroys the paused guest.
	// A crash after it: recovery compares once more and resumes.
	w.Step(StepQuote)
	q := <-quoted
	if q.err != nil {
		return nil, Refusal(StepQuote, waited(q.err))
	}
	w.Step(StepProve)
	if err := a.still(ctx); err != nil {
		return nil, Refusal(StepProve, err)
	}
	proved, err := a.prove(q, released.Nonce)
	if err != nil {
		return nil, Refusal(StepProve, err)
	}
	if err := l.Book.Write(&Entry{What: WroteProved, Launch: a.req.ID, UUID: uuid, Proof: proved, Grant: a.grant}); err != nil {
		return nil, Refusal(StepProve, err)
	}
	a.proved = proved

	// Step 6: only now it runs. A crash before or after resuming: the proof is in the journal, and recovery finds the guest paused or running.
	w.Step(StepResume)
	if err := l.Virt.Resume(ctx, c.UUID); err != nil {
		// Nobody knows whether it runs. Resuming a guest that runs changes nothing, so ask once more before giving it up.
		if err := l.Virt.Resume(ctx, c.UUID); err != nil {
			return nil, Refusal(StepResume, err)
		}
	}
	l.finish(ctx, a.req.ID, uuid, a.event(EventOpen))
	if a.saved != nil {
		// A crash before it: the sweep removes what no domain is saved in.
		if err := l.Saves.Remove(uuid); err != nil {
			l.Log.Error("cannot remove a save image that was used up, it will be tried again", "uuid", uuid, "error", err.Error())
		}
	}
	w.Step(StepDone)
	return &Outcome{UUID: uuid, Proof: proved}, nil
}

func reason(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// quote joins the batch that is quoted next; the answer waits in the channel.
func (a *attempt) quote(ctx context.Context) <-chan quoteOut {
	quoted := make(chan quoteOut, 1)
	in := quoteIn{link: a.permit.link, verdict: a.epoch.Digest, sel: a.epoch.Verdict.Selection}
	go func() {
		out, err := a.quotes.join(ctx, in, a.quoting)
		if err != nil {
			out.err = err
		}
		quoted <- out
	}()
	return quoted
}

// addGuest makes the channel and says where the secret of a guest that may have one will stand.
func (a *attempt) addGuest(r *proof.Released) (added domain.Additions, err error) {
	added.ChannelPath, err = a.Secrets.Channel(a.permit.uuid.String())
	if r.GuestAllowed {
		added.GuestSecretFile = a.Secrets.File(a.permit.uuid.String())
	}
	return added, err
}

// putGuest makes the file with the secret of a guest that may have one: as late as it can, since every client of libvirt that may see the definition knows its name.
func (a *attempt) putGuest(r *proof.Released) error {
	if !r.GuestAllowed {
		return nil
	}
	credential := proof.GuestCredential{Link: a.permit.link, Secret: proof.GuestSecret(r.Nonce, a.permit.link), Token: r.Secret}
	defer credential.Secret.Forget()
	content, err := credential.EncodePrivate()
	if err != nil {
		return err
	}
	secret := proof.NewSecret(content)
	clear(content)
	defer secret.Forget()
	return a.Secrets.Put(a.permit.uuid.String(), secret)
}

// define makes the definition and asks for it again: libvirt may have understood something else.
func (l *Launcher) define(ctx context.Context, p Permit, c *domain.Config, added domain.Additions) error {
	if p.uuid != c.UUID || p.config != c.Digest() {
		return proof.Refuse(proof.Internal, "the permit is for another domain")
	}
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

// create starts the guest paused. called says whether libvirt asked the hook about this very start.
func (a *attempt) create(ctx context.Context, added domain.Additions, r *proof.Released) (called bool, err error) {
	if err := a.handOver(a.images); err != nil {
		return false, err
	}
	expected := a.Hook.Expect(a.permit.uuid, added.LaunchID, a.saved != nil)
	defer expected.Done()
	if err = a.putKeys(ctx, a.config, r.Secret); err == nil {
		err = a.putGuest(r)
	}
	if err == nil {
		err = a.start(ctx, domain.Emit(a.config, added))
	}
	// QEMU has read the file and opened the disks, or never will.
	if rerr := errors.Join(a.removeKeys(ctx, a.config), a.Secrets.Remove(a.permit.uuid.String())); rerr != nil {
		return false, errors.Join(err, rerr)
	}
	return expected.Called(), err
}

// compare looks at the live definition, the process and the images.
func (a *attempt) compare(ctx context.Context, added domain.Additions) error {
	live, err := a.Virt.Live(ctx, a.permit.uuid)
	if err != nil {
		return err
	}
	if live == nil {
		return proof.Refuse(proof.ConfigurationChanged, "the domain that was created does not run")
	}
	if err := compareLive(live, a.config, added); err != nil {
		return err
	}
	process, err := a.Virt.Process(ctx, a.permit.uuid, a.QEMU)
	if err != nil {
		return err
	}
	if err := compareProcess(process, a.images, a.config, a.QEMU, a.saved != nil); err != nil {
		return err
	}
	if err := a.again(ctx, a.images); err != nil {
		return err
	}
	if err := a.savedAgain(ctx); err != nil {
		return err
	}
	if changed := proof.First(a.images.recheck()); changed != nil {
		return changed
	}
	a.grant, err = a.newGrant(ctx, a.permit.uuid, added, process, a.facts.Receipt.Policy)
	return err
}

// still looks once more, since everything was hashed again and the quote took its time: the guest is the one that was compared. What is done to it from here
// on is no part of its grant, and the first look of many finds it.
func (a *attempt) still(ctx context.Context) error {
	live, err := a.Virt.Live(ctx, a.permit.uuid)
	if err != nil {
		return err
	}
	if live == nil {
		return proof.Refuse(proof.ConfigurationChanged, "the domain that was created does not run any more")
	}
	refusal, err := a.differs(ctx, a.permit.uuid, live, a.config, a.grant, a.saved != nil)
	if refusal != nil {
		return refusal
	}
	return err
}

// prove makes the proof. The nonce is used here for the last time.
func (a *attempt) prove(q quoteOut, nonce proof.Secret) ([]byte, error) {
	e := a.epoch
	p := &proof.Proof{
		Statement: a.statement, Index: q.index, Count: q.count, Path: q.path,
		Quote: proof.QuoteDoc{Message: q.quote.Message, Signature: q.quote.Signature},
		AK:    e.AKPublic, PCRs: proof.PCRList(e.PCRs, e.Verdict.Selection), Verdict: e.Text, Receipt: a.release.Receipt,
	}
	if err := p.Seal(nonce); err != nil {
		return nil, err
	}
	return p.Encode()
}

func (a *attempt) event(what string) ChainEvent {
	return ChainEvent{Token: a.facts.Token, Link: a.link, Event: what, Attempt: a.number}
}

// finish writes that the guest runs, and tells the verifier. From here on the launch is over: what fails is said in the log and told later.
func (l *Launcher) finish(ctx context.Context, launch, uuid string, open ChainEvent) {
	if err := l.owe(open); err != nil {
		// Not ended, so that recovery finds it and notes both: a link that is never told open could never be closed.
		l.Log.Error("cannot note that a link is open", "launch", launch, "error", err.Error())
		return
	}
	if err := l.Book.Write(&Entry{What: WroteRunning, Launch: launch, UUID: uuid}); err != nil {
		l.Log.Error("cannot note that a guest runs", "launch", launch, "error", err.Error())
	}
	if err := l.Tell(ctx); err != nil {
		l.Log.Warn("cannot tell the verifier that a link is open", "launch", launch, "error", err.Error())
	}
}
