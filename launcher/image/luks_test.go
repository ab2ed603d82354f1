package image

import (
	"bytes"
	"context"
	"crypto/sha256"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"troth/proof"
)

// TestLUKS measures a real volume: its header counts, what the guest writes to does not.
func TestLUKS(t *testing.T) {
	dir := temp(t)
	pass, p := file(t, dir, "pass", []byte("a passphrase")), filepath.Join(dir, "data.luks")
	out, err := exec.Command("qemu-img", "create", "-q", "--object", "secret,id=k,file="+pass, "-f", "luks", "-o", "key-secret=k,hash-alg=sha512,iter-time=10", p, "1M").CombinedOutput()
	if err != nil {
		t.Fatalf("cannot make a volume with qemu-img: %v: %s", err, out)
	}
	whole, err := os.ReadFile(p)
	must(t, err)
	size, err := proof.LUKSHeaderSize(whole[:proof.LUKSHead])
	must(t, err)
	if size >= int64(len(whole)) || int64(len(whole))-size != 1<<20 {
		t.Fatalf("a header of %d bytes in a volume of %d", size, len(whole))
	}
	of := func(b []byte) (proof.Digest, error) {
		h, err := Open(file(t, dir, "copy.luks", b))
		must(t, err)
		defer closed(t, h)
		return h.LUKS(context.Background())
	}
	want := proof.Digest(sha256.Sum256(whole[:size]))
	if d, err := of(whole); err != nil || d != want {
		t.Errorf("%v, %v; want %v", d, err, want)
	}
	change := func(at int64) []byte {
		b := bytes.Clone(whole)
		b[at] ^= 1
		return b
	}
	if d, err := of(change(size)); err != nil || d != want {
		t.Errorf("a byte of the payload changed it: %v, %v", d, err)
	}
	for _, at := range []int64{140, 270, proof.LUKSHead, 4096, size - 1} {
		if d, err := of(change(at)); err != nil || d == want {
			t.Errorf("byte %d does not count: %v, %v", at, d, err)
		}
	}
	for name, b := range map[string][]byte{"LUKS2": change(7), "another magic": change(0), "cut": whole[:size-1], "empty": nil, "a raw disk": make([]byte, 1<<20)} {
		_, err := of(b)
		if err == nil {
			t.Errorf("%s was measured", name)
			continue
		}
		wantRefusal(t, err, proof.ImageNotMeasured, "LUKS")
	}
}
