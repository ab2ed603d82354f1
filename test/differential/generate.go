package differential

import (
	"math/rand/v2"
	"regexp/syntax"
	"strconv"
	"strings"
)

// generator makes what the schema allows. It is bounded by budget, in elements, and by depth.
type generator struct {
	*rand.Rand
	schema *Schema
	used   map[string]bool // what the seeds have, which is more often accepted
	budget int
}

const maxDepth = 12

func (g *generator) chance(percent int) bool { return g.IntN(100) < percent }

func pick[T any](g *generator, all []T) T { return all[g.IntN(len(all))] }

// element makes one element of a pattern.
func (g *generator) element(p *pattern, depth int) *Node {
	n := &Node{Name: p.name}
	if p.space != "" {
		n.Name = "q:" + p.name
		n.Attrs = append(n.Attrs, Attr{Name: "xmlns:q", Value: p.space})
	}
	g.budget--
	for _, k := range p.kids {
		g.fill(k, n, depth+1)
	}
	return n
}

// fill adds to an element what a pattern of its content gives.
func (g *generator) fill(p *pattern, n *Node, depth int) {
	tired := g.budget <= 0 || depth > maxDepth
	switch p.kind {
	case "element":
		if depth < 2*maxDepth {
			n.Children = append(n.Children, g.element(p, depth))
		}
	case "attribute":
		if _, there := n.Attr(p.name); !there {
			n.Attrs = append(n.Attrs, Attr{Name: p.name, Value: g.value(p)})
		}
	case "choice":
		g.fill(g.choose(p), n, depth)
	case "group":
		for _, k := range p.kids {
			g.fill(k, n, depth)
		}
	case "interleave":
		for _, i := range g.order(len(p.kids)) {
			g.fill(p.kids[i], n, depth)
		}
	case "optional":
		if !tired && g.chance(35) {
			g.group(p, n, depth)
		}
	case "zeroOrMore":
		for !tired && g.chance(30) && g.budget > 0 {
			g.group(p, n, depth)
		}
	case "oneOrMore":
		g.group(p, n, depth)
		for !tired && g.chance(30) && g.budget > 0 {
			g.group(p, n, depth)
		}
	case "ref":
		if depth < 2*maxDepth {
			g.fill(g.schema.defines[p.name], n, depth)
		}
	case "data", "value", "text":
		n.Children = append(n.Children, &Node{Raw: escape(g.text(p, n.Name))})
	}
}

func (g *generator) group(p *pattern, n *Node, depth int) {
	for _, k := range p.kids {
		g.fill(k, n, depth)
	}
}

// usual keeps the patterns of what the seeds have somewhere in an element of this name, most of the time.
func (g *generator) usual(all []*pattern, prefix string) []*pattern {
	if g.chance(35) {
		return all
	}
	var out []*pattern
	for _, p := range all {
		if g.used[prefix+p.name] {
			out = append(out, p)
		}
	}
	if len(out) == 0 {
		return all
	}
	return out
}

// order is the schema's own most of the time: an interleave allows any.
func (g *generator) order(n int) []int {
	if g.chance(10) {
		return g.Perm(n)
	}
	all := make([]int, n)
	for i := range all {
		all[i] = i
	}
	return all
}

func (g *generator) choose(p *pattern) *pattern {
	for range 4 {
		k := pick(g, p.kids)
		if k.kind == "ref" && g.schema.defines[k.name].kind == "notAllowed" || k.kind == "notAllowed" {
			continue
		}
		return k
	}
	return &pattern{kind: "empty"}
}

// value makes an attribute's.
func (g *generator) value(p *pattern) string {
	n := &Node{Name: p.name}
	for _, k := range p.kids {
		g.fill(k, n, maxDepth)
	}
	var b strings.Builder
	for _, c := range n.Children {
		b.WriteString(unescaper.Replace(c.Raw))
	}
	return b.String()
}

var unescaper = strings.NewReplacer("&lt;", "<", "&gt;", ">", "&apos;", "'", "&quot;", `"`, "&#10;", "\n", "&amp;", "&")

// known are values that mean something, by the name of the attribute or element that takes them: a random one is only
// ever refused there.
var known = map[string][]string{
	"file": {"/var/lib/libvirt/images/raw1", "/var/lib/libvirt/images/plain.qcow2", "/var/log/libvirt/a.log"},
	"dev":  {"/dev/vda", "vda", "vdb", "sda", "sdb", "hda", "fda", "/dev/sdb", "br0", "tap0"},
	"path": {"/var/log/libvirt/a.log", "/dev/pts/3", "/run/sock", "/dev/null"},
	"bus":  {"0", "0x00", "0x01", "virtio", "sata", "usb", "scsi", "ide"},
	"slot": {"0x05", "6", "0x07", "0x1f", "0"}, "function": {"0x0", "0", "1"}, "domain": {"0x0000", "0"},
	"controller": {"0", "1"}, "index": {"0", "1", "2"}, "port": {"0", "1", "2", "5901", "0x8", "-1"}, "target": {"0"}, "unit": {"0", "1", "3"},
	"emulator": {"/usr/bin/qemu-system-x86_64"}, "machine": {"pc-q35-7.2", "pc-i440fx-7.2", "q35", "pc"}, "arch": {"x86_64"},
	"network": {"lan", "default"}, "bridge": {"br0"}, "address": {"52:54:00:00:00:01", "52:54:00:11:22:33", "127.0.0.1", "0x04"},
	"cpuset": {"0", "0-1"}, "dst": {"/dst"}, "order": {"1", "2", "3"}, "driver": {"qemu"},
	"kernel": {"/boot/vmlinuz"}, "initrd": {"/boot/initrd"}, "loader": {"/var/lib/libvirt/images/code.fd"}, "nvram": {"/var/lib/libvirt/images/vars.fd"},
	"vcpu": {"1", "2", "4"}, "memory": {"262144", "1048576"}, "currentMemory": {"262144"}, "queues": {"1", "2", "4"}, "size": {"1500", "2048"},
}

// words are texts for which the schema sets no rule.
var words = []string{"a", "x1", "Z", "some text", "0", "1", "0x10", "/a/b", "yes", "no", "on", "off", "qemu", "virtio", "é", "a'b", "ua-1", "-1"}

// text makes the text of data, a value or free text, inside something of a name.
func (g *generator) text(p *pattern, name string) string {
	if p.kind == "value" {
		return p.name
	}
	if k := known[name]; k != nil && g.chance(75) {
		return pick(g, k)
	}
	if p.kind == "text" {
		return pick(g, words)
	}
	low, high := int64(0), int64(16)
	for _, q := range p.params {
		switch q.name {
		case "pattern":
			if re, err := syntax.Parse(q.value, syntax.Perl); err == nil {
				var b strings.Builder
				g.match(re.Simplify(), &b)
				return b.String()
			}
		case "minInclusive":
			low, _ = strconv.ParseInt(q.value, 10, 64) // libvirt wrote the number
			high = low + 16
		case "maxInclusive":
			if m, err := strconv.ParseInt(q.value, 10, 64); err == nil && m < high || g.chance(10) {
				high = m
			}
		}
	}
	switch p.name {
	case "string", "dateTime":
		return pick(g, words)
	default:
		return strconv.FormatInt(low+g.Int64N(max(high-low+1, 1)), 10)
	}
}

// match writes a string that a pattern matches.
func (g *generator) match(re *syntax.Regexp, b *strings.Builder) {
	switch re.Op {
	case syntax.OpLiteral:
		for _, r := range re.Rune {
			b.WriteRune(r)
		}
	case syntax.OpCharClass:
		b.WriteRune(g.of(re.Rune))
	case syntax.OpAnyChar, syntax.OpAnyCharNotNL:
		b.WriteRune(rune('a' + g.IntN(26)))
	case syntax.OpConcat, syntax.OpCapture:
		for _, s := range re.Sub {
			g.match(s, b)
		}
	case syntax.OpAlternate:
		g.match(pick(g, re.Sub), b)
	case syntax.OpQuest:
		if g.chance(50) {
			g.match(re.Sub[0], b)
		}
	case syntax.OpStar, syntax.OpPlus:
		n := g.IntN(4)
		if re.Op == syntax.OpPlus {
			n++
		}
		for range n {
			g.match(re.Sub[0], b)
		}
	}
}

// of draws from a class of runes, printable ASCII if it can.
func (g *generator) of(class []rune) rune {
	var ascii []rune
	for i := 0; i+1 < len(class); i += 2 {
		for r := max(class[i], ' '); r <= min(class[i+1], '~'); r++ {
			ascii = append(ascii, r)
		}
	}
	if len(ascii) == 0 {
		return class[0]
	}
	return pick(g, ascii)
}
