package differential

import (
	"encoding/xml"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
)

// SchemaDir is where Debian's libvirt0 puts libvirt's RELAX NG schemas.
const SchemaDir = "/usr/share/libvirt/schemas"

// pattern is one RELAX NG pattern (OASIS, RELAX NG Specification, section 4), of the few kinds that libvirt uses.
type pattern struct {
	kind   string // "element", "attribute", "choice", "group", "interleave", "optional", "zeroOrMore", "oneOrMore", "ref", "data", "value", "text", "empty", "notAllowed"
	name   string // of element, attribute, ref; the type of data; the text of value
	space  string // name space of an element
	params []param
	kids   []*pattern
}

type param struct{ name, value string }

// Schema is the grammar of a domain.
type Schema struct {
	defines map[string]*pattern
	start   *pattern
	top     *pattern // holds start
	found   sync.Map // what directly has found
}

// markup is a schema file as it stands.
type markup struct {
	XMLName xml.Name
	Attrs   []xml.Attr `xml:",any,attr"`
	Kids    []markup   `xml:",any"`
	Text    string     `xml:",chardata"`
}

func (m markup) attr(name string) string {
	for _, a := range m.Attrs {
		if a.Name.Local == name {
			return a.Value
		}
	}
	return ""
}

// Load reads domain.rng of a directory, and what it includes.
func Load(dir string) (*Schema, error) {
	s := &Schema{defines: map[string]*pattern{}}
	if err := s.file(dir, "domain.rng"); err != nil {
		return nil, err
	}
	if s.start == nil {
		return nil, fmt.Errorf("cannot use %s: it has no start", dir)
	}
	s.top = &pattern{kind: "group", kids: []*pattern{s.start}}
	return s, s.check()
}

func (s *Schema) file(dir, name string) error {
	b, err := os.ReadFile(filepath.Join(dir, filepath.Base(name)))
	if err != nil {
		return fmt.Errorf("cannot read libvirt's schema: %w", err)
	}
	var m markup
	if err := xml.Unmarshal(b, &m); err != nil {
		return fmt.Errorf("cannot read libvirt's schema %s: %w", name, err)
	}
	for _, k := range m.Kids {
		switch k.XMLName.Local {
		case "include":
			if err := s.file(dir, k.attr("href")); err != nil {
				return err
			}
			for _, o := range k.Kids { // a definition inside an include takes the place of the included one
				s.defines[o.attr("name")] = group(o)
			}
		case "start":
			s.start = group(k)
		case "define":
			s.define(k)
		default:
			return fmt.Errorf("cannot use libvirt's schema %s: <%s>", name, k.XMLName.Local)
		}
	}
	return nil
}

func (s *Schema) define(m markup) {
	name, combine, p := m.attr("name"), m.attr("combine"), group(m)
	if old, ok := s.defines[name]; ok && combine != "" {
		p = &pattern{kind: combine, kids: []*pattern{old, p}}
	}
	s.defines[name] = p
}

// group is the content of a definition or of an element: one after the other.
func group(m markup) *pattern {
	g := &pattern{kind: "group"}
	for _, k := range m.Kids {
		if p := compile(k); p != nil {
			g.kids = append(g.kids, p)
		}
	}
	if len(g.kids) == 1 {
		return g.kids[0]
	}
	return g
}

// custom is the name that stands for any.
const custom = "custom"

func compile(m markup) *pattern {
	p := &pattern{kind: m.XMLName.Local, name: m.attr("name")}
	switch p.kind {
	case "element", "attribute":
		p.space = m.attr("ns")
		content := m
		if p.name == "" { // the name is a class: the first child
			p.name, content.Kids = custom, m.Kids[1:]
			if p.kind == "element" {
				p.space = "urn:custom"
			}
		}
		p.kids = []*pattern{group(content)}
		if p.kind == "attribute" && len(content.Kids) == 0 {
			p.kids = []*pattern{{kind: "text"}}
		}
	case "data":
		p.name = m.attr("type")
		for _, k := range m.Kids {
			if k.XMLName.Local == "param" {
				p.params = append(p.params, param{k.attr("name"), strings.TrimSpace(k.Text)})
			}
		}
	case "value":
		p.name = strings.TrimSpace(m.Text)
	default:
		for _, k := range m.Kids {
			if q := compile(k); q != nil {
				p.kids = append(p.kids, q)
			}
		}
	}
	return p
}

// check says that every kind of pattern is known and every reference has a definition.
func (s *Schema) check() error {
	seen := map[*pattern]bool{}
	var walk func(p *pattern) error
	walk = func(p *pattern) error {
		if seen[p] {
			return nil
		}
		seen[p] = true
		switch p.kind {
		case "element", "attribute", "choice", "group", "interleave", "optional", "zeroOrMore", "oneOrMore", "data", "value", "text", "empty", "notAllowed":
		case "ref":
			if s.defines[p.name] == nil {
				return fmt.Errorf("cannot use libvirt's schema: %q is not defined", p.name)
			}
			return walk(s.defines[p.name])
		default:
			return fmt.Errorf("cannot use libvirt's schema: unknown pattern <%s>", p.kind)
		}
		for _, k := range p.kids {
			if err := walk(k); err != nil {
				return err
			}
		}
		return nil
	}
	return walk(s.start)
}

// inside gives the patterns of a kind that may stand directly inside these elements.
func (s *Schema) inside(kind string, of ...*pattern) []*pattern {
	if len(of) == 1 {
		return s.directly(kind, of[0])
	}
	var out []*pattern
	seen := map[*pattern]bool{}
	for _, p := range of {
		for _, q := range s.directly(kind, p) {
			if !seen[q] {
				seen[q] = true
				out = append(out, q)
			}
		}
	}
	return out
}

// directly looks through references and choices, but not into other elements.
func (s *Schema) directly(kind string, of *pattern) []*pattern {
	type key struct {
		kind string
		of   *pattern
	}
	if known, ok := s.found.Load(key{kind, of}); ok {
		return known.([]*pattern)
	}
	var out []*pattern
	seen := map[*pattern]bool{}
	var walk func(p *pattern)
	walk = func(p *pattern) {
		if seen[p] {
			return
		}
		seen[p] = true
		switch p.kind {
		case kind:
			out = append(out, p)
		case "element", "attribute":
		case "ref":
			walk(s.defines[p.name])
		default:
			for _, k := range p.kids {
				walk(k)
			}
		}
	}
	for _, k := range of.kids {
		walk(k)
	}
	s.found.Store(key{kind, of}, out)
	return out
}

// named keeps those of a name.
func named(all []*pattern, name string) []*pattern {
	var out []*pattern
	for _, p := range all {
		if p.name == name {
			out = append(out, p)
		}
	}
	return out
}

// root gives the element pattern of the domain.
func (s *Schema) root() []*pattern { return s.inside("element", s.top) }
