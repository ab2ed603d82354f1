package domain

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"

	"troth/proof"
)

// reader reads a tree into a Config. The first failure is kept and the rest runs on with zero values; each element
// and attribute that is read is ticked off, and leftover makes a refusal of whatever was not. So nothing is accepted
// by being forgotten.
type reader struct {
	secrets map[string]UUID // of sealed disks, by target, as the definition names them
	mode    Mode
	err     error
	also    []proof.Fact // of a request: what else is not allowed, so that its author need not ask once for each
}

// running says that libvirt may have added what it adds to a domain that starts or runs.
func (r *reader) running() bool { return r.mode == Hook || r.mode == Live }

// request says that values may be left out.
func (r *reader) request() bool { return r.mode == Request }

func (r *reader) malformed(n *node, under, why string, args ...any) {
	if r.err == nil {
		r.err = malformed(place(n, under), fmt.Sprintf(why, args...))
	}
}

func (r *reader) notAllowed(n *node, under, why string, args ...any) {
	switch at, why := place(n, under), fmt.Sprintf(why, args...); {
	case r.err == nil:
		r.err = notAllowed(at, why)
	case r.request() && len(r.also) < maxAlso:
		r.also = append(r.also, proof.Fact{Name: "also", Value: at + ": " + why})
	}
}

// maxAlso bounds what a refusal tells besides its reason.
const maxAlso = 7

// failure is the first failure, with what else is not allowed if that is what it says. Elements that are never allowed are not read, and
// stand among what is left over.
func (r *reader) failure(root *node) error {
	f, ok := errors.AsType[*proof.Refusal](r.err)
	if !ok || f.Code != proof.ConfigurationNotAllowed || !r.request() {
		return r.err
	}
	r.never(root)
	for _, devices := range root.children {
		if devices.name == "devices" {
			r.never(devices)
		}
	}
	for _, a := range r.also {
		if !slices.Contains(f.Facts, a) && !strings.HasPrefix(a.Value, f.Facts[0].Value+": ") {
			f.Facts = append(f.Facts, a)
		}
	}
	return f
}

// never notes children that no trusted domain has. (Deeper down, what a reader that failed left unread says nothing.)
func (r *reader) never(n *node) {
	for _, c := range n.children {
		if why, ok := refusedWhy[c.name]; ok && !c.used {
			r.notAllowed(c, "", "%s", why)
		}
	}
}

func place(n *node, under string) string {
	p := "/domain"
	if n != nil {
		p = n.path
	}
	if under != "" {
		p += "/" + under
	}
	return p
}

// all gives the children of a name, in order.
func (r *reader) all(n *node, name string) []*node {
	var out []*node
	if n != nil {
		for _, c := range n.children {
			if c.name == name && c.prefix == "" {
				c.used = true
				out = append(out, c)
			}
		}
	}
	return out
}

// one gives the only child of a name, or nil. Of two, one reader takes the first and another the last.
func (r *reader) one(n *node, name string) *node {
	found := r.all(n, name)
	if len(found) == 0 {
		return nil
	}
	if len(found) > 1 {
		r.malformed(found[1], "", "the element is there twice")
	}
	return found[0]
}

// must is one, and refuses its absence.
func (r *reader) must(n *node, name string) *node {
	c := r.one(n, name)
	if c == nil {
		r.malformed(n, name, "the element is missing")
	}
	return c
}

func (r *reader) has(n *node, name string) bool {
	return n != nil && slices.ContainsFunc(n.attrs, func(a attr) bool { return a.name == name })
}

// attr gives an attribute's value, "" when it is absent. Present and empty is refused.
func (r *reader) attr(n *node, name string) string {
	if n == nil {
		return ""
	}
	for i := range n.attrs {
		a := &n.attrs[i]
		if a.name != name {
			continue
		}
		a.used = true
		switch {
		case a.value == "":
			r.malformed(n, "@"+name, "the attribute is empty")
		case !printable(a.value):
			r.malformed(n, "@"+name, "the value has control or invisible characters: %.64q", a.value)
		}
		return a.value
	}
	return ""
}

// need is attr, and refuses its absence.
func (r *reader) need(n *node, name string) string {
	if n != nil && !r.has(n, name) {
		r.malformed(n, "@"+name, "the attribute is missing")
	}
	return r.attr(n, name)
}

// oneOf is attr for a closed set of values.
func (r *reader) oneOf(n *node, name string, allowed ...string) string {
	v := r.attr(n, name)
	if v != "" && !slices.Contains(allowed, v) {
		r.notAllowed(n, "@"+name, "%.64q is not one of %s", v, strings.Join(allowed, ", "))
	}
	return v
}

// needOf is oneOf, and refuses absence.
func (r *reader) needOf(n *node, name string, allowed ...string) string {
	if n != nil && !r.has(n, name) {
		r.malformed(n, "@"+name, "the attribute is missing (%s)", strings.Join(allowed, ", "))
	}
	return r.oneOf(n, name, allowed...)
}

// number is attr for an unsigned number, decimal or 0x, below 2^32; its canonical text is decimal.
func (r *reader) number(n *node, name string) uint64 {
	v := r.attr(n, name)
	if v == "" {
		return 0
	}
	return r.parse(n, "@"+name, v)
}

// numeral is number for fields where absence differs from zero.
func (r *reader) numeral(n *node, name string) string {
	if !r.has(n, name) {
		return ""
	}
	return strconv.FormatUint(r.number(n, name), 10)
}

// positive is numeral for fields of which libvirt takes zero for absence.
func (r *reader) positive(n *node, name string) string {
	v := r.numeral(n, name)
	if v == "0" {
		r.malformed(n, "@"+name, "zero is no value here: libvirt takes it for none")
	}
	return v
}

func (r *reader) parse(n *node, under, v string) uint64 {
	digits, base := v, 10
	if strings.HasPrefix(v, "0x") {
		digits, base = v[2:], 16
	}
	u, err := strconv.ParseUint(digits, base, 32)
	if err != nil || digits[0] == '+' || (base == 10 && len(v) > 1 && v[0] == '0') {
		r.malformed(n, under, "%.64q is no number below 2^32", v)
	}
	return u
}

// text gives an element's text, which must be all that the element has inside.
func (r *reader) text(n *node) string {
	if n == nil {
		return ""
	}
	n.textUsed = true
	switch {
	case n.split:
		r.malformed(n, "", "a comment stands inside the text")
	case n.text == "":
		r.malformed(n, "", "the element is empty")
	case !printable(n.text):
		r.malformed(n, "", "the text has control or invisible characters: %.64q", n.text)
	}
	return n.text
}

// word is text that has no space around it, so that trimming readers read the same.
func (r *reader) word(n *node) string {
	t := r.text(n)
	if strings.TrimSpace(t) != t {
		r.malformed(n, "", "there is space around the text")
	}
	return t
}

// path is word for a file's absolute, clean path.
func (r *reader) path(n *node) string { return r.checkPath(n, "", r.word(n)) }

// pathAttr is attr for such a path.
func (r *reader) pathAttr(n *node, name string) string {
	return r.checkPath(n, "@"+name, r.attr(n, name))
}

func (r *reader) checkPath(n *node, under, p string) string {
	switch {
	case p == "" || r.err != nil:
	case !path.IsAbs(p) || path.Clean(p) != p || len(p) >= 4096:
		r.notAllowed(n, under, "%.256q is not an absolute, clean path", p)
	case strings.TrimSpace(p) != p:
		r.notAllowed(n, under, "there is space around the path %.256q", p)
	case p == "/" || below(p, "/proc", "/sys", "/dev/fd", "/dev/stdin", "/dev/stdout", "/dev/stderr"):
		r.notAllowed(n, under, "%.256q names no file of its own", p)
	}
	return p
}

// below says that p is one of dirs or in one.
func below(p string, dirs ...string) bool {
	return slices.ContainsFunc(dirs, func(d string) bool { return p == d || strings.HasPrefix(p, d+"/") })
}

// ignore ticks a whole element off: what it says is not ours and is not written again.
func (r *reader) ignore(n *node) {
	if n == nil {
		return
	}
	n.used, n.textUsed = true, true
	for i := range n.attrs {
		n.attrs[i].used = true
	}
	for _, c := range n.children {
		r.ignore(c)
	}
}

// leftover refuses the first thing that nothing has read.
func (r *reader) leftover(n *node) {
	if r.err != nil {
		return
	}
	if !n.used {
		r.notAllowed(n, "", "%s", why(n.name))
		return
	}
	for _, a := range n.attrs {
		if !a.used {
			r.notAllowed(n, "@"+a.name, "the attribute is not known to this launcher in %s XML", r.mode)
			return
		}
	}
	if !n.textUsed && strings.Trim(n.text, " \t\r\n") != "" {
		r.malformed(n, "", "the element has text where none is read")
	}
	for _, c := range n.children {
		r.leftover(c)
	}
}

func why(name string) string {
	if w, ok := refusedWhy[name]; ok {
		return w
	}
	return "the element is not known to this launcher here"
}
