package differential

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"strings"
)

// Node is one element as it will be written, or, without a name, a piece of the text that is written as it stands:
// character data that is escaped already, a comment, a CDATA section.
type Node struct {
	Name     string // with its prefix
	Attrs    []Attr
	Children []*Node
	Raw      string
}

// Attr is one attribute. Two of one name are possible: no XML, but somebody may send it.
type Attr struct {
	Name, Value string
	Raw         bool // Value is escaped already
}

// Parse reads a document into a tree. Comments and the declaration are lost.
func Parse(text []byte) (*Node, error) {
	dec := xml.NewDecoder(bytes.NewReader(text))
	top := &Node{}
	stack := []*Node{top}
	for {
		t, err := dec.RawToken()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("cannot read XML: %w", err)
		}
		here := stack[len(stack)-1]
		switch t := t.(type) {
		case xml.StartElement:
			n := &Node{Name: written(t.Name)}
			for _, a := range t.Attr {
				n.Attrs = append(n.Attrs, Attr{Name: written(a.Name), Value: a.Value})
			}
			here.Children = append(here.Children, n)
			stack = append(stack, n)
		case xml.EndElement:
			if len(stack) == 1 {
				return nil, errors.New("cannot read XML: an end tag without its start")
			}
			stack = stack[:len(stack)-1]
		case xml.CharData:
			if text := string(t); strings.TrimSpace(text) != "" && len(stack) > 1 {
				here.Children = append(here.Children, &Node{Raw: escape(text)})
			}
		}
	}
	if len(stack) != 1 || len(top.Children) != 1 {
		return nil, errors.New("cannot read XML: not one whole element")
	}
	return top.Children[0], nil
}

func written(n xml.Name) string {
	if n.Space == "" {
		return n.Local
	}
	return n.Space + ":" + n.Local
}

var escaper = strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;", "'", "&apos;", `"`, "&quot;", "\n", "&#10;")

func escape(s string) string { return escaper.Replace(s) }

// String writes the tree.
func (n *Node) String() string {
	var b strings.Builder
	n.write(&b)
	return b.String()
}

func (n *Node) write(b *strings.Builder) {
	if n.Name == "" {
		b.WriteString(n.Raw)
		return
	}
	b.WriteString("<" + n.Name)
	for _, a := range n.Attrs {
		v := a.Value
		if !a.Raw {
			v = escape(v)
		}
		b.WriteString(" " + a.Name + "='" + v + "'")
	}
	if len(n.Children) == 0 {
		b.WriteString("/>")
		return
	}
	b.WriteString(">")
	for _, c := range n.Children {
		c.write(b)
	}
	b.WriteString("</" + n.Name + ">")
}

// Clone copies the tree.
func (n *Node) Clone() *Node {
	c := &Node{Name: n.Name, Raw: n.Raw, Attrs: append([]Attr(nil), n.Attrs...)}
	for _, k := range n.Children {
		c.Children = append(c.Children, k.Clone())
	}
	return c
}

// All gives the elements below a path of names ("devices/disk"), seen from n.
func (n *Node) All(path string) []*Node {
	first, rest, deeper := strings.Cut(path, "/")
	var out []*Node
	for _, c := range n.Children {
		switch {
		case c.Name != first:
		case deeper:
			out = append(out, c.All(rest)...)
		default:
			out = append(out, c)
		}
	}
	return out
}

// Attr gives the value of the first attribute of a name, and whether there is one.
func (n *Node) Attr(name string) (string, bool) {
	for _, a := range n.Attrs {
		if a.Name != name {
			continue
		}
		if a.Raw {
			if plain, err := Parse([]byte("<a v='" + a.Value + "'/>")); err == nil {
				return plain.Attrs[0].Value, true
			}
		}
		return a.Value, true
	}
	return "", false
}

// Text joins the pieces of text directly inside.
func (n *Node) Text() string {
	var b strings.Builder
	for _, c := range n.Children {
		if c.Name == "" {
			b.WriteString(c.Raw)
		}
	}
	return b.String()
}

// elements gives n and all elements below it.
func (n *Node) elements() []*Node {
	var out []*Node
	if n.Name != "" {
		out = append(out, n)
	}
	for _, c := range n.Children {
		out = append(out, c.elements()...)
	}
	return out
}
