package differential_test

import (
	"strings"

	"troth/launcher/domain"
	"troth/test/differential"
)

// completion says what of a kind of device is written out where a request leaves it out: docs/domain-xml.md, third
// column. children and attrs are by name; an attribute of a child is "child@attribute".
type completion struct {
	kind  string
	key   func(*differential.Node) string // nil: by order
	parts []string
}

var completions = []completion{
	{"disk", attrOf("target", "dev"), []string{"address", "backingStore", "@device", "target@bus"}},
	{"controller", func(n *differential.Node) string { return value(n, "type") + number(value(n, "index")) }, []string{"address"}},
	{"serial", nil, []string{"target", "target@port"}},
	{"interface", nil, []string{"model", "address"}},
	{"channel", attrOf("target", "name"), []string{"address"}},
	{"input", nil, []string{"address"}},
	{"graphics", nil, []string{"@listen", "listen@address"}},
	{"video", nil, []string{"address", "model@ram", "model@vram", "model@vgamem", "model@heads", "model@primary"}},
	{"watchdog", nil, []string{"address", "@action"}},
	{"rng", nil, []string{"address"}},
}

func attrOf(child, attr string) func(*differential.Node) string {
	return func(n *differential.Node) string {
		if c := n.All(child); len(c) > 0 {
			return value(c[0], attr)
		}
		return ""
	}
}

func value(n *differential.Node, attr string) string {
	v, _ := n.Attr(attr)
	return v
}

// number is an index as we write it.
func number(v string) string {
	if strings.Trim(v, "0x") == "" {
		return "0"
	}
	if rest, ok := strings.CutPrefix(v, "0x"); ok {
		return strings.TrimLeft(rest, "0") // of one digit, as indices are
	}
	return v
}

// complete writes out what a document that we accepted as c leaves out. It takes from what we would write, never
// touches what stands in the document, and adds nothing that is not in its table.
func complete(doc *differential.Node, c *domain.Config) (*differential.Node, error) {
	d := doc.Clone()
	full, err := differential.Parse(domain.Emit(c, domain.Additions{}))
	if err != nil {
		return nil, err
	}
	devices, written := d.All("devices")[0], full.All("devices")[0]
	for _, k := range completions {
		mine, theirs := of(devices, k.kind), of(written, k.kind)
		for i, n := range mine {
			if from := match(k, n, i, theirs); from != nil {
				fill(n, from, k.parts)
			}
		}
	}
	present := map[string]bool{}
	for _, n := range devices.All("controller") {
		present[completions[1].key(n)] = true
	}
	for _, n := range written.All("controller") {
		if !present[completions[1].key(n)] {
			devices.Children = append(devices.Children, n)
		}
	}
	fill(devices, written, []string{"memballoon"})
	fill(d, full, []string{"cpu"})
	for _, cpu := range d.All("cpu") {
		fill(cpu, full.All("cpu")[0], []string{"@migratable", "model@fallback"})
	}
	fill(d.All("os")[0], full.All("os")[0], []string{"boot"})
	return d, nil
}

// of gives the devices of a kind; the PS/2 inputs are the machine's own.
func of(devices *differential.Node, kind string) []*differential.Node {
	var out []*differential.Node
	for _, n := range devices.All(kind) {
		if kind != "input" || value(n, "bus") != "ps2" {
			out = append(out, n)
		}
	}
	return out
}

func match(k completion, n *differential.Node, i int, all []*differential.Node) *differential.Node {
	if k.key == nil {
		if i < len(all) {
			return all[i]
		}
		return nil
	}
	for _, other := range all {
		if k.key(other) == k.key(n) {
			return other
		}
	}
	return nil
}

// fill adds the named parts that n lacks and from has.
func fill(n, from *differential.Node, parts []string) {
	for _, part := range parts {
		child, attr, isAttr := strings.Cut(part, "@")
		switch {
		case !isAttr:
			if len(n.All(part)) == 0 {
				n.Children = append(n.Children, from.All(part)...)
			}
			continue
		case child != "":
			a, b := n.All(child), from.All(child)
			if _, said := n.Attr(child); len(a) > 0 && len(b) > 0 && !said {
				fill(a[0], b[0], []string{"@" + attr})
			}
			continue
		}
		if _, has := n.Attr(attr); has || part == "@listen" && len(n.All("listen")) > 0 {
			continue
		}
		if v, ok := from.Attr(attr); ok {
			n.Attrs = append(n.Attrs, differential.Attr{Name: attr, Value: v})
		}
	}
}
