package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"

	"troth/hostd"
	"troth/hostd/serve"
	"troth/launcher/image"
	"troth/tpm"
	"troth/tpm/chip"
)

// openChip opens the TPM with its lock in the run folder, for the storage key that provisioning pinned.
func openChip(ctx context.Context, c *hostd.Config) (*chip.Chip, error) {
	srk, err := hostd.PinnedSRK(c)
	if err != nil {
		return nil, err
	}
	return openAnyChip(ctx, c, srk)
}

func openAnyChip(ctx context.Context, c *hostd.Config, srk tpm.Name) (*chip.Chip, error) {
	if err := os.MkdirAll(c.RunDir, 0o755); err != nil {
		return nil, fmt.Errorf("cannot make the run folder: %w", err)
	}
	return chip.Open(ctx, chip.Config{Device: c.TPM.Device, Socket: c.TPM.Socket, Lock: filepath.Join(c.RunDir, "tpm.lock"), SRK: srk})
}

func (a *app) serve(ctx context.Context) (err error) {
	c, err := a.load()
	if err != nil {
		return err
	}
	log := a.logger()
	slog.SetDefault(log)
	id, err := hostd.LoadIdentity(c.Verifier.Cert, c.Verifier.Key)
	if err != nil {
		return usage(err)
	}
	chip, err := openChip(ctx, c)
	if err != nil {
		return &exit{exitUndecided, err}
	}
	defer func() { err = errors.Join(err, chip.Close()) }()
	lv := &libvirtd{uri: c.Libvirt.URI, log: log}
	defer func() { err = errors.Join(err, lv.Close()) }()

	clock := hostd.NewClock()
	verifiers, err := hostd.NewVerifiers(c.Verifier, id, clock.TLS)
	if err != nil {
		return usage(err)
	}
	defer verifiers.Close()
	d := &hostd.Daemon{Config: c, Identity: id, Log: log, Chip: chip, Virt: lv, Judge: verifiers, Verifier: verifiers, Images: hostd.Images{Verity: image.NewVerity(image.MeasureVerity)}, Clock: clock}
	if err := d.Open(ctx); err != nil {
		return &exit{exitUndecided, err}
	}
	s, err := serve.New(d, log, version)
	if err != nil {
		return &exit{exitUndecided, err}
	}
	listeners, err := s.Listen()
	if err != nil {
		return &exit{exitUndecided, err}
	}
	log.Info("serving", "name", c.Name, "socket", c.API.Socket, "listen", c.API.Listen, "version", version)

	// The first of API and workers that ends, ends the other.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var both sync.WaitGroup
	var served error
	both.Go(func() {
		defer cancel()
		served = s.Run(ctx, listeners)
	})
	worked := d.Run(ctx)
	cancel()
	both.Wait()
	if err := errors.Join(served, worked); err != nil {
		return &exit{exitUndecided, err}
	}
	return nil
}
