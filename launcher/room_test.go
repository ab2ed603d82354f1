package launcher

import (
	"fmt"
	"strings"
	"testing"

	"troth/proof"
)

// numbered is the n-th of many domains.
func numbered(n int) string { return fmt.Sprintf("7a0f0a5e-4c55-4a53-9d5c-%012x", n) }

// named is the definition of that domain.
func named(t *testing.T, n int) []byte {
	return []byte(strings.NewReplacer(guestUUID, numbered(n), "<name>g1<", fmt.Sprintf("<name>n%d<", n)).Replace(string(guestXML(t))))
}

// junk is a token of another verifier's, for the profile of this host.
func (w *world) junk() string {
	key, err := proof.GenerateTokenKey()
	if err != nil {
		w.t.Fatal(err)
	}
	text, err := proof.NewToken(&proof.Token{Header: proof.Header{Profile: w.profile, Expiry: 1_800_001_000, ChainExpiry: 1_800_100_000}, Migration: proof.MigrationDeny,
		Restarts: proof.RestartsClosedFirst, OnTrustLost: proof.TrustLostReport}, key.Public())
	if err != nil {
		w.t.Fatal(err)
	}
	return text
}

// fill puts domains into the book, as made, until it is full.
func (w *world) fill(made func(n int) *Entry) {
	w.t.Helper()
	for n := 0; w.l.Book.Keeps("another"); n++ {
		if err := w.l.Book.Write(made(n)); err != nil {
			w.t.Fatal(err)
		}
	}
}

// TestRefusedMakeRoom: launches that the verifier refuses do not fill the book beyond its bound, and an honest registration and an honest launch find room in it.
func TestRefusedMakeRoom(t *testing.T) {
	w := newWorld(t)
	w.fill(func(n int) *Entry {
		return &Entry{What: WroteRefused, UUID: numbered(n), Refusal: proof.Refuse(proof.TokenInvalid, "a test")}
	})
	w.live[numbered(0)] = []byte("<domain/>") // came up after all: it has to be found
	token := w.junk()
	for n := range 3 {
		_, refusal := w.l.Launch(t.Context(), Request{ID: fmt.Sprint("junk", n), Token: token, Domain: named(t, maxDomains+n), Action: proof.ActionStart}, quiet{})
		expect(t, refusal, proof.TokenInvalid)
	}
	if n := len(w.l.Book.Domains()); n != maxDomains {
		t.Errorf("%d domains are kept, at most %d are to be", n, maxDomains)
	}
	if w.l.Book.Domain(numbered(0)) == nil || w.l.Book.Domain(numbered(1)) != nil {
		t.Error("the oldest that does not run is not the one that was forgotten")
	}
	delete(w.live, numbered(0))
	if _, refusal := w.l.Arm(t.Context(), Request{ID: "armed", Token: w.token(), Domain: guestXML(t), Action: proof.ActionStart, Arm: true}, quiet{}); refusal != nil {
		t.Errorf("an honest registration: %v", refusal)
	}
	honest := w.token(func(t *proof.Token) { t.ID = "honest"; t.Pins.Configuration = nil })
	if _, refusal := w.l.Launch(t.Context(), Request{ID: "honest", Token: honest, Domain: named(t, 2*maxDomains), Action: proof.ActionStart}, quiet{}); refusal != nil {
		t.Errorf("an honest launch: %v", refusal)
	}
	want := len(w.l.Book.Domains())
	w.restart()
	if n := len(w.l.Book.Domains()); n != want {
		t.Errorf("%d domains before a restart, %d after it", want, n)
	}
}

// TestRegisteredStay: a book that is full of what is registered forgets nothing of it.
func TestRegisteredStay(t *testing.T) {
	w := newWorld(t)
	digest := proof.Digest{1}
	w.fill(func(n int) *Entry {
		return &Entry{What: WroteArmed, UUID: numbered(n), Name: "n", Token: &digest, Configuration: &digest, TokenText: "a token", Request: []byte("<domain/>")}
	})
	_, refusal := w.launch(w.token())
	expect(t, refusal, proof.RequestInvalid)
	if n := len(w.l.Book.Domains()); n != maxDomains || w.released.Load() != 0 || w.l.Book.Domain(guestUUID) != nil {
		t.Errorf("%d domains, and %d releases", n, w.released.Load())
	}
}

// TestNothingKeptOfTokens: tokens that were asked about, or refused, leave no chain behind.
func TestNothingKeptOfTokens(t *testing.T) {
	w := newWorld(t)
	for n := range 3 {
		dry := Request{ID: fmt.Sprint("dry", n), Token: w.junk(), Domain: guestXML(t), Action: proof.ActionStart, DryRun: true}
		if _, refusal := w.l.Launch(t.Context(), dry, quiet{}); refusal != nil {
			t.Fatal(refusal)
		}
		_, refusal := w.launch(w.junk())
		expect(t, refusal, proof.TokenInvalid)
	}
	if n := len(w.l.Book.chains); n != 0 {
		t.Errorf("%d chains are kept", n)
	}
	w.restart()
	if n := len(w.l.Book.chains); n != 0 {
		t.Errorf("%d chains after a restart", n)
	}
}

// TestTurnsAreBounded: what is remembered of claims is bounded, and a look that began before some were forgotten does not take a domain that was at work since.
func TestTurnsAreBounded(t *testing.T) {
	w := newWorld(t)
	claim := func(uuid string) {
		free, refusal := w.l.claim(mustUUID(uuid))
		if refusal != nil {
			t.Fatal(refusal)
		}
		free()
	}
	id := mustUUID(guestUUID)
	turn, ok := w.l.turn(id)
	if !ok {
		t.Fatal("at work")
	}
	claim(guestUUID)
	for n := range maxTurns + 1 {
		claim(numbered(n))
	}
	if n := len(w.l.turns); n > maxTurns {
		t.Errorf("%d are remembered", n)
	}
	if _, ok := w.l.claimAt(id, turn); ok {
		t.Error("claimed as of a look from before another claim")
	}
	turn, _ = w.l.turn(id)
	claim(numbered(0))
	free, ok := w.l.claimAt(id, turn)
	if !ok {
		t.Fatal("another domain's claim kept it")
	}
	if _, ok := w.l.claimAt(id, turn); ok {
		t.Error("claimed twice")
	}
	free()
}
