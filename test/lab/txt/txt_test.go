package txt

import (
	"bytes"
	"context"
	"encoding/binary"
	"testing"
)

// pcrRead reads PCR 17, 18, 19 and the counters with commands written out here.
func read(t *testing.T, tpm *TPM) (values map[int][32]byte, reset, restart uint32) {
	t.Helper()
	request := []byte{0x80, 1, 0, 0, 0, 20, 0, 0, 1, 0x7e, 0, 0, 0, 1, 0, 0x0B, 3, 0, 0, 0x0E}
	response, err := exchange(tpm.Socket(), request, 10)
	if err != nil {
		t.Fatal(err)
	}
	values = map[int][32]byte{}
	rest := response[10+4+10+4:] // header, counter, selection, digest count
	for i := 17; i <= 19; i++ {
		values[i] = [32]byte(rest[2:34])
		rest = rest[34:]
	}
	response, err = exchange(tpm.Socket(), []byte{0x80, 1, 0, 0, 0, 10, 0, 0, 1, 0x81}, 10) // ReadClock
	if err != nil {
		t.Fatal(err)
	}
	return values, binary.BigEndian.Uint32(response[26:]), binary.BigEndian.Uint32(response[30:])
}

func TestLaunch(t *testing.T) {
	if testing.Short() {
		t.Skip("needs swtpm")
	}
	tpm, err := Start(context.Background(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := tpm.Stop(); err != nil {
			t.Error(err)
		}
	}()
	ones := [32]byte(bytes.Repeat([]byte{0xff}, 32))
	values, reset, restart := read(t, tpm)
	if values[17] != ones || values[18] != ones || values[19] != ones || restart != 0 {
		t.Fatalf("before a launch: %x, restart %d", values, restart)
	}
	for _, l := range []Launcher{TbootLegacy, TbootDA, SLaunch} {
		if err := tpm.Boot(Example(l)); err != nil {
			t.Fatal(err)
		}
		want, err := Example(l).Expected()
		if err != nil {
			t.Fatal(err)
		}
		restart++
		got, _, n := read(t, tpm)
		for i := range want {
			if got[i] != want[i] {
				t.Errorf("%s: PCR %d is %x, want %x", l, i, got[i], want[i])
			}
		}
		if n != restart {
			t.Errorf("%s: restartCount %d, want %d", l, n, restart)
		}
		if unused := want[19] == [32]byte{}; unused != (l != TbootLegacy) {
			t.Errorf("%s: PCR 19 is %x", l, want[19])
		}
	}
	if err := tpm.Extend(0, 18, ones); err == nil {
		t.Error("PCR 18 was extended at locality 0")
	}
	if err := tpm.S3(); err != nil {
		t.Fatal(err)
	}
	if got, r, n := read(t, tpm); got[17] != ones || r != reset || n != restart+1 {
		t.Errorf("after S3: %x, reset %d, restart %d", got[17], r, n)
	}
	if err := tpm.Reset(); err != nil {
		t.Fatal(err)
	}
	if got, r, n := read(t, tpm); got[17] != ones || r != reset+1 || n != 0 {
		t.Errorf("after reset: %x, reset %d, restart %d", got[17], r, n)
	}
	if a, err := Attach(tpm.dir); err != nil || a.Socket() != tpm.Socket() {
		t.Errorf("attach: %v", err)
	}
}
