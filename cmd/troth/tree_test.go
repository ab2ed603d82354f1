package main

import (
	"bytes"
	"errors"
	"fmt"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"troth/proof"
)

func eachCommand(c *cobra.Command, f func(*cobra.Command)) {
	f(c)
	for _, s := range c.Commands() {
		eachCommand(s, f)
	}
}

// TestHelp asks of every command a sentence, an example that names it, and flags
// that are explained.
func TestHelp(t *testing.T) {
	a := &app{}
	eachCommand(a.tree(), func(c *cobra.Command) {
		if c.Short == "" {
			t.Errorf("%s: no short help", c.CommandPath())
		}
		if !strings.Contains(c.Example, "troth ") {
			t.Errorf("%s: no example", c.CommandPath())
		}
		if c.HasParent() && !c.HasSubCommands() && !strings.Contains(c.Example, c.CommandPath()+" ") && !strings.HasSuffix(c.Example, c.CommandPath()) && !strings.Contains(c.Example, c.CommandPath()+"\n") {
			t.Errorf("%s: its example shows another command: %q", c.CommandPath(), c.Example)
		}
		o := troth(t, "", append(strings.Fields(c.CommandPath())[1:], "--help")...)
		o.want(t, exitYes, "Examples:")
	})
}

// TestUsage: whatever is wrong with a command line ends with 2, prints nothing
// on standard output in text, and asks nobody anything.
func TestUsage(t *testing.T) {
	t.Setenv("XDG_CONFIG_HOME", t.TempDir())
	a := &app{}
	eachCommand(a.tree(), func(c *cobra.Command) {
		args := append(strings.Fields(c.CommandPath())[1:], "--no-such-flag")
		t.Run(strings.Join(args, " "), func(t *testing.T) {
			o := troth(t, "", args...)
			o.want(t, exitUsage, "no-such-flag", "--help")
			if o.stdout != "" {
				t.Errorf("stdout: %q", o.stdout)
			}
		})
	})
	for _, line := range []string{
		"", "nonsense", "token", "token nonsense", "domain start x", "-o yaml version",
		"proof verify", "proof verify a b", "proof verify --public --key k p", "proof verify p",
		"token new", "token show", "token show no-such-file", "trust show",
		"domain show not-a-uuid", "domain launch --token t", "host show", "host list",
		"host list --verifier http://plain", "domain list --hostd ftp://x", "domain list --hostd unix://relative",
		"domain list --key k", "domain list --timeout 0s", "domain list --timeout never", "domain list --cert no-such-file",
		"domain list --ca no-such-file", "config check --config no-such-file",
		"reference add", "reference add n --launcher tboot-da --pcr x", "profile add gold",
	} {
		t.Run(line, func(t *testing.T) { troth(t, "", strings.Fields(line)...).want(t, exitUsage, "troth: ") })
	}
}

// TestExits is the whole table of ends, in its one place.
func TestExits(t *testing.T) {
	for _, c := range []struct {
		err  error
		want exit
	}{
		{nil, exitYes},
		{usagef("x"), exitUsage},
		{nof("x"), exitNo},
		{undecidedf("x"), exitUndecided},
		{errors.New("x"), exitUndecided},
		{fmt.Errorf("x: %w", nof("y")), exitNo},
		{usagef("x: %w", undecidedf("y")), exitUndecided},
		{undecidedf("x: %w", nof("y")), exitUndecided},
		{answered{nof("x")}, exitNo},
		{&proof.Invalid{}, exitNo},
		{proof.ErrNoKey, exitUndecided},
	} {
		if got := exitOf(c.err); got != c.want {
			t.Errorf("%#v: exit %d, want %d", c.err, got, c.want)
		}
	}
	open := map[proof.Code]bool{"internal": true, "tpm-unavailable": true, "tpm-busy": true, "verifier-unreachable": true, "hostd-unreachable": true}
	for _, c := range proof.Codes() {
		want := exitNo
		if open[c.Code] {
			want = exitUndecided
		}
		if got := exitOf(fmt.Errorf("x: %w", proof.Refuse(c.Code, "s"))); got != want {
			t.Errorf("%s: exit %d, want %d", c.Code, got, want)
		}
	}
}

// TestJSONAlways: with -o json standard output is one JSON document at every end.
func TestJSONAlways(t *testing.T) {
	t.Setenv("XDG_CONFIG_HOME", t.TempDir())
	for _, line := range []string{
		"version", "config check", "nonsense", "token show no-such-file", "host list", "domain digest main.go",
		"domain list --hostd unix:///no/such/socket", "proof verify --trust no-such-file p", "verdict show main.go",
	} {
		o := troth(t, "", append([]string{"-o", "json"}, strings.Fields(line)...)...)
		if err := oneJSON([]byte(o.stdout)); err != nil {
			t.Errorf("%s: %v: %q", line, err, o.stdout)
		}
	}
}

// TestCompletion: the scripts come from the same tree.
func TestCompletion(t *testing.T) {
	for _, shell := range []string{"bash", "zsh", "fish"} {
		troth(t, "", "completion", shell).want(t, exitYes, "troth")
	}
	troth(t, "", "__complete", "domain", "ch").want(t, exitYes, "challenge")
}

// TestAttack holds the attacks that end at the tenant's terminal.
func TestAttack(t *testing.T) {
	t.Run("X-LOG", attackControlBytes)
}

// attackControlBytes: what a stranger named cannot write to the terminal.
func attackControlBytes(t *testing.T) {
	for in, want := range map[string]string{
		"plain ü": "plain ü", "a\nb": `a\nb`, "\x1b[2J": `\x1b[2J`, "\u202e": `\u202e`, "\xff": `\ufffd`,
	} {
		if got := clean(in); got != want {
			t.Errorf("%q: got %s, want %s", in, got, want)
		}
	}
	var p printer
	p.table([]string{"A"}, [][]string{{"x\ny"}})
	p.field("name", "x\x1b]0;title\x07")
	p.refusal(proof.Refuse(proof.PCRMismatch, "a\nb", proof.Fact{Name: "pcr\r", Want: "\x1b", Got: "\x00"}))
	if bytes.ContainsAny([]byte(p.b.String()), "\x1b\x00\r\x07") || strings.Contains(p.b.String(), "x\ny") {
		t.Errorf("control bytes came through: %q", p.b.String())
	}
}

// TestStatic: the tenant's program is one static file. No cgo, no libvirt, no
// database, no daemon's insides.
func TestStatic(t *testing.T) {
	c := exec.Command("go", "list", "-deps", "-f", "{{.ImportPath}} {{if not .Standard}}{{len .CgoFiles}}{{end}}", ".")
	c.Env = append(c.Environ(), "CGO_ENABLED=1")
	out, err := c.Output()
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, line := range strings.Split(strings.TrimSpace(string(out)), "\n") {
		path, cgo, _ := strings.Cut(line, " ")
		seen[path] = true
		if cgo != "" && cgo != "0" {
			t.Errorf("%s needs cgo", path)
		}
		for _, heavy := range []string{"libvirt.org/", "modernc.org/", "github.com/coreos/", "github.com/vishvananda/"} {
			if strings.HasPrefix(path, heavy) {
				t.Errorf("troth depends on %s", path)
			}
		}
		switch path {
		case "troth/hostd", "troth/verifier", "troth/launcher", "troth/launcher/virt", "troth/tpm/chip":
			t.Errorf("troth depends on %s", path)
		}
	}
	if !seen["troth/proof"] || !seen["troth/hostd/api"] {
		t.Fatalf("go list gave %d packages and not those that must be there", len(seen))
	}
}

// TestRemedies: a command of this program that a remedy names exists.
func TestRemedies(t *testing.T) {
	root := (&app{}).tree()
	named := 0
	for _, c := range proof.Codes() {
		for _, m := range regexp.MustCompile("`troth ([a-z]+ [a-z]+)").FindAllStringSubmatch(c.Remedy, -1) {
			named++
			words := strings.Fields(m[1])
			if got, rest, err := root.Find(words); err != nil || len(rest) > 0 || got.HasSubCommands() {
				t.Errorf("%s: its remedy names troth %s, which does not exist", c.Code, m[1])
			}
		}
	}
	if named == 0 {
		t.Error("no remedy names a command")
	}
}
