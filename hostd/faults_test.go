package hostd

import (
	"context"
	"errors"
	"log/slog"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"troth/proof"
	"troth/tpm"
	"troth/tpm/chip"
	"troth/tpm/pcr"
	vapi "troth/verifier/api"
)

// hung is a TPM that takes commands and answers none until it is let go.
type hung struct {
	Chip
	answers chan struct{}
}

func (h hung) Unseal(ctx context.Context) ([]byte, error) {
	select {
	case <-h.answers:
		return []byte{1}, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (h hung) Quote(ctx context.Context, _ pcr.Selection, _ []byte) (tpm.Quote, error) {
	_, err := h.Unseal(ctx)
	return tpm.Quote{}, err
}

// TestHungTPM: our patience ends with tpm-unavailable, the caller's with tpm-busy, and what answers again works.
func TestHungTPM(t *testing.T) {
	h := hung{answers: make(chan struct{})}
	kicked := 0
	c := refusing{patient{h, 10 * time.Millisecond}, func() { kicked++ }}
	_, err := c.Unseal(t.Context())
	if codeOf(t, err) != proof.TPMUnavailable || !strings.Contains(err.Error(), "no answer within 10ms") {
		t.Errorf("unseal: %v", err)
	}
	if _, err := c.Quote(t.Context(), pcr.Selection{}, nil); codeOf(t, err) != proof.TPMUnavailable || kicked != 2 {
		t.Errorf("quote: %v, kicked %d times", err, kicked)
	}
	patientCaller := refusing{patient{h, time.Hour}, func() {}}
	soon, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := patientCaller.Unseal(soon); codeOf(t, err) != proof.TPMBusy {
		t.Errorf("a caller in a hurry: %v", err)
	}
	close(h.answers)
	if _, err := patientCaller.Unseal(t.Context()); err != nil {
		t.Errorf("it answers again: %v", err)
	}
}

// TestChipCodes: what each kind of failure of the TPM refuses with. The fault table of tpm/chip says which answers are which kind.
func TestChipCodes(t *testing.T) {
	for _, c := range []struct {
		err  error
		code proof.Code
	}{
		{chip.ErrUnavailable, proof.TPMUnavailable}, {chip.ErrBusy, proof.TPMBusy}, {chip.ErrNotProvisioned, proof.TPMUnavailable},
		{chip.ErrOtherState, proof.SealedToOtherState}, {chip.ErrNoSeed, proof.SealedToOtherState}, {chip.ErrDamaged, proof.SealedBlobDamaged},
		{chip.ErrBankUnallocated, proof.BankUnallocated}, {context.DeadlineExceeded, proof.TPMBusy}, {errors.New("else"), proof.TPMUnavailable},
	} {
		if got := chipRefusal(c.err).Code; got != c.code {
			t.Errorf("%v: %s, want %s", c.err, got, c.code)
		}
	}
}

// stalled is a verifier that lets each call wait until it is told to fail.
type stalled struct {
	Judge
	calls atomic.Int32
	come  chan struct{}
	fail  chan struct{}
}

func (s *stalled) Challenge(ctx context.Context) (*vapi.Challenge, error) {
	s.calls.Add(1)
	s.come <- struct{}{}
	select {
	case <-s.fail:
		return nil, proof.Refuse(proof.VerifierUnreachable, "no verifier answers")
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// TestManyWaitAsLongAsOne: launches that come while an attestation hangs share the next one, also its failure.
func TestManyWaitAsLongAsOne(t *testing.T) {
	v := &stalled{come: make(chan struct{}), fail: make(chan struct{})}
	a := &Attester{Judge: v, ak: &tpm.AK{}, Clock: Clock{}, Log: slog.New(slog.DiscardHandler)}
	a.Start()
	var all sync.WaitGroup
	renew := func() {
		if err := a.Renew(t.Context()); codeOf(t, err) != proof.VerifierUnreachable {
			t.Errorf("%v", err)
		}
	}
	all.Go(renew)
	<-v.come
	// Who cannot wait for the turn is told so, and leaves nothing behind for the others.
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if err := a.Renew(gone); codeOf(t, err) != proof.VerdictMissing {
		t.Errorf("in a hurry: %v", err)
	}
	const many = 32
	came := make(chan struct{}, many)
	for range many {
		all.Go(func() {
			came <- struct{}{}
			renew()
		})
	}
	for range many {
		<-came
	}
	v.fail <- struct{}{}
	ended := make(chan struct{})
	go func() { all.Wait(); close(ended) }()
	for {
		select {
		case <-v.come:
			v.fail <- struct{}{}
			continue
		case <-ended:
		}
		break
	}
	// One that was at it, one for all who came; a straggler that had not yet asked for the time may need another.
	if n := v.calls.Load(); n > 4 {
		t.Errorf("%d calls of a verifier that hangs for %d launches", n, many)
	}
}

// TestKeyIsNotWaitedForever: while the next release key is on its way into a TPM that hangs, a hook has its answer in time.
func TestKeyIsNotWaitedForever(t *testing.T) {
	a := &Attester{Clock: Clock{}}
	a.key.Lock()
	soon, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, _, err := a.Hold(soon); codeOf(t, err) != proof.TPMBusy {
		t.Errorf("%v", err)
	}
	a.key.Unlock()
	for !a.key.TryLock() { // who gave up lets go by itself
		runtime.Gosched()
	}
	a.key.Unlock()
	if _, _, err := a.Hold(t.Context()); codeOf(t, err) != proof.VerdictMissing {
		t.Errorf("%v", err)
	}
}
