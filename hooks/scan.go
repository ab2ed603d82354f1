package hooks

import (
	"bytes"
	"encoding/hex"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"strings"
)

// The mark of a trusted domain: <troth:launch xmlns:troth="urn:troth:launch:v1"> inside <metadata>. An element of
// another version counts as a mark, so that an old hook lets no newer domain pass.
const (
	markNamespace = "urn:troth:launch:v1"
	markFamily    = "urn:troth:launch:"
	markName      = "launch"
	launchIDName  = "id"
)

// Bounds. libxml2 itself stops at depth 256, so libvirt never has more; untrusted domains may have metadata that is
// as deep as that.
const (
	maxDepth  = 256
	maxSpaces = 256     // namespace bindings in force at once
	maxValues = 1 << 16 // attribute values and texts that may name files
)

// subject is what the hook needs to know of a domain's XML.
type subject struct {
	uuid     [16]byte
	marked   bool
	launchID [32]byte
	paths    []string // outside metadata: absolute paths as written, and relative ones from the root, where libvirt and QEMU stand
	mentions []string // other values outside metadata that hold a slash: they may hold a path
	volumes  []volume // of storage pools
}

// volume is what libvirt's storage driver makes a path of.
type volume struct{ pool, name string }

// element is an open element.
type element struct {
	raw      xml.Name // prefix and local name, as written
	space    string   // namespace
	bound    bool     // the prefix is bound (or there is none)
	spaces   int      // bindings before this element
	metadata bool     // this is /domain/metadata or below it
	pieces   int      // texts, comments, children inside
	text     []byte
}

type binding struct{ prefix, space string }

// scanner walks the tokens of one document. libvirt and Go read the same bytes differently (libvirt takes the first
// of two names, and namespaces count for it), so wherever a second reading could exist the scan fails: the domain
// then counts as trusted and is refused.
type scanner struct {
	s      subject
	open   []element
	spaces []binding
	roots  int
	uuids  int
	names  int
	marks  int
	values int
}

// scan reads a domain's XML, or says why it cannot be sure of it.
func scan(b []byte) (subject, error) {
	// libvirt writes a carriage return as it is, and any reader of XML takes it for a line feed: another path.
	b = bytes.ReplaceAll(b, []byte("\r"), []byte("&#13;"))
	d := xml.NewDecoder(bytes.NewReader(b)) // Strict: no unknown entity, no charset but UTF-8
	var sc scanner
	for {
		t, err := d.RawToken()
		if errors.Is(err, io.EOF) {
			return sc.done()
		}
		if err != nil {
			return subject{}, fmt.Errorf("cannot read domain XML: %w", err)
		}
		switch t := t.(type) {
		case xml.StartElement:
			err = sc.start(t)
		case xml.EndElement:
			err = sc.end(t)
		case xml.CharData:
			err = sc.text(t)
		case xml.Directive:
			err = errors.New("a document type or other directive")
		default: // comment, processing instruction
			sc.piece()
		}
		if err != nil {
			return subject{}, fmt.Errorf("cannot read domain XML: %w", err)
		}
	}
}

func (sc *scanner) done() (subject, error) {
	switch {
	case sc.roots != 1 || len(sc.open) != 0:
		return subject{}, errors.New("cannot read domain XML: not one whole element")
	case sc.uuids != 1:
		return subject{}, fmt.Errorf("cannot read domain XML: %d uuid elements", sc.uuids)
	case sc.names > 1:
		return subject{}, fmt.Errorf("cannot read domain XML: %d name elements", sc.names)
	case sc.marks > 1:
		return subject{}, fmt.Errorf("cannot read domain XML: %d marks", sc.marks)
	}
	return sc.s, nil
}

func (sc *scanner) piece() {
	if n := len(sc.open); n > 0 {
		sc.open[n-1].pieces++
	}
}

func (sc *scanner) start(t xml.StartElement) error {
	if len(sc.open) >= maxDepth {
		return fmt.Errorf("deeper than %d", maxDepth)
	}
	if strings.Contains(t.Name.Local, ":") {
		return fmt.Errorf("element name %q", t.Name.Local)
	}
	if err := unique(t.Attr); err != nil {
		return err
	}
	sc.piece()
	e := element{raw: t.Name, spaces: len(sc.spaces)}
	for _, a := range t.Attr {
		switch {
		case a.Name.Space == "xmlns" && a.Value == "":
			return fmt.Errorf("prefix %q bound to no namespace", a.Name.Local)
		case a.Name.Space == "xmlns":
			sc.spaces = append(sc.spaces, binding{a.Name.Local, a.Value})
		case a.Name.Space == "" && a.Name.Local == "xmlns":
			sc.spaces = append(sc.spaces, binding{"", a.Value})
		}
	}
	if len(sc.spaces) > maxSpaces {
		return fmt.Errorf("more than %d namespaces", maxSpaces)
	}
	e.space, e.bound = sc.resolve(t.Name.Space)
	if n := len(sc.open); n > 0 {
		e.metadata = sc.open[n-1].metadata || n == 1 && e.is("metadata")
	}
	sc.open = append(sc.open, e)
	return sc.look(e, t.Attr)
}

// is: libvirt's own element, which has no namespace.
func (e element) is(name string) bool {
	return e.raw.Space == "" && e.space == "" && e.raw.Local == name
}

// resolve gives a prefix's namespace; the innermost binding counts. No prefix and no binding is no namespace.
func (sc *scanner) resolve(prefix string) (space string, bound bool) {
	for i := len(sc.spaces) - 1; i >= 0; i-- {
		if sc.spaces[i].prefix == prefix {
			return sc.spaces[i].space, true
		}
	}
	return "", prefix == "" || prefix == "xml"
}

// unique refuses two attributes of one written name: no XML, though Go reads it.
func unique(attrs []xml.Attr) error {
	seen := make(map[xml.Name]struct{}, len(attrs))
	for _, a := range attrs {
		if _, twice := seen[a.Name]; twice {
			return fmt.Errorf("attribute %q twice", a.Name.Local)
		}
		seen[a.Name] = struct{}{}
	}
	return nil
}

// look judges an element that was just opened.
func (sc *scanner) look(e element, attrs []xml.Attr) error {
	depth := len(sc.open)
	if !e.bound && (!e.metadata || e.raw.Local == markName) {
		return fmt.Errorf("element %q has a prefix without a namespace", e.raw.Local)
	}
	if depth == 1 {
		sc.roots++
		if !e.is("domain") {
			return fmt.Errorf("root element is %q", e.raw.Local)
		}
	}
	if depth == 2 && (e.raw.Local == "uuid" || e.raw.Local == "name" || e.raw.Local == "metadata") && e.space != "" {
		return fmt.Errorf("element %q in a namespace", e.raw.Local)
	}
	if depth == 2 && e.is("uuid") {
		sc.uuids++
	}
	if depth == 2 && e.is("name") {
		sc.names++
	}
	if strings.HasPrefix(e.space, markFamily) {
		return sc.mark(e, attrs)
	}
	if e.metadata {
		return nil
	}
	var v volume
	for _, a := range attrs {
		if a.Name.Space == "xmlns" || a.Name.Local == "xmlns" || e.raw.Local == "target" && a.Name.Local == "dir" {
			continue // the last is a name for the guest
		}
		if err := sc.value(a.Value, e.raw.Local == "source" && (a.Name.Local == "file" || a.Name.Local == "dev" || a.Name.Local == "dir")); err != nil {
			return err
		}
		switch {
		case e.raw.Local == "source" && a.Name.Local == "pool":
			v.pool = a.Value
		case e.raw.Local == "source" && a.Name.Local == "volume":
			v.name = a.Value
		}
	}
	if v.name != "" {
		sc.s.volumes = append(sc.s.volumes, v)
	}
	return nil
}

// mark reads an element of the mark's namespace. The launch id counts only where the mark belongs.
func (sc *scanner) mark(e element, attrs []xml.Attr) error {
	sc.s.marked = true
	if e.raw.Local != markName {
		return nil
	}
	sc.marks++
	if e.space != markNamespace || len(sc.open) != 3 || !sc.open[1].metadata {
		return nil
	}
	for _, a := range attrs {
		if a.Name.Space != "" || a.Name.Local != launchIDName {
			continue
		}
		id, err := hex.DecodeString(a.Value)
		if err != nil || len(id) != len(sc.s.launchID) || hex.EncodeToString(id) != a.Value {
			return errors.New("launch id is not 64 lower-case hex digits")
		}
		sc.s.launchID = [32]byte(id)
	}
	return nil
}

func (sc *scanner) text(t xml.CharData) error {
	n := len(sc.open)
	if n == 0 {
		if len(bytes.TrimSpace(t)) > 0 {
			return errors.New("text outside the root element")
		}
		return nil
	}
	sc.piece()
	if e := &sc.open[n-1]; !e.metadata {
		e.text = append(e.text, t...)
	}
	return nil
}

func (sc *scanner) end(t xml.EndElement) error {
	n := len(sc.open)
	if n == 0 || sc.open[n-1].raw != t.Name {
		return fmt.Errorf("end of %q, which is not open", t.Name.Local)
	}
	e := sc.open[n-1]
	sc.open, sc.spaces = sc.open[:n-1], sc.spaces[:e.spaces]
	if e.metadata {
		return nil
	}
	if n == 2 && e.is("uuid") {
		if e.pieces != 1 {
			return errors.New("uuid is not one plain text")
		}
		uuid, err := parseUUID(string(e.text))
		sc.s.uuid = uuid
		return err
	}
	if n == 2 && (e.is("name") || e.is("title") || e.is("description")) {
		return nil // free text
	}
	if n == 3 && e.is("cmdline") && sc.open[1].is("os") {
		return nil // paths of the guest
	}
	file := e.is("kernel") || e.is("initrd") || e.is("loader") || e.is("nvram") || e.is("dtb")
	if text := string(e.text); file || strings.Contains(text, "/") {
		if trimmed := strings.TrimSpace(text); trimmed != text {
			if err := sc.value(trimmed, file); err != nil {
				return err
			}
		}
		return sc.value(text, file) // libvirt trims nothing
	}
	return nil
}

// between stands between paths in values that hold more than one path: options of QEMU, json:, URIs.
const between = ",;=:&?'\"{}[]() \t\r\n"

// value notes what may name a file; file says that it does, whatever it looks like.
func (sc *scanner) value(v string, file bool) error {
	s := &sc.s
	switch {
	case strings.HasPrefix(v, "/"):
		s.paths = append(s.paths, v)
	case file && v != "":
		s.paths = append(s.paths, "/"+v)
	case !strings.Contains(v, "/"):
		return nil
	}
	sc.values++
	if !strings.HasPrefix(v, "/") && strings.Contains(v, "/") {
		s.mentions = append(s.mentions, v)
		for piece := range strings.FieldsFuncSeq(v, func(c rune) bool { return strings.ContainsRune(between, c) }) {
			if strings.Contains(piece, "/") {
				s.paths = append(s.paths, "/"+piece) // cleaned, an absolute one is what it was
				sc.values++
			}
			if sc.values > maxValues {
				break
			}
		}
	}
	if sc.values > maxValues {
		return errors.New("too many values that may name files")
	}
	return nil
}

// parseUUID reads the form that libvirt writes: 8-4-4-4-12 hex digits. libvirt reads others too (no hyphens, spaces
// before), but never hands them to a hook.
func parseUUID(s string) (u [16]byte, err error) {
	if len(s) != 36 || s[8] != '-' || s[13] != '-' || s[18] != '-' || s[23] != '-' {
		return u, errors.New("uuid is not in libvirt's form")
	}
	b, err := hex.DecodeString(strings.ReplaceAll(s, "-", ""))
	if err != nil || len(b) != len(u) {
		return u, errors.New("uuid is not in libvirt's form")
	}
	return [16]byte(b), nil
}
