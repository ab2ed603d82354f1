package chip

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"troth/test/lab/txt"
	"troth/tpm"
)

// faulty fails the nth command of an operation: before it is sent, after it took effect, or with a code of the TPM's.
type faulty struct {
	transport.TPM
	armed bool
	n     int
	how   string
	hit   bool
}

var errBroken = errors.New("the bus broke")

func (f *faulty) Send(command []byte) ([]byte, error) {
	if !f.armed || f.hit {
		return f.TPM.Send(command)
	}
	if f.n--; f.n >= 0 {
		return f.TPM.Send(command)
	}
	f.hit = true
	switch f.how {
	case "before":
		return nil, errBroken
	case "after":
		if _, err := f.TPM.Send(command); err != nil {
			return nil, err
		}
		return nil, errBroken
	case "failure":
		return []byte{0x80, 1, 0, 0, 0, 10, 0, 0, 1, 1}, nil
	case "memory":
		return []byte{0x80, 1, 0, 0, 0, 10, 0, 0, 9, 2}, nil
	default: // garbage that claims success
		answer, err := f.TPM.Send(command)
		if err != nil {
			return nil, err
		}
		short := answer[:10+(len(answer)-10)/2]
		binary.BigEndian.PutUint32(short[2:], uint32(len(short)))
		return short, nil
	}
}

// TestFaults fails each command of each operation in each way. Afterwards the TPM holds what the installed epoch
// needs and nothing else, and the operation works.
func TestFaults(t *testing.T) {
	h := newHost(t)
	ek, err := tpm.ParseEK(h.identity().EKs[0].Public)
	blob, encrypted, err2 := tpm.MakeCredential(must(t, ek, err), h.ak().Name(), []byte("secret"))
	must(t, blob, err2)
	sealed, counters := h.seal(seed, drtm), h.counters()
	h.close()
	f := &faulty{}
	h.config.Wrap = func(t transport.TPM) transport.TPM { f.TPM = t; return f }
	h.open()
	install := func() error { return h.chip.Install(h.ctx, sealed, drtm, counters) }
	if err := install(); err != nil {
		t.Fatal(err)
	}
	operations := []struct {
		name string
		run  func() error
	}{
		{"install", install},
		{"unseal", func() error { return second(h.chip.Unseal(h.ctx)) }},
		{"quote", func() error { return second(h.chip.Quote(h.ctx, drtm, nil)) }},
		{"certify", func() error { return second(h.chip.CertifySRK(h.ctx, nil)) }},
		{"activate", func() error { return second(h.chip.ActivateCredential(h.ctx, blob, encrypted)) }},
		{"provision", func() error { return second(h.chip.Provision(h.ctx)) }},
		{"pcrs", func() error { return second(h.chip.PCRs(h.ctx, drtm)) }},
	}
	faults := 0
	for _, o := range operations {
		for _, how := range []string{"before", "after", "failure", "memory", "garbage"} {
			for n := 0; ; n++ {
				*f = faulty{TPM: f.TPM, armed: true, n: n, how: how}
				err := o.run()
				hit := f.hit
				f.armed = false
				if !hit {
					if err != nil {
						t.Fatalf("%s without a fault: %v", o.name, err)
					}
					break
				}
				faults++
				if err != nil && !errors.Is(err, ErrUnavailable) && !errors.Is(err, ErrBusy) {
					t.Errorf("%s, command %d %s: untyped error %v", o.name, n, how, err)
				}
				objects, sessions := h.held()
				if objects != 1 || sessions > 1 {
					t.Fatalf("%s, command %d %s: %d objects and %d sessions are left (%v)", o.name, n, how, objects, sessions, err)
				}
				if err := o.run(); err != nil {
					t.Fatalf("%s after command %d %s: %v", o.name, n, how, err)
				}
				h.unseals(seed)
				h.holds(1, 1)
			}
		}
	}
	if faults < 150 {
		t.Errorf("only %d faults were tried", faults)
	}
}

func second[T any](_ T, err error) error { return err }

// TestFirstProvision fails each command of a first provisioning, whose next call must finish the work.
func TestFirstProvision(t *testing.T) {
	h := powerOn(t)
	f := &faulty{}
	h.config.Wrap = func(t transport.TPM) transport.TPM { f.TPM = t; return f }
	h.open()
	var ak []byte
	for _, how := range []string{"before", "after"} {
		for n := 0; ; n++ {
			*f = faulty{TPM: f.TPM, armed: true, n: n, how: how}
			id, err := h.chip.Provision(h.ctx)
			hit := f.hit
			f.armed = false
			h.holds(0, 0)
			if !hit {
				must(t, id, err)
				break
			}
			if now, err := h.chip.Identity(h.ctx); err == nil {
				if ak != nil && string(ak) != string(now.AKPublic) {
					t.Fatal("a provisioned AK was replaced")
				}
				ak = now.AKPublic
			}
		}
	}
	h.honestAfterBoot()
}

func (h *host) honestAfterBoot() {
	h.Helper()
	if err := h.txt.Boot(txt.Example(txt.TbootDA)); err != nil {
		h.Fatal(err)
	}
	h.honest()
}

func TestDirtySession(t *testing.T) {
	h := newHost(t)
	h.install(seed)
	for _, cc := range []tpm2.TPMCC{tpm2.TPMCCPolicyPCR, tpm2.TPMCCPolicyCounterTimer, tpm2.TPMCCUnseal} {
		once := true
		h.bus.set(nil, func(command, answer []byte) []byte {
			if code(command) == cc && once { // it took effect, but the host hears of an error
				once = false
				return []byte{0x80, 1, 0, 0, 0, 10, 0, 0, 1, 0x43}
			}
			return answer
		})
		h.unseals(seed)
		if once {
			t.Errorf("command %#x was not disturbed", uint32(cc))
		}
		h.bus.set(nil, nil)
		h.unseals(seed)
		h.holds(1, 1)
	}
	// The resource manager lost all that was ours with its connection.
	once := true
	h.bus.set(func(raw transport.TPM, command []byte) {
		if code(command) == tpm2.TPMCCUnseal && once {
			once = false
			for _, handle := range []byte{0x80, 0x03} {
				binary.BigEndian.PutUint32(command[10:], 0x80FFFFFF) // the command fails for its handle
				list := []byte{0x80, 1, 0, 0, 0, 22, 0, 0, 1, 0x7A, 0, 0, 0, 1, handle & 0x82, 0, 0, 0, 0, 0, 0, 1}
				answer, err := raw.Send(list)
				if err == nil {
					_, err = tpm2.FlushContext{FlushHandle: tpm2.TPMHandle(binary.BigEndian.Uint32(answer[19:]))}.Execute(raw)
				}
				if err != nil {
					t.Error(err)
				}
			}
		}
	}, nil)
	h.unseals(seed)
	h.bus.set(nil, nil)
	h.unseals(seed)
	h.holds(1, 1)
	if once {
		t.Error("nothing was lost")
	}
	// Someone flushes our session, and then our object.
	for _, what := range []func(*device) tpm2.TPMHandle{
		func(d *device) tpm2.TPMHandle { return d.epoch.session.Handle() },
		func(d *device) tpm2.TPMHandle { return d.epoch.object },
	} {
		_, err := do(h.ctx, h.chip, "flush", func(d *device) (struct{}, error) { return struct{}{}, d.flush(what(d)) })
		must(t, 0, err)
		h.unseals(seed)
		h.holds(1, 1)
	}
}

// TestUnclean breaks the bus in the middle of an operation and through the flush after it: the next one flushes first.
func TestUnclean(t *testing.T) {
	h := newHost(t)
	f := &outage{}
	h.close()
	h.config.Wrap = func(t transport.TPM) transport.TPM { f.TPM = t; return f }
	h.open()
	s, counters := h.seal(seed, drtm), h.counters()
	f.begins = tpm2.TPMCCLoad // the object is loaded; its handle is lost
	if err := h.chip.Install(h.ctx, s, drtm, counters); !errors.Is(err, ErrUnavailable) {
		t.Fatalf("install during an outage: %v", err)
	}
	if _, err := h.chip.Quote(h.ctx, drtm, nil); !errors.Is(err, ErrUnavailable) {
		t.Fatalf("quote during an outage: %v", err)
	}
	*f = outage{TPM: f.TPM}
	h.holds(0, 0)
	h.honest()
}

// outage loses the answer to a command and everything after it.
type outage struct {
	transport.TPM
	begins tpm2.TPMCC
	down   bool
}

func (o *outage) Send(command []byte) ([]byte, error) {
	if o.down {
		return nil, errBroken
	}
	answer, err := o.TPM.Send(command)
	if code(command) == o.begins {
		o.down = true
		return nil, errBroken
	}
	return answer, err
}

func TestOpen(t *testing.T) {
	h := newHost(t)
	if _, err := Open(h.ctx, h.config); !errors.Is(err, ErrLocked) {
		t.Errorf("a second Open: %v", err)
	}
	h.install(seed)
	if err := h.chip.Close(); err != nil {
		t.Fatal(err)
	}
	if err := h.chip.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
	if _, err := h.chip.Quote(h.ctx, drtm, nil); !errors.Is(err, ErrUnavailable) {
		t.Errorf("quote after Close: %v", err)
	}
	// What a killed predecessor left.
	raw := sender{socketLink(h.config.Socket), func() context.Context { return h.ctx }}
	for range 2 {
		r, err := tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHOwner, InPublic: tpm2.New2B(tpm.SRKTemplate())}.Execute(raw)
		must(t, r, err)
		_, _, err = tpm2.PolicySession(raw, tpm2.TPMAlgSHA256, 16)
		must(t, 0, err)
	}
	h.open()
	h.holds(0, 0)
	h.install(seed)
	h.unseals(seed)

	// The pin holds.
	h.close()
	h.config.SRK[0] = 1
	h.open()
	if _, err := h.chip.Identity(h.ctx); !errors.Is(err, ErrNotProvisioned) {
		t.Errorf("another SRK than the pinned one: %v", err)
	}
	for _, c := range []Config{{}, {Device: "/dev/null", Socket: "x"}, {Socket: "/nonexistent/sock"}, {Socket: h.txt.LogFile()}, {Device: h.txt.LogFile(), Lock: t.TempDir() + "/l"}} {
		if _, err := Open(h.ctx, c); err == nil {
			t.Errorf("%+v was opened", c)
		}
	}
}

func TestConcurrent(t *testing.T) {
	h := newHost(t)
	h.install(seed)
	var wg sync.WaitGroup
	for n := range 32 {
		wg.Go(func() {
			got, err := h.chip.Unseal(h.ctx)
			if err != nil || string(got) != string(seed) {
				t.Errorf("%x, %v", got, err)
			}
			extra := fmt.Sprint("batch ", n)
			q, err := h.chip.Quote(h.ctx, drtm, []byte(extra))
			if err != nil {
				t.Error(err)
				return
			}
			if a, err := h.ak().VerifyQuote(q); err != nil || string(a.ExtraData) != extra {
				t.Errorf("%+v, %v", a, err)
			}
		})
	}
	wg.Wait()
	h.holds(1, 1)

	ctx, cancel := context.WithCancel(h.ctx)
	cancel()
	if _, err := h.chip.Unseal(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: %v", err)
	}
	h.unseals(seed)
}

// TestPowerLoss ends the TPM under the chip and starts it again.
func TestPowerLoss(t *testing.T) {
	h := newHost(t)
	h.install(seed)
	dir := h.config.Socket[:len(h.config.Socket)-len("/sock")]
	if err := h.txt.Stop(); err != nil {
		t.Fatal(err)
	}
	if _, err := h.chip.Unseal(h.ctx); !errors.Is(err, ErrUnavailable) {
		t.Errorf("unseal without a TPM: %v", err)
	}
	if _, err := h.chip.Quote(h.ctx, drtm, nil); !errors.Is(err, ErrUnavailable) {
		t.Errorf("quote without a TPM: %v", err)
	}
	again, err := txt.Start(context.Background(), dir)
	h.txt = must(t, again, err)
	if err := h.txt.Boot(txt.Example(txt.TbootLegacy)); err != nil {
		t.Fatal(err)
	}
	h.refused("after the power was gone")
	h.honest()
}

// TestClear clears the TPM: what was provisioned is gone, and what comes after has another Name.
func TestClear(t *testing.T) {
	h := newHost(t)
	h.install(seed)
	before := h.ak().Name()
	_, err := do(h.ctx, h.chip, "clear", func(d *device) (struct{}, error) {
		_, err := tpm2.Clear{AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHLockout, Auth: tpm2.PasswordAuth(nil)}}.Execute(d.tpm)
		return struct{}{}, err
	})
	must(t, 0, err)
	if _, err := h.chip.Quote(h.ctx, drtm, nil); !errors.Is(err, ErrNotProvisioned) {
		t.Errorf("quote after Clear: %v", err)
	}
	if _, err := h.chip.Unseal(h.ctx); err == nil {
		t.Error("unsealed after Clear")
	}
	id, err := h.chip.Provision(h.ctx)
	must(t, id, err)
	if h.ak().Name() == before {
		t.Error("the AK of before came back")
	}
	h.honest()
}
