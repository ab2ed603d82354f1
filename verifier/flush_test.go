package verifier

import (
	"fmt"
	"strings"
	"testing"

	"troth/verifier/store"
)

// TestQueueIsBounded has the disk take nothing for so long that no more may wait for it: no verdict is given until it does.
func TestQueueIsBounded(t *testing.T) {
	w := newWorld(t)
	h := newHost(t, 1)
	w.enrol(h)
	w.approve(h)
	must[*Attestation](t)(w.attest(h))
	for n := range maxQueued {
		w.enqueue(store.Write{Kind: kindMark, Name: fmt.Sprint("mark-", n%8), Rev: store.Any, Body: encode(Mark{})})
	}
	if a, err := w.attest(h); err == nil || !strings.Contains(err.Error(), "wait for the disk") {
		t.Fatalf("a verdict that nobody can keep: %+v, %v", a, err)
	}
	check(t, w.flush(t.Context()))
	must[*Attestation](t)(w.attest(h))
}
