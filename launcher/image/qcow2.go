package image

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// Header is what a qcow2 image says of itself (QEMU, docs/interop/qcow2.txt, "Header").
type Header struct {
	Version       uint32
	VirtualSize   uint64 // bytes that the guest sees
	Backing       string // file below, as the image names it; "": none
	BackingFormat string // header extension 0xe2792aca
	DataFile      bool   // the content is in another file
	Encryption    string // "", "aes", "luks"
	Corrupt       bool
}

// Bounds of the format, as QEMU has them.
const (
	qcow2Magic      = 0x514649fb
	qcow2MinHeader  = 72
	qcow2MaxBacking = 1023
	minClusterBits  = 9
	maxClusterBits  = 21
	maxExtensions   = 64
	maxL1           = 32 << 20 / 8
)

// Incompatible feature bits and header extensions that we look for.
const (
	featureDirty, featureCorrupt, featureData = 1 << 0, 1 << 1, 1 << 2
	featureCompression, featureExtendedL2     = 1 << 3, 1 << 4
	knownFeatures                             = featureDirty | featureCorrupt | featureData | featureCompression | featureExtendedL2

	extensionEnd           = 0
	extensionBackingFormat = 0xe2792aca
	extensionData          = 0x44415441
)

var errQCOW2 = errors.New("not a qcow2 image that this launcher reads")

// ParseQCOW2 reads the header of an image of size bytes. It looks at no more than the first cluster.
func ParseQCOW2(r io.ReaderAt, size int64) (*Header, error) {
	bad := func(format string, args ...any) (*Header, error) {
		return nil, fmt.Errorf("cannot read qcow2 header: %w: %s", errQCOW2, fmt.Sprintf(format, args...))
	}
	fixed := make([]byte, 112)
	n, err := r.ReadAt(fixed, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("cannot read qcow2 header: %w", err)
	}
	if n < qcow2MinHeader {
		return bad("the file has %d bytes", n)
	}
	u32 := func(off int) uint32 { return binary.BigEndian.Uint32(fixed[off:]) }
	u64 := func(off int) uint64 { return binary.BigEndian.Uint64(fixed[off:]) }
	if u32(0) != qcow2Magic {
		return bad("the magic is %08x", u32(0))
	}
	h := &Header{Version: u32(4), VirtualSize: u64(24)}
	bits, length := u32(20), uint32(qcow2MinHeader)
	switch {
	case bits < minClusterBits || bits > maxClusterBits:
		return bad("clusters of 2^%d bytes", bits)
	case u32(36) > maxL1:
		return bad("an L1 table of %d entries", u32(36))
	}
	var features uint64
	switch h.Version {
	case 2:
	case 3:
		if features, length = u64(72), u32(100); length < 104 || length%8 != 0 || length > 1<<bits {
			return bad("a header of %d bytes", length)
		}
	default:
		return bad("version %d", h.Version)
	}
	if unknown := features &^ uint64(knownFeatures); unknown != 0 {
		return bad("unknown incompatible features %x", unknown)
	}
	h.DataFile, h.Corrupt = features&featureData != 0, features&featureCorrupt != 0
	switch u32(32) {
	case 0:
	case 1:
		h.Encryption = "aes"
	case 2:
		h.Encryption = "luks"
	default:
		return bad("encryption method %d", u32(32))
	}
	cluster := make([]byte, min(int64(1)<<bits, size))
	if _, err := io.ReadFull(io.NewSectionReader(r, 0, int64(len(cluster))), cluster); err != nil {
		return nil, fmt.Errorf("cannot read qcow2 header: %w", err)
	}
	if err := h.backing(cluster, u64(8), u32(16), length); err != nil {
		return bad("%v", err)
	}
	// QEMU reads extensions up to the backing file's name, which may stand in no extension (block/qcow2.c, qcow2_open).
	if h.Backing != "" {
		cluster = cluster[:u64(8)]
	}
	if err := h.extensions(cluster, uint64(length)); err != nil {
		return bad("%v", err)
	}
	return h, nil
}

// backing reads the name of the file below, which lies in the first cluster.
func (h *Header) backing(cluster []byte, offset uint64, size, header uint32) error {
	if offset == 0 {
		return nil // QEMU, block/qcow2.c: no offset, no backing file, whatever the size says
	}
	end := offset + uint64(size)
	if size == 0 || size > qcow2MaxBacking || offset < uint64(header) || end < offset || end > uint64(len(cluster)) {
		return fmt.Errorf("a backing file name of %d bytes at %d", size, offset)
	}
	h.Backing = string(cluster[offset:end])
	return nil
}

// extensions walks the header extensions up to their end mark.
func (h *Header) extensions(cluster []byte, at uint64) error {
	for range maxExtensions {
		if at+8 > uint64(len(cluster)) {
			return errors.New("header extensions without an end")
		}
		kind, size := binary.BigEndian.Uint32(cluster[at:]), uint64(binary.BigEndian.Uint32(cluster[at+4:]))
		at += 8
		if kind == extensionEnd {
			return nil
		}
		if at+size > uint64(len(cluster)) {
			return fmt.Errorf("a header extension of %d bytes", size)
		}
		switch kind {
		case extensionBackingFormat:
			if h.BackingFormat != "" {
				return errors.New("two formats of the backing file")
			}
			h.BackingFormat = string(cluster[at : at+size])
		case extensionData:
			h.DataFile = true
		}
		at += (size + 7) &^ 7
	}
	return errors.New("too many header extensions")
}
