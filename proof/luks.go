package proof

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
)

// Bounds of a LUKS header. The format is LUKS1 (LUKS On-Disk Format Specification 1.2.3), the one that QEMU opens (crypto/block-luks.c).
const (
	LUKSHead      = 592      // bytes of the partition header, which says how long the header area is
	MaxLUKSHeader = 16 << 20 // of the header area; QEMU and cryptsetup make about 2 MiB
)

const (
	luksSector    = 512
	luksSlots     = 8
	luksFirstSlot = 208
	luksSlotSize  = 48
)

// LUKSHeaderSize says how many bytes from the start of a LUKS1 volume are its header: partition header and key material, up to the payload.
// Whoever knows these bytes and the passphrase knows the volume's key, and no other header has their digest.
func LUKSHeaderSize(head []byte) (int64, error) {
	if len(head) < LUKSHead || !bytes.Equal(head[:6], []byte("LUKS\xba\xbe")) {
		return 0, errors.New("cannot read LUKS header: it is not a LUKS volume")
	}
	if version := binary.BigEndian.Uint16(head[6:]); version != 1 {
		return 0, fmt.Errorf("cannot read LUKS header: version %d: QEMU opens LUKS1 only", version)
	}
	u32 := func(off int) int64 { return int64(binary.BigEndian.Uint32(head[off:])) }
	size, key := u32(104)*luksSector, u32(108)
	if size < LUKSHead || size > MaxLUKSHeader {
		return 0, fmt.Errorf("cannot read LUKS header: the payload begins at byte %d", size)
	}
	for i := range luksSlots {
		slot := luksFirstSlot + i*luksSlotSize
		begin, stripes := u32(slot+40)*luksSector, u32(slot+44)
		if key > MaxLUKSHeader || begin < LUKSHead || begin+key*stripes > size {
			return 0, fmt.Errorf("cannot read LUKS header: the material of key slot %d is not in front of the payload", i)
		}
	}
	return size, nil
}

// DiskKey is the passphrase of the sealed disk TARGET: 64 hex digits of HKDF(token secret, LabelDiskKey, target). The tenant makes the
// volume with it, and hostd hands it to QEMU once the secret is released.
func DiskKey(secret Secret, target string) Secret {
	key := Derive(secret, LabelDiskKey, []byte(target))
	defer key.Forget()
	text := make([]byte, 2*key.Len())
	hex.Encode(text, key.raw())
	return secretOf(text)
}
