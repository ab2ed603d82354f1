package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"troth/hostd"
	"troth/tpm"
)

func (a *app) provision(ctx context.Context) (err error) {
	c, err := a.load()
	if err != nil {
		return err
	}
	id, err := hostd.LoadIdentity(c.Verifier.Cert, c.Verifier.Key)
	if err != nil {
		return usage(err)
	}
	verifiers, err := hostd.NewVerifiers(c.Verifier, id, time.Now)
	if err != nil {
		return usage(err)
	}
	defer verifiers.Close()
	chip, err := openAnyChip(ctx, c, tpm.Name{}) // its keys may be new: after TPM2_Clear, or the first time
	if err != nil {
		return &exit{exitUndecided, err}
	}
	defer func() { err = errors.Join(err, chip.Close()) }()
	p, err := hostd.Provision(ctx, c.Name, chip, verifiers, id)
	if err != nil {
		return err
	}
	if err := hostd.PinSRK(c, p.SRK); err != nil {
		return err
	}
	return a.print(p, func(w io.Writer) error {
		_, err := fmt.Fprintf(w, "host      %s\nstate     %s\nak        %s\ntls key   %s\nek        %s\n", p.Name, p.State, p.AK, p.SPKI, p.EK)
		if err == nil && p.State == "pending" {
			_, err = fmt.Fprintf(w, "\nAn operator approves the machine by its EK digest:\n  troth host approve %s --ek %s\n", p.Name, p.EK)
		}
		return err
	})
}
