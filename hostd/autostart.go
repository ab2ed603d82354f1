package hostd

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"troth/launcher"
	"troth/launcher/domain"
	"troth/proof"
)

// autostart starts the domains that libvirt would have started when this host booted: at that time there was no verdict, so the hook refused them. It works
// once for each boot: run_dir is memory, and a file there says that it is done. Each start is a launch of our own, with the token that the domain has.
func (d *Daemon) autostart(ctx context.Context) {
	done := filepath.Join(d.Config.RunDir, "autostarted")
	if _, err := os.Stat(done); err == nil {
		return
	}
	tried := map[string]bool{}
	for pause := time.Second; ; pause = min(2*pause, time.Minute) {
		left, err := d.autostartOnce(ctx, tried)
		if err == nil && left == 0 {
			break
		}
		if err != nil {
			d.Log.Debug("cannot start domains with autostart yet", "error", err.Error())
			pause = time.Second // nothing was tried
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
	}
	if err := os.WriteFile(done, nil, 0o644); err != nil && !errors.Is(err, fs.ErrExist) {
		d.Log.Error("cannot note that domains with autostart were started: they are started again with hostd", "error", err.Error())
	}
}

// autostartOnce starts what is due, one after the other, and says how many are to be tried again. tried are those that are over.
func (d *Daemon) autostartOnce(ctx context.Context, tried map[string]bool) (left int, err error) {
	if refusal := d.Status.Ready(ctx); refusal != nil {
		return 0, refusal
	}
	for _, known := range d.Launcher.Book.Domains() {
		if tried[known.UUID] || !known.Registered || known.Request == nil {
			continue
		}
		id, err := domain.ParseUUID(known.UUID)
		if err != nil {
			return 0, err
		}
		due, err := d.Virt.Autostart(ctx, id)
		if err != nil {
			return 0, err
		}
		if !due {
			tried[known.UUID] = true
			continue
		}
		over, err := d.start(ctx, id, known)
		if err != nil {
			return 0, err
		}
		if tried[known.UUID] = over; !over {
			left++
		}
	}
	return left, nil
}

// start launches one domain and says whether that is over: it runs, or was refused for a reason that does not pass by itself.
func (d *Daemon) start(ctx context.Context, id domain.UUID, known *launcher.Domain) (over bool, err error) {
	runs, err := d.Virt.Runs(ctx, id, d.Launcher.QEMU)
	if err != nil || runs {
		return runs, err
	}
	if known.State == launcher.StateProved || known.State == launcher.StateLaunching {
		return false, nil // the end of its guest is not noted yet
	}
	if known.State == launcher.StateSaved {
		return true, nil // to restore it is somebody's decision
	}
	launch, refusal := d.Launches.Submit(launcher.Request{ID: "autostart-" + rand.Text(), Token: known.TokenText, Domain: known.Request, Action: proof.ActionStart})
	if refusal != nil {
		return false, refusal
	}
	select {
	case <-launch.Done():
	case <-ctx.Done():
		return false, ctx.Err()
	}
	switch v := launch.View(); {
	case v.Refusal == nil:
		d.Log.Info("started a domain with autostart", "uuid", known.UUID)
		return true, nil
	case launcher.Passing(v.Refusal.Code):
		return false, nil
	default:
		d.Log.Error("cannot start a domain with autostart", "uuid", known.UUID, "code", string(v.Refusal.Code), "sentence", v.Refusal.Sentence, "facts", fmt.Sprint(v.Refusal.Facts))
		return true, nil
	}
}
