package verifier

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"troth/proof"
	"troth/test/lab/txt"
	"troth/tpm"
	"troth/tpm/pcr"
	"troth/verifier/store"
)

// world is a verifier on a real SQLite file, with a clock that a test turns.
type world struct {
	*Verifier
	t     testing.TB
	path  string
	clock atomic.Int64 // unix ms
	logs  *syncBuffer
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{t: t, path: t.TempDir(), logs: &syncBuffer{}}
	w.clock.Store(time.Now().UnixMilli())
	check(t, InitKeys(filepath.Join(w.path, "keys"), "auditor.example", true, time.Now()))
	w.open()
	return w
}

// open starts the verifier on what is on the disk: also after a crash.
func (w *world) open() {
	w.t.Helper()
	keys := must[*Keys](w.t)(LoadKeys(filepath.Join(w.path, "keys")))
	st := must[store.Store](w.t)(store.Open(context.Background(), filepath.Join(w.path, "v.db")))
	w.t.Cleanup(func() { check(w.t, st.Close()) })
	cfg := DefaultConfig()
	cfg.Issuer = "auditor.example"
	newMachine(w.t, 1) // its authority is the EK root
	cfg.Roots, cfg.Intermediates = trusted(w.t)
	w.Verifier = must[*Verifier](w.t)(New(context.Background(), cfg, keys, st, slog.New(slog.NewTextHandler(w.logs, nil))))
	w.now = func() time.Time { return time.UnixMilli(w.clock.Load()) }
}

func (w *world) pass(d time.Duration) { w.clock.Add(d.Milliseconds()) }

// host is a machine with a TLS key, as hostd is.
type host struct {
	machine
	name string
	spki proof.Digest
}

func newHost(t testing.TB, n int) *host {
	return &host{newMachine(t, n), fmt.Sprint("host-", n), proof.Hash(proof.LabelEnrol, fmt.Append(nil, n))}
}

// listed are all EKs that the machine has a certificate for.
func (h *host) listed() []EK {
	eks, _, _ := h.identity()
	return slices.Clone(eks)
}

// begin makes an honest enrolment request.
func (w *world) begin(h *host) Enrolment {
	w.t.Helper()
	c := w.Challenge(h.spki)
	eks, ak, srk := h.identity()
	return Enrolment{Name: h.name, Challenge: c.Bytes, EKs: eks, AK: ak, SRK: srk,
		SRKCertification: h.certify(w.t, proof.EnrolExtraData(c.Bytes, h.spki))}
}

func (w *world) enrol(h *host) {
	w.t.Helper()
	c := must[*Credential](w.t)(w.Enrol(w.t.Context(), h.spki, w.begin(h)))
	must[State](w.t)(w.Activate(w.t.Context(), h.spki, c.ID, h.activate(w.t, c.Blob, c.Encrypted)))
}

func (w *world) approve(h *host) {
	w.t.Helper()
	must[*Host](w.t)(w.Approve(w.t.Context(), h.name, nil, nil, "operator"))
}

// evidence is what an honest hostd sends for a challenge.
func (w *world) evidence(h *host, c Challenge) *proof.Evidence {
	w.t.Helper()
	_, ak, _ := h.identity()
	e := &proof.Evidence{Challenge: c.Bytes, AK: must[*tpm.AK](w.t)(tpm.ParseAK(ak)).Name(), PCRs: proof.PCRList(h.values(w.t, c.Selection), c.Selection)}
	q := h.quote(w.t, c.Selection, proof.AttestExtraData(c.Bytes, h.spki))
	e.Quote = proof.QuoteDoc{Message: q.Message, Signature: q.Signature}
	if l := h.log(w.t); l != nil {
		e.Logs = []proof.Log{{Kind: proof.LogTCG2, Data: l}}
	}
	return w.wire(e)
}

// wire sends evidence through its one encoding.
func (w *world) wire(e *proof.Evidence) *proof.Evidence {
	w.t.Helper()
	return must[*proof.Evidence](w.t)(proof.ParseEvidence(must[[]byte](w.t)(e.Encode())))
}

func (w *world) attest(h *host) (*Attestation, error) {
	w.t.Helper()
	return w.Attest(w.t.Context(), h.spki, w.evidence(h, w.Challenge(h.spki)))
}

// good enrols and approves a host, imports its state as reference and attests: an affirming verdict.
func (w *world) good(h *host) *Attestation {
	w.t.Helper()
	w.enrol(h)
	w.approve(h)
	must[*Attestation](w.t)(w.attest(h))
	req := ImportRequest{Host: h.name, Name: "gold-" + h.name, Launcher: TbootLegacy, Profile: "gold", By: "operator"}
	req.Confirmed = must[*Import](w.t)(w.Import(w.t.Context(), req)).Values
	req.Apply = true
	must[*Import](w.t)(w.Import(w.t.Context(), req))
	return w.mustAttest(h)
}

func (w *world) mustAttest(h *host) *Attestation {
	w.t.Helper()
	a := must[*Attestation](w.t)(w.attest(h))
	if a.Verdict.Status != proof.Affirming {
		w.t.Fatalf("verdict: %+v", a.Report)
	}
	return a
}

// refused asserts the exact code and that the sentence or a fact names what is wanted.
func refused(t testing.TB, err error, code proof.Code, fact string) proof.Refusal {
	t.Helper()
	var r *proof.Refusal
	if !errors.As(err, &r) {
		t.Fatalf("want refusal %s, got %v", code, err)
	}
	if r.Code != code {
		t.Fatalf("want refusal %s, got %v", code, r)
	}
	if fact == "" {
		return *r
	}
	for _, f := range r.Facts {
		if f.Name == fact {
			return *r
		}
	}
	t.Fatalf("%v: no fact %q", r, fact)
	return *r
}

// unchanged runs f and asserts that the store and what is known of the host are as before.
func (w *world) unchanged(h *host, f func()) {
	w.t.Helper()
	snapshot := func() string {
		var b bytes.Buffer
		for _, kind := range []string{kindHost, kindChain, kindChainEvent, kindReference, kindProfile} {
			for _, d := range must[[]store.Doc](w.t)(w.store.List(w.t.Context(), kind, "")) {
				fmt.Fprintln(&b, kind, d.Name, d.Rev, string(d.Body))
			}
		}
		if known := w.hostBySPKI(h.spki); known != nil {
			v := w.View(known)
			fmt.Fprintln(&b, v.State, v.Standing, v.LastAttested, v.Met, w.mark(known.AKName))
		}
		return b.String()
	}
	before := snapshot()
	f()
	if after := snapshot(); after != before {
		w.t.Fatalf("a refused call changed something:\n%s\n---\n%s", before, after)
	}
}

func example() txt.Script { return txt.Example(txt.TbootLegacy) }

// ask is a tenant's token and what a host would run with it.
type ask struct {
	text      string
	key       *proof.Token
	statement *proof.Statement
}

func digestOf(s string) *proof.Digest {
	d := proof.Hash(proof.LabelConfiguration, []byte(s))
	return &d
}

// newAsk makes a token with complete pins for the profile, and the statement that fits them.
func (w *world) newAsk(h *host, a *Attestation, change func(*proof.Token)) *ask {
	w.t.Helper()
	p := must[*Profile](w.t)(w.Profile("gold"))
	k := &proof.Token{Header: proof.Header{Profile: p.Ref(), Expiry: w.now().Add(time.Hour).Unix(), ChainExpiry: w.now().Add(24 * time.Hour).Unix()},
		Pins: &proof.Pins{Kernel: digestOf("kernel"), Initrd: digestOf("initrd"), CommandLine: digestOf("cmdline"), Interactive: proof.InteractiveNo,
			Disks: []proof.Disk{{Target: "vda", Mode: proof.DiskImmutable, Digest: *digestOf("vda")}, {Target: "vdb", Mode: proof.DiskInitial, Digest: *digestOf("vdb")}}},
		Secret: proof.NewSecret([]byte("disk key")), Migration: proof.MigrationAllow, Restarts: proof.RestartsClosedFirst, OnTrustLost: proof.TrustLostReport, MaxUnproven: 600}
	if change != nil {
		change(k)
	}
	set := must[*proof.KeySet](w.t)(proof.ParseKeySet(w.KeySet()))
	text := must[string](w.t)(proof.NewToken(k, set.TokenKey()))
	s := &proof.Statement{UUID: "6f1c0c6e-0000-4000-8000-000000000001", Name: "vm", Action: proof.ActionStart, Mode: proof.ModePaused, Configuration: *digestOf("configuration"),
		Measurements: proof.Measurements{Kernel: digestOf("kernel"), Initrd: digestOf("initrd"), CommandLine: digestOf("cmdline")},
		Disks:        []proof.StatementDisk{{Target: "vda", Mode: proof.DiskImmutable, ReadOnly: true, Digest: digestOf("vda")}, {Target: "vdb", Mode: proof.DiskInitial, Digest: digestOf("vdb")}},
		Interactive:  proof.InteractiveNo, Token: proof.TokenDigest(text), Host: a.Verdict.Host, Verdict: proof.VerdictDigest(a.JWS), Attempt: 1, Blinder: proof.NewBlinder()}
	return &ask{text, k, s}
}

func (w *world) releaseTo(h *host, a *ask, consent *proof.Consent) (*Release, error) {
	w.t.Helper()
	return w.Release(w.t.Context(), h.spki, a.text, must[[]byte](w.t)(a.statement.Encode()), consent)
}

func (a *ask) link(t testing.TB) proof.Digest {
	t.Helper()
	return proof.Link(must[[]byte](t)(a.statement.Encode()))
}

// event reports of the ask's statement.
func (w *world) event(h *host, a *ask, event string) error {
	w.t.Helper()
	_, err := w.ChainEvent(w.t.Context(), h.spki, Event{Token: a.statement.Token, Link: a.link(w.t), Event: event, Attempt: a.statement.Attempt})
	return err
}

func selectPCRs(t testing.TB, index ...int) pcr.Selection {
	t.Helper()
	return must[pcr.Selection](t)(pcr.Select(pcr.SHA256, index...))
}
