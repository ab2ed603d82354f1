package strict

import (
	"bytes"
	"encoding/hex"
	"errors"
	"strings"
	"testing"
)

type hexText []byte

func (h hexText) MarshalText() ([]byte, error) { return []byte(hex.EncodeToString(h)), nil }
func (h *hexText) UnmarshalText(b []byte) (err error) {
	if len(b) == 0 {
		return errors.New("empty hex")
	}
	*h, err = hex.DecodeString(string(b))
	return err
}

type inner struct {
	ID   hexText `json:"id"`
	Note string  `json:"note,omitempty"`
}

type embedded struct {
	Extra string `json:"extra"`
}

type document struct {
	embedded
	Name  string         `json:"name"`
	Count int64          `json:"count"`
	One   *inner         `json:"one,omitempty"`
	Many  []inner        `json:"many"`
	Any   map[string]int `json:"any,omitempty"`
}

const good = `{"extra":"e","name":"n","count":3,"one":{"id":"00ff"},"many":[{"id":"01","note":"x"}],"any":{"A":1,"a":2}}`

func TestDocumentAcceptsItsOneForm(t *testing.T) {
	var d document
	if err := Document([]byte(good), 1000, &d); err != nil {
		t.Fatal(err)
	}
	if d.Extra != "e" || d.Count != 3 || d.One.ID[1] != 0xff || d.Many[0].Note != "x" {
		t.Errorf("%+v", d)
	}
}

func TestJSONRefusesAndNamesTheField(t *testing.T) {
	for _, c := range []struct{ name, text, says string }{
		{"empty", ``, "empty"},
		{"not UTF-8", "{\"name\":\"\xff\"}", "UTF-8"},
		{"syntax", `{"extra":"e",}`, "byte"},
		{"two values", good + good, "after top-level value"},
		{"trailing", good + "x", "after top-level value"},
		{"array for object", `[]`, "the document: an array where a struct belongs"},
		{"null document", `null`, "the document: null"},
		{"twice", strings.Replace(good, `"count":3`, `"count":3,"count":3`, 1), "count: this key stands twice"},
		{"twice inside", strings.Replace(good, `{"id":"00ff"}`, `{"id":"00ff","id":"00ff"}`, 1), "one.id: this key stands twice"},
		{"twice in a map", strings.Replace(good, `"A":1`, `"a":1`, 1), "any.a: this key stands twice"},
		{"twice by escape", strings.Replace(good, `"count":3`, `"count":3,"c\u006funt":3`, 1), "count: this key stands twice"},
		{"unknown", strings.Replace(good, `"count":3`, `"count":3,"more":1`, 1), `"more": there is no such field`},
		{"unknown inside", strings.Replace(good, `"note":"x"`, `"memo":"x"`, 1), `"many[0].memo": there is no such field`},
		{"other case", strings.Replace(good, `"count"`, `"Count"`, 1), `"Count": the field is written "count"`},
		{"other case by folding", strings.Replace(good, `"extra":"e"`, `"extra":"e","na\u006de":"n"`, 1), "name: this key stands twice"},
		{"missing", strings.Replace(good, `"count":3,`, ``, 1), "count: this field is missing"},
		{"missing of embedded", strings.Replace(good, `"extra":"e",`, ``, 1), "extra: this field is missing"},
		{"missing inside", strings.Replace(good, `{"id":"00ff"}`, `{"note":""}`, 1), "one.id: this field is missing"},
		{"null", strings.Replace(good, `"count":3`, `"count":null`, 1), "count: null"},
		{"null slice", strings.Replace(good, `[{"id":"01","note":"x"}]`, `null`, 1), "many: null"},
		{"null text", strings.Replace(good, `"00ff"`, `null`, 1), "one.id: null"},
		{"number for text", strings.Replace(good, `"00ff"`, `7`, 1), "one.id: 7 where text belongs"},
		{"object for text", strings.Replace(good, `"00ff"`, `{}`, 1), "one.id: an object where text belongs"},
		{"array for text", strings.Replace(good, `"00ff"`, `[1]`, 1), "one.id: an array where text belongs"},
		{"bad text", strings.Replace(good, `"00ff"`, `"0g"`, 1), "one.id: encoding/hex"},
		{"text for number", strings.Replace(good, `:3`, `:"3"`, 1), "count: a JSON string does not fit"},
		{"fraction", strings.Replace(good, `:3`, `:3.5`, 1), "count"},
		{"exponent", strings.Replace(good, `:3`, `:3e2`, 1), "count"},
		{"too big a number", strings.Replace(good, `:3`, `:9223372036854775808`, 1), "count"},
		{"object for a slice", strings.Replace(good, `[{"id":"01","note":"x"}]`, `{}`, 1), "many: an object where a slice belongs"},
		{"object for a string", strings.Replace(good, `"n"`, `{}`, 1), "name: an object where a string belongs"},
		{"array for a string", strings.Replace(good, `"n"`, `[]`, 1), "name: an array where a string belongs"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var d document
			err := JSON([]byte(c.text), 1000, &d)
			if err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v, want it to say %q", err, c.says)
			}
		})
	}
}

func TestJSONIsBounded(t *testing.T) {
	var d document
	if err := JSON([]byte(good), len(good)-1, &d); err == nil || !strings.Contains(err.Error(), "more than") {
		t.Errorf("size: %v", err)
	}
	var v any
	nested := func(n int) []byte { return []byte(strings.Repeat("[", n) + strings.Repeat("]", n)) }
	if err := JSON(nested(MaxDepth), 1000, &v); err != nil {
		t.Errorf("depth %d: %v", MaxDepth, err)
	}
	if err := JSON(nested(MaxDepth+1), 1000, &v); err == nil || !strings.Contains(err.Error(), "deeper") {
		t.Errorf("depth %d: %v", MaxDepth+1, err)
	}
	if err := JSON([]byte(`"`+strings.Repeat("[", 100)+`\"["`), 1000, &v); err != nil {
		t.Errorf("brackets in a string: %v", err)
	}
}

func TestDocumentRefusesOtherForms(t *testing.T) {
	var d document
	null := []byte(strings.Replace(good, `{"id":"00ff"}`, `null`, 1))
	if err := JSON(null, 1000, &d); err != nil {
		t.Errorf("null for a pointer: %v", err)
	}
	if err := Document(null, 1000, &d); err == nil || !strings.Contains(err.Error(), "one: null") {
		t.Errorf("null in a document: %v", err)
	}
	for _, text := range []string{
		" " + good, good + "\n", strings.Replace(good, ":", ": ", 1),
		strings.Replace(good, `"n"`, `"\u006e"`, 1), strings.Replace(good, `"00ff"`, `"00FF"`, 1),
		strings.Replace(good, `,"any":{"A":1,"a":2}`, `,"any":{}`, 1),
		strings.Replace(good, `"extra":"e","name":"n"`, `"name":"n","extra":"e"`, 1),
	} {
		var d document
		if err := Document([]byte(text), 1000, &d); err == nil || !strings.Contains(err.Error(), "one form") {
			t.Errorf("%s: %v", text, err)
		}
	}
}

func TestBase64(t *testing.T) {
	for text, want := range map[string]string{"": "", "AA": "\x00", "AAA": "\x00\x00", "_-8": "\xff\xef"} {
		if b, err := Base64(text); err != nil || string(b) != want {
			t.Errorf("%q: %x, %v", text, b, err)
		}
	}
	for _, text := range []string{"A", "AB", "AA==", "AA\n", "A\nA", "\r\nAA", "+/8", "AA ", "AAB"} {
		if b, err := Base64(text); err == nil {
			t.Errorf("%q was read as %x", text, b)
		}
	}
}

func TestJWS(t *testing.T) {
	sig := EncodeBase64(make([]byte, 64))
	s, err := JWS("e30.e30."+sig, 1000)
	if err != nil || s.Input != "e30.e30" || string(s.Payload) != "{}" {
		t.Fatalf("%+v, %v", s, err)
	}
	for _, text := range []string{
		"", "e30.e30", "e30..", "e30.e30.", ".e30." + sig, "e30.." + sig, "e30.e30." + sig + ".", "e30.e30." + sig + ".e30",
		"e30.e30." + sig + "\n", "e30.e30." + sig[:len(sig)-1] + "B", "e30.e30." + EncodeBase64(make([]byte, 63)), "e30.e31." + sig,
	} {
		if _, err := JWS(text, 1000); err == nil {
			t.Errorf("%q was read", text)
		}
	}
	if _, err := JWS("e30.e30."+sig, 20); err == nil {
		t.Error("the bound does not hold")
	}
}

func FuzzBase64(f *testing.F) {
	f.Add("AA")
	f.Add("A\nA")
	f.Fuzz(func(t *testing.T, text string) {
		b, err := Base64(text)
		if err == nil && EncodeBase64(b) != text {
			t.Errorf("%q has another form %q", text, EncodeBase64(b))
		}
	})
}

func FuzzJWS(f *testing.F) {
	f.Add("e30.e30." + EncodeBase64(make([]byte, 64)))
	f.Fuzz(func(t *testing.T, text string) {
		s, err := JWS(text, 1<<16)
		if err == nil && EncodeBase64(s.Header)+"."+EncodeBase64(s.Payload)+"."+EncodeBase64(s.Signature) != text {
			t.Errorf("%q has another form", text)
		}
	})
}

func FuzzDocument(f *testing.F) {
	f.Add([]byte(good))
	f.Add([]byte(`{"extra":"","name":"","count":0,"many":[]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var d document
		if err := Document(b, 1<<16, &d); err != nil {
			return
		}
		again, err := Encode(d)
		if err != nil || !bytes.Equal(again, b) {
			t.Errorf("%q was written again as %q (%v)", b, again, err)
		}
	})
}
