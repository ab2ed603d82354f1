package eventlog_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"slices"
	"testing"

	"troth/test/lab/txt"
	"troth/tpm/eventlog"
	"troth/tpm/pcr"
)

var launchers = []txt.Launcher{txt.TbootLegacy, txt.TbootDA, txt.SLaunch}

func log(t testing.TB, l txt.Launcher) (raw []byte, events []eventlog.Event, values pcr.Values) {
	t.Helper()
	raw, err := txt.Example(l).Log()
	if err != nil {
		t.Fatal(err)
	}
	if events, err = eventlog.Parse(raw); err != nil {
		t.Fatal(err)
	}
	expected, err := txt.Example(l).Expected()
	if err != nil {
		t.Fatal(err)
	}
	return raw, events, expected
}

func TestReplay(t *testing.T) {
	for _, l := range launchers {
		_, events, values := log(t, l)
		if err := eventlog.Check(events, values); err != nil {
			t.Errorf("%s: %v", l, err)
		}
		for _, e := range events {
			if eventlog.TypeName(e.Type)[0] == '0' {
				t.Errorf("%s: type %#x has no name", l, e.Type)
			}
		}
		again, err := eventlog.Parse(eventlog.Encode(events))
		if err != nil || !slices.EqualFunc(again, events, equal) {
			t.Errorf("%s: encoded and read again: %v", l, err)
		}
	}
	_, events, values := log(t, txt.SLaunch)
	if _, ok := eventlog.Replay(events)[19]; ok || values[19] != (pcr.Digest{}) {
		t.Error("PCR 19 has a replayed value without events")
	}
}

func equal(a, b eventlog.Event) bool {
	return a.Index == b.Index && a.Type == b.Type && a.Digest == b.Digest && bytes.Equal(a.Data, b.Data)
}

func TestAttack(t *testing.T) {
	t.Run("A-LOG", func(t *testing.T) {
		for _, l := range launchers {
			raw, events, values := log(t, l)
			attackReplay(t, events, values)
			attackBytes(t, raw, events, values)
		}
	})
}

// attackReplay changes what a log says: no change that matters replays to the values.
func attackReplay(t *testing.T, events []eventlog.Event, values pcr.Values) {
	t.Helper()
	refuse := func(name string, index int, change func([]eventlog.Event) []eventlog.Event) {
		t.Helper()
		err := eventlog.Check(change(slices.Clone(events)), values)
		var e *eventlog.Mismatch
		if !errors.As(err, &e) || e.Index != index {
			t.Errorf("%s: %v, want a mismatch of PCR %d", name, err, index)
		}
	}
	refuse("an event removed", 17, func(e []eventlog.Event) []eventlog.Event { return e[1:] })
	refuse("reordered", 17, func(e []eventlog.Event) []eventlog.Event { e[0], e[1] = e[1], e[0]; return e })
	refuse("an event twice", 17, func(e []eventlog.Event) []eventlog.Event { return slices.Insert(e, 1, e[0]) })
	refuse("a digest changed", 17, func(e []eventlog.Event) []eventlog.Event { e[2].Digest[0] ^= 1; return e })
	refuse("moved to another PCR", 17, func(e []eventlog.Event) []eventlog.Event { e[1].Index = 18; return e })
	refuse("an event hidden as no-action", 17, func(e []eventlog.Event) []eventlog.Event { e[0].Type = eventlog.NoAction; return e })
	refuse("an event hidden as a marker", 17, func(e []eventlog.Event) []eventlog.Event { e[0].Type = eventlog.SlaunchEnd; return e })
	refuse("a PCR without events", 18, func(e []eventlog.Event) []eventlog.Event {
		return slices.DeleteFunc(e, func(e eventlog.Event) bool { return e.Index == 18 })
	})
	refuse("no events", 17, func([]eventlog.Event) []eventlog.Event { return nil })

	silent := eventlog.Check(nil, pcr.Values{18: values[18]})
	var e *eventlog.Mismatch
	if !errors.As(silent, &e) || !e.NoEvents {
		t.Errorf("a PCR without events: %v", silent)
	}
	// No-action events and markers, however many and whatever their digest, change nothing.
	quiet := slices.Clone(events)
	for _, typ := range []uint32{eventlog.NoAction, eventlog.SlaunchStart, eventlog.SlaunchEnd} {
		quiet = slices.Insert(quiet, 1, eventlog.Event{Index: 17, Type: typ, Digest: pcr.Digest{1}})
	}
	if err := eventlog.Check(quiet, values); err != nil {
		t.Errorf("no-action events were extended: %v", err)
	}
	// Types and data are covered by no digest: they change nothing, and nothing may rest on them.
	retyped := slices.Clone(events)
	for i := range retyped {
		if retyped[i].Extended() {
			retyped[i].Type, retyped[i].Data = eventlog.MLEHash, []byte("good MLE")
		}
	}
	if err := eventlog.Check(retyped, values); err != nil {
		t.Errorf("retyped: %v", err)
	}
}

// attackBytes changes the log's bytes: each is refused, or reads as a log that still replays by the same rules.
func attackBytes(t *testing.T, raw []byte, events []eventlog.Event, values pcr.Values) {
	t.Helper()
	ends := map[int]bool{len(raw): true} // offsets at which an event ends: a shorter log is well-formed there
	for i := range raw {
		if got, err := eventlog.Parse(raw[:i]); err == nil {
			ends[i] = true
			if eventlog.Check(got, values) == nil && len(got) < len(events)-1 {
				t.Errorf("truncated to %d bytes: replays", i)
			}
		}
	}
	if len(ends) != len(events)+1 {
		t.Errorf("%d truncations were read, want one per event, %d", len(ends), len(events)+1)
	}
	set := func(at int, v uint32) []byte {
		b := bytes.Clone(raw)
		binary.LittleEndian.PutUint32(b[at:], v)
		return b
	}
	const first = 32 + 37 // after the header event: 32 bytes and a Spec ID event with two algorithms
	for name, b := range map[string][]byte{
		"empty":                  {},
		"trailing byte":          append(bytes.Clone(raw), 0),
		"trailing zeros":         append(bytes.Clone(raw), make([]byte, 64)...),
		"header of another type": set(4, 1),
		"header of PCR 17":       set(0, 17),
		"header size":            set(28, 1<<31),
		"signature":              set(32, 0),
		"no algorithms":          set(56, 0),
		"huge algorithm count":   set(56, 0xffffffff),
		"PCR 24":                 set(first, 24),
		"PCR -1":                 set(first, 0xffffffff),
		"no digests":             set(first+8, 0),
		"one digest, two follow": set(first+8, 1),
		"huge digest count":      set(first+8, 0xffffffff),
		"same digest twice":      set(first+8+4+22, 0x4),
		"huge event":             set(first+8+4+22+34, 0xffffffff),
		"too large":              make([]byte, eventlog.MaxSize+1),
		"too many events":        eventlog.Encode(make([]eventlog.Event, eventlog.MaxEvents+1)),
		"not crypto-agile":       raw[first:],
	} {
		if got, err := eventlog.Parse(b); err == nil {
			t.Errorf("%s: read as %d events", name, len(got))
		}
	}
	if got, err := eventlog.Parse(eventlog.Encode(make([]eventlog.Event, eventlog.MaxEvents))); err != nil || len(got) != eventlog.MaxEvents {
		t.Errorf("the most events: %v", err)
	}
	attackHeader(t)
	noSHA256 := bytes.Clone(raw)
	noSHA256[64] = 0x0D // SHA-512 in place of SHA-256 in the header
	if _, err := eventlog.Parse(noSHA256); err == nil {
		t.Error("a log without sha256 was read")
	}
}

// attackHeader builds logs whose headers lie, and whose events would be read if the lie went through.
func attackHeader(t *testing.T) {
	t.Helper()
	le := binary.LittleEndian
	build := func(algorithms [][2]uint16, tail []byte, digests ...[2]uint16) []byte {
		spec := append([]byte("Spec ID Event03\x00"), 0, 0, 0, 0, 0, 2, 0, 2)
		spec = le.AppendUint32(spec, uint32(len(algorithms)))
		for _, a := range algorithms {
			spec = le.AppendUint16(le.AppendUint16(spec, a[0]), a[1])
		}
		spec = append(append(spec, 0), tail...)
		b := append([]byte{0, 0, 0, 0, 3, 0, 0, 0}, make([]byte, 20)...)
		b = append(le.AppendUint32(b, uint32(len(spec))), spec...)
		b = append(b, 17, 0, 0, 0, 4, 4, 0, 0)
		b = le.AppendUint32(b, uint32(len(digests)))
		for _, d := range digests {
			b = append(le.AppendUint16(b, d[0]), make([]byte, d[1])...)
		}
		return append(b, 0, 0, 0, 0)
	}
	sha1, sha256, sha384 := [2]uint16{0x4, 20}, [2]uint16{0xB, 32}, [2]uint16{0xC, 48}
	if _, err := eventlog.Parse(build([][2]uint16{sha1, sha256}, nil, sha1, sha256)); err != nil {
		t.Fatal(err)
	}
	nine := [][2]uint16{sha256}
	for a := range uint16(8) {
		nine = append(nine, [2]uint16{0x100 + a, 32})
	}
	for name, b := range map[string][]byte{
		"nine algorithms":                 build(nine, nil, sha256),
		"an algorithm twice":              build([][2]uint16{sha256, sha256}, nil, sha256),
		"a digest of no bytes":            build([][2]uint16{sha256, {0x4, 0}}, nil, sha256),
		"a digest of 65 bytes":            build([][2]uint16{sha256, {0x4, 65}}, nil, sha256),
		"a tail":                          build([][2]uint16{sha256}, []byte{0}, sha256),
		"sha256 of 31 bytes":              build([][2]uint16{{0xB, 31}}, nil, [2]uint16{0xB, 31}),
		"sha256 of 33 bytes":              build([][2]uint16{{0xB, 33}}, nil, [2]uint16{0xB, 33}),
		"an event with sha1 alone":        build([][2]uint16{sha1, sha256}, nil, sha1),
		"an event with no digest":         build([][2]uint16{sha1, sha256}, nil),
		"an event with another algorithm": build([][2]uint16{sha1, sha256}, nil, sha256, sha384),
		"an event with sha256 twice":      build([][2]uint16{sha1, sha256}, nil, sha256, sha256),
		"more digests than algorithms":    build([][2]uint16{sha256}, nil, sha256, sha256),
	} {
		if events, err := eventlog.Parse(b); err == nil {
			t.Errorf("%s: read as %d events", name, len(events))
		}
	}
	// One event that is too large for the log, though whole.
	if _, err := eventlog.Parse(eventlog.Encode([]eventlog.Event{{Index: 17, Type: eventlog.MLEHash, Data: make([]byte, eventlog.MaxSize)}})); err == nil {
		t.Error("a log of more than 1 MiB was read")
	}
}

func FuzzParse(f *testing.F) {
	for _, l := range launchers {
		raw, events, _ := log(f, l)
		f.Add(raw)
		f.Add(eventlog.Encode(events))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		events, err := eventlog.Parse(b)
		if err != nil {
			return
		}
		again, err := eventlog.Parse(eventlog.Encode(events))
		if len(eventlog.Encode(events)) <= eventlog.MaxSize && (err != nil || !slices.EqualFunc(again, events, equal)) {
			t.Errorf("encoded and read again: %v", err)
		}
		eventlog.Replay(events)
	})
}
