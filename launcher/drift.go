package launcher

import (
	"context"
	"crypto/sha256"
	"fmt"
	"slices"
	"time"

	"troth/launcher/domain"
	"troth/proof"
)

// Watch compares a proved guest with its grant: what libvirt says it has, what libvirt says was done to it, what its process holds open; and
// this host's verdict with what the guest's token bears. A difference breaks the proof; the verifier hears of it by Tell. It does nothing while a launch or a stop has the domain. An error says that nobody could look: the proof stands, and
// the next look decides.
func (l *Launcher) Watch(ctx context.Context, uuid string) error {
	_, id, refusal := l.known(uuid)
	if refusal != nil {
		return nil
	}
	turn, ok := l.turn(id)
	if !ok {
		return nil
	}
	d := l.Book.Domain(uuid)
	var why *proof.Refusal
	switch {
	case d == nil:
		return nil
	case d.State == StateBroken:
	case d.State != StateProved || d.Grant == nil:
		return nil
	default:
		if why = l.unproven(d.Grant); why != nil {
			break // it needs nobody's look at the guest
		}
		var err error
		if why, err = l.drift(ctx, d, id); err != nil || why == nil {
			return err
		}
	}
	free, ok := l.claimAt(id, turn)
	if !ok {
		return nil
	}
	defer free()
	switch {
	case d.State == StateBroken:
		return l.react(ctx, d, id)
	case why.Code == proof.GrantMissing:
		return l.close(d, why) // the proved guest is gone
	}
	return l.breakProof(ctx, d, id, why)
}

// unproven says that this host has been without a verdict for longer than the guest's token bears; nil: it has not, or the token sets no limit.
func (l *Launcher) unproven(g *Grant) *proof.Refusal {
	without := int64((l.Clock.Boot() - l.Epochs.Proven()) / time.Second)
	if limit := g.Policy.MaxUnproven; limit == 0 || without <= limit {
		return nil
	}
	return proof.Refuse(proof.VerdictMissing, "this host has been without a verdict for longer than the guest's token bears",
		proof.Fact{Name: "seconds without a verdict", Want: fmt.Sprintf("at most %d", g.Policy.MaxUnproven), Got: fmt.Sprint(without)})
}

// drift says what differs; nil: nothing.
func (l *Launcher) drift(ctx context.Context, d *Domain, id domain.UUID) (*proof.Refusal, error) {
	live, err := l.Virt.Live(ctx, id)
	if err != nil || live == nil {
		return nil, err // it ended: whoever closes links will find so
	}
	p, err := l.Virt.ProcessAt(ctx, d.Grant.PID, d.Grant.Start)
	if err != nil {
		return nil, err
	}
	if p == nil {
		return l.replaced(ctx, d, id)
	}
	if sum := sha256.Sum256(live); !l.sawGood(id, sum) {
		want, err := d.configuration()
		if err != nil {
			return nil, err
		}
		if err := compareLive(live, want, d.Grant.added()); err != nil {
			return changed(err), nil
		}
		l.good(id, sum)
	}
	return l.unlike(ctx, id, d.Grant, p)
}

// unlike says what libvirt knows of that was done to the guest since it was granted, and what its process has open now; nil: nothing else than then.
func (l *Launcher) unlike(ctx context.Context, id domain.UUID, g *Grant, p *Process) (*proof.Refusal, error) {
	taints, err := l.Virt.Taints(ctx, id)
	if err != nil {
		return nil, err
	}
	for _, t := range taints {
		if !slices.Contains(g.Taints, t) {
			return proof.Refuse(proof.ConfigurationChanged, "somebody reached into the guest behind libvirt's back", proof.Fact{Name: "taint", Value: t}), nil
		}
	}
	return compareOpen(g.Open, p.Open), nil
}

// differs says in what the guest that runs is not the one of the grant; nil: it is that one. Definition, process, and last what was done to it. restored: it goes on
// from a save image.
func (l *Launcher) differs(ctx context.Context, id domain.UUID, live []byte, want *domain.Config, g *Grant, restored bool) (*proof.Refusal, error) {
	if err := compareLive(live, want, g.added()); err != nil {
		return changed(err), nil
	}
	p, err := l.Virt.ProcessAt(ctx, g.PID, g.Start)
	if err != nil {
		return nil, err
	}
	if p == nil {
		return proof.Refuse(proof.ConfigurationChanged, "the process that was compared is gone", proof.Fact{Name: "pid", Value: fmt.Sprint(g.PID)}), nil
	}
	if refusal := compareLoads(p, restored); refusal != nil {
		return refusal, nil
	}
	return l.unlike(ctx, id, g, p)
}

// changed makes a refusal of a comparison's error. A live definition that cannot be read any more has something in it that no trusted domain has.
func changed(err error) *proof.Refusal {
	r := Refusal(StepCompare, err)
	if r.Code == proof.ConfigurationChanged || r.Code == proof.ImageChanged {
		return r
	}
	return proof.Refuse(proof.ConfigurationChanged, "the guest has what trusted domains may not have: "+r.Sentence, r.Facts...)
}

// compareOpen says which file the process has open now and had not when it was proved, or has open for writing now.
func compareOpen(before, now []File) *proof.Refusal {
	for _, f := range now {
		same := func(o File) bool { return o.Dev == f.Dev && o.Ino == f.Ino }
		switch {
		case find(before, same) == nil:
			return proof.Refuse(proof.ConfigurationChanged, "QEMU opened a file that it had not when it was proved",
				proof.Fact{Name: "path", Value: f.Path}, proof.Fact{Name: "file", Value: fmt.Sprintf("device %d inode %d", f.Dev, f.Ino)})
		case f.Writable && find(before, func(o File) bool { return same(o) && o.Writable }) == nil:
			return proof.Refuse(proof.ConfigurationChanged, "QEMU opened a file for writing that it only read when it was proved", proof.Fact{Name: "path", Value: f.Path})
		}
	}
	return nil
}

// replaced: the proved guest is gone while another runs under its UUID. That other one has no grant. It has to be seen: that the proved one was not
// seen once ends nobody's guest.
func (l *Launcher) replaced(ctx context.Context, d *Domain, id domain.UUID) (*proof.Refusal, error) {
	if live, err := l.Virt.Live(ctx, id); err != nil || live == nil {
		return nil, err // it is only just ending
	}
	if runs, err := l.Virt.Runs(ctx, id, l.QEMU); err != nil || !runs {
		return nil, err // so it is, and libvirt has not noticed yet
	}
	other, err := l.Virt.Process(ctx, id, l.QEMU)
	if err != nil {
		return nil, fmt.Errorf("cannot tell what runs in place of a proved guest: %w", err)
	}
	if d.Grant.Holds(other.PID, other.Start) {
		return nil, fmt.Errorf("process %d was not seen, and then was", other.PID)
	}
	return proof.Refuse(proof.GrantMissing, "the proved guest is gone, and another one was started under its UUID", proof.Fact{Name: "pid", Value: fmt.Sprint(d.Grant.PID)}), nil
}

// breakProof writes that the proof does not hold any more, and does what the tenant wants then.
func (l *Launcher) breakProof(ctx context.Context, d *Domain, id domain.UUID, why *proof.Refusal) error {
	l.Log.Error("the proof of a guest does not hold any more", "uuid", d.UUID, "code", string(why.Code), "why", why.Error(), "reaction", d.Grant.Policy.OnTrustLost)
	lost := &proof.TrustLost{UUID: d.UUID, Link: *d.Link, Token: d.Token, At: l.Clock.Now().Unix(), Code: why.Code, Sentence: why.Sentence, Facts: why.Facts,
		Reaction: d.Grant.Policy.OnTrustLost}
	report, err := l.Sign(lost)
	if err != nil {
		// The proof is broken all the same; the log and the verifier's record say so.
		l.Log.Error("cannot sign the report of lost trust", "uuid", d.UUID, "error", err.Error())
	}
	// A crash between these two, or before the reaction: the next look finds the difference, or the broken state, and goes on; the verifier
	// takes the event twice as once.
	detail := why.Error()
	if err := l.owe(ChainEvent{Token: d.Token, Link: *d.Link, Event: EventBroken, Attempt: d.Attempt, Detail: detail[:min(len(detail), maxDetail)]}); err != nil {
		return err
	}
	if err := l.Book.Write(&Entry{What: WroteBroken, Launch: d.Launch, UUID: d.UUID, Refusal: why, Report: report}); err != nil {
		return err
	}
	return l.react(ctx, d, id)
}

// maxDetail is what the verifier takes of an event's detail.
const maxDetail = 256

// react does what the tenant's token says for a guest whose proof is broken. It is repeated at every look: a guest that somebody resumed is
// paused again.
func (l *Launcher) react(ctx context.Context, d *Domain, id domain.UUID) error {
	reaction := proof.TrustLostPause // undone by a stop, and the guest computes nothing meanwhile
	if d.Grant != nil {
		reaction = d.Grant.Policy.OnTrustLost
	}
	switch reaction {
	case proof.TrustLostDestroy:
		return l.Virt.Destroy(ctx, id)
	case proof.TrustLostPause:
		return l.Virt.Pause(ctx, id)
	}
	return nil
}

// sawGood says that this very live definition was compared and found good.
func (l *Launcher) sawGood(id domain.UUID, sum [32]byte) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.compared[id] == sum
}

func (l *Launcher) good(id domain.UUID, sum [32]byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.compared[id] = sum
}
