package chip

import (
	"context"
	"encoding/binary"
	"errors"
	"os"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
)

// stubborn is a link that answers a code n times and then success.
type stubborn struct {
	n    int
	code uint32
}

func (s *stubborn) exchange([]byte) ([]byte, error) {
	code := s.code
	if s.n--; s.n < 0 {
		code = 0
	}
	return binary.BigEndian.AppendUint32([]byte{0x80, 1, 0, 0, 0, 10}, code), nil
}

func (s *stubborn) Close() error { return nil }

func TestTryAgain(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for _, c := range []tpm2.TPMRC{tpm2.TPMRCRetry, tpm2.TPMRCYielded, tpm2.TPMRCTesting, tpm2.TPMRCNVRate} {
		for n, want := range map[int]error{0: nil, 3: nil, maxRetries: nil, maxRetries + 1: ErrBusy} {
			if n >= maxRetries && c != tpm2.TPMRCRetry {
				continue // one second each
			}
			d := newDevice(&stubborn{n, uint32(c)}, Config{})
			d.ctx = ctx
			_, err := d.command(tpm2.TPMCCPolicyRestart, nil)
			if err != nil {
				err = classify(err)
			}
			if !errors.Is(err, want) {
				t.Errorf("%v %d times: %v, want %v", c, n, err, want)
			}
		}
	}
	for _, c := range []tpm2.TPMRC{tpm2.TPMRCLockout, tpm2.TPMRCFailure, tpm2.TPMRCInitialize} {
		d := newDevice(&stubborn{1, uint32(c)}, Config{})
		d.ctx = ctx
		if _, err := d.command(tpm2.TPMCCPolicyRestart, nil); !errors.Is(classify(err), ErrUnavailable) {
			t.Errorf("%v: %v", c, err)
		}
	}
}

// TestDevice runs the device link on what is no TPM.
func TestDevice(t *testing.T) {
	d := &deviceLink{path: "/dev/null", fd: -1}
	if err := d.open(); err != nil {
		t.Fatal(err)
	}
	if response, err := d.exchange([]byte{1}); err == nil && len(response) != 0 {
		t.Errorf("/dev/null answered %x", response)
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	file := t.TempDir() + "/file"
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := (&deviceLink{path: file, fd: -1}).open(); !errors.Is(err, ErrUnavailable) {
		t.Errorf("a file as a device: %v", err)
	}
}
