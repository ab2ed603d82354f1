package launcher

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"testing"

	"troth/launcher/domain"
	"troth/proof"
)

func guestXML(t *testing.T) []byte {
	t.Helper()
	b, err := os.ReadFile("testdata/guest.xml")
	if err != nil {
		t.Fatal(err)
	}
	return bytes.ReplaceAll(b, []byte("@DIR@"), []byte("/images"))
}

// token makes a token that pins everything of the guest.
func (w *world) token(change ...func(*proof.Token)) string {
	w.t.Helper()
	c, err := domain.Read(guestXML(w.t), domain.Request)
	if err != nil {
		w.t.Fatal(err)
	}
	sum := func(b []byte) *proof.Digest { d := proof.Digest(sha256.Sum256(b)); return &d }
	config := c.Digest()
	t := &proof.Token{Header: proof.Header{Profile: w.profile, Expiry: 1_800_001_000, ChainExpiry: 1_800_100_000},
		Pins:      &proof.Pins{Configuration: &config, Kernel: sum(w.files["/images/vmlinuz"]), Initrd: sum(w.files["/images/initrd"]), CommandLine: sum([]byte(c.Boot.CommandLine)), Interactive: proof.InteractiveNo},
		Migration: proof.MigrationDeny, Restarts: proof.RestartsClosedFirst, OnTrustLost: proof.TrustLostReport}
	for _, f := range change {
		f(t)
	}
	text, err := proof.NewToken(t, w.tokenKey.Public())
	if err != nil {
		w.t.Fatal(err)
	}
	w.tokens[proof.TokenDigest(text)] = t
	return text
}

var launchNumber int

func (w *world) launch(token string) (*Outcome, *proof.Refusal) {
	w.t.Helper()
	launchNumber++
	return w.l.Launch(context.Background(), Request{ID: fmt.Sprint("launch", launchNumber), Token: token, Domain: guestXML(w.t), Action: proof.ActionStart}, quiet{})
}

// running asserts that the guest runs, proved.
func (w *world) running(token string) {
	w.t.Helper()
	d := w.l.Book.Domain(guestUUID)
	if d == nil || d.State != StateProved || w.live[guestUUID] == nil || w.paused[guestUUID] {
		w.t.Fatalf("the guest does not run: %+v", d)
	}
	p, err := proof.ParseProof(d.Proof)
	if err != nil {
		w.t.Fatal(err)
	}
	made := p.MAC
	if err := p.Seal(w.tokens[proof.TokenDigest(token)].Nonce); err != nil || p.MAC != made {
		w.t.Fatalf("the proof's MAC is not made with the token's nonce: %v", err)
	}
	if proof.Link(p.Statement) != *d.Link {
		w.t.Fatal("the proof is of another link")
	}
	w.tidy()
}

// gone asserts that nothing is left of the launch: what was defined before is defined again, and nothing runs.
func (w *world) gone(before []byte) {
	w.t.Helper()
	if w.live[guestUUID] != nil {
		w.t.Fatal("a guest is left")
	}
	if w.ran[guestUUID] {
		w.t.Fatal("the guest ran")
	}
	if !bytes.Equal(w.inactive[guestUUID], before) {
		w.t.Fatalf("the definition is %q, before it was %q", w.inactive[guestUUID], before)
	}
	if d := w.l.Book.Domain(guestUUID); d != nil && (d.Registered || d.State != StateRefused || d.Refusal == nil || d.Proof != nil) {
		w.t.Fatalf("the book still has it: %+v", d)
	}
	w.tidy()
}

func (w *world) tidy() {
	w.t.Helper()
	if len(w.secrets) > 0 {
		w.t.Fatal("a guest's secret is left in its file")
	}
	if len(w.diskKeys) > 0 {
		w.t.Fatal("the key of a sealed disk is left with libvirt")
	}
	if w.opened != 0 {
		w.t.Fatalf("%d images are left open", w.opened)
	}
	if n := len(w.l.Book.Unended()); n != 0 {
		w.t.Fatalf("%d launches have no end", n)
	}
	for digest, token := range w.tokens {
		for _, e := range w.entries {
			if bytes.Contains(e, token.Nonce.Reveal()) {
				w.t.Fatalf("the nonce of token %v is in the journal", digest)
			}
		}
	}
}

type quiet struct{}

func (quiet) Step(string)           {}
func (quiet) Domain(string, string) {}
func (quiet) Hashed(int64, int64)   {}
