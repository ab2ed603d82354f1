package hostd

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"troth/hooks/ask"
	"troth/hostd/audit"
	"troth/hostd/journal"
	"troth/launcher"
	"troth/proof"
	"troth/test/tear"
)

// inMemory is a journal in memory.
type inMemory []string

func (k *inMemory) Append(e *launcher.Entry) error {
	*k = append(*k, e.What)
	return nil
}

// TestAudited follows grants, refusals, requests and refused hooks into the audit log, with none of their facts.
func TestAudited(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	l, err := audit.Open(journal.OS{}, path, time.Now, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	d := &Daemon{Audit: l, kick: make(chan struct{}, 1)}
	to := audited{&inMemory{}, l}
	secret := proof.Fact{Name: "cause", Value: "not for the log"}
	for _, e := range []*launcher.Entry{
		{What: launcher.WroteIntent, UUID: "u1", TokenText: "token"},
		{What: launcher.WroteGranted, UUID: "u1"},
		{What: launcher.WroteRefused, UUID: "u1", Refusal: proof.Refuse(proof.ImageChanged, "a sentence", secret)},
		{What: launcher.WroteStopped, UUID: "u2"},
	} {
		if err := to.Append(e); err != nil {
			t.Fatal(err)
		}
	}
	d.Audited("uid:0", "", "POST /v1/launches", "", false)
	d.Audited("tls:ab", audit.Callers, "DELETE /v1/domains/{uuid}", "6a0f0a5e-4c55-4a53-9d5c-0d8b6f1f2a11", true)
	d.heard(ask.Question{Op: ask.OpStart, SubOp: ask.SubBegin}, ask.Deny(ask.GrantMissing))
	d.heard(ask.Question{Op: ask.OpStopped}, ask.Allow())
	done := make(chan struct{})
	close(done)
	l.Run(done)
	r, err := audit.Verify(path, nil, nil)
	if err != nil || !r.Whole || r.Records != 7 {
		t.Fatalf("%+v, %v", r, err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"granted","actor":"hostd","uuid":"u1"`, `"refused","actor":"hostd","code":"image-changed"`, `"stopped"`, `"asked","actor":"uid:0"`,
		`"forbidden","actor":"tls:ab","code":"forbidden"`, `"hook","actor":"libvirt","code":"grant-missing"`} {
		if !strings.Contains(string(b), want) {
			t.Errorf("no %s in %s", want, b)
		}
	}
	for _, never := range []string{"token\"", "a sentence", "not for the log"} {
		if strings.Contains(string(b), never) {
			t.Errorf("%s stands in the audit log", never)
		}
	}
}

// TestNoGrantWithoutAudit: what the audit log cannot take, the journal does not grant.
func TestNoGrantWithoutAudit(t *testing.T) {
	fs := tear.New()
	l, err := audit.Open(fs, "log", time.Now, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	fs.Call = func(op string, _ []byte, do, _ func() error) error {
		if op == "fs write" {
			return syscall.ENOSPC
		}
		return do()
	}
	j := &inMemory{}
	if err := (audited{j, l}).Append(&launcher.Entry{What: launcher.WroteGranted}); !errors.Is(err, syscall.ENOSPC) || len(*j) != 0 {
		t.Fatalf("%v, and the journal has %v", err, *j)
	}
}
