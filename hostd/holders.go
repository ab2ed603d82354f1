package hostd

import (
	"context"

	"troth/hooks/ask"
	"troth/launcher"
	"troth/launcher/emulator"
)

// holders looks at the whole machine as the scan for strays does, and by the same rules: what it names, that scan would end.
type holders struct {
	look func(ctx context.Context, want func(emulator.File) bool) (*emulator.Scan, error)
}

// Holding implements launcher.Emulators. What cannot be looked at is passed over: neither does the scan for strays end it, which says so in its condition.
func (h holders) Holding(ctx context.Context, volumes []launcher.Volume) ([]launcher.Holder, error) {
	var r ask.Registry
	for _, v := range volumes {
		r.Volumes = append(r.Volumes, ask.Volume{Path: v.Path, Dev: v.Dev, Ino: v.Ino})
	}
	index := emulator.NewIndex(r)
	scan, err := h.look(ctx, index.Wants())
	if err != nil {
		return nil, err
	}
	var all []launcher.Holder
	for _, p := range scan.Emulators {
		why, path := index.Why(p)
		if why != emulator.ByVolume {
			continue
		}
		holder := launcher.Holder{PID: p.PID, Start: p.Start, Exe: p.Exe, Path: path}
		for _, u := range p.UUIDs {
			holder.UUIDs = append(holder.UUIDs, u)
		}
		all = append(all, holder)
	}
	return all, nil
}
