package txt

import (
	"crypto/sha256"
	"encoding/binary"
)

// Expected computes PCR 17 to 19 after a boot of the script, with crypto/sha256 and nothing of the product's: the
// processor's hash sequence leaves H(0 ‖ H(SINIT)) in 17 and zero in 18 to 22; each extend is H(old ‖ digest).
func (s Script) Expected() (map[int][32]byte, error) {
	steps, err := s.steps()
	if err != nil {
		return nil, err
	}
	start := sha256.Sum256(s.SINIT)
	values := map[int][32]byte{
		17: sha256.Sum256(append(make([]byte, 32), start[:]...)),
		18: {},
		19: {},
	}
	for _, m := range steps {
		if m.locality == 0 {
			continue
		}
		old := values[m.index]
		values[m.index] = sha256.Sum256(append(old[:], m.digest[:]...))
	}
	return values, nil
}

// Log returns the crypto-agile event log that the boot leaves (TCG PC Client Platform Firmware Profile, 10), byte by
// byte, with SHA-1 and SHA-256 digests as real logs have; the SHA-1 ones are of the SHA-256 ones and mean nothing.
func (s Script) Log() ([]byte, error) {
	steps, err := s.steps()
	if err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	spec := append([]byte("Spec ID Event03\x00"), 0, 0, 0, 0, 0, 2, 0, 2)
	spec = le.AppendUint32(spec, 2)
	for _, a := range [][2]uint16{{0x4, 20}, {0xB, 32}} {
		spec = le.AppendUint16(le.AppendUint16(spec, a[0]), a[1])
	}
	spec = append(spec, 0)
	b := le.AppendUint32(le.AppendUint32(nil, 0), 3)
	b = append(b, make([]byte, 20)...)
	b = append(le.AppendUint32(b, uint32(len(spec))), spec...)

	start := step{4, 17, evHashStart, sha256.Sum256(s.SINIT), "SINIT ACM"}
	for _, m := range append([]step{start}, steps...) {
		b = le.AppendUint32(le.AppendUint32(b, uint32(m.index)), m.typ)
		b = le.AppendUint32(b, 2)
		sha1 := sha256.Sum256(m.digest[:])
		b = append(le.AppendUint16(b, 0x4), sha1[:20]...)
		b = append(le.AppendUint16(b, 0xB), m.digest[:]...)
		b = append(le.AppendUint32(b, uint32(len(m.text))), m.text...)
	}
	return b, nil
}
