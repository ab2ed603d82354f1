package strict

import (
	"encoding"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"sync"
	"unicode/utf8"
)

// MaxDepth is how deep objects and arrays may nest in any document.
const MaxDepth = 16

// JSON reads one JSON value of at most max bytes into v, a non-nil pointer.
// It refuses, naming the field: a key that stands twice, a key that the Go
// type does not have or that has another case, a missing field (one whose tag
// says neither omitempty nor omitzero), null where the type is not a pointer,
// nesting deeper than MaxDepth, and anything after the value.
func JSON(data []byte, max int, v any) error { return read(data, max, v, false) }

func read(data []byte, max int, v any, noNull bool) error {
	switch {
	case len(data) == 0:
		return errors.New("cannot read JSON: it is empty")
	case len(data) > max:
		return fmt.Errorf("cannot read JSON: it has %d bytes, more than the %d allowed", len(data), max)
	case !utf8.Valid(data):
		return errors.New("cannot read JSON: it is not UTF-8")
	case tooDeep(data):
		return fmt.Errorf("cannot read JSON: it nests deeper than %d", MaxDepth)
	case !json.Valid(data):
		return syntaxError(data)
	}
	w := walker{data: data, noNull: noNull}
	if err := w.value(reflect.TypeOf(v), ""); err != nil {
		return fmt.Errorf("cannot read JSON: %w", err)
	}
	if err := json.Unmarshal(data, v); err != nil {
		return fmt.Errorf("cannot read JSON: %w", plain(err))
	}
	return nil
}

// Encode writes v the one way that documents are written: encoding/json in
// the order of the struct's fields, no HTML escaping, no newline at the end.
func Encode(v any) ([]byte, error) {
	var b strings.Builder
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return nil, fmt.Errorf("cannot write JSON: %w", err)
	}
	return []byte(strings.TrimSuffix(b.String(), "\n")), nil
}

// Document reads like JSON, without any null, and then asks that writing v again
// gives the same bytes, so that no two encodings of one document exist.
func Document(data []byte, max int, v any) error {
	if err := read(data, max, v, true); err != nil {
		return err
	}
	again, err := Encode(v)
	if err != nil {
		return err
	}
	if string(again) != string(data) {
		return fmt.Errorf("cannot read JSON: it is not in the one form that is accepted (differs from byte %d)", firstDifference(again, data))
	}
	return nil
}

func firstDifference(a, b []byte) int {
	n := min(len(a), len(b))
	for i := range n {
		if a[i] != b[i] {
			return i
		}
	}
	return n
}

// tooDeep counts brackets outside strings; it needs no valid JSON.
func tooDeep(data []byte) bool {
	depth, inString := 0, false
	for i := 0; i < len(data); i++ {
		switch c := data[i]; {
		case inString && c == '\\':
			i++
		case c == '"':
			inString = !inString
		case inString:
		case c == '{' || c == '[':
			if depth++; depth > MaxDepth {
				return true
			}
		case c == '}' || c == ']':
			depth--
		}
	}
	return false
}

func syntaxError(data []byte) error {
	var v any
	if err := json.Unmarshal(data, &v); err != nil {
		var s *json.SyntaxError
		if errors.As(err, &s) {
			return fmt.Errorf("cannot read JSON: byte %d: %w", s.Offset, err)
		}
		return fmt.Errorf("cannot read JSON: %w", err)
	}
	return errors.New("cannot read JSON: not one valid value")
}

// plain turns encoding/json's type errors into a sentence with the field's path.
func plain(err error) error {
	var t *json.UnmarshalTypeError
	if errors.As(err, &t) {
		field := t.Field
		if field == "" {
			field = "the document"
		}
		return fmt.Errorf("%s: a JSON %s does not fit", field, t.Value)
	}
	return err
}

// walker goes over bytes that json.Valid accepted, beside the Go type that
// they are to fill. A nil type means: any value, but no key twice.
type walker struct {
	data   []byte
	pos    int
	noNull bool // even where the type is a pointer
}

func (w *walker) space() {
	for w.pos < len(w.data) && strings.IndexByte(" \t\r\n", w.data[w.pos]) >= 0 {
		w.pos++
	}
}

func (w *walker) value(t reflect.Type, path string) error {
	w.space()
	pointer := false
	for t != nil && t.Kind() == reflect.Pointer {
		t, pointer = t.Elem(), path != ""
	}
	if t != nil && opaque(t) {
		t = nil
	}
	switch w.data[w.pos] {
	case '{':
		if readsText(t) {
			return fmt.Errorf("%s: an object where text belongs", name(path))
		}
		return w.object(t, path)
	case '[':
		if readsText(t) {
			return fmt.Errorf("%s: an array where text belongs", name(path))
		}
		return w.array(t, path)
	case '"':
		return w.text(t, path)
	}
	word := w.word()
	if word == "null" && (w.noNull || t != nil && !pointer) {
		return fmt.Errorf("%s: null is not a value here", name(path))
	}
	if word != "null" && readsText(t) {
		return fmt.Errorf("%s: %s where text belongs", name(path), word)
	}
	return nil
}

func (w *walker) word() string {
	start := w.pos
	for w.pos < len(w.data) && strings.IndexByte(",]} \t\r\n", w.data[w.pos]) < 0 {
		w.pos++
	}
	return string(w.data[start:w.pos])
}

// str returns the string at the cursor, quotes included.
func (w *walker) str() []byte {
	start := w.pos
	for w.pos++; w.data[w.pos] != '"'; w.pos++ {
		if w.data[w.pos] == '\\' {
			w.pos++
		}
	}
	w.pos++
	return w.data[start:w.pos]
}

func unquote(quoted []byte) (string, error) {
	inner := quoted[1 : len(quoted)-1]
	if strings.IndexByte(string(inner), '\\') < 0 {
		return string(inner), nil
	}
	var s string
	if err := json.Unmarshal(quoted, &s); err != nil {
		return "", err
	}
	return s, nil
}

// text gives a string to the type's own reader, so that its error can be
// returned with the field's path, which encoding/json would not tell.
func (w *walker) text(t reflect.Type, path string) error {
	quoted := w.str()
	if !readsText(t) {
		return nil
	}
	s, err := unquote(quoted)
	if err != nil {
		return fmt.Errorf("%s: %w", name(path), err)
	}
	if err := reflect.New(t).Interface().(encoding.TextUnmarshaler).UnmarshalText([]byte(s)); err != nil {
		return fmt.Errorf("%s: %w", name(path), err)
	}
	return nil
}

func (w *walker) array(t reflect.Type, path string) error {
	var elem reflect.Type
	if t != nil {
		if t.Kind() != reflect.Slice && t.Kind() != reflect.Array {
			return fmt.Errorf("%s: an array where a %s belongs", name(path), t.Kind())
		}
		elem = t.Elem()
	}
	w.pos++
	for i := 0; ; i++ {
		if w.space(); w.data[w.pos] == ']' {
			w.pos++
			return nil
		}
		if w.data[w.pos] == ',' {
			w.pos++
		}
		if err := w.value(elem, fmt.Sprintf("%s[%d]", path, i)); err != nil {
			return err
		}
	}
}

func (w *walker) object(t reflect.Type, path string) error {
	var known map[string]field
	if t != nil {
		switch t.Kind() {
		case reflect.Struct:
			known = fieldsOf(t)
		case reflect.Map:
		default:
			return fmt.Errorf("%s: an object where a %s belongs", name(path), t.Kind())
		}
	}
	seen := map[string]bool{}
	w.pos++
	for {
		if w.space(); w.data[w.pos] == '}' {
			w.pos++
			break
		}
		if w.data[w.pos] == ',' {
			w.pos++
			w.space()
		}
		key, err := unquote(w.str())
		if err != nil {
			return fmt.Errorf("%s: %w", name(path), err)
		}
		here := join(path, key)
		if seen[key] {
			return fmt.Errorf("%s: this key stands twice", here)
		}
		seen[key] = true
		w.space()
		w.pos++ // the colon
		var elem reflect.Type
		switch {
		case known != nil:
			f, ok := known[key]
			if !ok {
				return unknown(known, key, here)
			}
			elem = f.of
		case t != nil:
			elem = t.Elem()
		}
		if err := w.value(elem, here); err != nil {
			return err
		}
	}
	for key, f := range known {
		if f.required && !seen[key] {
			return fmt.Errorf("%s: this field is missing", firstMissing(t, seen, path))
		}
	}
	return nil
}

func unknown(known map[string]field, key, here string) error {
	for k := range known {
		if strings.EqualFold(k, key) {
			return fmt.Errorf("%q: the field is written %q", here, k)
		}
	}
	return fmt.Errorf("%q: there is no such field", here)
}

func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}

func name(path string) string {
	if path == "" {
		return "the document"
	}
	return path
}

type field struct {
	of       reflect.Type
	required bool
}

var fieldCache sync.Map // reflect.Type → map[string]field

// fieldsOf lists a struct's JSON names as encoding/json uses them. Untagged
// embedded structs give their fields to the outer one.
func fieldsOf(t reflect.Type) map[string]field {
	if m, ok := fieldCache.Load(t); ok {
		return m.(map[string]field)
	}
	m := map[string]field{}
	for i := range t.NumField() {
		f := t.Field(i)
		tag, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case tag == "-" && options == "":
		case f.Anonymous && tag == "" && f.Type.Kind() == reflect.Struct:
			for k, inner := range fieldsOf(f.Type) {
				m[k] = inner
			}
		case !f.IsExported():
		default:
			if tag == "" {
				tag = f.Name
			}
			m[tag] = field{f.Type, !strings.Contains(options, "omitempty") && !strings.Contains(options, "omitzero")}
		}
	}
	fieldCache.Store(t, m)
	return m
}

// firstMissing names the first missing field in the order of the struct.
func firstMissing(t reflect.Type, seen map[string]bool, path string) string {
	for i := range t.NumField() {
		f := t.Field(i)
		tag, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		if f.Anonymous && tag == "" && f.Type.Kind() == reflect.Struct {
			if inner := firstMissing(f.Type, seen, path); inner != "" {
				return inner
			}
			continue
		}
		if tag == "" {
			tag = f.Name
		}
		if f.IsExported() && tag != "-" && !seen[tag] && !strings.Contains(options, "omit") {
			return join(path, tag)
		}
	}
	return ""
}

var (
	textType = reflect.TypeFor[encoding.TextUnmarshaler]()
	jsonType = reflect.TypeFor[json.Unmarshaler]()
)

func readsText(t reflect.Type) bool {
	return t != nil && reflect.PointerTo(t).Implements(textType)
}

// opaque types read their own JSON, or take any.
func opaque(t reflect.Type) bool {
	return t.Kind() == reflect.Interface || reflect.PointerTo(t).Implements(jsonType)
}
