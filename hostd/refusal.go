package hostd

import (
	"context"
	"errors"

	"troth/proof"
	"troth/tpm"
	"troth/tpm/chip"
	"troth/tpm/pcr"
)

// chipRefusal makes a refusal of what went wrong with the TPM.
func chipRefusal(err error) *proof.Refusal {
	if err == nil {
		return nil
	}
	code := proof.TPMUnavailable
	switch {
	case errors.Is(err, chip.ErrBusy):
		code = proof.TPMBusy
	case errors.Is(err, chip.ErrOtherState), errors.Is(err, chip.ErrNoSeed):
		code = proof.SealedToOtherState
	case errors.Is(err, chip.ErrDamaged):
		code = proof.SealedBlobDamaged
	case errors.Is(err, chip.ErrBankUnallocated):
		code = proof.BankUnallocated
	case errors.Is(err, context.DeadlineExceeded):
		code = proof.TPMBusy
	}
	sentence := code.Info().Meaning
	if errors.Is(err, chip.ErrNotProvisioned) {
		sentence = "The TPM has no keys of this host: run `troth-hostd provision`."
	}
	return proof.Refuse(code, sentence, proof.Fact{Name: "tpm", Value: err.Error()})
}

// asRefusal finds the refusal in an error, or makes one.
func asRefusal(err error) *proof.Refusal {
	if err == nil {
		return nil
	}
	var r *proof.Refusal
	if errors.As(err, &r) {
		return r
	}
	return proof.Refuse(proof.Internal, "something failed that nobody foresaw", proof.Fact{Name: "cause", Value: err.Error()})
}

// lasting says that a refusal is a finding about this host, not a trouble on the way to one: an older verdict does not outlive it.
func lasting(c proof.Code) bool {
	switch c {
	case proof.HostNotApproved, proof.NoDynamicLaunch, proof.BankUnallocated, proof.HostRebooted, proof.HostRelaunched,
		proof.PCRMismatch, proof.ProfileNotMet, proof.VerdictContraindicated, proof.VerdictForOtherHost:
		return true
	default:
		return false
	}
}

// refusing is the launcher's chip: errors are refusals, and one that shows that the host's state changed makes the host attest at once.
type refusing struct {
	Chip
	kick func()
}

func (r refusing) Unseal(ctx context.Context) ([]byte, error) {
	seed, err := r.Chip.Unseal(ctx)
	if err != nil {
		r.kick()
		return nil, chipRefusal(err)
	}
	return seed, nil
}

func (r refusing) Quote(ctx context.Context, sel pcr.Selection, extraData []byte) (tpm.Quote, error) {
	quote, err := r.Chip.Quote(ctx, sel, extraData)
	if err != nil {
		r.kick()
		return tpm.Quote{}, chipRefusal(err)
	}
	return quote, nil
}
