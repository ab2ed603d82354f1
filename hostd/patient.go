package hostd

import (
	"context"
	"errors"
	"fmt"
	"time"

	"troth/tpm"
	"troth/tpm/chip"
	"troth/tpm/pcr"
)

// patient is the chip with an end to every wait: a TPM that hangs costs a launch or an attestation this long, however long its driver waits. What the
// chip has begun it still runs to its end, so that no command is cut in half; what waits behind that is given up here.
type patient struct {
	Chip
	within time.Duration
}

// wait runs one operation. That our own patience ended, not the caller's, means a TPM that does not answer.
func wait[T any](ctx context.Context, within time.Duration, operation func(context.Context) (T, error)) (T, error) {
	soon, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	out, err := operation(soon)
	if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
		err = fmt.Errorf("%w: no answer within %v", chip.ErrUnavailable, within)
	}
	return out, err
}

func (p patient) Unseal(ctx context.Context) ([]byte, error) {
	return wait(ctx, p.within, p.Chip.Unseal)
}

func (p patient) Quote(ctx context.Context, sel pcr.Selection, extraData []byte) (tpm.Quote, error) {
	return wait(ctx, p.within, func(ctx context.Context) (tpm.Quote, error) { return p.Chip.Quote(ctx, sel, extraData) })
}

func (p patient) Identity(ctx context.Context) (*chip.Identity, error) {
	return wait(ctx, p.within, p.Chip.Identity)
}

func (p patient) PCRs(ctx context.Context, sel pcr.Selection) (pcr.Values, error) {
	return wait(ctx, p.within, func(ctx context.Context) (pcr.Values, error) { return p.Chip.PCRs(ctx, sel) })
}

func (p patient) Install(ctx context.Context, s tpm.SealedSeed, sel pcr.Selection, counters tpm.Counters) error {
	_, err := wait(ctx, p.within, func(ctx context.Context) (struct{}, error) { return struct{}{}, p.Chip.Install(ctx, s, sel, counters) })
	return err
}
