package image

import (
	"context"
	"errors"
	"io"

	"troth/proof"
)

// LUKS reads the header of a sealed disk as it is now and gives its digest: SHA-256 of the bytes before the payload (docs/proof-format.md).
// Errors: *proof.Refusal with code image-not-measured or image-changed, or ctx's error.
func (h *Held) LUKS(ctx context.Context) (proof.Digest, error) {
	head := make([]byte, proof.LUKSHead)
	if _, err := h.file.ReadAt(head, 0); err != nil && !errors.Is(err, io.EOF) {
		return proof.Digest{}, notMeasured(h.Path, "it cannot be read: "+reason(err))
	}
	size, err := proof.LUKSHeaderSize(head)
	if err != nil {
		return proof.Digest{}, notMeasured(h.Path, err.Error())
	}
	d, err := hash(ctx, io.NewSectionReader(h.file, 0, size), size, nil)
	switch {
	case err == nil:
		return d, nil
	case ctx.Err() != nil:
		return d, ctx.Err()
	case errors.Is(err, errLength):
		return d, notMeasured(h.Path, "it ends before its LUKS header does")
	}
	return d, notMeasured(h.Path, "it cannot be read: "+reason(err))
}
