// Package pcr speaks of platform configuration registers: which are selected, what they hold, what their digest is.
//
// It promises that a [Selection] has one binary form, the TPML_PCR_SELECTION that a TPM signs in a quote, so that a
// signed selection can be compared byte for byte; and that [Values.Digest] is the digest that TPM2_Quote and
// TPM2_PolicyPCR compute. It trusts nothing: it has no device, no clock and no file. Only the SHA-256 bank has values
// here; other banks can be named, so that they can be refused by name.
package pcr

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math/bits"
	"slices"
	"strconv"
	"strings"
)

// Bank is the TPM_ALG_ID of a PCR bank's hash (TPM 2.0 Part 2, 6.3).
type Bank uint16

// The banks that a PC client TPM may have.
const (
	SHA1   Bank = 0x0004
	SHA256 Bank = 0x000B
	SHA384 Bank = 0x000C
)

var bankNames = map[Bank]string{SHA1: "sha1", SHA256: "sha256", SHA384: "sha384"}

// String returns the name of the bank as tpm2-tools writes it, such as "sha256".
func (b Bank) String() string {
	if s, ok := bankNames[b]; ok {
		return s
	}
	return fmt.Sprintf("0x%04x", uint16(b))
}

// Count is the number of PCRs of a PC client TPM.
const Count = 24

// The PCRs that a dynamic launch resets (TCG PC Client PTP, 4.6.2): they read all ones until then.
const (
	DynamicFirst = 17
	DynamicLast  = 22
)

// Digest is the value of a PCR in the SHA-256 bank.
type Digest = [32]byte

// Selection names PCRs of one bank. The zero value selects nothing and is not valid.
type Selection struct {
	Bank Bank
	// Mask is pcrSelect: bit i%8 of byte i/8 is PCR i (TPM 2.0 Part 2, 10.6.1).
	Mask [3]byte
}

// Select makes a selection of at least one PCR, each named once.
func Select(b Bank, index ...int) (Selection, error) {
	if _, ok := bankNames[b]; !ok {
		return Selection{}, fmt.Errorf("cannot select from bank %v: unknown bank", b)
	}
	if len(index) == 0 {
		return Selection{}, errors.New("cannot select: no PCR named")
	}
	s := Selection{Bank: b}
	for _, i := range index {
		if i < 0 || i >= Count {
			return Selection{}, fmt.Errorf("cannot select PCR %d: there are 0 to %d", i, Count-1)
		}
		if s.Contains(i) {
			return Selection{}, fmt.Errorf("cannot select PCR %d twice", i)
		}
		s.Mask[i/8] |= 1 << (i % 8)
	}
	return s, nil
}

// Parse reads the text that String writes: "sha256:17,18,19", ascending, no spaces.
func Parse(text string) (Selection, error) {
	name, list, ok := strings.Cut(text, ":")
	if !ok || len(text) > 128 {
		return Selection{}, fmt.Errorf("cannot read selection %.128q: want BANK:INDEX,…", text)
	}
	var bank Bank
	for b, n := range bankNames {
		if n == name {
			bank = b
		}
	}
	var index []int
	for f := range strings.SplitSeq(list, ",") {
		i, err := strconv.Atoi(f)
		if err != nil {
			return Selection{}, fmt.Errorf("cannot read selection %q: %q is no PCR index", text, f)
		}
		index = append(index, i)
	}
	s, err := Select(bank, index...)
	if err != nil {
		return Selection{}, fmt.Errorf("cannot read selection %q: %w", text, err)
	}
	if s.String() != text {
		return Selection{}, fmt.Errorf("cannot read selection %q: write it %q", text, s)
	}
	return s, nil
}

// String returns the selection as tpm2-tools writes it: "sha256:17,18,19".
func (s Selection) String() string {
	var b strings.Builder
	b.WriteString(s.Bank.String())
	for n, i := range s.Indexes() {
		b.WriteByte(":,"[min(n, 1)])
		b.WriteString(strconv.Itoa(i))
	}
	return b.String()
}

// Marshal returns the TPML_PCR_SELECTION with this one entry and a sizeofSelect of 3 (TPM 2.0 Part 2, 10.9.7).
func (s Selection) Marshal() []byte {
	b := binary.BigEndian.AppendUint32(nil, 1)
	b = binary.BigEndian.AppendUint16(b, uint16(s.Bank))
	b = append(b, byte(len(s.Mask)))
	return append(b, s.Mask[:]...)
}

// Unmarshal reads what Marshal writes and nothing else: one entry of a known bank, three bytes of mask, not empty.
func Unmarshal(b []byte) (Selection, error) {
	if len(b) != 10 {
		return Selection{}, fmt.Errorf("cannot read TPML_PCR_SELECTION of %d bytes: want one entry, 10 bytes", len(b))
	}
	s := Selection{Bank: Bank(binary.BigEndian.Uint16(b[4:])), Mask: [3]byte(b[7:])}
	if _, ok := bankNames[s.Bank]; !ok || s.Mask == [3]byte{} || !bytes.Equal(s.Marshal(), b) {
		return Selection{}, fmt.Errorf("cannot read TPML_PCR_SELECTION %x: want one entry of a known bank", b)
	}
	return s, nil
}

// Indexes returns the selected PCRs, ascending.
func (s Selection) Indexes() []int {
	index := make([]int, 0, bits.OnesCount8(s.Mask[0])+bits.OnesCount8(s.Mask[1])+bits.OnesCount8(s.Mask[2]))
	for i := range Count {
		if s.Contains(i) {
			index = append(index, i)
		}
	}
	return index
}

// Contains tells whether PCR i is selected.
func (s Selection) Contains(i int) bool {
	return i >= 0 && i < Count && s.Mask[i/8]&(1<<(i%8)) != 0
}

// MarshalText implements encoding.TextMarshaler; an invalid selection is an error.
func (s Selection) MarshalText() ([]byte, error) {
	if _, err := Parse(s.String()); err != nil {
		return nil, err
	}
	return []byte(s.String()), nil
}

// UnmarshalText implements encoding.TextUnmarshaler.
func (s *Selection) UnmarshalText(text []byte) error {
	t, err := Parse(string(text))
	if err != nil {
		return err
	}
	*s = t
	return nil
}

// Values are contents of the SHA-256 bank by PCR index.
type Values map[int]Digest

// Digest returns the pcrDigest of TPM2_Quote and TPM2_PolicyPCR over the selection: SHA-256 over the selected values
// in ascending order (TPM 2.0 Part 1, 17.5). Each selected PCR must be present.
func (v Values) Digest(s Selection) (Digest, error) {
	if s.Bank != SHA256 {
		return Digest{}, fmt.Errorf("cannot compute the digest of %v: values are of the sha256 bank", s)
	}
	index := s.Indexes()
	if len(index) == 0 {
		return Digest{}, errors.New("cannot compute the digest of an empty selection")
	}
	h := sha256.New()
	for _, i := range index {
		d, ok := v[i]
		if !ok {
			return Digest{}, fmt.Errorf("cannot compute the digest of %v: no value for PCR %d", s, i)
		}
		h.Write(d[:])
	}
	return Digest(h.Sum(nil)), nil
}

// Indexes returns the PCRs that have a value, ascending.
func (v Values) Indexes() []int { return slices.Sorted(maps.Keys(v)) }

// Extend returns the value of a PCR that held old after TPM2_PCR_Extend with d (TPM 2.0 Part 1, 17.2).
func Extend(old, d Digest) Digest {
	return sha256.Sum256(append(old[:], d[:]...))
}

// NoDynamicLaunch says that PCR values cannot stem from a dynamic launch.
type NoDynamicLaunch struct {
	Index int    // the PCR that shows it
	Value Digest // all ones: never reset, or reset by a suspend; zero: reset and never extended
}

func (e *NoDynamicLaunch) Error() string {
	if e.Value == (Digest{}) {
		return fmt.Sprintf("no dynamic launch: PCR %d is zero: nothing was measured into it", e.Index)
	}
	return fmt.Sprintf("no dynamic launch: PCR %d is all ones, as after a power-on or a suspend", e.Index)
}

// DynamicLaunch returns a *NoDynamicLaunch unless the values can stem from a dynamic launch with measurements: 17 and
// 18 present, none of 17 to 22 all ones, 17 not zero. It is asked before any reference value is: no reference value
// makes such a state good. PCR 18 zero is refused too: every launcher measures into it, and a hash sequence that
// anyone with the platform's locality 4 makes leaves it zero. PCR 19 to 22 may be zero: launchers leave them unused.
func (v Values) DynamicLaunch() error {
	ones := Digest(bytes.Repeat([]byte{0xff}, 32))
	for i := DynamicFirst; i <= DynamicLast; i++ {
		d, ok := v[i]
		if ok && d == ones {
			return &NoDynamicLaunch{Index: i, Value: d}
		}
		if i > 18 {
			continue
		}
		if !ok {
			return fmt.Errorf("cannot tell of a dynamic launch: no value for PCR %d", i)
		}
		if d == (Digest{}) {
			return &NoDynamicLaunch{Index: i, Value: d}
		}
	}
	return nil
}
