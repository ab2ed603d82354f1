package differential

import (
	"errors"
	"math/rand/v2"
)

// Stream gives documents without end, the same ones for the same seed.
type Stream struct {
	schema *Schema
	seeds  []*Node
	used   map[string]bool // "parent/child" and "element@attribute" of the seeds
	seed   uint64
}

// NewStream mixes documents of a schema with variations of the given ones, which are domains that libvirt takes.
func NewStream(s *Schema, seeds []*Node, seed uint64) (*Stream, error) {
	if len(seeds) == 0 {
		return nil, errors.New("cannot vary documents: there are none")
	}
	used := map[string]bool{}
	for _, seed := range seeds {
		for _, n := range seed.elements() {
			for _, c := range n.Children {
				used[n.Name+"/"+c.Name] = true
			}
			for _, a := range n.Attrs {
				used[n.Name+"@"+a.Name] = true
			}
		}
	}
	return &Stream{schema: s, seeds: seeds, used: used, seed: seed}, nil
}

// Kind says how a document was made.
type Kind int

// Kinds of documents.
const (
	Grown    Kind = iota // by the schema from the root
	Grafted              // one that libvirt takes, with something else of the schema in it
	Twisted              // one that libvirt takes, changed as no schema does
	Entwined             // both
	Kinds
)

func (k Kind) String() string { return [...]string{"grown", "grafted", "twisted", "both"}[k] }

// Document makes document i.
func (s *Stream) Document(i uint64) (*Node, Kind) {
	g := &generator{Rand: rand.New(rand.NewPCG(s.seed, i)), schema: s.schema, used: s.used}
	switch k := g.IntN(100); {
	case k < 15:
		return s.grown(g), Grown
	case k < 60:
		n := pick(g, s.seeds).Clone()
		for range 1 + g.IntN(5)/3 {
			g.graft(n)
		}
		return n, Grafted
	case k < 85:
		n := pick(g, s.seeds).Clone()
		for range 1 + g.IntN(5)/3 {
			g.twist(n)
		}
		return n, Twisted
	default:
		n := pick(g, s.seeds).Clone()
		g.graft(n)
		g.twist(n)
		return n, Entwined
	}
}

// grown makes a domain by the schema alone, but for what libvirt's QEMU driver asks for first: a type, a name, memory
// and a machine that it has. Each part of the schema is in it seldom, since one that cannot be refuses the whole.
func (s *Stream) grown(g *generator) *Node {
	text := func(name, t string, attrs ...Attr) *Node {
		return &Node{Name: name, Attrs: attrs, Children: []*Node{{Raw: t}}}
	}
	devices := &Node{Name: "devices"}
	root := &Node{Name: "domain", Attrs: []Attr{{Name: "type", Value: "qemu"}}, Children: []*Node{
		text("name", "grown"), text("uuid", "cccccccc-0000-4000-8000-000000000001"), text("memory", "262144"), text("vcpu", "1"),
		{Name: "os", Children: []*Node{text("type", "hvm", Attr{Name: "arch", Value: "x86_64"}, Attr{Name: "machine", Value: pick(g, []string{"pc-q35-7.2", "pc-i440fx-7.2"})})}},
		devices,
	}}
	tops := s.schema.inside("element", s.schema.root()...)
	kinds := s.schema.inside("element", named(tops, "devices")...)
	for range g.IntN(4) {
		g.budget = 2 + g.IntN(20)
		devices.Children = append(devices.Children, g.element(pick(g, kinds), 3))
	}
	for range g.IntN(3) {
		g.budget = 2 + g.IntN(10)
		top := g.element(pick(g, tops), 3)
		if old := root.All(top.Name); len(old) == 1 && len(old[0].Children) < 2 && g.chance(50) {
			*old[0] = *top
		} else if len(old) == 0 {
			g.insert(root, top)
		}
	}
	return root
}
