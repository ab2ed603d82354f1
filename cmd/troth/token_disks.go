package main

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"troth/proof"
)

// readDisks reads --disk TARGET=MODE:FILE and --backing TARGET=FILE, the layers below in the order in which they are given, and measures the
// files as a host does: one digest of a disk with all its layers, and for one that the guest writes to a digest of what lies below it.
func (a *app) readDisks(ctx context.Context, disks, backing []string) ([]proof.Disk, error) {
	below := map[string][]string{}
	for _, text := range backing {
		target, file, ok := strings.Cut(text, "=")
		if !ok || file == "" {
			return nil, usagef("--backing %q: must be TARGET=FILE", text)
		}
		below[target] = append(below[target], file)
	}
	var out []proof.Disk
	for _, text := range disks {
		target, _, _ := strings.Cut(text, "=")
		d, err := a.disk(ctx, text, below[target])
		if err != nil {
			return nil, usagef("--disk %q: %w", text, err)
		}
		out = append(out, d)
	}
	for target := range below {
		if !slices.ContainsFunc(out, func(d proof.Disk) bool { return d.Target == target }) {
			return nil, usagef("--backing %s=…: there is no --disk %s", target, target)
		}
	}
	return out, nil
}

// disk reads TARGET=MODE:FILE.
func (a *app) disk(ctx context.Context, text string, below []string) (d proof.Disk, err error) {
	target, rest, ok := strings.Cut(text, "=")
	mode, file, ok2 := strings.Cut(rest, ":")
	if !ok || !ok2 || file == "" {
		return d, fmt.Errorf("must be TARGET=MODE:FILE")
	}
	switch mode {
	case proof.DiskImmutable, proof.DiskInitial:
	case proof.DiskSealed:
		if len(below) > 0 {
			return d, fmt.Errorf("a sealed disk has no layer below it")
		}
	default:
		return d, fmt.Errorf("mode %q is not immutable, initial or sealed", mode)
	}
	measure := a.measure
	if mode == proof.DiskSealed {
		measure = a.measureSealed
	}
	layers := make([]proof.Digest, 1+len(below))
	for i, f := range append([]string{file}, below...) {
		if layers[i], err = measure(ctx, f); err != nil {
			return d, err
		}
	}
	d = proof.Disk{Target: target, Mode: mode, Digest: *proof.ChainDigest(layers...)}
	if mode == proof.DiskInitial {
		d.Backing = proof.ChainDigest(layers[1:]...)
	}
	return d, nil
}
