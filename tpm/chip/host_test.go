package chip

import (
	"context"
	"crypto/x509"
	"encoding/binary"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"troth/test/lab/txt"
	"troth/tpm"
	"troth/tpm/pcr"
)

// authority is the directory of one certificate authority for all TPMs of the package.
var authority string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "troth-chip-*")
	if err != nil {
		panic(err)
	}
	authority = filepath.Join(dir, "ca")
	code := m.Run()
	if err := os.RemoveAll(dir); err != nil {
		panic(err)
	}
	os.Exit(code)
}

var drtm = func() pcr.Selection {
	s, err := pcr.Select(pcr.SHA256, 17, 18, 19)
	if err != nil {
		panic(err)
	}
	return s
}()

// bus stands between the actor and the TPM. It records, and its hook may act before a command or change bytes.
type bus struct {
	mu       sync.Mutex
	commands [][]byte
	answers  [][]byte
	// before runs before a command is sent; raw is the TPM without the bus.
	before func(raw transport.TPM, command []byte)
	// change may replace the answer.
	change func(command, answer []byte) []byte
	raw    transport.TPM
}

func (b *bus) wrap(t transport.TPM) transport.TPM {
	b.raw = t
	return b
}

func (b *bus) Send(command []byte) ([]byte, error) {
	b.mu.Lock()
	before, change := b.before, b.change
	b.mu.Unlock()
	if before != nil {
		before(b.raw, command)
	}
	answer, err := b.raw.Send(command)
	if err == nil && change != nil {
		answer = change(slices.Clone(command), slices.Clone(answer))
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.commands = append(b.commands, slices.Clone(command))
	b.answers = append(b.answers, slices.Clone(answer))
	return answer, err
}

func (b *bus) reset() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.commands, b.answers = nil, nil
}

func (b *bus) set(before func(transport.TPM, []byte), change func(_, _ []byte) []byte) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.before, b.change = before, change
}

func code(command []byte) tpm2.TPMCC { return tpm2.TPMCC(binary.BigEndian.Uint32(command[6:])) }

func (b *bus) codes() []tpm2.TPMCC {
	b.mu.Lock()
	defer b.mu.Unlock()
	var cs []tpm2.TPMCC
	for _, c := range b.commands {
		cs = append(cs, code(c))
	}
	return cs
}

// host is a real swtpm that booted, and its chip.
type host struct {
	*testing.T
	txt    *txt.TPM
	chip   *Chip
	bus    *bus
	config Config
	ctx    context.Context
}

// newHost starts a TPM, boots it, opens and provisions it.
func newHost(t *testing.T) *host {
	t.Helper()
	h := powerOn(t)
	if err := h.txt.Boot(txt.Example(txt.TbootLegacy)); err != nil {
		t.Fatal(err)
	}
	h.open()
	if _, err := h.chip.Provision(h.ctx); err != nil {
		t.Fatal(err)
	}
	return h
}

func powerOn(t *testing.T) *host {
	t.Helper()
	if testing.Short() {
		t.Skip("needs swtpm")
	}
	h := &host{T: t, bus: &bus{}, ctx: t.Context()}
	dir := t.TempDir()
	if err := txt.Prepare(h.ctx, dir, authority); err != nil {
		t.Fatal(err)
	}
	var err error
	if h.txt, err = txt.Start(h.ctx, dir); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if h.chip != nil {
			h.close()
		}
		if err := h.txt.Stop(); err != nil {
			t.Error(err)
		}
	})
	h.config = Config{Socket: h.txt.Socket(), Wrap: h.bus.wrap}
	return h
}

func (h *host) open() {
	h.Helper()
	var err error
	if h.chip, err = Open(h.ctx, h.config); err != nil {
		h.Fatal(err)
	}
}

func (h *host) close() {
	h.Helper()
	h.bus.set(nil, nil)
	if err := h.chip.Close(); err != nil {
		h.Error(err)
	}
	h.chip = nil
}

func must[T any](t testing.TB, v T, err error) T {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func (h *host) identity() *Identity {
	h.Helper()
	id, err := h.chip.Identity(h.ctx)
	return must(h, id, err)
}

func (h *host) counters() tpm.Counters {
	h.Helper()
	_, c, err := h.chip.Clock(h.ctx)
	return must(h, c, err)
}

func (h *host) ak() *tpm.AK {
	h.Helper()
	ak, err := tpm.ParseAK(h.identity().AKPublic)
	return must(h, ak, err)
}

func (h *host) srk() *tpm.SRK {
	h.Helper()
	srk, err := tpm.ParseSRK(h.identity().SRKPublic)
	return must(h, srk, err)
}

func (h *host) quote(sel pcr.Selection, extra string) tpm.Quote {
	h.Helper()
	q, err := h.chip.Quote(h.ctx, sel, []byte(extra))
	return must(h, q, err)
}

// seal seals as the verifier does: to the PCR values and counters that the host shows now.
func (h *host) seal(seed []byte, sel pcr.Selection) tpm.SealedSeed {
	h.Helper()
	values, err := h.chip.PCRs(h.ctx, sel)
	digest, err := must(h, values, err).Digest(sel)
	s, err := tpm.SealSeed(h.srk(), seed, tpm.ReleasePolicy(sel, must(h, digest, err), h.counters()))
	return *must(h, s, err)
}

func (h *host) install(seed []byte) tpm.SealedSeed {
	h.Helper()
	s := h.seal(seed, drtm)
	if err := h.chip.Install(h.ctx, s, drtm, h.counters()); err != nil {
		h.Fatal(err)
	}
	return s
}

func (h *host) unseals(want []byte) {
	h.Helper()
	got, err := h.chip.Unseal(h.ctx)
	if string(must(h, got, err)) != string(want) {
		h.Fatalf("unsealed %x, want %x", got, want)
	}
}

// held returns what is loaded in the TPM, asked of the TPM.
func (h *host) held() (objects, sessions int) {
	h.Helper()
	n, err := do(h.ctx, h.chip, "count handles", func(d *device) ([2]int, error) {
		o, err := d.handles(firstTransient)
		if err != nil {
			return [2]int{}, err
		}
		l, err := d.handles(firstLoadedSession)
		if err != nil {
			return [2]int{}, err
		}
		s, err := d.handles(firstSavedSession)
		return [2]int{len(o), len(l) + len(s)}, err
	})
	n = must(h, n, err)
	return n[0], n[1]
}

func (h *host) holds(objects, sessions int) {
	h.Helper()
	if o, s := h.held(); o != objects || s != sessions {
		h.Fatalf("the TPM holds %d objects and %d sessions, want %d and %d", o, s, objects, sessions)
	}
}

func readPEM(t testing.TB, path string) *x509.Certificate {
	t.Helper()
	b, err := os.ReadFile(path)
	block, _ := pem.Decode(must(t, b, err))
	if block == nil {
		t.Fatal(fmt.Errorf("no PEM in %s", path))
	}
	c, err := x509.ParseCertificate(block.Bytes)
	return must(t, c, err)
}
