package domain

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"
	"unicode"

	"troth/proof"
)

// markSpace is the name space of this launcher's mark in <metadata>.
const markSpace = "urn:troth:launch:v1"

// libvirtSpaces begins the name spaces by which libvirt reads pass-through for its drivers (qemu:commandline and its
// like): never accepted, wherever they are declared.
const libvirtSpaces = "http://libvirt.org/schemas/"

// node is one element. Attributes and children are ticked off as they are read; what is left is a refusal.
type node struct {
	name     string
	path     string // "/domain/devices/disk[2]/source"
	attrs    []attr
	children []*node
	text     string
	split    bool // a comment stood in the text: readers differ on what the text is
	used     bool
	textUsed bool

	prefix string            // only below <metadata>
	spaces map[string]string // prefix → name space, of declarations on this element
	counts map[string]int    // children seen so far, by name
}

type attr struct {
	name, value string
	used        bool
}

// parser builds the tree from raw tokens: encoding/xml's own name space and end tag logic is lenient where libxml2,
// which libvirt uses, is not, so both are done here and strictly.
type parser struct {
	src   []byte
	dec   *xml.Decoder
	stack []*node
	root  *node
	nodes int
	meta  int // depth of <metadata> on the stack, 0: not inside
}

// parse reads the whole text as one strict, bounded element tree.
func parse(src []byte) (*node, error) {
	if len(src) > MaxXML {
		return nil, malformed("/", fmt.Sprintf("the text has %d bytes, more than %d", len(src), MaxXML))
	}
	if bytes.IndexByte(src, 0) >= 0 {
		return nil, malformed("/", "the text has a zero byte")
	}
	p := &parser{src: src, dec: xml.NewDecoder(bytes.NewReader(src))}
	for {
		from := p.dec.InputOffset()
		tok, err := p.dec.RawToken()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, malformed(p.where(), "not well-formed: "+err.Error())
		}
		if err := p.token(tok, from); err != nil {
			return nil, err
		}
	}
	if len(p.stack) > 0 {
		return nil, malformed(p.where(), "the element is not closed")
	}
	if p.root == nil {
		return nil, malformed("/", "there is no element")
	}
	return p.root, nil
}

func (p *parser) where() string {
	if len(p.stack) == 0 {
		return "/"
	}
	return p.stack[len(p.stack)-1].path
}

func (p *parser) token(tok xml.Token, from int64) error {
	switch t := tok.(type) {
	case xml.StartElement:
		return p.start(t)
	case xml.EndElement:
		return p.end(t)
	case xml.CharData:
		return p.chars(t, from)
	case xml.Comment:
		if n := len(p.stack); n > 0 {
			p.stack[n-1].split = true
		}
		return nil
	case xml.ProcInst:
		return p.procInst(t, from)
	case xml.Directive:
		return malformed(p.where(), "a document type or other declaration (<!…>) is not accepted")
	default:
		return malformed(p.where(), "unknown kind of token")
	}
}

func (p *parser) procInst(t xml.ProcInst, from int64) error {
	if t.Target != "xml" || from != 0 {
		return malformed(p.where(), "processing instructions are not accepted")
	}
	if !declaration.Match(t.Inst) {
		return malformed("/", "only <?xml version='1.0' encoding='UTF-8'?> is accepted as declaration")
	}
	return nil
}

func (p *parser) chars(t xml.CharData, from int64) error {
	if bytes.Contains(p.src[from:p.dec.InputOffset()], []byte("<![CDATA[")) {
		return malformed(p.where(), "CDATA is not accepted")
	}
	if len(p.stack) == 0 {
		if len(bytes.TrimSpace(t)) > 0 {
			return malformed("/", "text outside the root element")
		}
		return nil
	}
	top := p.stack[len(p.stack)-1]
	top.text += string(t)
	return nil
}

func (p *parser) start(t xml.StartElement) error {
	if p.root != nil && len(p.stack) == 0 {
		return malformed("/", "there is a second root element")
	}
	if p.nodes++; p.nodes > maxNodes {
		return malformed(p.where(), fmt.Sprintf("there are more than %d elements", maxNodes))
	}
	if len(p.stack) >= maxDepth {
		return malformed(p.where(), fmt.Sprintf("elements are nested deeper than %d", maxDepth))
	}
	if len(t.Attr) > maxAttrs {
		return malformed(p.where(), fmt.Sprintf("element <%.64s> has more than %d attributes", t.Name.Local, maxAttrs))
	}
	n := &node{name: t.Name.Local, prefix: t.Name.Space}
	n.path = p.path(n)
	if err := p.names(n, t); err != nil {
		return err
	}
	if len(p.stack) == 0 {
		p.root = n
	} else {
		top := p.stack[len(p.stack)-1]
		top.children = append(top.children, n)
	}
	p.stack = append(p.stack, n)
	if n.path == "/domain/metadata" {
		p.meta = len(p.stack)
	}
	return nil
}

// path names a node by its place; the second of a name and later ones have an index.
func (p *parser) path(n *node) string {
	name := n.name
	if n.prefix != "" {
		name = n.prefix + ":" + n.name
	}
	if !plain(n.name) || (n.prefix != "" && !plain(n.prefix)) {
		name = fmt.Sprintf("%q", name)
	}
	if len(p.stack) == 0 {
		return "/" + name
	}
	top := p.stack[len(p.stack)-1]
	if top.counts == nil {
		top.counts = map[string]int{}
	}
	top.counts[name]++
	if i := top.counts[name]; i > 1 {
		name = fmt.Sprintf("%s[%d]", name, i)
	}
	return top.path + "/" + name
}

// names checks the element's and its attributes' names and takes the declarations of name spaces out.
func (p *parser) names(n *node, t xml.StartElement) error {
	inMeta := p.meta > 0
	if !plain(n.name) || (n.prefix != "" && !plain(n.prefix)) {
		return malformed(p.where(), fmt.Sprintf("%.64q is no name of an element", t.Name.Local))
	}
	if n.prefix != "" && !inMeta {
		return notAllowed(n.path, "elements of another name space are read only below /domain/metadata")
	}
	seen := map[xml.Name]bool{}
	for _, a := range t.Attr {
		if seen[a.Name] {
			return malformed(n.path, fmt.Sprintf("attribute %.64q is there twice", a.Name.Local))
		}
		seen[a.Name] = true
		if !plain(a.Name.Local) || (a.Name.Space != "" && !plain(a.Name.Space)) {
			return malformed(n.path, fmt.Sprintf("%.64q is no name of an attribute", a.Name.Local))
		}
		switch {
		case a.Name.Space == "xmlns" || (a.Name.Space == "" && a.Name.Local == "xmlns"):
			if err := p.declare(n, a, inMeta); err != nil {
				return err
			}
		case a.Name.Space != "" && !inMeta:
			return notAllowed(n.path+"/@"+a.Name.Space+":"+a.Name.Local, "attributes of another name space are not accepted")
		case a.Name.Space != "":
			n.attrs = append(n.attrs, attr{name: a.Name.Space + ":" + a.Name.Local, value: a.Value})
		default:
			n.attrs = append(n.attrs, attr{name: a.Name.Local, value: a.Value})
		}
	}
	return nil
}

// declare accepts declarations where engines put those of their metadata: on the root, on <metadata> and below.
func (p *parser) declare(n *node, a xml.Attr, inMeta bool) error {
	where := n.path + "/@xmlns"
	if a.Name.Space != "" {
		where += ":" + a.Name.Local
	}
	switch {
	case strings.HasPrefix(a.Value, libvirtSpaces):
		return notAllowed(where, refusedWhy["qemu:"])
	case a.Name.Space == "" && !inMeta:
		return notAllowed(where, "a default name space is not accepted")
	case !inMeta && len(p.stack) > 0 && n.path != "/domain/metadata":
		return notAllowed(where, "name spaces are declared on the root or below /domain/metadata")
	}
	if n.spaces == nil {
		n.spaces = map[string]string{}
	}
	prefix := ""
	if a.Name.Space != "" {
		prefix = a.Name.Local
	}
	n.spaces[prefix] = a.Value
	return nil
}

func (p *parser) end(t xml.EndElement) error {
	if len(p.stack) == 0 {
		return malformed("/", "an end tag without its start")
	}
	top := p.stack[len(p.stack)-1]
	if top.name != t.Name.Local || top.prefix != t.Name.Space {
		return malformed(top.path, fmt.Sprintf("the end tag is that of %.64q", t.Name.Local))
	}
	if p.meta == len(p.stack) {
		p.meta = 0
	}
	p.stack = p.stack[:len(p.stack)-1]
	return nil
}

// declaration is what may stand in <?xml …?>. Other encodings are read otherwise by other readers.
var declaration = regexp.MustCompile(`^version=["']1\.0["'](\s+encoding=["'](?i:utf-8)["'])?(\s+standalone=["'](yes|no)["'])?\s*$`)

// plain says that a name is of the letters that libvirt's own names are made of.
func plain(s string) bool {
	for i, r := range s {
		letter := r == '_' || (r >= 'a' && r <= 'z') || (r >= 'A' && r <= 'Z')
		if !letter && (i == 0 || r != '-' && r != '.' && (r < '0' || r > '9')) {
			return false
		}
	}
	return s != "" && len(s) <= 128
}

// printable says that a value has no control byte, no unpaired or invisible rune: what it prints is what it is.
func printable(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) })
}

func malformed(path, why string) *proof.Refusal {
	return proof.Refuse(proof.RequestInvalid, fmt.Sprintf("cannot read the domain XML at %s: %s", path, why),
		proof.Fact{Name: "element", Value: path}, proof.Fact{Name: "cause", Value: why})
}

func notAllowed(path, why string) *proof.Refusal {
	return proof.Refuse(proof.ConfigurationNotAllowed, fmt.Sprintf("%s is not allowed in a trusted domain: %s", path, why),
		proof.Fact{Name: "element", Value: path}, proof.Fact{Name: "cause", Value: why})
}
