package hostd

import (
	"context"
	"sync"
	"time"

	"troth/launcher"
	"troth/proof"
)

// Hold implements launcher.Epochs.
func (a *Attester) Hold(ctx context.Context) (*launcher.Epoch, func(), error) {
	if err := a.lockKey(ctx); err != nil {
		return nil, nil, err
	}
	done := sync.OnceFunc(a.key.RUnlock)
	s := a.State()
	switch {
	case s.Epoch != nil:
		return s.Epoch, done, nil
	case s.Failure != nil:
		done()
		return nil, nil, s.Failure
	default:
		done()
		return nil, nil, proof.Refuse(proof.VerdictMissing, "this host has not attested yet")
	}
}

// lockKey takes the release key for reading, unless ctx ends first: while a TPM hangs over the next key, a hook must have its answer.
func (a *Attester) lockKey(ctx context.Context) error {
	if a.key.TryRLock() {
		return nil
	}
	locked := make(chan struct{})
	go func() {
		a.key.RLock()
		close(locked)
	}()
	select {
	case <-locked:
		return nil
	case <-ctx.Done():
		go func() {
			<-locked
			a.key.RUnlock()
		}()
		return proof.Refuse(proof.TPMBusy, "the TPM is still at work on the next release key")
	}
}

// Renew implements launcher.Epochs: attest now. Callers that come while one attestation runs get the next one, together: also when it fails, so that many
// launches wait for a verifier or a TPM that hangs as long as one does.
func (a *Attester) Renew(ctx context.Context) error {
	came := a.Clock.Boot()
	select {
	case a.turn <- struct{}{}:
		defer func() { <-a.turn }()
	case <-ctx.Done():
		if failure := a.State().Failure; failure != nil {
			return failure
		}
		return proof.Refuse(proof.VerdictMissing, "another attestation takes longer than this call may wait")
	}
	a.mu.Lock()
	fresh, failure := a.epoch != nil && a.epoch.Sent >= came, a.failure
	shared := a.began >= came
	a.mu.Unlock()
	switch {
	case fresh:
		return nil // somebody attested while we waited
	case shared && failure != nil:
		return failure
	}
	return a.attest(ctx)
}

// forget drops the verdict.
func (a *Attester) forget() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.epoch, a.proven = nil, min(a.proven, a.Clock.Boot())
}

// Proven implements launcher.Epochs.
func (a *Attester) Proven() time.Duration {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.proven
}
