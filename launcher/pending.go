package launcher

import (
	"context"
	"fmt"
	"runtime/debug"
	"time"

	"troth/launcher/domain"
	"troth/proof"
)

// pending is one start by another client, from the permit to its proof.
type pending struct {
	a        *attempt
	released *proof.Released
	quoted   <-chan quoteOut
	free     func()
	started  chan struct{}  // closed when libvirt says that QEMU runs
	news     chan struct{}  // holds one token after libvirt let go of the domain, or we refused the start: what is true now counts
	running  bool           // started is closed
	why      *proof.Refusal // why we refused it
}

// Proceed says whether libvirt may go on with a start that Prepare permitted.
func (l *Launcher) Proceed(id domain.UUID, xml []byte) *proof.Refusal {
	p := l.starting(id)
	if p == nil {
		return proof.Refuse(proof.GrantMissing, "this start was not permitted at prepare")
	}
	config, err := domain.Read(xml, domain.Hook)
	if err == nil {
		err = domain.Compare(p.a.config, config)
	}
	if err != nil {
		refusal := Refusal(StepCompare, err)
		l.refuse(p, refusal)
		return refusal
	}
	return nil
}

// Started hears that QEMU runs. It says whether that start was permitted. libvirt asks before it lets the CPUs of a guest run whose memory it loaded, so
// this is where such a one ends: at prepare it looks like a start. The kernel alone is asked.
func (l *Launcher) Started(ctx context.Context, id domain.UUID) *proof.Refusal {
	p := l.starting(id)
	if p == nil {
		return proof.Refuse(proof.GrantMissing, "this start was not permitted at prepare")
	}
	process, err := l.Virt.Process(ctx, id, l.QEMU)
	var refusal *proof.Refusal
	if err != nil {
		refusal = Refusal(StepCompare, err)
	} else {
		refusal = compareLoads(process, false)
	}
	if refusal != nil {
		l.refuse(p, refusal)
		return refusal
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if !p.running {
		p.running = true
		close(p.started)
	}
	return nil
}

// Ended hears that libvirt let go of a domain. It may be an earlier start of it that is meant, told late by a busy host: await looks.
func (l *Launcher) Ended(id domain.UUID) {
	if p := l.starting(id); p != nil {
		p.ring()
	}
}

func (l *Launcher) starting(id domain.UUID) *pending {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.pending[id]
}

// refuse ends a start that was permitted at prepare.
func (l *Launcher) refuse(p *pending, why *proof.Refusal) {
	l.mu.Lock()
	p.why = why
	l.mu.Unlock()
	p.ring()
}

func (p *pending) ring() {
	select {
	case p.news <- struct{}{}:
	default:
	}
}

// beside runs what a hook does not wait for. After a panic the launch is not ended in the book: recovery undoes it, as after a crash.
func (l *Launcher) beside(f func()) {
	l.begun.Go(func() {
		defer func() {
			if p := recover(); p != nil {
				l.Log.Error("panic beside a hook", "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
			}
		}()
		f()
	})
}

// Wait waits for starts by other clients that are not at their end.
func (l *Launcher) Wait() { l.begun.Wait() }

// await makes the proof once QEMU runs, or undoes the start.
func (p *pending) await() {
	a := p.a
	defer p.leave()
	refusal := p.outcome()
	ctx, cancel := context.WithTimeout(context.Background(), a.Cleanup)
	defer cancel()
	if refusal == nil {
		_, refusal = a.guarded(ctx, func(ctx context.Context) (*Outcome, *proof.Refusal) { return nil, a.conclude(ctx, p) })
	}
	if refusal != nil {
		a.Log.Warn("ending a start by another client", "launch", a.req.ID, "uuid", a.config.UUID.String(), "code", string(refusal.Code), "sentence", refusal.Sentence)
		a.undo(ctx, refusal)
	}
}

// outcome waits until QEMU runs (nil), or the start is refused or given up. That libvirt let go of the domain is only a reason to look: an earlier start
// may be meant. libvirt answers a look when it is through with the hook.
func (p *pending) outcome() *proof.Refusal {
	ctx, cancel := context.WithTimeout(context.Background(), p.a.StartWithin)
	defer cancel()
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	for {
		select {
		case <-p.started:
			return nil
		case <-p.news:
		case <-look.C:
		case <-ctx.Done():
			return nil // libvirt said neither: conclude finds no domain, or one that runs
		}
		if runs, why := p.standing(); why != nil || runs {
			return why
		}
		live, err := p.a.Virt.Live(ctx, p.a.config.UUID)
		if err != nil {
			return Refusal(StepCreate, err)
		}
		if runs, _ := p.standing(); live == nil && !runs {
			return proof.Refuse(proof.Internal, "libvirt gave up the start of the domain", proof.Fact{Name: "step", Value: StepCreate})
		}
	}
}

func (p *pending) standing() (runs bool, why *proof.Refusal) {
	p.a.mu.Lock()
	defer p.a.mu.Unlock()
	return p.running, p.why
}

// leave forgets what the start held.
func (p *pending) leave() {
	a := p.a
	if p.released != nil {
		p.released.Nonce.Forget()
		p.released.Secret.Forget()
	}
	a.letGo()
	a.mu.Lock()
	if a.pending[a.config.UUID] == p {
		delete(a.pending, a.config.UUID)
	}
	a.mu.Unlock()
	p.free()
}

// conclude makes the proof of a guest that another client started and that runs. Until it is in the journal a crash makes recovery destroy the guest.
func (a *attempt) conclude(ctx context.Context, p *pending) *proof.Refusal {
	uuid := a.config.UUID.String()
	// QEMU has read the file when libvirt talks to its monitor, or never will; everything is hashed again meanwhile.
	if err := a.Secrets.Remove(uuid); err != nil {
		return Refusal(StepCompare, err)
	}
	if err := a.compare(ctx, a.config.Added); err != nil {
		return Refusal(StepCompare, err)
	}
	var q quoteOut
	select {
	case q = <-p.quoted:
	case <-ctx.Done():
		return Refusal(StepQuote, waited(ctx.Err()))
	}
	if q.err != nil {
		return Refusal(StepQuote, waited(q.err))
	}
	if err := a.still(ctx); err != nil {
		return Refusal(StepProve, err)
	}
	proved, err := a.prove(q, p.released.Nonce)
	if err != nil {
		return Refusal(StepProve, err)
	}
	if err := a.Book.Write(&Entry{What: WroteProved, Launch: a.req.ID, UUID: uuid, Proof: proved, Grant: a.grant}); err != nil {
		return Refusal(StepProve, err)
	}
	a.Launcher.finish(ctx, a.req.ID, uuid, a.event(EventOpen))
	a.Log.Info("proved a start by another client", "launch", a.req.ID, "uuid", uuid)
	return nil
}
