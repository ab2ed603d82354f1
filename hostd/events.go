package hostd

import (
	"context"
	"time"
)

// events listens to libvirt and makes the reconcile worker look: what is true now counts, not what was heard.
func (d *Daemon) events(ctx context.Context) {
	for ctx.Err() == nil {
		if err := d.Virt.Next(ctx); err != nil && ctx.Err() == nil {
			d.Log.Warn("cannot hear libvirt's events", "error", err.Error())
			select {
			case <-ctx.Done():
			case <-time.After(time.Second):
			}
		}
		poke(d.kick)
		d.Liveness.Look() // libvirt may have been connected anew
	}
}
