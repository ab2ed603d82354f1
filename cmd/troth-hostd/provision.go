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
		_, err := fmt.Fprintf(w, "host      %s\nstate     %s\nak        %s\ntls key   %s\n", p.Name, p.State, p.AK, p.SPKI)
		for _, ek := range p.EKs {
			if err == nil {
				_, err = fmt.Fprintf(w, "ek        %s\n", ek)
			}
		}
		if err == nil && p.State == "pending" {
			_, err = fmt.Fprintf(w, "\nAn operator compares the EK digests with those of the machine, and then approves it:\n  troth host approve %s\n", p.Name)
		}
		return err
	})
}
