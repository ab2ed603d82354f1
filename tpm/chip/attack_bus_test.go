package chip

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
)

// The attacks on the bytes between host and TPM, and the honest disturbance that looks like one.

func attackBus(t *testing.T) {
	h := newHost(t)
	h.bus.reset()
	h.install(seed)
	h.unseals(seed)
	for _, b := range append(h.bus.commands, h.bus.answers...) {
		if bytes.Contains(b, seed[:8]) {
			t.Fatalf("the seed crossed the bus in the clear: %x", b)
		}
	}
	unseal := h.bus.answers[len(h.bus.answers)-1]

	// Each byte of the answer flipped, once: healed by one retry on a new session. Never a wrong seed.
	for i := range unseal {
		once := true
		h.bus.set(nil, func(command, answer []byte) []byte {
			if code(command) == tpm2.TPMCCUnseal && once && i < len(answer) {
				once = false
				answer[i] ^= 0x40
			}
			return answer
		})
		got, err := h.chip.Unseal(h.ctx)
		if err != nil || !bytes.Equal(got, seed) {
			t.Fatalf("byte %d flipped: %x, %v", i, got, err)
		}
		if once {
			t.Fatalf("byte %d was not flipped", i)
		}
		h.holds(1, 1)
	}
	// The answer flipped each time, the session area stripped, the answer of the batch before again: no seed.
	for why, change := range map[string]func([]byte) []byte{
		"flipped":  func(a []byte) []byte { a[len(a)-1] ^= 1; return a },
		"stripped": func(a []byte) []byte { a[1] = 1; copy(a[10:], a[14:]); return a },
		"replayed": func([]byte) []byte { return bytes.Clone(unseal) },
	} {
		h.bus.set(nil, func(command, answer []byte) []byte {
			if code(command) == tpm2.TPMCCUnseal {
				return change(answer)
			}
			return answer
		})
		if got, err := h.chip.Unseal(h.ctx); !errors.Is(err, ErrUnavailable) {
			t.Errorf("%s: %x, %v", why, got, err)
		}
		h.bus.set(nil, nil)
		h.unseals(seed)
		h.holds(1, 1)
	}
	// A quote whose message or signature was changed on the way is not handed out.
	for _, at := range []int{16, 60, 150, 200} {
		h.bus.set(nil, func(command, answer []byte) []byte {
			if code(command) == tpm2.TPMCCQuote && at < len(answer) {
				answer[at] ^= 1
			}
			return answer
		})
		if q, err := h.chip.Quote(h.ctx, drtm, []byte("batch")); !errors.Is(err, ErrUnavailable) {
			t.Errorf("quote with byte %d changed: %x, %v", at, q, err)
		}
	}
	h.bus.set(func(_ transport.TPM, command []byte) {
		if code(command) == tpm2.TPMCCQuote { // other data than asked for, honestly signed
			command[bytes.Index(command, []byte("batch"))] ^= 1
		}
	}, nil)
	if q, err := h.chip.Quote(h.ctx, drtm, []byte("batch")); !errors.Is(err, ErrUnavailable) {
		t.Errorf("quote of other data: %x, %v", q, err)
	}
	h.bus.set(nil, nil)
	// The command sent twice, and with the session's encrypt attribute cleared: the TPM answers neither in the clear.
	tried := 0
	h.bus.set(func(raw transport.TPM, command []byte) {
		if code(command) != tpm2.TPMCCUnseal {
			return
		}
		tried++
		stripped := bytes.Clone(command)
		stripped[10+4+4+4+2+32] &^= 0x40 // header, object, sizes, session, nonce: the attributes
		answer, err := raw.Send(stripped)
		if err != nil || binary.BigEndian.Uint32(answer[6:]) == 0 { // no Fatal: this runs on the actor
			t.Errorf("the TPM accepted a changed command: %x, %v", answer, err)
		}
	}, nil)
	if got, err := h.chip.Unseal(h.ctx); err == nil && !bytes.Equal(got, seed) {
		t.Errorf("after a stripped command: %x", got)
	}
	if tried == 0 {
		t.Error("nothing was attacked")
	}
	h.bus.set(nil, nil)
	h.unseals(seed)
	last := h.bus.commands[len(h.bus.commands)-1]
	answer, err := h.bus.raw.Send(last)
	if rc := binary.BigEndian.Uint32(must(t, answer, err)[6:]); rc == 0 {
		t.Error("the TPM answered a repeated command")
	}
	h.unseals(seed)
	h.holds(1, 1)
}

func attackPCR10(t *testing.T) {
	h := newHost(t)
	h.install(seed)
	// One extend inside each of n policies: healed up to 8 times, busy after, never another state.
	overtake := func(n int) {
		h.bus.reset()
		h.bus.set(func(raw transport.TPM, command []byte) {
			if code(command) == tpm2.TPMCCUnseal && n > 0 {
				n--
				extend10(t, raw)
			}
		}, nil)
	}
	for n := range maxPolicyRestarts + 1 {
		overtake(n)
		h.unseals(seed)
	}
	overtake(maxPolicyRestarts + 1)
	if got, err := h.chip.Unseal(h.ctx); !errors.Is(err, ErrBusy) || errors.Is(err, ErrOtherState) {
		t.Errorf("PCR 10 extended in each attempt: %x, %v", got, err)
	}
	h.bus.set(nil, nil)
	h.unseals(seed)
	h.holds(1, 1)

	// 200 launches beside an extender.
	random := rand.New(rand.NewPCG(1, 2))
	h.bus.reset()
	h.bus.set(func(raw transport.TPM, _ []byte) {
		if random.IntN(8) == 0 {
			extend10(t, raw)
		}
	}, nil)
	refusals := 0
	for range 200 {
		if got, err := h.chip.Unseal(h.ctx); err != nil || !bytes.Equal(got, seed) {
			t.Log(err)
			refusals++
		}
		if _, err := h.chip.Quote(h.ctx, drtm, []byte("batch")); err != nil {
			t.Log(err)
			refusals++
		}
	}
	restarts := 0
	for _, c := range h.bus.codes() {
		if c == tpm2.TPMCCPolicyRestart {
			restarts++
		}
	}
	if refusals != 0 || restarts == 0 {
		t.Errorf("%d refusals, %d policies restarted; want 0 and some", refusals, restarts)
	}
}

func extend10(t *testing.T, raw transport.TPM) {
	_, err := tpm2.PCRExtend{
		PCRHandle: tpm2.AuthHandle{Handle: 10, Auth: tpm2.PasswordAuth(nil)},
		Digests:   tpm2.TPMLDigestValues{Digests: []tpm2.TPMTHA{{HashAlg: tpm2.TPMAlgSHA256, Digest: make([]byte, 32)}}},
	}.Execute(raw)
	if err != nil {
		t.Error(err)
	}
}
