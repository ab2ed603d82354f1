package hostd

import (
	"context"
	"time"

	"troth/launcher"
	"troth/launcher/domain"
	"troth/proof"
)

// reconcile compares libvirt with the book, at start, after every event, and every few seconds. It ends launches that a crash or an unreachable
// libvirt cut short, closes the links of guests that are gone, and tells the verifier what it is owed. It destroys only guests of launches that
// the journal says were not proved.
func (d *Daemon) reconcile(ctx context.Context) {
	for ctx.Err() == nil {
		d.beat.Store(int64(d.Clock.Boot()))
		d.look(ctx)
		wait := scanEvery
		select {
		case <-ctx.Done():
		case <-d.kick:
			// Several events come together: look once.
			select {
			case <-ctx.Done():
			case <-time.After(50 * time.Millisecond):
			}
		case <-time.After(wait):
		}
	}
}

func (d *Daemon) look(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	version, err := d.Virt.Version(ctx)
	d.Status.LibvirtSeen(version, err)
	if err != nil {
		return // nobody knows what runs: nothing is concluded
	}
	if !d.swept {
		// Once: recovery takes back the keys of launches that it finds in the journal; this is for those that it does not.
		d.swept = true
		if err := d.Launcher.SweepKeys(ctx); err != nil {
			d.Log.Warn("cannot look for keys of sealed disks that were left with libvirt", "error", err.Error())
		}
	}
	if err := d.Launcher.Recover(ctx); err != nil {
		d.Log.Warn("cannot end a launch that was cut short, it will be tried again", "error", err.Error())
	}
	running, err := d.Virt.Running(ctx)
	if err != nil {
		d.Status.LibvirtSeen("", err)
		return
	}
	d.compare(ctx, running)
	if err := d.Launcher.Tell(ctx); err != nil && ctx.Err() == nil {
		d.Log.Debug("cannot tell the verifier what it is owed", "error", err.Error())
	}
}

func (d *Daemon) compare(ctx context.Context, running []domain.UUID) {
	runs := map[string]bool{}
	for _, id := range running {
		runs[id.String()] = true
	}
	for _, known := range d.Launcher.Book.Domains() {
		switch {
		case known.State == launcher.StateProved && !runs[known.UUID]:
			why := proof.Refuse(proof.NotRegistered, "the guest ended by itself or was ended by another client")
			if err := d.Launcher.Gone(ctx, known.UUID, why); err != nil {
				d.Log.Warn("cannot close the link of a guest that is gone", "uuid", known.UUID, "error", err.Error())
			}
		case (known.State == launcher.StateRefused || known.State == launcher.StateStopped) && runs[known.UUID]:
			if err := d.Launcher.Stray(ctx, known.UUID); err != nil {
				d.Log.Warn("cannot end a guest of a refused launch", "uuid", known.UUID, "error", err.Error())
			}
		}
	}
}
