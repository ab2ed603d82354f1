package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"troth/proof"
	"troth/test/cast"
	"troth/test/lab"
	"troth/test/standstill"
)

// story is the demonstration under way: its people, its parts, and what it has promised so far.
type story struct {
	out     io.Writer
	files   string // where the tenant's files stay
	started time.Time

	lab                      *lab.Lab
	good, other              *lab.Host
	relay                    *cast.Relay // between good and the verifier
	operator, tenant, engine *cast.Person
	profile                  string // NAME@DIGEST

	chapters, expectations, broken int
	tokens                         int
	quiet                          bool
}

func newStory(out io.Writer, files string) *story {
	return &story{out: out, files: files, started: time.Now()}
}

// people gives the lab its people.
func (s *story) people(l *lab.Lab) error {
	s.lab, s.good, s.other = l, l.Host(1), l.Host(2)
	for _, p := range []struct {
		role lab.Role
		to   **cast.Person
	}{{lab.RoleOperator, &s.operator}, {lab.RoleTenant, &s.tenant}, {lab.RoleEngine, &s.engine}} {
		person, err := cast.New(l, p.role, s.files)
		if err != nil {
			return err
		}
		person.Heard = s.heard
		*p.to = person
	}
	return nil
}

// chapter begins a chapter.
func (s *story) chapter(title string) {
	s.chapters++
	fmt.Fprintf(s.out, "\n== %d. %s  [%s]\n", s.chapters, title, time.Since(s.started).Round(time.Second))
}

// say tells something that people would not see in a command.
func (s *story) say(format string, args ...any) { fmt.Fprintf(s.out, "   "+format+"\n", args...) }

// Write takes the lab's lines.
func (s *story) Write(b []byte) (int, error) {
	fmt.Fprintf(s.out, "   %s", b)
	return len(b), nil
}

// heard shows a command and how it ended.
func (s *story) heard(a *cast.Answer) {
	if s.quiet {
		return
	}
	fmt.Fprintf(s.out, "   %-8s $ %s\n", a.Role, strings.ReplaceAll(a.Command(), s.files+"/", ""))
	switch r := a.Refusal(); {
	case r != nil:
		fmt.Fprintf(s.out, "            refused: %s: %s\n", r.Code, r.Sentence)
		for _, f := range r.Facts {
			fmt.Fprintf(s.out, "              %s\n", fact(f))
		}
		if len(r.Also) > 0 {
			fmt.Fprintf(s.out, "              also: %v\n", r.Also)
		}
		fmt.Fprintf(s.out, "            remedy: %s\n", r.Remedy)
	case a.Exit != 0:
		fmt.Fprintf(s.out, "            exit %d: %s\n", a.Exit, a.Failure())
	}
}

func fact(f proof.Fact) string {
	var parts []string
	for _, v := range []struct{ name, value string }{{"", f.Value}, {"want ", f.Want}, {"got ", f.Got}} {
		if v.value != "" {
			parts = append(parts, v.name+v.value)
		}
	}
	return f.Name + ": " + strings.Join(parts, ", ")
}

// expect records one expectation.
func (s *story) expect(held bool, format string, args ...any) {
	s.expectations++
	mark := "ok  "
	if !held {
		s.broken++
		mark = "LOST"
	}
	fmt.Fprintf(s.out, "   %s     %s\n", mark, fmt.Sprintf(format, args...))
}

// expectRefusal expects exactly this code, and a fact of each of these names.
func (s *story) expectRefusal(a *cast.Answer, code proof.Code, facts ...string) {
	r := a.Refusal()
	if r == nil {
		s.expect(false, "refused with %s; exit %d: %s%s", code, a.Exit, a.Stdout, a.Stderr)
		return
	}
	s.expect(r.Code == code, "refused with %s (it was %s)", code, r.Code)
	for _, name := range facts {
		s.expect(slices.ContainsFunc(r.Facts, func(f proof.Fact) bool { return f.Name == name }), "the facts name %s", name)
	}
	s.expect(r.Remedy != "", "a remedy is given")
}

// token makes a token for the lab's guest and the tenant's record of it: files token-N and nonce-N.key, or token and nonce.key for the first;
// more are words for the token.
func (s *story) token(ctx context.Context, more ...string) (token, key string, err error) {
	s.tokens++
	token, key = "token", "nonce.key"
	if s.tokens > 1 {
		token, key = fmt.Sprintf("token-%d", s.tokens), fmt.Sprintf("nonce-%d.key", s.tokens)
	}
	more = append([]string{"--expiry", "1h"}, more...)
	return token, key, s.tenant.Do(ctx, s.good, nil, cast.NewToken(s.lab.Guest, lab.Domain{}, s.profile, key, token, more...)...)
}

// domain writes a domain's XML and returns its file and UUID.
func (s *story) domain(d lab.Domain) (file string, err error) {
	file = d.Name + ".xml"
	return file, os.WriteFile(s.engine.Path(file), []byte(s.lab.Guest.XML(d)), 0o644)
}

// refused lets the engine launch a domain, and expects a refusal.
func (s *story) refused(ctx context.Context, h *lab.Host, token, domain string, code proof.Code, facts ...string) error {
	a, err := s.launch(ctx, h, token, domain, "never.proof")
	if err == nil {
		s.expectRefusal(a, code, facts...)
	}
	return err
}

// prepare makes a fresh token, and the file of a domain to be launched with it.
func (s *story) prepare(ctx context.Context, d lab.Domain) (token, file string, err error) {
	if token, _, err = s.token(ctx); err != nil {
		return "", "", err
	}
	file, err = s.domain(d)
	return token, file, err
}

// launch lets the engine launch a domain with a token.
func (s *story) launch(ctx context.Context, h *lab.Host, token, domain, proofFile string) (*cast.Answer, error) {
	return s.engine.Troth(ctx, h, "domain", "launch", "--token", token, "--domain", domain, "--proof-out", proofFile)
}

// attempt makes a fresh token and domain and launches it: what an honest engine would do now.
func (s *story) attempt(ctx context.Context, h *lab.Host) (a *cast.Answer, d lab.Domain, err error) {
	d = lab.Domain{Name: fmt.Sprintf("guest-%d", s.tokens+1), UUID: uuid(s.tokens + 1)}
	token, file, err := s.prepare(ctx, d)
	if err != nil {
		return nil, d, err
	}
	a, err = s.launch(ctx, h, token, file, d.Name+".proof")
	return a, d, err
}

func uuid(n int) string { return fmt.Sprintf("7407aa00-0000-4000-8000-%012d", n) }

// honest launches and stops a fresh domain: honest work goes on. It tries again while the host has not noticed yet that the cause is gone.
func (s *story) honest(ctx context.Context, h *lab.Host) error {
	s.quiet = true
	defer func() { s.quiet = false }()
	begun := time.Now()
	for {
		a, d, err := s.attempt(ctx, h)
		if err != nil {
			return err
		}
		if a.Exit == 0 {
			s.expect(true, "an honest launch works, and nothing was restarted")
			return s.stop(ctx, h, d.UUID)
		}
		if standstill.Since(begun) > 30*time.Second {
			s.quiet = false
			s.heard(a)
			s.expect(false, "an honest launch works, and nothing was restarted")
			return nil
		}
		if err := pause(ctx, 500*time.Millisecond); err != nil {
			return err
		}
	}
}

func (s *story) stop(ctx context.Context, h *lab.Host, uuid string) error {
	return s.engine.Do(ctx, h, nil, "domain", "stop", uuid)
}

// refusedUntil launches until the refusal is the one expected: a host notices a change within an epoch, and what it holds expires within
// the lifetime of a verdict.
func (s *story) refusedUntil(ctx context.Context, h *lab.Host, code proof.Code, facts ...string) error {
	begun := time.Now()
	for {
		s.quiet = true
		a, d, err := s.attempt(ctx, h)
		s.quiet = false
		if err != nil {
			return err
		}
		late := standstill.Since(begun) > 15*time.Second
		if a.Exit == 0 {
			// What the host holds is still good; nothing may be launched once it is not.
			if err := s.stop(ctx, h, d.UUID); err != nil || !late {
				if err == nil {
					err = pause(ctx, 500*time.Millisecond)
				}
				if err != nil {
					return err
				}
				continue
			}
		}
		if r := a.Refusal(); r != nil && r.Code == code || late {
			s.heard(a)
			s.expectRefusal(a, code, facts...)
			return nil
		}
		if err := pause(ctx, 300*time.Millisecond); err != nil {
			return err
		}
	}
}

// eventually asks until the answer is yes, for what a host does by itself, and shows the last answer alone.
func (s *story) eventually(ctx context.Context, p *cast.Person, args ...string) (*cast.Answer, error) {
	return s.until(ctx, p, func(a *cast.Answer) bool { return a.Exit == 0 }, args...)
}

// until asks until the answer is the one expected, or too much time has gone by.
func (s *story) until(ctx context.Context, p *cast.Person, expected func(*cast.Answer) bool, args ...string) (*cast.Answer, error) {
	for begun := time.Now(); ; {
		s.quiet = true
		a, err := p.Troth(ctx, s.good, args...)
		s.quiet = false
		if err != nil {
			return nil, err
		}
		if expected(a) || standstill.Since(begun) > 20*time.Second {
			s.heard(a)
			return a, nil
		}
		if err := pause(ctx, 200*time.Millisecond); err != nil {
			return nil, err
		}
	}
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// end says what became of the expectations and where the tenant's files are.
func (s *story) end() error {
	fmt.Fprintf(s.out, "\n%d chapters, %d expectations, %d lost, %s\n", s.chapters, s.expectations, s.broken, time.Since(s.started).Round(time.Second))
	if s.broken > 0 {
		return fmt.Errorf("%d expectations were lost", s.broken)
	}
	if s.expectations == 0 {
		return errors.New("nothing was expected")
	}
	fmt.Fprintf(s.out, "The tenant's files: %s/{trust.json,token,nonce.key,proof.json}. Check the proof again, offline:\n", s.files)
	fmt.Fprintf(s.out, "  %[1]s/troth proof verify --trust %[2]s/trust.json --key %[2]s/nonce.key %[2]s/proof.json\n", filepath.Dir(s.files), s.files)
	return nil
}
