package hostd

import (
	"context"
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
	"troth/launcher/domain"
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
		{What: launcher.WroteBroken, UUID: "u3", Refusal: proof.Refuse(proof.ConfigurationChanged, "a sentence", secret)},
		{What: launcher.WroteStray, UUID: "u3", Refusal: proof.Refuse(proof.GrantMissing, "a sentence", secret)}, // noted by who found it
		{What: launcher.WroteSaved, UUID: "u4"},
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
	if err != nil || !r.Whole || r.Records != 9 {
		t.Fatalf("%+v, %v", r, err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"granted","actor":"hostd","uuid":"u1"`, `"refused","actor":"hostd","code":"image-changed"`, `"broken","actor":"hostd","code":"configuration-changed","uuid":"u3"`,
		`"saved","actor":"hostd","uuid":"u4"`, `"stopped"`, `"asked","actor":"uid:0"`,
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

// TestWaitedTooLong: a launch that had no turn leaves a record, as every refused one.
func TestWaitedTooLong(t *testing.T) {
	l, lines := auditLog(t)
	book, err := launcher.NewBook(kept{}, time.Now, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	launches := NewLaunches(t.Context(), &launcher.Launcher{Book: book}, slog.New(slog.DiscardHandler), 1, time.Millisecond)
	launches.Ended = unread(l, book)
	launches.slots <- struct{}{}
	n, refusal := launches.Submit(launcher.Request{ID: "waited"})
	if refusal != nil {
		t.Fatal(refusal)
	}
	<-n.Done()
	if got := lines(); strings.Count(got, `"refused","actor":"hostd","code":"internal","launch":"waited"`) != 1 {
		t.Error(got)
	}
}

// lateGuest is a libvirt in which a guest came up after its launch was refused.
type lateGuest struct {
	Libvirt
	xml   []byte
	fails error
}

func (g *lateGuest) Live(context.Context, domain.UUID) ([]byte, error) { return g.xml, nil }
func (g *lateGuest) Destroy(context.Context, domain.UUID) error {
	if g.fails == nil {
		g.xml = nil
	}
	return g.fails
}

// TestLateGuest: a guest of a refused launch that came up late is ended, and there is one record of it.
func TestLateGuest(t *testing.T) {
	l, lines := auditLog(t)
	request, err := os.ReadFile("../launcher/domain/testdata/requests/direct.xml")
	if err != nil {
		t.Fatal(err)
	}
	c, err := domain.Read(request, domain.Request)
	if err != nil {
		t.Fatal(err)
	}
	uuid := c.UUID.String()
	book, err := launcher.NewBook(kept{}, time.Now, nil, []*launcher.Entry{{What: launcher.WroteRefused, Launch: "l1", UUID: uuid, Refusal: proof.Refuse(proof.Internal, "late")}})
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	virt := &lateGuest{xml: domain.Emit(c, domain.Additions{LaunchID: [32]byte{1}}), fails: errors.New("libvirt is busy")}
	d := &Daemon{Audit: l, Log: log, Launcher: &launcher.Launcher{Virt: virt, Book: book, Log: log}}
	d.Launcher.Start()
	for range 3 {
		d.compare(t.Context(), []domain.UUID{c.UUID})
	}
	virt.fails = nil
	for range 3 {
		d.compare(t.Context(), []domain.UUID{c.UUID})
	}
	if got := lines(); virt.xml != nil || strings.Count(got, `"stray","actor":"hostd","code":"grant-missing","uuid":"`+uuid+`","route":"destroyed"`) != 1 || strings.Count(got, `"stray"`) != 1 {
		t.Error(got)
	}
}

// auditLog is a log, and what stands in it in the end.
func auditLog(t *testing.T) (l *audit.Log, lines func() string) {
	t.Helper()
	fs := tear.New()
	l, err := audit.Open(fs, "log", time.Now, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return l, func() string {
		done := make(chan struct{})
		close(done)
		l.Run(done)
		return string(fs.Now("log"))
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
