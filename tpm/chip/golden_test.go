package chip

import (
	"encoding/binary"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/google/go-tpm/tpm2"
)

var update = flag.Bool("update", false, "write golden files")

var commandNames = map[tpm2.TPMCC]string{
	tpm2.TPMCCImport: "Import", tpm2.TPMCCLoad: "Load", tpm2.TPMCCStartAuthSession: "StartAuthSession",
	tpm2.TPMCCFlushContext: "FlushContext", tpm2.TPMCCPolicyPCR: "PolicyPCR",
	tpm2.TPMCCPolicyCounterTimer: "PolicyCounterTimer", tpm2.TPMCCUnseal: "Unseal", tpm2.TPMCCQuote: "Quote",
}

// TestGolden compares the commands of one launch, as the transport sees them, with testdata/launch.golden: what an
// epoch costs, what a batch costs, and that only persistent handles, one object and one session are in use.
func TestGolden(t *testing.T) {
	h := newHost(t)
	h.identity() // hostd asks for it when it starts
	var b strings.Builder
	s, c := h.seal(seed, drtm), h.counters()
	record := func(title string, f func()) {
		h.bus.reset()
		f()
		fmt.Fprintf(&b, "%s\n", title)
		for _, command := range h.bus.commands {
			fmt.Fprintf(&b, "\t%s\n", describe(t, command))
		}
	}
	epoch := func() {
		if err := h.chip.Install(h.ctx, s, drtm, c); err != nil {
			t.Fatal(err)
		}
	}
	batch := func() {
		h.unseals(seed)
		h.quote(drtm, "troth/quote/v1")
	}
	record("epoch 1", epoch)
	record("launch 1: one batch", batch)
	record("launch 2: one batch", batch)
	record("epoch 2", epoch)
	record("launch 3: one batch", batch)

	const golden = "testdata/launch.golden"
	if *update {
		if err := os.WriteFile(golden, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if string(must(t, want, err)) != b.String() {
		t.Errorf("commands differ from %s (-update writes it):\n%s", golden, b.String())
	}
}

// describe returns a command's name, its handles and the sessions that authorize it.
func describe(t *testing.T, command []byte) string {
	t.Helper()
	name, ok := commandNames[code(command)]
	if !ok {
		t.Errorf("command %#x is not one of a launch", uint32(code(command)))
		name = fmt.Sprintf("%#x", uint32(code(command)))
	}
	line := name + " " + handleText(binary.BigEndian.Uint32(command[10:]))
	if binary.BigEndian.Uint16(command) == uint16(tpm2.TPMSTSessions) {
		session := binary.BigEndian.Uint32(command[18:])
		nonce := int(binary.BigEndian.Uint16(command[22:]))
		line += fmt.Sprintf(", authorized by %s, session attributes %02x", handleText(session), command[24+nonce])
	}
	return line
}

// handleText names a handle by its kind where the TPM chooses the number.
func handleText(h uint32) string {
	switch {
	case h == uint32(tpm2.TPMRSPW):
		return "password"
	case h>>24 == 0x80:
		return "transient object"
	case h>>24 == 0x02, h>>24 == 0x03:
		return "session"
	}
	return fmt.Sprintf("persistent %08x", h)
}
