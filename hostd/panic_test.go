package hostd

import (
	"context"
	"log/slog"
	"sync/atomic"
	"testing"
	"time"

	"troth/launcher"
	"troth/proof"
	"troth/tpm"
	vapi "troth/verifier/api"
)

// panicky is a verifier whose answer makes its reader panic.
type panicky struct{ Judge }

func (panicky) Challenge(context.Context) (*vapi.Challenge, error) { panic("over an answer") }

// testPanics: a panic in a worker leaves the host untrusted for as long as it matters, and the worker at work.
func testPanics(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	a := &Attester{Judge: panicky{}, ak: &tpm.AK{}, epoch: &launcher.Epoch{}, Clock: Clock{}, Log: log}
	a.Start()
	if err := a.Renew(t.Context()); codeOf(t, err) != proof.Internal {
		t.Errorf("attestation: %v", err)
	}
	if _, _, err := a.Hold(t.Context()); codeOf(t, err) != proof.Internal {
		t.Errorf("the verdict of before outlived it: %v", err)
	}
	if err := a.Renew(t.Context()); codeOf(t, err) != proof.Internal {
		t.Errorf("the turn was not given back: %v", err)
	}

	var boot atomic.Int64
	w := &Workers{Log: log, Boot: func() time.Duration { return time.Duration(boot.Load()) }}
	if c := w.Condition(); c.State != OK {
		t.Errorf("before: %+v", c)
	}
	ctx, cancel := context.WithCancel(t.Context())
	runs, again := 0, make(chan struct{})
	w.Go(ctx, "reconcile", func(ctx context.Context) {
		if runs++; runs == 1 {
			panic("over a domain")
		}
		close(again)
		<-ctx.Done()
	})
	<-again
	s := &Status{Attester: a, Workers: w.Condition}
	if c := s.Workers(); c.State != Failed || c.Code != proof.Internal || c.Remedy == "" {
		t.Errorf("after a panic: %+v", c)
	}
	boot.Store(int64(brokenFor) + 1)
	if c := s.Workers(); c.State != OK {
		t.Errorf("a minute later: %+v", c)
	}
	cancel()
	w.Wait()
}
