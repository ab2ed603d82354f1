// Package cast gives the lab its people: an operator, a tenant and an engine. Each is nothing but the program troth with a
// settings file and a certificate of that role, run on the lab's network outside the hosts, so that whatever a test or the
// demonstration does, a person could do by typing it.
//
// It promises that an [Answer] is what the program printed and how it ended; it trusts the lab.
package cast

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"troth/proof"
	"troth/test/lab"
)

// Person runs troth with the certificate of one role.
type Person struct {
	Lab  *lab.Lab
	Role lab.Role
	Dir  string // where this person keeps files; commands run in it

	// Heard, if set, is told of every command and its end.
	Heard func(*Answer)
}

// New makes a person who keeps files in dir.
func New(l *lab.Lab, role lab.Role, dir string) (*Person, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("cannot make a place for the %s: %w", role, err)
	}
	p := &Person{Lab: l, Role: role, Dir: dir}
	cert, err := l.PKI.Client(string(role), role)
	if err != nil {
		return nil, err
	}
	for _, h := range l.Hosts() {
		settings := fmt.Sprintf("verifier = %q\nhostd = %q\nca = %q\ncert = %q\nkey = %q\n",
			l.Verifier.URL(), h.URL(), l.PKI.CAFile(), cert.CertFile, cert.KeyFile)
		if err := os.WriteFile(p.settings(h), []byte(settings), 0o644); err != nil {
			return nil, fmt.Errorf("cannot write the settings of the %s: %w", role, err)
		}
	}
	return p, nil
}

// settings is the file by which this person reaches a host; it lies with the lab, not with the person's own files.
func (p *Person) settings(h *lab.Host) string {
	return filepath.Join(p.Lab.Dir(), "shared", fmt.Sprintf("%s-%s.toml", p.Role, h.Name))
}

// Answer is what one command printed and how it ended.
type Answer struct {
	Role   lab.Role
	Args   []string
	Stdout []byte
	Stderr []byte
	Exit   int
}

// Command is the command as a person would type it, without connection settings.
func (a *Answer) Command() string { return "troth " + Quoted(a.Args) }

// Quoted is how a person would type words into a shell.
func Quoted(words []string) string {
	quoted := make([]string, len(words))
	for i, arg := range words {
		if arg == "" || strings.ContainsAny(arg, " \t\n'\"$\\*?<>|&;()") {
			arg = "'" + strings.ReplaceAll(arg, "'", `'\''`) + "'"
		}
		quoted[i] = arg
	}
	return strings.Join(quoted, " ")
}

// Refusal is the refusal that a command run with -o json ended with, or nil.
func (a *Answer) Refusal() *proof.Refusal {
	var failure struct {
		Refusal *struct {
			Code     proof.Code   `json:"code"`
			Sentence string       `json:"sentence"`
			Facts    []proof.Fact `json:"facts"`
			Remedy   string       `json:"remedy"`
			Also     []proof.Code `json:"also"`
		} `json:"refusal"`
	}
	if err := json.Unmarshal(a.Stdout, &failure); err != nil || failure.Refusal == nil {
		return nil
	}
	r := failure.Refusal
	return &proof.Refusal{Code: r.Code, Sentence: r.Sentence, Remedy: r.Remedy, Facts: r.Facts, Also: r.Also}
}

// Failure is the sentence that a command run with -o json ended with, or "".
func (a *Answer) Failure() string {
	var failure struct {
		Error  string `json:"error"`
		Failed struct {
			Name, Error string
		} `json:"failed"` // of proof verify
	}
	if err := json.Unmarshal(a.Stdout, &failure); err != nil {
		return strings.TrimSpace(string(a.Stderr))
	}
	if failure.Error == "" && failure.Failed.Name != "" {
		return failure.Failed.Name + ": " + failure.Failed.Error
	}
	return failure.Error
}

// Decode reads the JSON that the command printed.
func (a *Answer) Decode(v any) error {
	if err := json.Unmarshal(a.Stdout, v); err != nil {
		return fmt.Errorf("%s: cannot read its answer: %w: %s%s", a.Command(), err, a.Stdout, a.Stderr)
	}
	return nil
}

// Err is nil if the command ended with exit 0, and otherwise says how it ended.
func (a *Answer) Err() error {
	if a.Exit == 0 {
		return nil
	}
	return fmt.Errorf("%s: exit %d: %s%s", a.Command(), a.Exit, a.Stdout, a.Stderr)
}

// Troth runs troth with -o json against the lab's verifier and a host. The error says that it could not be run; how it ended
// stands in the answer.
func (p *Person) Troth(ctx context.Context, h *lab.Host, args ...string) (*Answer, error) {
	return p.run(ctx, h, "json", args)
}

// Text is Troth with the answer for people, unless the arguments ask for another form.
func (p *Person) Text(ctx context.Context, h *lab.Host, args ...string) (*Answer, error) {
	return p.run(ctx, h, "text", args)
}

func (p *Person) run(ctx context.Context, h *lab.Host, form string, args []string) (*Answer, error) {
	var stdout, stderr bytes.Buffer
	cmd := p.Lab.Command(ctx, append([]string{"troth", "-o", form, "--config", p.settings(h)}, args...)...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = p.Dir, &stdout, &stderr
	err := cmd.Run()
	a := &Answer{Role: p.Role, Args: args, Stdout: stdout.Bytes(), Stderr: stderr.Bytes()}
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		a.Exit = exit.ExitCode()
	} else if err != nil {
		return nil, fmt.Errorf("cannot run %s: %w", a.Command(), err)
	}
	if p.Heard != nil {
		p.Heard(a)
	}
	return a, nil
}

// Do is Troth for a command that must end with exit 0; v, if not nil, takes its answer.
func (p *Person) Do(ctx context.Context, h *lab.Host, v any, args ...string) error {
	a, err := p.Troth(ctx, h, args...)
	if err != nil {
		return err
	}
	if err := a.Err(); err != nil || v == nil {
		return err
	}
	return a.Decode(v)
}

// Path is a file of this person.
func (p *Person) Path(name string) string { return filepath.Join(p.Dir, name) }

// Profile is a profile as a token names it: NAME@DIGEST.
func (p *Person) Profile(ctx context.Context, h *lab.Host, name string) (string, error) {
	var shown struct{ Name, Digest string }
	if err := p.Do(ctx, h, &shown, "profile", "show", name); err != nil {
		return "", err
	}
	return shown.Name + "@" + shown.Digest, nil
}

// FetchTrust pins the verifier's keys, in trust.json.
func (p *Person) FetchTrust(ctx context.Context, h *lab.Host) error {
	return p.Do(ctx, h, nil, "trust", "fetch", "--out", "trust.json", "--allow-software-tpm", "--yes")
}

// NewToken is the command that makes a token for what a domain boots: the lab's guest, or other files of the guest's directory.
func NewToken(g *lab.Guest, d lab.Domain, profile, key, token string, more ...string) []string {
	outside := func(inside string) string { return filepath.Join(g.Outside, filepath.Base(inside)) }
	return append([]string{"token", "new", "--trust", "trust.json", "--profile", profile, "--kernel", outside(cmp.Or(d.Kernel, g.Kernel)),
		"--initrd", outside(cmp.Or(d.Initrd, g.Initrd)), "--cmdline", cmp.Or(d.CommandLine, g.CommandLine), "--interactive", "no",
		"--key-out", key, "--token-out", token}, more...)
}
