package tpm

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-tpm/tpm2"
)

func seeds(f *testing.F, names ...string) {
	f.Helper()
	for _, n := range names {
		b, err := os.ReadFile(filepath.Join("testdata/stored", n))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
}

// FuzzAttest compares the reader of TPMS_ATTEST with go-tpm: what it accepts, go-tpm reads too, and writes back as
// the same bytes.
func FuzzAttest(f *testing.F) {
	seeds(f, "quote.msg", "certify.msg")
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, typ := range []tpm2.TPMST{tpm2.TPMSTAttestQuote, tpm2.TPMSTAttestCertify} {
			m, err := parseAttest(b, typ)
			if err != nil {
				continue
			}
			a, err := tpm2.Unmarshal[tpm2.TPMSAttest](b)
			if err != nil {
				t.Fatalf("go-tpm does not read it: %v", err)
			}
			if !bytes.Equal(tpm2.Marshal(*a), b) {
				t.Fatalf("%x is %x when written again", b, tpm2.Marshal(*a))
			}
			if !bytes.Equal(a.ExtraData.Buffer, m.ExtraData) || a.ClockInfo.ResetCount != m.Counters.Reset || a.ClockInfo.Clock != m.Clock {
				t.Fatalf("read as %+v, go-tpm reads %+v", m, a)
			}
		}
	})
}

// FuzzPublic feeds the key readers: what one accepts has one encoding.
func FuzzPublic(f *testing.F) {
	seeds(f, "ak", "srk", "ek0", "ek1")
	f.Fuzz(func(t *testing.T, b []byte) {
		if a, err := ParseAK(b); err == nil && (!bytes.Equal(a.Public(), b)) {
			t.Errorf("AK %x", b)
		}
		if s, err := ParseSRK(b); err == nil && !bytes.Equal(s.Public(), b) {
			t.Errorf("SRK %x", b)
		}
		if e, err := ParseEK(b); err == nil && !bytes.Equal(e.Public(), b) {
			t.Errorf("EK %x", b)
		}
		s := SealedSeed{Public: b}
		if policy, err := s.Check(); err == nil && policy == [32]byte{} && bytes.Count(b, []byte{0}) < 32 {
			t.Errorf("sealed %x", b)
		}
	})
}
