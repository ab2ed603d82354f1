package launcher

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"time"

	"troth/launcher/domain"
	"troth/proof"
)

// Hook mode: another libvirt client starts an armed domain, and libvirt asks the hook. At prepare hostd does what it does for a launch of its own up to the
// decision; the proof is made when the guest has started, since libvirt holds the domain until then. It says mode: hook.
//
//	libvirt: prepare ──▶ Prepare: read, compare, measure, release, Decide, journal, secret ──▶ permit
//	         start   ──▶ Proceed: the same domain
//	         QEMU runs
//	         started ──▶ Started ─ ─ ─▶ conclude: compare live, process, images; MAC; journal     (libvirt may be asked again)
//	         release ──▶ Ended   ─ ─ ─▶ undo, if it never started

// Bounds of a start by another client.
const (
	prepareWithin = 2500 * time.Millisecond // the hook gives up after 3 s
	claimInHook   = 300 * time.Millisecond  // whoever only notes something has let go by then
	lookEvery     = 2 * time.Second         // whether libvirt still has the start, should nothing be heard
)

// Prepare judges the start of a domain that carries no launch id of ours: nil permits it. It calls no libvirt, which holds the domain's lock until the hook
// has its answer; xml is what libvirt gave the hook.
func (l *Launcher) Prepare(ctx context.Context, id domain.UUID, xml []byte) *proof.Refusal {
	ctx, cancel := context.WithTimeout(ctx, prepareWithin)
	defer cancel()
	config, err := definition(xml)
	if err != nil {
		return Refusal(StepRead, err)
	}
	if config.UUID != id {
		return proof.Refuse(proof.RequestInvalid, "the hook asks about another domain than its XML names", proof.Fact{Name: "uuid", Want: id.String(), Got: config.UUID.String()})
	}
	d := l.Book.Domain(id.String())
	token := config.Token
	if d != nil && d.Armed {
		token = d.TokenText
	}
	if token == "" {
		return proof.Refuse(proof.GrantMissing, "the domain is not armed and carries no token: launch or register it with hostd", proof.Fact{Name: "uuid", Value: id.String()})
	}
	free, refusal := l.claimSoon(ctx, id, claimInHook)
	if refusal != nil {
		return proof.Refuse(proof.GrantMissing, "hostd is at work on this domain: another client cannot start it now", proof.Fact{Name: "uuid", Value: id.String()})
	}
	var nonce [16]byte
	rand.Read(nonce[:])
	a := &attempt{Launcher: l, w: unwatched{}, images: &held{}, config: config, unsealing: l.unseals.announce(), quoting: l.quotes.announce(),
		req: Request{ID: "hook-" + hex.EncodeToString(nonce[:]), Token: token, Domain: domain.Emit(config, domain.Additions{}), Action: proof.ActionStart, Mode: proof.ModeHook}}
	p := &pending{a: a, free: free, started: make(chan struct{}), news: make(chan struct{}, 1)}
	_, refusal = a.guarded(ctx, func(ctx context.Context) (*Outcome, *proof.Refusal) { return nil, a.prepare(ctx, d, p) })
	a.unsealing()
	if refusal != nil {
		a.quoting()
		// Undoing may ask libvirt, so not before the hook has its answer. Until then the domain is claimed.
		l.beside(func() {
			defer p.leave()
			a.undo(context.Background(), refusal)
		})
		return refusal
	}
	l.mu.Lock()
	l.pending[id] = p
	l.mu.Unlock()
	l.beside(p.await)
	return nil
}

// definition reads what libvirt gives the hook at prepare, when nothing of it is live yet but its number: the definition, with what stands in it of ours.
func definition(xml []byte) (*domain.Config, error) {
	given, err := domain.Read(xml, domain.Hook)
	if err != nil {
		return nil, err
	}
	given.Asked()
	c, err := domain.Read(domain.Emit(given, domain.Additions{}), domain.Inactive)
	if err != nil {
		return nil, err
	}
	c.Added, c.Mark, c.Token, c.Ran = given.Added, given.Mark, given.Token, given.Ran
	return c, nil
}

// prepare is PROTOCOL.md §6 up to the grant, for hook mode.
func (a *attempt) prepare(ctx context.Context, d *Domain, p *pending) *proof.Refusal {
	l, c := a.Launcher, a.config
	uuid := c.UUID.String()

	// Step 1: the domain is the one that was armed. A crash here changes nothing, and the hook refuses.
	if refusal := a.read(); refusal != nil {
		return refusal
	}
	if refusal := a.sameAsArmed(d); refusal != nil {
		return refusal
	}
	if refusal := unsealable(c); refusal != nil {
		return refusal
	}
	if runs, err := l.Virt.Runs(ctx, c.UUID, l.QEMU); err != nil {
		return Refusal(StepRead, err)
	} else if runs {
		return proof.Refuse(proof.RequestInvalid, "a QEMU of this domain runs already", proof.Fact{Name: "uuid", Value: uuid})
	}
	if refusal := a.closeGone(); refusal != nil {
		return refusal
	}
	if refusal := a.measuredBefore(ctx); refusal != nil {
		return refusal
	}

	// Step 2: verdict, statement, release, unseal, decision, as for a launch of our own. A crash after the intent: recovery reports the link aborted.
	released, refusal := a.obtain(ctx)
	if refusal != nil {
		return refusal
	}
	p.released = released
	if refusal := a.asOfNow(ctx, StepDecide); refusal != nil {
		return refusal
	}
	if a.permit, refusal = Decide(a.facts); refusal != nil {
		return refusal
	}

	// Step 2 ends: the grant. A crash after it: the nonce is gone, so that no proof can be made; recovery destroys what was started and reports aborted.
	if d == nil || !d.Armed {
		config := c.Digest()
		if err := a.publish(&Entry{What: WroteArmed, UUID: uuid, Name: c.Name, Request: a.req.Domain, TokenText: a.req.Token, Token: &a.facts.Token,
			Configuration: &config}); err != nil {
			return Refusal(StepGrant, err)
		}
		if err := l.Book.Write(&Entry{What: WroteDefined, UUID: uuid}); err != nil {
			return Refusal(StepGrant, err)
		}
	}
	if err := a.publish(&Entry{What: WroteGranted, Launch: a.req.ID, UUID: uuid, Mode: proof.ModeHook}); err != nil {
		return Refusal(StepGrant, err)
	}
	a.granted = true
	p.quoted = a.quote(context.WithoutCancel(ctx))
	if err := a.readyGuest(released); err != nil {
		return Refusal(StepDefine, err)
	}
	if err := l.handOver(a.images); err != nil {
		return Refusal(StepCreate, err)
	}
	if ctx.Err() != nil {
		return proof.Refuse(proof.Internal, "the decision took longer than libvirt's hook may wait")
	}
	return nil
}

// sameAsArmed says whether libvirt is about to run what was armed, and nothing of ours stands in it in another place.
func (a *attempt) sameAsArmed(d *Domain) *proof.Refusal {
	c := a.config
	if !c.Mark {
		return proof.Refuse(proof.ConfigurationChanged, "the mark troth:launch is gone")
	}
	uuid := c.UUID.String()
	file, channel := a.Secrets.File(uuid), a.Secrets.ChannelPath(uuid)
	if got := c.Added.GuestSecretFile; got != "" && got != file {
		return proof.Refuse(proof.ConfigurationChanged, "the guest's secret is another file", proof.Fact{Name: "fw_cfg", Want: file, Got: got})
	}
	if got := c.Added.ChannelPath; got != "" && got != channel {
		return proof.Refuse(proof.ConfigurationChanged, "the channel troth.guest.0 is another socket", proof.Fact{Name: "channel", Want: channel, Got: got})
	}
	if c.Added.LaunchID != [32]byte{} {
		return proof.Refuse(proof.GrantMissing, "the launch id is none that was announced")
	}
	if c.Ran {
		return proof.Refuse(proof.GrantMissing, "the guest does not boot: libvirt has the CPU of one that ran, which takes its memory from elsewhere, and nobody has judged that",
			proof.Fact{Name: "cpu.check", Want: "none or partial", Got: "full"})
	}
	if d == nil || !d.Armed {
		return nil // the verifier judges it by its token
	}
	want, err := d.configuration()
	if err != nil {
		return Refusal(StepRead, err)
	}
	if want.Name != c.Name {
		return proof.Refuse(proof.ConfigurationChanged, "the domain has another name than it was registered with", proof.Fact{Name: "name", Want: want.Name, Got: c.Name})
	}
	if c.Token != "" && c.Token != d.TokenText {
		return proof.Refuse(proof.ConfigurationChanged, "the definition carries another token than it was registered with: register it with the new one")
	}
	if err := domain.Compare(want, c); err != nil {
		return Refusal(StepCompare, err)
	}
	return nil
}

// measuredBefore takes what was measured at arming, if it still counts; else it measures now, as far as the hook's time goes.
func (a *attempt) measuredBefore(ctx context.Context) *proof.Refusal {
	previous, _ := a.Book.Next(a.facts.Token)
	h := a.take(a.config.UUID)
	if h != nil && h.first == (previous == nil) && len(h.images.recheck()) == 0 && domain.Compare(h.config, a.config) == nil {
		a.images, a.measured, a.facts.Measured = h.images, h.measured, h.measured
		return nil
	}
	a.drop(h)
	_, refusal := a.measureNow(ctx)
	if refusal != nil && ctx.Err() != nil {
		return proof.Refuse(proof.ImageNotMeasured, "the images are still being measured: try again in a while")
	}
	return refusal
}

// readyGuest makes the channel, and the file that the definition names. A guest that may have nothing gets an empty one.
func (a *attempt) readyGuest(r *proof.Released) error {
	uuid := a.config.UUID.String()
	if _, err := a.addGuest(r); err != nil || a.config.Added.GuestSecretFile == "" {
		return err
	}
	if !r.GuestAllowed {
		return a.Secrets.Put(uuid, proof.NewSecret(nil))
	}
	return a.putGuest(r)
}
