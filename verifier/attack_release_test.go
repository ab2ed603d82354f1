package verifier

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"troth/proof"
	"troth/tpm"
)

func attackReuse(t *testing.T) {
	w, h := newWorld(t), newHost(t, 1)
	v := w.good(h)
	first := w.newAsk(h, v, nil)
	// 16 launches with one token at once: one receipt.
	var wins atomic.Int32
	var wg sync.WaitGroup
	statements := make([][]byte, 16)
	for i := range statements {
		s := *first.statement
		s.Blinder = proof.NewBlinder()
		statements[i] = must[[]byte](t)(s.Encode())
	}
	var winner atomic.Pointer[[]byte]
	for _, s := range statements {
		wg.Go(func() {
			_, err := w.Release(t.Context(), h.spki, first.text, s, nil)
			if err == nil {
				wins.Add(1)
				winner.Store(&s)
				return
			}
			refused(t, err, proof.TokenUsed, "chain")
		})
	}
	wg.Wait()
	if wins.Load() != 1 {
		t.Fatalf("%d receipts for one token", wins.Load())
	}
	// Another domain with the same token.
	s := *must[*proof.Statement](t)(proof.ParseStatement(*winner.Load()))
	s.UUID = "6f1c0c6e-0000-4000-8000-00000000ffff"
	w.unchanged(h, func() {
		_, err := w.Release(t.Context(), h.spki, first.text, must[[]byte](t)(s.Encode()), nil)
		refused(t, err, proof.TokenConstraint, "domain")
		// A token and a statement that do not belong together.
		other := w.newAsk(h, v, nil)
		_, err = w.Release(t.Context(), h.spki, other.text, *winner.Load(), nil)
		refused(t, err, proof.RequestInvalid, "token")
	})
}

func attackPins(t *testing.T) {
	w, h := newWorld(t), newHost(t, 1)
	v := w.good(h)
	w.unchanged(h, func() {
		for name, spoil := range map[string]func(*proof.Statement){
			"the engine's initrd":  func(s *proof.Statement) { s.Measurements.Initrd = digestOf("evil") },
			"init=/bin/sh":         func(s *proof.Statement) { s.Measurements.CommandLine = digestOf("init=/bin/sh") },
			"another kernel":       func(s *proof.Statement) { s.Measurements.Kernel = digestOf("evil") },
			"firmware beside":      func(s *proof.Statement) { s.Measurements.Firmware = digestOf("evil") },
			"the engine's disk":    func(s *proof.Statement) { s.Disks[0].Digest = digestOf("evil") },
			"first content":        func(s *proof.Statement) { s.Disks[1].Digest = digestOf("evil") },
			"first link disguised": func(s *proof.Statement) { s.Disks[1].Digest, s.Previous = digestOf("evil"), digestOf("no link") },
			"a disk more": func(s *proof.Statement) {
				s.Disks = append(s.Disks, proof.StatementDisk{Target: "vdc", Mode: proof.DiskUnpinned})
			},
			"a disk less":    func(s *proof.Statement) { s.Disks = s.Disks[:1] },
			"a console":      func(s *proof.Statement) { s.Interactive = proof.InteractiveYes },
			"another mode":   func(s *proof.Statement) { s.Disks[0].Mode = proof.DiskUnpinned },
			"no measurement": func(s *proof.Statement) { s.Measurements.Kernel = nil },
		} {
			a := w.newAsk(h, v, nil)
			spoil(a.statement)
			_, err := w.releaseTo(h, a, nil)
			want := proof.TokenConstraint
			switch name {
			case "no measurement":
				want = proof.ImageNotMeasured
			case "first link disguised":
				want = proof.TokenUsed // the statement names a link that the chain does not have
			}
			t.Log(name)
			refused(t, err, want, "")
		}
	})
	// A token without pins yields a nonce for the MAC, and nothing that may go to the guest.
	a := w.newAsk(h, v, func(k *proof.Token) { k.Pins, k.Secret = nil, proof.Secret{} })
	must[*Release](t)(w.releaseTo(h, a, nil))
	// The verifier's own word, should a token ever open that carries a secret and leaves something open.
	f := &ReleaseFacts{Token: &proof.Token{Secret: proof.NewSecret([]byte("s")), Pins: &proof.Pins{Kernel: digestOf("kernel")}}}
	refused(t, releasePinsComplete(f), proof.TokenConstraint, "pins")
	must[*Release](t)(w.releaseTo(h, w.newAsk(h, v, nil), nil))
}

func attackLogLines(t *testing.T) {
	w, h := newWorld(t), newHost(t, 1)
	w.good(h)
	evil := *h
	evil.name = "x\n2026 level=INFO msg=\"host approved\" \x1b[2J"
	_, err := w.Enrol(t.Context(), h.spki, w.begin(&evil))
	refused(t, err, proof.RequestInvalid, "name")
	_, err = w.Approve(t.Context(), h.name, nil, nil, "op\nerator\x1b")
	check(t, err)
	a := w.newAsk(h, w.mustAttest(h), nil)
	a.statement.Name = "vm with spaces and \u202e" // no control byte: proof refuses those
	must[*Release](t)(w.releaseTo(h, a, nil))
	_, err = w.ChainEvent(t.Context(), h.spki, Event{Token: a.statement.Token, Link: a.link(t), Event: "ab\norted\x1b", Attempt: 1, Detail: "line\nbreak\x00"})
	refused(t, err, proof.RequestInvalid, "event")
	_, err = w.ChainEvent(t.Context(), h.spki, Event{Token: a.statement.Token, Link: a.link(t), Event: EventAborted, Attempt: 1, Detail: "line\nbreak\x00\x1b"})
	check(t, err)
	logs := w.logs.String()
	for line := range strings.Lines(logs) {
		if !strings.HasPrefix(line, "time=") {
			t.Errorf("a line of its own: %q", line)
		}
		for _, c := range strings.TrimSuffix(line, "\n") {
			if c < ' ' || c == 0x7f {
				t.Errorf("control byte in %q", line)
			}
		}
	}
	if !strings.Contains(logs, `break`) {
		t.Fatal("the detail is not in the log at all")
	}
}

func attackRollback(t *testing.T) {
	w, h := newWorld(t), newHost(t, 1)
	a := w.good(h)
	// A mark from the TPM's future, as TPM2_Clear with the same AK or a clock set back would look like.
	w.mu.Lock()
	m := w.marks[a.Verdict.Host]
	m.Clock += 1 << 30
	w.marks[a.Verdict.Host] = m
	w.mu.Unlock()
	_, err := w.attest(h)
	refused(t, err, proof.HostRebooted, "clock")
	_, err = w.releaseTo(h, w.newAsk(h, a, nil), nil)
	refused(t, err, proof.VerdictContraindicated, "clock")
	// The mark survives a restart of the verifier.
	w.mu.Lock()
	m.Clock -= 1 << 30
	w.marks[a.Verdict.Host] = m
	w.mu.Unlock()
	w.mustAttest(h)
	check(t, w.flush(t.Context()))
	mark := *w.mark(a.Verdict.Host)
	w.open()
	if got := w.mark(a.Verdict.Host); got == nil || *got != mark {
		t.Fatalf("after a restart: %+v, want %+v", got, mark)
	}
	soft, ok := h.machine.(*softTPM)
	if !ok {
		return
	}
	// After TPM2_Clear the AK is another: the old host is unknown until it enrols and is approved again.
	clock := soft.clock
	t.Cleanup(func() { soft.clock = clock })
	soft.newAK(t)
	soft.clock, soft.counters = 1, tpm.Counters{}
	soft.boot(t, example())
	_, err = w.attest(h)
	refused(t, err, proof.EvidenceInvalid, "ak")
	w.enrol(h)
	_, err = w.attest(h)
	refused(t, err, proof.HostNotApproved, "state")
	w.approve(h)
	w.mustAttest(h)
}

// TestNoSecretIsStored searches the database and the log for what was released, after finding a planted canary.
func TestNoSecretIsStored(t *testing.T) {
	w, h := newWorld(t), newHost(t, 1)
	a := w.newAsk(h, w.good(h), func(k *proof.Token) { k.Secret = proof.NewSecret([]byte("canary-secret-0123456789")) })
	must[*Release](t)(w.releaseTo(h, a, nil))
	check(t, w.flush(t.Context()))
	var all []byte
	for _, f := range must[[]string](t)(filepath.Glob(filepath.Join(w.path, "v.db*"))) {
		all = append(all, readFile(t, f)...)
	}
	all = append(all, w.logs.String()...)
	if !bytes.Contains(all, []byte(a.statement.UUID)) {
		t.Fatal("the search finds nothing at all")
	}
	for _, s := range [][]byte{a.key.Nonce.Reveal(), a.key.Secret.Reveal()} {
		for form, text := range forms(s) {
			if bytes.Contains(all, []byte(text)) {
				t.Errorf("found in %s", form)
			}
		}
	}
	if sum := sha256.Sum256(a.key.Nonce.Reveal()); bytes.Contains(all, sum[:]) {
		t.Error("found as a hash")
	}
}

func readFile(t *testing.T, path string) []byte {
	t.Helper()
	return must[[]byte](t)(os.ReadFile(path))
}

// forms are the ways in which bytes are written down.
func forms(b []byte) map[string]string {
	return map[string]string{"raw": string(b), "hex": hex.EncodeToString(b), "base64": base64.StdEncoding.EncodeToString(b), "base64url": base64.RawURLEncoding.EncodeToString(b)}
}
