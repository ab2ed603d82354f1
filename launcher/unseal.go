package launcher

import (
	"context"
	"fmt"

	"troth/proof"
	"troth/tpm"
	"troth/tpm/pcr"
)

// sealed is one launch's release on its way to the chip.
type sealed struct {
	receipt proof.Digest
	sealed  proof.Bytes
}

type opened struct {
	released *proof.Released
	refusal  *proof.Refusal
}

// unsealBatch unseals the seed once, opens each release with it, and forgets the seed.
func (l *Launcher) unsealBatch(ctx context.Context, in []sealed) ([]opened, error) {
	seed, err := l.Chip.Unseal(ctx)
	if err != nil {
		return nil, err
	}
	defer clear(seed)
	out := make([]opened, len(in))
	for i, s := range in {
		released, err := proof.OpenRelease(seed, s.receipt, s.sealed)
		if err != nil {
			out[i].refusal = proof.Refuse(proof.SealedBlobDamaged, "what the verifier released does not open with the unsealed key",
				proof.Fact{Name: "cause", Value: err.Error()})
			continue
		}
		out[i].released = released
	}
	return out, nil
}

// quoteIn is one launch's link on its way to the chip.
type quoteIn struct {
	link    proof.Digest
	verdict proof.Digest
	sel     pcr.Selection
}

type quoteOut struct {
	quote        tpm.Quote
	index, count int64
	path         []proof.Digest
	err          error
}

// quoteBatch quotes once for all links under one verdict. A batch that spans the change of an epoch is as many quotes as it has verdicts.
func (l *Launcher) quoteBatch(ctx context.Context, in []quoteIn) ([]quoteOut, error) {
	out := make([]quoteOut, len(in))
	groups := map[proof.Digest][]int{}
	for i, q := range in {
		groups[q.verdict] = append(groups[q.verdict], i)
	}
	for verdict, members := range groups {
		links := make([]proof.Digest, len(members))
		for k, i := range members {
			links[k] = in[i].link
		}
		batch, err := proof.NewBatch(links)
		var quote tpm.Quote
		if err == nil {
			quote, err = l.Chip.Quote(ctx, in[members[0]].sel, proof.QuoteExtraData(batch.Root(), batch.Count(), verdict))
		}
		for k, i := range members {
			if err != nil {
				out[i].err = fmt.Errorf("cannot quote: %w", err)
				continue
			}
			out[i] = quoteOut{quote: quote, index: int64(k), count: batch.Count(), path: batch.Path(k)}
		}
	}
	return out, nil
}
