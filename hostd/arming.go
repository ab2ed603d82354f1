package hostd

import (
	"context"
	"time"
)

// rearmEvery is how often armed domains are looked at even if nothing was heard: an image may have changed.
const rearmEvery = 10 * time.Second

// arming keeps what armed domains need measured, so that the hook finds it: after the start, after a guest has ended, after an image changed.
func (d *Daemon) arming(ctx context.Context) {
	for ctx.Err() == nil {
		if err := d.Launcher.Rearm(ctx); err != nil && ctx.Err() == nil {
			d.Log.Warn("cannot measure an armed domain, it will be tried again, at its start at the latest", "error", err.Error())
		}
		select {
		case <-ctx.Done():
		case <-d.rearm:
		case <-time.After(rearmEvery):
		}
	}
}
