package differential

import (
	"fmt"
	"strings"
)

// place is an element of a document with the patterns that the schema has for it there.
type place struct {
	node, parent *Node
	patterns     []*pattern
}

// places finds all elements of a document that the schema knows.
func (g *generator) places(root *Node) []place {
	var out []place
	var walk func(n, parent *Node, p []*pattern)
	walk = func(n, parent *Node, p []*pattern) {
		out = append(out, place{n, parent, p})
		inside := g.schema.inside("element", p...)
		for _, c := range n.Children {
			if q := named(inside, c.Name); c.Name != "" && len(q) > 0 {
				walk(c, n, q)
			}
		}
	}
	walk(root, nil, g.schema.root())
	return out
}

// graft changes a document in one place to something else that the schema has there.
func (g *generator) graft(root *Node) {
	at := pick(g, g.places(root))
	if g.chance(50) { // devices are where most is
		if d := root.All("devices"); len(d) > 0 {
			for _, p := range g.places(root) {
				if p.node == d[0] || p.parent == d[0] && g.chance(20) {
					at = p
				}
			}
		}
	}
	g.budget = 1 + g.IntN(12)
	n := at.node
	attrs := g.usual(g.schema.inside("attribute", at.patterns...), n.Name+"@")
	kids := g.usual(g.schema.inside("element", at.patterns...), n.Name+"/")
	switch k := g.IntN(100); {
	case k < 35 && len(kids) > 0: // another element
		g.insert(n, g.element(pick(g, kids), 4))
	case k < 50 && len(kids) > 0: // an element in the place of one of its name
		fresh := g.element(pick(g, kids), 4)
		for i, c := range n.Children {
			if c.Name == fresh.Name {
				n.Children[i] = fresh
				return
			}
		}
		g.insert(n, fresh)
	case k < 80 && len(attrs) > 0: // an attribute
		p := pick(g, attrs)
		v := g.value(p)
		for i := range n.Attrs {
			if n.Attrs[i].Name == p.name {
				n.Attrs[i].Value = v
				return
			}
		}
		n.Attrs = append(n.Attrs, Attr{Name: p.name, Value: v})
	case k < 87 && at.parent != nil: // the whole element anew
		*n = *g.element(pick(g, at.patterns), 4)
	case k < 94 && len(n.Children) > 0: // one thing less
		i := g.IntN(len(n.Children))
		n.Children = append(n.Children[:i:i], n.Children[i+1:]...)
	case len(n.Attrs) > 0:
		i := g.IntN(len(n.Attrs))
		n.Attrs = append(n.Attrs[:i:i], n.Attrs[i+1:]...)
	}
}

func (g *generator) insert(n, child *Node) {
	i := g.IntN(len(n.Children) + 1)
	n.Children = append(n.Children[:i:i], append([]*Node{child}, n.Children[i:]...)...)
}

// twist changes a document in a way that no schema makes: in what two readers of XML, of numbers and of names could
// differ.
func (g *generator) twist(root *Node) {
	all := root.elements()
	n := pick(g, all)
	twists := []func(root, n *Node){
		g.twice, g.reorder, g.foreign, g.texts, g.number, g.number, g.number, g.space, g.pieces, g.entity, g.second, g.shuffle, g.prefix, g.characters,
	}
	pick(g, twists)(root, n)
}

// twice has an element or an attribute again, the same or changed a little.
func (g *generator) twice(root, n *Node) {
	if len(n.Attrs) > 0 && g.chance(25) {
		a := pick(g, n.Attrs)
		n.Attrs = append(n.Attrs, Attr{Name: a.Name, Value: a.Value + pick(g, []string{"", "x"})})
		return
	}
	for _, parent := range root.elements() {
		for _, c := range parent.Children {
			if c == n {
				again := n.Clone()
				if g.chance(50) {
					g.number(root, again)
				}
				g.insert(parent, again)
				return
			}
		}
	}
}

// reorder changes the order of attributes, which means nothing.
func (g *generator) reorder(_, n *Node) {
	g.Shuffle(len(n.Attrs), func(i, j int) { n.Attrs[i], n.Attrs[j] = n.Attrs[j], n.Attrs[i] })
}

// shuffle changes the order of elements, which means something only between those of one name.
func (g *generator) shuffle(_, n *Node) {
	g.Shuffle(len(n.Children), func(i, j int) { n.Children[i], n.Children[j] = n.Children[j], n.Children[i] })
}

// foreign adds something of another name space.
func (g *generator) foreign(root, n *Node) {
	space := pick(g, []string{"urn:x", "urn:troth:launch:v1", "http://libvirt.org/schemas/domain/qemu/1.0", "", "http://www.w3.org/1999/xhtml"})
	switch g.IntN(4) {
	case 0:
		root.Attrs = append(root.Attrs, Attr{Name: "xmlns:x", Value: space})
		n.Attrs = append(n.Attrs, Attr{Name: "x:type", Value: "kvm"})
	case 1:
		n.Attrs = append(n.Attrs, Attr{Name: "xmlns", Value: space})
	case 2:
		root.Attrs = append(root.Attrs, Attr{Name: "xmlns:x", Value: space})
		g.insert(n, &Node{Name: "x:" + pick(g, root.elements()).Name})
	default:
		mark := &Node{Name: "x:launch", Attrs: []Attr{{Name: "xmlns:x", Value: space}}}
		g.insert(root, &Node{Name: "metadata", Children: []*Node{mark}})
	}
}

// prefix writes an element under a prefix, beside or instead of itself.
func (g *generator) prefix(root, n *Node) {
	if n == root || strings.Contains(n.Name, ":") {
		return
	}
	if g.chance(50) {
		n.Attrs = append(n.Attrs, Attr{Name: "xmlns:x", Value: "urn:x"})
	}
	n.Name = "x:" + n.Name
}

// pieces splits text by what a reader may or may not see through.
func (g *generator) pieces(_, n *Node) {
	piece := pick(g, []string{"<!-- c -->", "<?pi x?>", "<![CDATA[]]>", "<![CDATA[x]]>", "<![CDATA[ ]]>", "&#32;", "<!---->"})
	if t := n.Text(); t != "" && len(n.Children) == 1 && !strings.Contains(t, "&") {
		if g.chance(30) {
			n.Children[0].Raw = "<![CDATA[" + t + "]]>"
			return
		}
		i := g.IntN(len(t) + 1)
		n.Children[0].Raw = t[:i] + piece + t[i:]
		return
	}
	g.insert(n, &Node{Raw: piece})
}

// space puts white space around a text or a value.
func (g *generator) space(_, n *Node) {
	s := pick(g, []string{" ", "\n", "\t", "&#10;", "&#9;", "&#13;", "&#160;", "\r\n"})
	add := func(v string) string {
		if g.chance(50) {
			return s + v
		}
		return v + s
	}
	if len(n.Attrs) > 0 && g.chance(60) {
		a := &n.Attrs[g.IntN(len(n.Attrs))]
		if !a.Raw {
			a.Value = escape(a.Value)
		}
		a.Value, a.Raw = add(a.Value), true
		return
	}
	for _, c := range n.Children {
		if c.Name == "" {
			c.Raw = add(c.Raw)
			return
		}
	}
	g.insert(n, &Node{Raw: s})
}

// texts puts text where none is read.
func (g *generator) texts(_, n *Node) {
	g.insert(n, &Node{Raw: pick(g, []string{"x", "0", " y ", "&amp;"})})
}

// entity writes a value by references, which mean the same.
func (g *generator) entity(_, n *Node) {
	coded := func(v string) string {
		var b strings.Builder
		for _, r := range v {
			if g.chance(40) {
				fmt.Fprintf(&b, pick(g, []string{"&#%d;", "&#x%x;"}), r)
			} else {
				b.WriteString(escape(string(r)))
			}
		}
		return b.String()
	}
	if len(n.Attrs) > 0 {
		if a := &n.Attrs[g.IntN(len(n.Attrs))]; !a.Raw {
			a.Value, a.Raw = coded(a.Value), true
		}
		return
	}
	if len(n.Children) == 1 && n.Children[0].Name == "" && !strings.ContainsAny(n.Children[0].Raw, "&<") {
		n.Children[0].Raw = coded(n.Children[0].Raw)
	}
}

// second gives the domain a second of what it has once.
func (g *generator) second(root, _ *Node) {
	for _, one := range []string{"name", "uuid", "os", "memory", "devices", "vcpu"} {
		if all := root.All(one); len(all) > 0 && g.chance(30) {
			other := all[0].Clone()
			switch one {
			case "name":
				other.Children = []*Node{{Raw: "other"}}
			case "uuid":
				other.Children = []*Node{{Raw: "bbbbbbbb-0000-4000-8000-000000000099"}}
			default:
				g.number(root, pick(g, other.elements()))
			}
			g.insert(root, other)
			return
		}
	}
}

// number writes numbers, units and names in ways that are read differently, or are another number.
func (g *generator) number(root, n *Node) {
	forms := []string{
		"%s", "0%s", "+%s", "-%s", "0x%s", "00%s", "%s ", " %s", "%s.0", "%se0", "%sk", "%s\u00a0", "0X%s", "%s0000000000", "4294967296", "4294967295",
		"18446744073709551615", "18446744073709551616", "-1", "0", "1", "2", "9999999999", "1e3", "", "\u0661", "0b1", "0o17", "017", "0x1F", "0XFF", "1_0",
	}
	vary := func(v string) string {
		f := pick(g, forms)
		if strings.Contains(f, "%s") {
			return fmt.Sprintf(f, v)
		}
		return f
	}
	if len(n.Attrs) > 0 && g.chance(70) {
		a := &n.Attrs[g.IntN(len(n.Attrs))]
		switch {
		case a.Name == "unit":
			a.Value = pick(g, []string{"b", "bytes", "B", "KB", "k", "kib", "KiB", "Kib", "MB", "M", "MiB", "mib", "GB", "G", "GiB", "TB", "T", "TiB", "tib", "PiB", "EiB", "", "x"})
		case a.Value != "" && strings.Trim(a.Value, "0123456789abcdefx-") == "":
			a.Value = vary(a.Value)
		default:
			a.Value = pick(g, []string{strings.ToUpper(a.Value), a.Value + "x", "", "default", "none", "yes", "no", "on", "off", vary(a.Value)})
		}
		return
	}
	if t := n.Text(); t != "" && len(n.Children) == 1 {
		n.Children[0].Raw = escape(vary(unescaper.Replace(t)))
		return
	}
	if m := root.All("memory"); len(m) > 0 && g.chance(50) {
		m[0].Attrs = []Attr{{Name: "unit", Value: pick(g, []string{"b", "k", "KB", "M", "MB", "G", "T", "MiB"})}}
	}
}

// characters puts into a value what is not seen, or is not what it looks like.
func (g *generator) characters(_, n *Node) {
	odd := pick(g, []string{"\u200b", "\u202e", "\u00ad", "\ufeff", "\ufffd", "\u0430", "&#1;", "&#x7f;", "\u0085", "\u2028", "\\", "/../", "//", "/./", "%00", "%s", "\x01"})
	if len(n.Attrs) > 0 && g.chance(60) {
		a := &n.Attrs[g.IntN(len(n.Attrs))]
		if !a.Raw {
			a.Value = escape(a.Value)
		}
		i := g.IntN(len(a.Value) + 1)
		a.Value, a.Raw = a.Value[:i]+odd+a.Value[i:], true
		return
	}
	for _, c := range n.Children {
		if c.Name == "" {
			i := g.IntN(len(c.Raw) + 1)
			c.Raw = c.Raw[:i] + odd + c.Raw[i:]
			return
		}
	}
}
