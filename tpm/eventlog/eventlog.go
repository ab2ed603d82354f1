package eventlog

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"troth/tpm/pcr"
)

// Bounds of a log.
const (
	MaxSize   = 1 << 20
	MaxEvents = 4096
	maxBanks  = 8
	maxDigest = 64
)

// Event is one measurement: what was extended into which PCR.
type Event struct {
	Index  int
	Type   uint32
	Digest pcr.Digest // of the SHA-256 bank
	Data   []byte
}

// specID is the signature of TCG_EfiSpecIDEvent (PC Client Platform Firmware Profile, 10.4.5.1).
var specID = []byte("Spec ID Event03\x00")

// Parse reads a log of at most 1 MiB and 4096 events. Every event needs a SHA-256 digest, and every digest an
// algorithm that the header names. Nothing may follow the last event.
func Parse(b []byte) ([]Event, error) {
	if len(b) > MaxSize {
		return nil, fmt.Errorf("cannot read event log: %d bytes, at most %d", len(b), MaxSize)
	}
	r := &reader{rest: b}
	sizes, err := header(r)
	if err != nil {
		return nil, fmt.Errorf("cannot read event log: header: %w", err)
	}
	var events []Event
	for len(r.rest) > 0 {
		if len(events) == MaxEvents {
			return nil, fmt.Errorf("cannot read event log: more than %d events", MaxEvents)
		}
		e, err := event(r, sizes)
		if err != nil {
			return nil, fmt.Errorf("cannot read event log: event %d: %w", len(events), err)
		}
		events = append(events, e)
	}
	return events, nil
}

// header reads the first event, a TCG_PCClientPCREvent that holds TCG_EfiSpecIDEvent, and returns the digest size
// of each algorithm that the log uses.
func header(r *reader) (map[pcr.Bank]int, error) {
	index, typ, digest, size := r.u32(), r.u32(), r.bytes(20), r.u32()
	s := &reader{rest: r.bytes(int(size))}
	if r.failed || index != 0 || typ != NoAction || !bytes.Equal(digest, make([]byte, 20)) {
		return nil, errors.New("no TCG_PCClientPCREvent of type EV_NO_ACTION for PCR 0")
	}
	if !bytes.Equal(s.bytes(len(specID)), specID) {
		return nil, errors.New("no signature \"Spec ID Event03\": the log is not crypto-agile")
	}
	s.bytes(8) // platformClass, spec version, errata, uintnSize
	count := s.u32()
	if s.failed || count == 0 || count > maxBanks {
		return nil, fmt.Errorf("%d algorithms, want 1 to %d", count, maxBanks)
	}
	sizes := map[pcr.Bank]int{}
	for range count {
		bank, n := pcr.Bank(s.u16()), int(s.u16())
		if _, twice := sizes[bank]; twice || n == 0 || n > maxDigest {
			return nil, fmt.Errorf("algorithm %v with digests of %d bytes, or twice", bank, n)
		}
		sizes[bank] = n
	}
	s.bytes(int(s.u8())) // vendorInfo
	if s.failed || len(s.rest) != 0 {
		return nil, errors.New("the Spec ID event has the wrong length")
	}
	if sizes[pcr.SHA256] != 32 {
		return nil, errors.New("no sha256 digests")
	}
	return sizes, nil
}

// event reads one TCG_PCR_EVENT2 (PC Client Platform Firmware Profile, 10.2.2).
func event(r *reader, sizes map[pcr.Bank]int) (Event, error) {
	index, typ, count := r.u32(), r.u32(), r.u32()
	if r.failed {
		return Event{}, errors.New("truncated")
	}
	if index >= pcr.Count {
		return Event{}, fmt.Errorf("PCR %d: there are 0 to %d", index, pcr.Count-1)
	}
	if count == 0 || int64(count) > int64(len(sizes)) {
		return Event{}, fmt.Errorf("%d digests: the header names %d algorithms", count, len(sizes))
	}
	e := Event{Index: int(index), Type: typ}
	seen := map[pcr.Bank]bool{}
	for range count {
		bank := pcr.Bank(r.u16())
		n, known := sizes[bank]
		if r.failed || !known || seen[bank] {
			return Event{}, fmt.Errorf("digest of algorithm %v: truncated, not in the header, or twice", bank)
		}
		seen[bank] = true
		d := r.bytes(n)
		if bank == pcr.SHA256 && !r.failed {
			e.Digest = pcr.Digest(d)
		}
	}
	if !seen[pcr.SHA256] {
		return Event{}, errors.New("no sha256 digest")
	}
	e.Data = bytes.Clone(r.bytes(int(r.u32())))
	if r.failed {
		return Event{}, errors.New("truncated")
	}
	return e, nil
}

// Replay returns the values of PCR 17 to 22 that the events give, from the zero that a dynamic launch resets them
// to. A PCR without extending events is absent from the result, so that nobody takes silence for a value.
func Replay(events []Event) pcr.Values {
	v := pcr.Values{}
	for _, e := range events {
		if e.Extended() && e.Index >= pcr.DynamicFirst && e.Index <= pcr.DynamicLast {
			v[e.Index] = pcr.Extend(v[e.Index], e.Digest)
		}
	}
	return v
}

// Extended tells whether the event was extended into its PCR: EV_NO_ACTION never is, nor are Secure Launch's
// markers of the begin and end of its own part of the log.
func (e Event) Extended() bool {
	return e.Type != NoAction && e.Type != SlaunchStart && e.Type != SlaunchEnd
}

// Mismatch says that a PCR's value is not what the log's events give.
type Mismatch struct {
	Index     int
	Want, Got pcr.Digest // the value that a quote signed; what the events give
	NoEvents  bool       // the log has no event for this PCR: it explains nothing
}

func (e *Mismatch) Error() string {
	if e.NoEvents {
		return fmt.Sprintf("event log explains nothing about PCR %d: it has no event for it", e.Index)
	}
	return fmt.Sprintf("event log gives %x for PCR %d, which holds %x", e.Got, e.Index, e.Want)
}

// Check replays the events and returns a *Mismatch unless they give each of the values. A value of zero (a PCR that
// the launcher leaves unused) is explained by the absence of events.
func Check(events []Event, values pcr.Values) error {
	got := Replay(events)
	for _, i := range values.Indexes() {
		g, ok := got[i]
		if g != values[i] {
			return &Mismatch{Index: i, Want: values[i], Got: g, NoEvents: !ok}
		}
	}
	return nil
}

// Encode writes a log with SHA-256 digests only, which Parse reads back.
func Encode(events []Event) []byte {
	le := binary.LittleEndian
	spec := append(bytes.Clone(specID), 0, 0, 0, 0, 0, 2, 0, 2) // client platform, version 2.00, 64-bit UINTN
	spec = le.AppendUint32(spec, 1)
	spec = le.AppendUint16(spec, uint16(pcr.SHA256))
	spec = le.AppendUint16(spec, 32)
	spec = append(spec, 0)
	b := le.AppendUint32(nil, 0)
	b = le.AppendUint32(b, NoAction)
	b = append(b, make([]byte, 20)...)
	b = le.AppendUint32(b, uint32(len(spec)))
	b = append(b, spec...)
	for _, e := range events {
		b = le.AppendUint32(b, uint32(e.Index))
		b = le.AppendUint32(b, e.Type)
		b = le.AppendUint32(b, 1)
		b = le.AppendUint16(b, uint16(pcr.SHA256))
		b = append(b, e.Digest[:]...)
		b = le.AppendUint32(b, uint32(len(e.Data)))
		b = append(b, e.Data...)
	}
	return b
}

// reader takes little-endian fields from the front; once a field is missing, all later ones are, and failed is set.
type reader struct {
	rest   []byte
	failed bool
}

func (r *reader) bytes(n int) []byte {
	if r.failed || n < 0 || n > len(r.rest) {
		r.failed, r.rest = true, nil
		return nil
	}
	b := r.rest[:n]
	r.rest = r.rest[n:]
	return b
}

func (r *reader) number(n int) (v uint32) {
	for i, b := range r.bytes(n) {
		v |= uint32(b) << (8 * i)
	}
	return v
}

func (r *reader) u8() uint8   { return uint8(r.number(1)) }
func (r *reader) u16() uint16 { return uint16(r.number(2)) }
func (r *reader) u32() uint32 { return r.number(4) }
