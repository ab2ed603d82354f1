package pcr

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"testing"
)

func TestSelection(t *testing.T) {
	s, err := Parse("sha256:17,18,19")
	if err != nil {
		t.Fatal(err)
	}
	if want := []byte{0, 0, 0, 1, 0, 0x0B, 3, 0, 0, 0x0E}; !bytes.Equal(s.Marshal(), want) {
		t.Errorf("marshalled %x, want %x", s.Marshal(), want)
	}
	u, err := Unmarshal(s.Marshal())
	if err != nil || u != s {
		t.Errorf("unmarshalled %v, %v", u, err)
	}
	if s.Contains(16) || !s.Contains(17) || s.Contains(-1) || s.Contains(24) {
		t.Error("contains the wrong PCRs")
	}
	for _, bad := range []string{
		"", "sha256", "sha256:", "sha256:17,", "sha256:18,17", "sha256:17,17", "sha256:24", "sha256:-1", "sha256:+1", "sha256:01",
		"sha256:17 ", "SHA256:17", "md5:17", ":17", "sha256:17+sha1:17", "0x000b:17",
	} {
		if s, err := Parse(bad); err == nil {
			t.Errorf("%q was read as %v", bad, s)
		}
	}
	for _, bad := range [][]byte{
		nil, {0, 0, 0, 0}, {0, 0, 0, 1, 0, 0x0B, 3, 0, 0, 0}, {0, 0, 0, 1, 0, 0x0A, 3, 0, 0, 1}, {0, 0, 0, 2, 0, 0x0B, 3, 0, 0, 1},
		{0, 0, 0, 1, 0, 0x0B, 2, 0, 0, 1}, append(s.Marshal(), 0),
	} {
		if s, err := Unmarshal(bad); err == nil {
			t.Errorf("%x was read as %v", bad, s)
		}
	}
	if _, err := Select(SHA256); err == nil {
		t.Error("an empty selection")
	}
	if text, err := (Selection{}).MarshalText(); err == nil {
		t.Errorf("the zero selection has the text %q", text)
	}
	var v Selection
	if text, err := s.MarshalText(); err != nil || v.UnmarshalText(text) != nil || v != s {
		t.Errorf("text %q reads back as %v", text, v)
	}
}

func TestDigest(t *testing.T) {
	s, err := Select(SHA256, 19, 17, 18)
	if err != nil {
		t.Fatal(err)
	}
	v := Values{17: {1}, 18: {2}, 19: {3}, 20: {4}}
	var all []byte
	for i := 17; i <= 19; i++ {
		d := v[i]
		all = append(all, d[:]...)
	}
	if d, err := v.Digest(s); err != nil || d != sha256.Sum256(all) {
		t.Errorf("digest %x, %v", d, err)
	}
	delete(v, 18)
	if _, err := v.Digest(s); err == nil {
		t.Error("a digest without PCR 18")
	}
	s.Bank = SHA1
	if _, err := v.Digest(s); err == nil {
		t.Error("a digest of the sha1 bank")
	}
	if _, err := v.Digest(Selection{Bank: SHA256}); err == nil {
		t.Error("a digest of nothing")
	}
	old := Digest{9}
	if Extend(old, Digest{1}) != sha256.Sum256(append(append([]byte{}, old[:]...), append([]byte{1}, make([]byte, 31)...)...)) || old != (Digest{9}) {
		t.Error("extend is not H(old ‖ digest)")
	}
}

func TestDynamicLaunch(t *testing.T) {
	ones := Digest(bytes.Repeat([]byte{0xff}, 32))
	for _, c := range []struct {
		name   string
		values Values
		want   int // PCR that shows it; 0: launched; -1: another error
	}{
		{"launched", Values{17: {1}, 18: {2}, 19: {}}, 0},
		{"all used", Values{17: {1}, 18: {2}, 19: {3}, 20: {4}, 21: {5}, 22: {6}}, 0},
		{"power-on", Values{17: ones, 18: ones, 19: ones}, 17},
		{"17 alone is ones", Values{17: ones, 18: {1}}, 17},
		{"19 is ones", Values{17: {1}, 18: {2}, 19: ones}, 19},
		{"22 is ones", Values{17: {1}, 18: {2}, 22: ones}, 22},
		{"hash sequence", Values{17: {1}, 18: {}, 19: {}}, 18},
		{"zero", Values{17: {}, 18: {}, 19: {}}, 17},
		{"17 zero", Values{17: {}, 18: {1}}, 17},
		{"no values", Values{}, -1},
		{"no 18", Values{17: {1}}, -1},
	} {
		err := c.values.DynamicLaunch()
		var e *NoDynamicLaunch
		switch {
		case c.want == 0 && err != nil, c.want != 0 && err == nil:
			t.Errorf("%s: %v", c.name, err)
		case c.want > 0 && (!errors.As(err, &e) || e.Index != c.want):
			t.Errorf("%s: %v, want PCR %d", c.name, err, c.want)
		case c.want < 0 && errors.As(err, &e):
			t.Errorf("%s: %v, want another error", c.name, err)
		}
	}
}

func FuzzSelection(f *testing.F) {
	f.Add("sha256:17,18,19")
	f.Add("sha1:0")
	f.Fuzz(func(t *testing.T, text string) {
		s, err := Parse(text)
		if err != nil {
			return
		}
		if s.String() != text {
			t.Errorf("%q reads as %q", text, s)
		}
		if u, err := Unmarshal(s.Marshal()); err != nil || u != s {
			t.Errorf("%v unmarshals as %v, %v", s, u, err)
		}
	})
}
