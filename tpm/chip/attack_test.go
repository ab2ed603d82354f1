package chip

import (
	crand "crypto/rand"
	"encoding/binary"
	"errors"
	"testing"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"troth/test/lab/txt"
	"troth/tpm"
	"troth/tpm/pcr"
)

var seed = []byte("the seed of one release key, 32b")

// TestAttack does what an attacker does to a real TPM and to the bytes between it and its host. The ids are those of
// docs/attacks.md.
func TestAttack(t *testing.T) {
	for _, a := range []struct {
		id  string
		run func(*testing.T)
	}{
		{"A-BANK", attackBank},
		{"A-NODRTM", attackNoDRTM},
		{"A-RELAUNCH", attackRelaunch},
		{"A-S3", attackS3},
		{"A-RESET", attackReset},
		{"S-REPLAY", attackReplay},
		{"S-EXFIL", attackExfil},
		{"S-USERAUTH", attackUserAuth},
		{"S-LIVE", attackLive},
		{"S-BUS", attackBus},
		{"S-PCR10", attackPCR10},
	} {
		t.Run(a.id, a.run)
	}
}

// refused asserts that the installed seed does not come out, and that the reason is the state.
func (h *host) refused(why string) {
	h.Helper()
	if got, err := h.chip.Unseal(h.ctx); !errors.Is(err, ErrOtherState) {
		h.Fatalf("unseal %s: %x, %v; want ErrOtherState", why, got, err)
	}
}

// honest asserts that honest work goes on: a new epoch's seed unseals, and nothing is left behind.
func (h *host) honest() {
	h.Helper()
	h.install([]byte("an honest seed"))
	h.unseals([]byte("an honest seed"))
	h.holds(1, 1)
}

func attackBank(t *testing.T) {
	h := newHost(t)
	check := func(sel pcr.Selection, want string) {
		t.Helper()
		a, err := h.ak().VerifyQuote(h.quote(sel, "x"))
		var e *tpm.CheckError
		if err := must(t, a, err).CheckSelection(drtm); !errors.As(err, &e) || e.Check != want {
			t.Errorf("quote of %v: %v, want %s", sel, err, want)
		}
	}
	for _, bank := range []pcr.Bank{pcr.SHA1, pcr.SHA384} {
		sel, err := pcr.Select(bank, 17, 18, 19)
		check(must(t, sel, err), tpm.CheckBank)
		if _, err := h.chip.PCRs(h.ctx, sel); err == nil {
			t.Errorf("PCRs of bank %v were read", bank)
		}
	}
	// TPM2_PCR_Allocate by the platform: SHA-1 only, from the next reset on.
	command := []byte{0x80, 2, 0, 0, 0, 0, 0, 0, 1, 0x2B, 0x40, 0, 0, 0x0C, 0, 0, 0, 9, 0x40, 0, 0, 9, 0, 0, 0, 0, 0,
		0, 0, 0, 3, 0, 4, 3, 0xff, 0xff, 0xff, 0, 0x0B, 3, 0, 0, 0, 0, 0x0C, 3, 0, 0, 0}
	command[5] = byte(len(command))
	answer, err := h.bus.raw.Send(command)
	if rc := binary.BigEndian.Uint32(must(t, answer, err)[6:]); rc != 0 {
		t.Fatalf("PCR_Allocate: %#x", rc)
	}
	if err := h.txt.Reset(); err != nil {
		t.Fatal(err)
	}
	if err := h.txt.Boot(txt.Example(txt.TbootLegacy)); err != nil {
		t.Fatal(err)
	}
	check(drtm, tpm.CheckBank)
	if _, err := h.chip.PCRs(h.ctx, drtm); !errors.Is(err, ErrBankUnallocated) {
		t.Errorf("PCRs of an unallocated bank: %v", err)
	}
	banks, err := h.chip.Banks(h.ctx)
	if len(must(t, banks, err)) != 1 || banks[0] != pcr.SHA1 {
		t.Errorf("banks %v, want sha1", banks)
	}
}

func attackNoDRTM(t *testing.T) {
	h := powerOn(t)
	h.open()
	if _, err := h.chip.Provision(h.ctx); err != nil {
		t.Fatal(err)
	}
	refuse := func(when string, index int) {
		t.Helper()
		values, err := h.chip.PCRs(h.ctx, drtm)
		a, err2 := h.ak().VerifyQuote(h.quote(drtm, "x"))
		if err := must(t, a, err2).CheckPCRs(drtm, must(t, values, err)); err != nil {
			t.Fatalf("%s: the quote itself is good: %v", when, err)
		}
		var e *pcr.NoDynamicLaunch
		if err := values.DynamicLaunch(); !errors.As(err, &e) || e.Index != index {
			t.Errorf("%s: %v, want no dynamic launch by PCR %d", when, err, index)
		}
	}
	refuse("after power-on", 17)
	if err := h.txt.HashSequence([]byte("SINIT")); err != nil {
		t.Fatal(err)
	}
	refuse("after a hash sequence", 18)
	if err := h.txt.Boot(txt.Example(txt.SLaunch)); err != nil {
		t.Fatal(err)
	}
	values, err := h.chip.PCRs(h.ctx, drtm)
	if err := must(t, values, err).DynamicLaunch(); err != nil {
		t.Errorf("after a launch: %v", err)
	}
	if err := h.txt.S3(); err != nil {
		t.Fatal(err)
	}
	refuse("after a suspend", 17)
}

func attackRelaunch(t *testing.T) {
	h := newHost(t)
	before := h.counters()
	h.install(seed)
	h.unseals(seed)
	if err := h.txt.Relaunch(txt.Example(txt.TbootLegacy)); err != nil {
		t.Fatal(err)
	}
	a, err := h.ak().VerifyQuote(h.quote(drtm, "x"))
	if err := must(t, a, err).CheckPCRs(drtm, h.expected(txt.TbootLegacy)); err != nil {
		t.Fatalf("the second launch is not identical: %v", err)
	}
	if a.Counters.Reset != before.Reset || a.Counters.Restart != before.Restart+1 {
		t.Errorf("counters %+v after %+v", a.Counters, before)
	}
	h.refused("after an identical second launch")
	h.honest()

	h.install(seed)
	if err := h.txt.Extend(2, 18, [32]byte{1}); err != nil {
		t.Fatal(err)
	}
	h.refused("after an extend of PCR 18")
	h.honest()
}

func attackS3(t *testing.T) {
	h := newHost(t)
	h.install(seed)
	if err := h.txt.S3(); err != nil {
		t.Fatal(err)
	}
	h.refused("after a suspend")
	if err := h.txt.Boot(txt.Example(txt.TbootLegacy)); err != nil {
		t.Fatal(err)
	}
	h.refused("after a suspend and an identical launch")
	h.honest()
}

func attackReset(t *testing.T) {
	h := newHost(t)
	before := h.counters()
	h.install(seed)
	if err := h.txt.Reset(); err != nil {
		t.Fatal(err)
	}
	h.refused("after a reset")
	if err := h.txt.Boot(txt.Example(txt.TbootLegacy)); err != nil {
		t.Fatal(err)
	}
	h.refused("after a reset and an identical launch")
	a, err := h.ak().VerifyQuote(h.quote(drtm, "x"))
	if must(t, a, err).Counters.Reset != before.Reset+1 {
		t.Errorf("counters %+v after %+v", a.Counters, before)
	}
	h.honest()
}

func attackReplay(t *testing.T) {
	h := newHost(t)
	old := h.install(seed)
	c := h.counters()
	if err := h.txt.Relaunch(txt.Example(txt.TbootLegacy)); err != nil {
		t.Fatal(err)
	}
	for why, counters := range map[string]tpm.Counters{"with its own counters": c, "with today's counters": h.counters()} {
		if err := h.chip.Install(h.ctx, old, drtm, counters); err != nil {
			t.Fatal(err)
		}
		h.refused("of the launch before " + why)
	}
	h.honest()
}

func attackExfil(t *testing.T) {
	h, thief := newHost(t), newHost(t)
	s := h.install(seed)
	if err := thief.chip.Install(thief.ctx, s, drtm, thief.counters()); !errors.Is(err, ErrDamaged) {
		t.Errorf("another TPM's seed was installed: %v", err)
	}
	thief.holds(0, 0)
	// What Import gave to the host, loaded elsewhere.
	_, err := do(thief.ctx, thief.chip, "load", func(d *device) (struct{}, error) {
		k, err := d.load()
		if err != nil {
			return struct{}{}, err
		}
		return struct{}{}, d.loadSeed(k, &epoch{private: h.imported(), public: s.Public})
	})
	if !errors.Is(err, ErrDamaged) {
		t.Errorf("another TPM's object was loaded: %v", err)
	}
	thief.honest()
	h.unseals(seed)
}

// imported returns the private area of the installed seed.
func (h *host) imported() tpm2.TPM2BPrivate {
	h.Helper()
	p, err := do(h.ctx, h.chip, "read", func(d *device) (tpm2.TPM2BPrivate, error) { return d.epoch.private, nil })
	return must(h, p, err)
}

func attackUserAuth(t *testing.T) {
	h := newHost(t)
	s := h.install(seed)
	withPassword := func() ([]byte, error) {
		return do(h.ctx, h.chip, "unseal with an empty password", func(d *device) ([]byte, error) {
			r, err := tpm2.Unseal{ItemHandle: tpm2.AuthHandle{Handle: d.epoch.object, Name: d.epoch.name, Auth: tpm2.PasswordAuth(nil)}}.Execute(d.tpm)
			if err != nil {
				return nil, err
			}
			return r.OutData.Buffer, nil
		})
	}
	if got, err := withPassword(); err == nil {
		t.Fatalf("an empty password unsealed %x", got)
	}
	h.unseals(seed)

	// The same object with userWithAuth: the TPM would open it, so that Install must refuse it.
	open := openObject(t, h.srk(), s)
	if err := h.chip.Install(h.ctx, open, drtm, h.counters()); !errors.Is(err, ErrDamaged) {
		t.Errorf("an object with userWithAuth was installed: %v", err)
	}
	_, err := do(h.ctx, h.chip, "install by force", func(d *device) (struct{}, error) {
		k, err := d.load()
		if err != nil {
			return struct{}{}, err
		}
		r, err := tpm2.Import{
			ParentHandle: named(handleSRK, k.srk.Name()),
			ObjectPublic: tpm2.BytesAs2B[tpm2.TPMTPublic](open.Public), Duplicate: tpm2.TPM2BPrivate{Buffer: open.Duplicate},
			InSymSeed: tpm2.TPM2BEncryptedSecret{Buffer: open.EncryptedSeed}, Symmetric: tpm2.TPMTSymDef{Algorithm: tpm2.TPMAlgNull},
		}.Execute(d.tpm)
		if err != nil {
			return struct{}{}, err
		}
		if err := d.flush(d.epoch.object); err != nil {
			return struct{}{}, err
		}
		d.epoch.private, d.epoch.public = r.OutPrivate, open.Public
		return struct{}{}, d.loadSeed(k, d.epoch)
	})
	must(t, 0, err)
	if got, err := withPassword(); err != nil || string(got) != "opened" {
		t.Errorf("the attack is none: %q, %v", got, err)
	}
	h.honest()
}

// openObject seals "opened" as SealSeed does, but for userWithAuth.
func openObject(t *testing.T, srk *tpm.SRK, like tpm.SealedSeed) tpm.SealedSeed {
	t.Helper()
	p, err := tpm2.Unmarshal[tpm2.TPMTPublic](like.Public)
	must(t, p, err)
	p.ObjectAttributes.UserWithAuth = true
	obfuscation := make([]byte, 32)
	unique, err := tpm2.TPMAlgSHA256.Hash()
	hash := must(t, unique, err).New()
	hash.Write(append(obfuscation, "opened"...))
	p.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgKeyedHash, &tpm2.TPM2BDigest{Buffer: hash.Sum(nil)})
	name, err := tpm2.ObjectName(p)
	must(t, name, err)
	parent, err := tpm2.Unmarshal[tpm2.TPMTPublic](srk.Public())
	key, err2 := tpm2.ImportEncapsulationKey(must(t, parent, err))
	must(t, key, err2)
	duplicate, secret, err := tpm2.CreateDuplicate(crand.Reader, key, name.Buffer, tpm2.Marshal(tpm2.TPMTSensitive{
		SensitiveType: tpm2.TPMAlgKeyedHash, SeedValue: tpm2.TPM2BDigest{Buffer: obfuscation},
		Sensitive: tpm2.NewTPMUSensitiveComposite(tpm2.TPMAlgKeyedHash, &tpm2.TPM2BSensitiveData{Buffer: []byte("opened")}),
	}))
	must(t, 0, err)
	return tpm.SealedSeed{Public: tpm2.Marshal(*p), Duplicate: duplicate, EncryptedSeed: secret}
}

func attackLive(t *testing.T) {
	h := newHost(t)
	h.install(seed)
	extended := false
	h.bus.set(func(_ transport.TPM, command []byte) {
		if code(command) == tpm2.TPMCCUnseal && !extended { // the policy was satisfied before the tampering
			extended = true
			if err := h.txt.Extend(2, 18, [32]byte{1}); err != nil {
				t.Error(err)
			}
		}
	}, nil)
	h.refused("after PCR 18 was extended inside the policy session")
	if !extended {
		t.Error("nothing was attacked")
	}
	h.bus.set(nil, nil)
	h.honest()
}
