package chip

import (
	"bytes"
	"crypto/x509"
	"errors"
	"testing"

	"troth/test/lab/txt"
	"troth/tpm"
	"troth/tpm/eventlog"
	"troth/tpm/pcr"
)

func TestProvision(t *testing.T) {
	h := powerOn(t)
	h.open()
	if _, err := h.chip.Identity(h.ctx); !errors.Is(err, ErrNotProvisioned) {
		t.Fatalf("identity before provisioning: %v", err)
	}
	id, err := h.chip.Provision(h.ctx)
	first := must(t, id, err)
	h.holds(0, 0)
	h.bus.reset()
	id, err = h.chip.Provision(h.ctx)
	second := must(t, id, err)
	for _, c := range h.bus.codes() {
		if c == 0x131 || c == 0x120 { // CreatePrimary, EvictControl
			t.Errorf("the second provisioning sent %v", c)
		}
	}
	if !bytes.Equal(first.AKPublic, second.AKPublic) || !bytes.Equal(first.SRKPublic, second.SRKPublic) || len(first.EKs) != len(second.EKs) {
		t.Error("the second provisioning returned another identity")
	}
	h.close()
	h.open()
	third := h.identity()
	if !bytes.Equal(first.AKPublic, third.AKPublic) {
		t.Error("another AK after opening again")
	}

	roots := tpm.Roots{Software: []*x509.Certificate{readPEM(t, txt.RootFile(authority))}}
	if len(first.EKs) != 2 {
		t.Fatalf("%d EKs, want RSA-2048 and P-384", len(first.EKs))
	}
	for n, want := range []string{tpm.EKTemplates()[0].Name, tpm.EKTemplates()[2].Name} {
		ek, err := tpm.ParseEK(first.EKs[n].Public)
		if must(t, ek, err).Template() != want {
			t.Errorf("EK %d has template %s, want %s", n, ek.Template(), want)
		}
		class, err := ek.CheckCertificate(first.EKs[n].Certificate, roots, readPEM(t, txt.IssuerFile(authority)))
		if err != nil || class != tpm.Software {
			t.Errorf("EK %s: %q, %v", want, class, err)
		}
	}
}

func TestCredential(t *testing.T) {
	h := newHost(t)
	ek, err := tpm.ParseEK(h.identity().EKs[0].Public)
	secret := []byte("an enrolment secret of 32 bytes.")
	blob, encrypted, err2 := tpm.MakeCredential(must(t, ek, err), h.ak().Name(), secret)
	must(t, blob, err2)
	h.bus.reset()
	got, err := h.chip.ActivateCredential(h.ctx, blob, encrypted)
	if !bytes.Equal(must(t, got, err), secret) {
		t.Fatalf("activated %x", got)
	}
	for _, b := range append(h.bus.commands, h.bus.answers...) {
		if bytes.Contains(b, secret) {
			t.Error("the secret crossed the bus in the clear")
		}
	}
	h.holds(0, 0)

	blob[len(blob)-1] ^= 1
	if _, err := h.chip.ActivateCredential(h.ctx, blob, encrypted); !errors.Is(err, ErrDamaged) {
		t.Errorf("changed credential: %v", err)
	}
	h.holds(0, 0)
	other := h.ak().Name()
	other[33] ^= 1
	blob, encrypted, err = tpm.MakeCredential(ek, other, secret)
	must(t, blob, err)
	if _, err := h.chip.ActivateCredential(h.ctx, blob, encrypted); !errors.Is(err, ErrDamaged) {
		t.Errorf("credential for another AK: %v", err)
	}
	h.holds(0, 0)
}

func TestQuote(t *testing.T) {
	h := newHost(t)
	q := h.quote(drtm, "challenge")
	a, err := h.ak().VerifyQuote(q)
	must(t, a, err)
	want := h.expected(txt.TbootLegacy)
	if err := a.CheckPCRs(drtm, want); err != nil {
		t.Error(err)
	}
	if string(a.ExtraData) != "challenge" || a.Counters != h.counters() {
		t.Errorf("quoted %q, %+v", a.ExtraData, a.Counters)
	}
	values, err := h.chip.PCRs(h.ctx, drtm)
	for i, v := range must(t, values, err) {
		if v != want[i] {
			t.Errorf("PCR %d is %x, want %x", i, v, want[i])
		}
	}
	if err := values.DynamicLaunch(); err != nil {
		t.Error(err)
	}
	all, err := pcr.Parse("sha256:0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23")
	must(t, all, err)
	if values, err := h.chip.PCRs(h.ctx, all); err != nil || len(values) != 24 {
		t.Errorf("%d of 24 PCRs: %v", len(values), err)
	}
	banks, err := h.chip.Banks(h.ctx)
	if must(t, len(banks), err) != 3 {
		t.Errorf("banks %v", banks)
	}

	extra := []byte("enrolment challenge")
	c, err := h.chip.CertifySRK(h.ctx, extra)
	must(t, c, err)
	if err := h.ak().VerifyCertify(c, extra, h.srk().Name()); err != nil {
		t.Error(err)
	}
	var check *tpm.CheckError
	if err := h.ak().VerifyCertify(c, []byte("other"), h.srk().Name()); !errors.As(err, &check) || check.Check != tpm.CheckExtraData {
		t.Errorf("certification of another challenge: %v", err)
	}
	if err := h.ak().VerifyCertify(c, extra, h.ak().Name()); !errors.As(err, &check) || check.Check != tpm.CheckCertified {
		t.Errorf("certification of another object: %v", err)
	}
	if err := h.ak().VerifyCertify(q, []byte("challenge"), h.srk().Name()); !errors.As(err, &check) || check.Check != tpm.CheckType {
		t.Errorf("a quote as a certification: %v", err)
	}
	if _, err := h.ak().VerifyQuote(c); !errors.As(err, &check) || check.Check != tpm.CheckType {
		t.Errorf("a certification as a quote: %v", err)
	}
}

func TestLaunchers(t *testing.T) {
	h := newHost(t)
	for _, l := range []txt.Launcher{txt.TbootLegacy, txt.TbootDA, txt.SLaunch} {
		if err := h.txt.Relaunch(txt.Example(l)); err != nil {
			t.Fatal(err)
		}
		log, err := txt.Example(l).Log()
		events, err2 := eventlog.Parse(must(t, log, err))
		must(t, events, err2)
		values, err := h.chip.PCRs(h.ctx, drtm)
		if err := eventlog.Check(events, must(t, values, err)); err != nil {
			t.Errorf("%s: %v", l, err)
		}
		a, err := h.ak().VerifyQuote(h.quote(drtm, string(l)))
		if err := must(t, a, err).CheckPCRs(drtm, h.expected(l)); err != nil {
			t.Errorf("%s: %v", l, err)
		}
		if err := values.DynamicLaunch(); err != nil {
			t.Errorf("%s: %v", l, err)
		}
	}
}

func TestSeal(t *testing.T) {
	h := newHost(t)
	if _, err := h.chip.Unseal(h.ctx); !errors.Is(err, ErrNoSeed) {
		t.Errorf("unseal before install: %v", err)
	}
	for n := range 5 { // each epoch replaces the one before
		seed := bytes.Repeat([]byte{byte(n)}, 32)
		h.install(seed)
		h.unseals(seed)
		h.unseals(seed)
		h.holds(1, 1)
	}
	damaged := h.seal([]byte("seed"), drtm)
	damaged.Duplicate[10] ^= 1
	if err := h.chip.Install(h.ctx, damaged, drtm, h.counters()); !errors.Is(err, ErrDamaged) {
		t.Errorf("damaged blob: %v", err)
	}
	h.unseals(bytes.Repeat([]byte{4}, 32)) // the old one is still there
	h.holds(1, 1)
	h.close()
	h.open()
	h.holds(0, 0)
}

func (h *host) expected(l txt.Launcher) pcr.Values {
	h.Helper()
	values, err := txt.Example(l).Expected()
	return pcr.Values(must(h, values, err))
}
