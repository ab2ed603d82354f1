package differential_test

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"runtime/debug"
	"strings"
	"time"

	"troth/launcher/domain"
	"troth/launcher/virt"
	"troth/proof"
	"troth/test/differential"
)

// slow is what no document may take us.
const slow = time.Second

// finding is one disagreement. class is the same for those of one cause, as far as that can be told.
type finding struct{ class, detail string }

// verdict is what became of one document.
type verdict struct {
	libvirt, ours bool   // who accepted it
	reason        string // why we did not
	incomplete    string // why libvirt refuses the document once what it leaves out is written out
	unusable      string // why libvirt refuses what we make of it
	lost          bool   // libvirtd died of it; we refused it
	findings      []finding
}

// errLost: libvirtd went away over a document. libvirt 9.0 does: <vcpu>-2</vcpu> asks for all memory that there is.
var errLost = errors.New("libvirtd is lost")

// define gives libvirt's refusal, or its reading of a document. Afterwards libvirt has no domain.
func (s *session) define(text string) (back []byte, refusal string, err error) {
	ctx, cancel := context.WithTimeout(s.ctx, 30*time.Second)
	defer cancel()
	if err := s.virt.Define(ctx, []byte(text)); err != nil {
		var lv *virt.Error
		if !errors.As(err, &lv) || lv.Kind == virt.ErrUnreachable || lv.Kind == virt.ErrNotReturned { //nolint:errorlint // Kind is never wrapped
			return nil, "", fmt.Errorf("%w: %w", errLost, err)
		}
		return nil, lv.Message, nil
	}
	all, err := s.virt.List(ctx)
	if err != nil {
		return nil, "", err
	}
	if len(all) != 1 {
		return nil, "", fmt.Errorf("libvirt has %d domains instead of one", len(all))
	}
	if back, err = s.virt.InactiveXML(ctx, all[0].UUID); err != nil {
		return nil, "", err
	}
	return back, "", s.virt.Undefine(ctx, all[0].UUID)
}

// read is domain.Read, watched.
func read(text []byte, m domain.Mode, v *verdict) (c *domain.Config, err error) {
	begin := time.Now()
	defer func() {
		if p := recover(); p != nil {
			v.findings = append(v.findings, finding{"panic", fmt.Sprintf("%v\n%s", p, debug.Stack())})
			err = errors.New("panic")
			return
		}
		if time.Since(begin) > slow {
			// Once more: a document that is slow is so each time, a machine is not.
			begin = time.Now()
			if _, err := domain.Read(text, m); time.Since(begin) > slow {
				v.findings = append(v.findings, finding{"slow", fmt.Sprintf("%v, %v", time.Since(begin), err)})
			}
		}
	}()
	return domain.Read(text, m)
}

// judge holds our reading of a document against libvirt's.
func (s *session) judge(doc *differential.Node) (v verdict, err error) {
	text := doc.String()
	ours, refused := read([]byte(text), domain.Request, &v)
	v.ours = refused == nil
	if refused != nil {
		v.reason = class(refused)
	}
	_, refusal, err := s.define(text)
	if errors.Is(err, errLost) {
		if err := s.restart(); err != nil {
			return v, err
		}
		if !v.ours {
			v.lost = true
			return v, nil
		}
		// Over a document of ours it must not die. Once more, since it may have died of one before it.
		if _, refusal, err = s.define(text); errors.Is(err, errLost) {
			v.findings = append(v.findings, finding{"libvirtd dies", err.Error()})
			return v, s.restart()
		}
	}
	if err != nil {
		return v, err
	}
	v.libvirt = refusal == ""
	if v.ours && v.libvirt {
		if err := s.understood(doc, ours, &v); err != nil {
			return v, err
		}
	}
	if v.ours {
		err = s.returned(ours, &v)
	}
	return v, err
}

// understood: what libvirt itself makes of the document that we accepted is what we make of it. What the document leaves
// out is written out first, and nothing else is touched: completing it must not change what we read.
func (s *session) understood(doc *differential.Node, ours *domain.Config, v *verdict) error {
	full, err := complete(doc, ours)
	if err != nil {
		return err
	}
	again, err := read([]byte(full.String()), domain.Request, v)
	if err != nil {
		v.findings = append(v.findings, finding{"completed, refused: " + class(err), err.Error() + "\n" + full.String()})
		return nil
	}
	v.differ("completed, read otherwise", ours, again)
	back, refusal, err := s.define(full.String())
	switch {
	case err != nil:
		return err
	case refusal != "":
		v.incomplete = plainly(refusal)
		return nil
	}
	if len(ours.Sealed()) > 0 {
		return nil // a definition of ours names the secret that a request may not name: returned looks at that
	}
	theirs, err := read(back, domain.Inactive, v)
	if err != nil {
		v.findings = append(v.findings, finding{"refused back: " + class(err), err.Error() + "\n" + full.String()})
		return nil
	}
	asked := *ours
	if asked.UUID.IsZero() {
		asked.SetUUID(theirs.UUID) // libvirt chose one
	}
	v.differ("read otherwise", &asked, theirs)
	return nil
}

// differ notes what of two readings differs.
func (v *verdict) differ(what string, ours, theirs *domain.Config) {
	for _, f := range domain.Diff(ours, theirs) {
		v.findings = append(v.findings, finding{what + ": " + index.ReplaceAllString(f.Name, "[]"), fmt.Sprintf("%s: we have %q, libvirt %q", f.Name, f.Want, f.Got)})
	}
}

// returned: what we write of a document is what libvirt gives back.
func (s *session) returned(ours *domain.Config, v *verdict) error {
	c := *ours
	if c.UUID.IsZero() {
		c.SetUUID(domain.UUID{1})
	}
	emitted := domain.Emit(&c, domain.Additions{})
	back, refusal, err := s.define(string(emitted))
	switch {
	case err != nil:
		return err
	case refusal != "":
		v.unusable = plainly(refusal)
		return nil
	}
	theirs, err := read(back, domain.Inactive, v)
	if err != nil {
		v.findings = append(v.findings, finding{"ours refused back: " + class(err), err.Error() + "\n" + string(back)})
		return nil
	}
	v.differ("ours changed", &c, theirs)
	return nil
}

var (
	index  = regexp.MustCompile(`\[\d+\]`)
	quoted = regexp.MustCompile(`'[^']*'|"[^"]*"|\d+|/\S+`)
)

// plainly is libvirt's refusal without names and numbers.
func plainly(refusal string) string { return quoted.ReplaceAllString(refusal, "…") }

// class is a refusal's code and place.
func class(err error) string {
	var r *proof.Refusal
	if !errors.As(err, &r) {
		return err.Error()
	}
	for _, f := range r.Facts {
		if f.Name == "element" {
			return string(r.Code) + " " + index.ReplaceAllString(f.Value, "")
		}
	}
	return string(r.Code)
}

// minimise drops what it can of a document that shows a class of finding.
func (s *session) minimise(doc *differential.Node, class string) (*differential.Node, finding, error) {
	shows := func(d *differential.Node) (finding, error) {
		v, err := s.judge(d)
		for _, f := range v.findings {
			if f.class == class {
				return f, err
			}
		}
		return finding{}, err
	}
	last, err := shows(doc)
	for smaller := true; smaller && err == nil; {
		smaller = false
		for i := 0; err == nil; i++ {
			d := doc.Clone()
			if !drop(d, &i) {
				break
			}
			var f finding
			if f, err = shows(d); f.class != "" {
				doc, last, smaller = d, f, true
				i--
			}
		}
	}
	return doc, last, err
}

// drop removes the i-th attribute or child of a tree, counted in the order in which it is written.
func drop(n *differential.Node, i *int) bool {
	k := *i
	var walk func(n *differential.Node) bool
	walk = func(n *differential.Node) bool {
		if k < len(n.Attrs) {
			n.Attrs = append(n.Attrs[:k:k], n.Attrs[k+1:]...)
			return true
		}
		k -= len(n.Attrs)
		for j, c := range n.Children {
			if k == 0 {
				n.Children = append(n.Children[:j:j], n.Children[j+1:]...)
				return true
			}
			k--
			if walk(c) {
				return true
			}
		}
		return false
	}
	return walk(n)
}

func short(s string, n int) string {
	if len(s) > n {
		return strings.TrimSpace(s[:n]) + "…"
	}
	return s
}
