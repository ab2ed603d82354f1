package proof

import (
	"encoding/binary"
	"testing"
)

// luksHead is a partition header as QEMU makes it: a payload behind eight key slots.
func luksHead(change ...func(b []byte)) []byte {
	b := make([]byte, LUKSHead)
	copy(b, "LUKS\xba\xbe\x00\x01")
	put := func(at int, v uint32) { binary.BigEndian.PutUint32(b[at:], v) }
	put(104, 4096)
	put(108, 64)
	for i := range 8 {
		put(208+48*i+40, uint32(8+504*i))
		put(208+48*i+44, 4000)
	}
	for _, f := range change {
		f(b)
	}
	return b
}

func TestLUKSHeaderSize(t *testing.T) {
	if n, err := LUKSHeaderSize(luksHead()); err != nil || n != 4096*512 {
		t.Fatalf("%d, %v", n, err)
	}
	put := binary.BigEndian.PutUint32
	for name, b := range map[string][]byte{
		"empty":                      nil,
		"short":                      luksHead()[:LUKSHead-1],
		"another magic":              luksHead(func(b []byte) { b[0] = 'l' }),
		"LUKS2":                      luksHead(func(b []byte) { b[7] = 2 }),
		"payload in the header":      luksHead(func(b []byte) { put(b[104:], 1) }),
		"payload at 0":               luksHead(func(b []byte) { put(b[104:], 0) }),
		"payload far away":           luksHead(func(b []byte) { put(b[104:], 1<<31) }),
		"key material in the head":   luksHead(func(b []byte) { put(b[208+40:], 1) }),
		"key material in payload":    luksHead(func(b []byte) { put(b[208+48*7+40:], 4095) }),
		"material beyond everything": luksHead(func(b []byte) { put(b[208+40:], 1<<32-1); put(b[208+44:], 1<<32-1) }),
		"huge key":                   luksHead(func(b []byte) { put(b[108:], 1<<32-1) }),
	} {
		if n, err := LUKSHeaderSize(b); err == nil {
			t.Errorf("%s: %d bytes", name, n)
		}
	}
}

func FuzzLUKSHeaderSize(f *testing.F) {
	f.Add(luksHead())
	f.Fuzz(func(t *testing.T, b []byte) {
		if n, err := LUKSHeaderSize(b); err == nil && (n < LUKSHead || n > MaxLUKSHeader) {
			t.Errorf("%d bytes", n)
		}
	})
}

// TestDiskKey pins the derivation: another would lock tenants out of their volumes.
func TestDiskKey(t *testing.T) {
	secret := NewSecret([]byte("the tenant's"))
	a, b := DiskKey(secret, "vda"), DiskKey(secret, "vdb")
	if a.Len() != 64 || a.Equal(b) {
		t.Error("keys of two disks are the same, or no key has 64 digits")
	}
	if got := string(a.Reveal()); got != "6c3bb4a81b283150881bc3cb106473989490bf03a7f1e89a09d675c61d331883" {
		t.Errorf("the key of vda is %s", got)
	}
}
