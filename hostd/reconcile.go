package hostd

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"troth/hostd/audit"
	"troth/hostd/reaper"
	"troth/launcher"
	"troth/launcher/domain"
	"troth/launcher/emulator"
	"troth/launcher/stall"
	"troth/proof"
)

// How often the reconcile worker looks. Proved guests are compared with their grants at least this often, since libvirt has no event for a monitor
// command or an external snapshot; strays are looked for after events, and at least this often.
const (
	watchEvery = time.Second
	watchAtMax = 5 * time.Second // where many guests make a look dear
	scanEvery  = 5 * time.Second
	scanApart  = time.Second     // of a storm of events
	patience   = 2 * time.Second // with libvirt, which answers nobody about a domain that it is just killing (up to 15 s) or whose hook runs
	overdue    = time.Second     // for recovery: what it has libvirt end is ended as a process then, so that all is in order within two seconds
	share      = 20              // a look takes at most the 20th part of one processor's time
)

// reconcile compares libvirt and the machine's processes with the book, at start, after every event, and every second. It ends launches that a crash or
// an unreachable libvirt cut short, closes the links of guests that are gone, breaks the proof of a guest that is not what was proved any more, and
// deals with guests that are trusted and have no grant.
func (d *Daemon) reconcile(ctx context.Context) {
	var scanned time.Time
	for heard := true; ctx.Err() == nil; {
		d.beat.Store(int64(d.Clock.Boot()))
		begun := time.Now()
		since := begun.Sub(scanned)
		if scan := since >= scanEvery || heard && since >= scanApart; scan {
			scanned, heard = begun, false
			d.look(ctx, true)
		} else {
			d.look(ctx, false)
		}
		wait := min(max(watchEvery, share*time.Since(begun)), watchAtMax)
		wait = min(wait, max(watchEvery, scanEvery-time.Since(scanned))) // however long this look was held up, strays are looked for in time
		select {
		case <-ctx.Done():
		case <-d.kick:
			heard = true
			// Several events come together: look once.
			select {
			case <-ctx.Done():
			case <-time.After(50 * time.Millisecond):
			}
		case <-time.After(wait):
		}
	}
}

func (d *Daemon) look(ctx context.Context, scan bool) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	var version string
	err := d.libvirt(d.asked, "version", func(ctx context.Context) (err error) {
		version, err = d.Virt.Version(ctx)
		d.Status.LibvirtSeen(version, err)
		return err
	})
	var running []domain.UUID
	if err == nil {
		d.recover(ctx)
		list, cancel := context.WithTimeout(ctx, patience)
		running, err = d.Virt.Running(list)
		if list.Err() == nil {
			d.Status.LibvirtSeen(version, err)
		}
		cancel()
	}
	if err == nil {
		d.compare(ctx, running)
	}
	if scan {
		// Without libvirt nothing is known of its domains, and the processes are there all the same.
		d.Strays.Scan(ctx, running)
	}
	if scan && err == nil {
		d.sweepKeys(ctx) // last: a libvirt that hangs must not keep strays running
	}
	poke(d.owes)
}

// recover ends launches that a crash or an unreachable libvirt cut short; what libvirt does not end in time is ended as a process, and the recovery, which goes on, sees it gone.
func (d *Daemon) recover(ctx context.Context) {
	err := d.libvirt(d.ended, "recover", d.Launcher.Recover)
	if err != nil {
		d.Log.Warn("cannot end a launch that was cut short, it will be tried again", "error", err.Error())
	}
	if errors.Is(err, stall.ErrStalled) {
		d.Strays.Overdue(ctx)
	}
}

// libvirt asks what libvirt may leave unanswered, for a minute; the reconcile worker goes on when the guard says so, since strays are to be found while libvirt hangs too.
func (d *Daemon) libvirt(g *stall.Guard, what string, ask func(context.Context) error) error {
	_, err := stall.Ask(g, "", what, func() (struct{}, error) {
		ctx, cancel := context.WithTimeout(d.ctx, time.Minute)
		defer cancel()
		return struct{}{}, ask(ctx)
	})
	return err
}

// sweepKeys takes back the keys of sealed disks that are with libvirt and that no launch needs: recovery takes back those of launches that it finds in
// the journal, this is for those that it does not, and for those that libvirt took late. What cannot be looked for is told once, and tried again.
func (d *Daemon) sweepKeys(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	failed := ""
	if err := d.Launcher.SweepKeys(ctx); err != nil {
		failed = err.Error()
	}
	if failed != "" && failed != d.unswept {
		d.Log.Warn("cannot look for keys of sealed disks that were left with libvirt, it will be tried again", "error", failed)
	}
	d.unswept = failed
}

func (d *Daemon) compare(ctx context.Context, running []domain.UUID) {
	runs := map[string]bool{}
	for _, id := range running {
		runs[id.String()] = true
	}
	begun := time.Now()
	for _, known := range d.Launcher.Book.Domains() {
		if time.Since(begun) > 2*patience {
			return // the others have their turn: what hangs costs no time at the next look
		}
		switch {
		case known.Live() != nil && !runs[known.UUID]:
			why := proof.Refuse(proof.NotRegistered, "the guest ended by itself or was ended by another client")
			if err := d.Launcher.Gone(ctx, known.UUID, why); err != nil {
				d.Log.Warn("cannot close the link of a guest that is gone", "uuid", known.UUID, "error", err.Error())
			}
		case known.Live() != nil:
			look, cancel := context.WithTimeout(ctx, patience)
			// A guest whose files' server does not answer keeps nobody from looking at the others.
			_, err := stall.Ask(d.watched, "", known.UUID, func() (struct{}, error) { return struct{}{}, d.Launcher.Watch(look, known.UUID) })
			cancel()
			if err != nil {
				d.Log.Warn("cannot compare a guest with its grant, it will be tried again", "uuid", known.UUID, "error", err.Error())
			}
		case (known.State == launcher.StateRefused || known.State == launcher.StateStopped || known.State == launcher.StateSaved) && runs[known.UUID]:
			look, cancel := context.WithTimeout(ctx, patience)
			ended, err := d.Launcher.Stray(look, known.UUID)
			cancel()
			if err != nil {
				d.Log.Warn("cannot end a guest of a refused launch", "uuid", known.UUID, "error", err.Error())
			}
			if ended {
				d.strayed(audit.Domains, known.UUID, "destroyed")
			}
		}
	}
}

// tell tells the verifier what it is owed, by itself: a verifier that does not answer keeps nobody from looking.
func (d *Daemon) tell(ctx context.Context) {
	for ctx.Err() == nil {
		wait := time.Hour
		if err := d.Launcher.Tell(ctx); err != nil && ctx.Err() == nil {
			d.Log.Debug("cannot tell the verifier what it is owed", "error", err.Error())
			wait = watchAtMax
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		case <-d.owes:
			if wait == watchAtMax { // it did not answer just now
				select {
				case <-ctx.Done():
				case <-time.After(wait):
				}
			}
		}
	}
}

func (d *Daemon) newStrays() *Strays {
	return &Strays{Policy: d.Config.Stray.Policy, QEMU: d.Launcher.QEMU, Grants: d.Launcher, Live: d.Virt.Live, Registry: d.Registry.Look, End: d.endProcess, Note: d.strayed, Log: d.Log,
		Look: lookAround}
}

// lookAround looks at all processes of the machine.
func lookAround(ctx context.Context, want func(emulator.File) bool) (*emulator.Scan, error) {
	return emulator.Look(ctx, "/proc", want)
}

// endProcess has the reaper end an emulator, and where there is none tries itself.
func (d *Daemon) endProcess(ctx context.Context, pid int, start uint64, a emulator.Action) error {
	asked := reaper.Ask(ctx, d.Config.Stray.Reaper, reaper.Request{PID: pid, Start: start, Action: a})
	if asked == nil || errors.Is(asked, emulator.ErrNotIt) {
		return asked
	}
	registry, err := d.Registry.Contents()
	if err != nil {
		return err
	}
	index := emulator.NewIndex(registry)
	err = emulator.End(pid, start, a, func(p *emulator.Process) error {
		if why, _ := index.Why(p); why == "" {
			return fmt.Errorf("%w: process %d runs no trusted guest any more", emulator.ErrNotIt, pid)
		}
		return nil
	})
	if errors.Is(err, fs.ErrPermission) {
		return errors.Join(err, asked)
	}
	return err
}

// sign signs a report with the key that verdicts name.
func (d *Daemon) sign(r *proof.TrustLost) ([]byte, error) {
	key, ok := d.Identity.Certificate.PrivateKey.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("the key of the host's certificate cannot sign: %T", d.Identity.Certificate.PrivateKey)
	}
	return r.Sign(key)
}
