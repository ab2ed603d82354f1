// Package rules keeps the rules of the house as tests: which room may import which, what must build without cgo, what every
// package must say of itself, and which words may not stand anywhere. It needs the go command and nothing else.
package rules

import (
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "troth"

// root is the repository's top folder, seen from this package.
const root = "../.."

type pkg struct {
	ImportPath string
	Name       string
	Doc        string
	Dir        string
	Imports    []string
	Standard   bool
	GoFiles    []string
	Deps       []string
}

// list runs `go list -json` with the given arguments at the top of the repository.
func list(t *testing.T, args ...string) []pkg {
	t.Helper()
	cmd := exec.Command("go", append([]string{"list", "-e", "-json=ImportPath,Name,Doc,Dir,Imports,Standard,GoFiles,Deps"}, args...)...)
	cmd.Dir = root
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var all []pkg
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
}

// spine says what each room may import: rooms of this module, and modules from elsewhere. The standard library is allowed
// everywhere unless forbidden below. A trailing /... covers what stands under it. See docs/architecture.md.
var spine = map[string][]string{
	"troth/tpm/pcr":              {"github.com/google/go-tpm/tpm2"},
	"troth/tpm/eventlog":         {"troth/tpm/pcr", "github.com/google/go-tpm/tpm2"},
	"troth/tpm":                  {"troth/tpm/pcr", "github.com/google/go-tpm/tpm2"},
	"troth/tpm/chip":             {"troth/tpm", "troth/tpm/pcr", "github.com/google/go-tpm/...", "golang.org/x/sys/unix"},
	"troth/proof/strict":         {},
	"troth/proof":                {"troth/tpm", "troth/tpm/pcr", "troth/tpm/eventlog", "troth/proof/strict", "github.com/go-jose/go-jose/v4", "golang.org/x/mod/sumdb/tlog"},
	"troth/config":               {"github.com/BurntSushi/toml"},
	"troth/verifier/store":       {"troth/proof", "troth/tpm", "troth/tpm/pcr", "modernc.org/sqlite", "modernc.org/sqlite/...", "github.com/pressly/goose/v3", "github.com/pressly/goose/v3/..."},
	"troth/verifier":             {"troth/proof", "troth/proof/strict", "troth/tpm", "troth/tpm/pcr", "troth/tpm/eventlog", "troth/verifier/store"},
	"troth/verifier/api":         {"troth/proof", "github.com/oapi-codegen/runtime", "github.com/oapi-codegen/runtime/..."},
	"troth/verifier/serve":       {"troth/verifier", "troth/verifier/...", "troth/proof", "troth/proof/strict", "troth/tpm", "troth/tpm/pcr", "github.com/prometheus/client_golang/..."},
	"troth/hostd/api":            {"troth/proof", "github.com/oapi-codegen/runtime", "github.com/oapi-codegen/runtime/..."},
	"troth/hostd/journal":        {"golang.org/x/sys/unix"},
	"troth/hostd/audit":          {"troth/hostd/journal", "troth/proof"},
	"troth/hostd/secret":         {"troth/proof", "troth/launcher/domain", "golang.org/x/sys/unix"},
	"troth/hostd/serve":          {"troth/hostd", "troth/hostd/api", "troth/hostd/audit", "troth/hostd/secret", "troth/launcher", "troth/launcher/domain", "troth/proof", "troth/proof/strict", "golang.org/x/sys/unix"},
	"troth/hostd":                {"troth/launcher", "troth/launcher/domain", "troth/launcher/image", "troth/hostd/journal", "troth/hostd/audit", "troth/hostd/secret", "troth/hooks/answer", "troth/hooks/ask", "troth/systemd/polkit", "troth/proof", "troth/proof/strict", "troth/tpm", "troth/tpm/pcr", "troth/tpm/eventlog", "troth/tpm/chip", "troth/verifier/api", "troth/config", "github.com/coreos/go-systemd/v22/...", "github.com/vishvananda/netlink", "golang.org/x/sys/unix", "troth/launcher/emulator", "troth/launcher/stall", "troth/hostd/reaper", "troth/hooks"},
	"troth/launcher":             {"troth/proof", "troth/tpm", "troth/tpm/pcr", "troth/launcher/domain", "troth/launcher/image", "golang.org/x/sys/unix"},
	"troth/launcher/domain":      {"troth/proof"},
	"troth/launcher/image":       {"troth/proof", "golang.org/x/sys/unix"},
	"troth/launcher/virt":        {"troth/launcher", "troth/launcher/emulator", "troth/launcher/stall", "libvirt.org/go/libvirt", "golang.org/x/sys/unix"},
	"troth/hooks":                {"troth/hooks/ask"},
	"troth/hooks/ask":            {},
	"troth/hooks/answer":         {"troth/hooks/ask"},
	"troth/cmd/troth":            {"troth/proof", "troth/proof/strict", "troth/config", "troth/verifier/api", "troth/hostd/api", "troth/launcher/domain", "troth/tpm", "troth/tpm/pcr", "github.com/spf13/cobra", "github.com/spf13/cobra/...", "golang.org/x/sys/unix"},
	"troth/cmd/troth-hook":       {"troth/hooks"},
	"troth/cmd/troth-hostd":      {"troth/hostd", "troth/hostd/...", "troth/launcher", "troth/launcher/...", "troth/config", "troth/proof", "troth/tpm", "troth/tpm/...", "troth/hooks/answer", "troth/verifier/api", "github.com/spf13/cobra", "github.com/coreos/go-systemd/v22/...", "golang.org/x/sys/unix", "troth/hooks"},
	"troth/cmd/troth-verifierd":  {"troth/verifier", "troth/verifier/...", "troth/config", "troth/proof", "troth/tpm", "troth/tpm/pcr", "github.com/spf13/cobra", "github.com/coreos/go-systemd/v22/..."},
	"troth/cmd/troth-registered": {"troth/hooks"},
	"troth/systemd/polkit":       {},
	"troth/hostd/reaper":         {"troth/hooks/answer", "troth/hooks/ask", "troth/launcher/emulator", "golang.org/x/sys/unix"},
	"troth/launcher/emulator":    {"troth/hooks/ask", "troth/launcher/stall", "golang.org/x/sys/unix"},
	"troth/launcher/stall":       {},
}

// forbidden names standard packages that a room must not touch, with the reason.
var forbidden = map[string]map[string]string{
	"troth/tpm":             {"net": "pure", "os": "pure", "net/http": "pure"},
	"troth/tpm/pcr":         {"net": "pure", "os": "pure"},
	"troth/tpm/eventlog":    {"net": "pure", "os": "pure"},
	"troth/proof":           {"net": "tenants import it", "os": "tenants import it", "net/http": "tenants import it", "log": "tenants import it"},
	"troth/proof/strict":    {"net": "tenants import it", "os": "tenants import it"},
	"troth/hooks":           {"net/http": "the hook is small", "encoding/json": "the hook is small"},
	"troth/hooks/ask":       {"net/http": "the hook is small", "encoding/json": "the hook is small"},
	"troth/launcher/domain": {"net/http": "pure; net itself parses addresses there", "os": "pure", "os/exec": "pure"}, // net only parses addresses there
}

func allowed(imp string, rules []string) bool {
	for _, r := range rules {
		if r == imp {
			return true
		}
		if p, ok := strings.CutSuffix(r, "/..."); ok && strings.HasPrefix(imp, p+"/") {
			return true
		}
	}
	return false
}

func standard(imp string) bool {
	first, _, _ := strings.Cut(imp, "/")
	return !strings.Contains(first, ".") && first != module
}

// TestImportsPointDown fails when a room imports what the spine does not allow it, or when a room is missing from the spine.
func TestImportsPointDown(t *testing.T) {
	for _, p := range list(t, "./...") {
		if strings.HasPrefix(p.ImportPath, module+"/test/") || strings.HasPrefix(p.ImportPath, module+"/tools") {
			continue
		}
		rules, known := spine[p.ImportPath]
		if !known {
			t.Errorf("%s: this room is not on the spine; add it to test/rules and docs/architecture.md", p.ImportPath)
			continue
		}
		for _, imp := range p.Imports {
			if why, bad := forbidden[p.ImportPath][imp]; bad {
				t.Errorf("%s imports %s: %s", p.ImportPath, imp, why)
			}
			if imp != "C" && !standard(imp) && !allowed(imp, rules) {
				t.Errorf("%s imports %s, which the spine does not allow", p.ImportPath, imp)
			}
		}
	}
}

// TestPackageComments asks each package to say what it is.
func TestPackageComments(t *testing.T) {
	for _, p := range list(t, "./...") {
		if len(p.GoFiles) > 0 && len(p.Doc) < 40 {
			t.Errorf("%s: the package comment does not say what the package is: %q", p.ImportPath, p.Doc)
		}
	}
}

// TestPureGo builds everything but the libvirt binding and its daemon without cgo: tenants and the hook are static files.
func TestPureGo(t *testing.T) {
	args := []string{"build", "-o", os.DevNull}
	for _, p := range list(t, "./...") {
		if p.ImportPath != "troth/launcher/virt" && p.ImportPath != "troth/cmd/troth-hostd" && len(p.GoFiles) > 0 {
			args = append(args, p.ImportPath)
		}
	}
	cmd := exec.Command("go", args...)
	cmd.Dir, cmd.Env = root, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("CGO_ENABLED=0: %v\n%s", err, out)
	}
}

// TestHookIsSmall pins what libvirt executes for every domain: standard library only, and no HTTP or TLS in it.
func TestHookIsSmall(t *testing.T) {
	cmd := exec.Command("go", "list", "-deps", "./cmd/troth-hook")
	cmd.Dir, cmd.Env = root, append(os.Environ(), "CGO_ENABLED=0")
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, imp := range strings.Fields(string(out)) {
		if !standard(imp) && !strings.HasPrefix(imp, "troth/hooks") && imp != "troth/cmd/troth-hook" {
			t.Errorf("troth-hook depends on %s", imp)
		}
		if slices.Contains([]string{"net/http", "crypto/tls", "encoding/json", "os/exec", "plugin"}, imp) {
			t.Errorf("troth-hook depends on %s", imp)
		}
	}
}

// TestTenantRoomsAreLight keeps sockets, daemons and cgo out of what a tenant imports to check a proof.
func TestTenantRoomsAreLight(t *testing.T) {
	for _, p := range list(t, "./proof", "./proof/strict", "./tpm", "./tpm/pcr", "./tpm/eventlog") {
		for _, dep := range p.Deps {
			// net and net/http are go-jose's and x509's business for URLs; a daemon or a binding is nobody's.
			if strings.HasPrefix(dep, "libvirt.org/") || strings.HasPrefix(dep, "modernc.org/") || strings.HasPrefix(dep, "github.com/coreos/") || dep == "os/exec" {
				t.Errorf("%s depends on %s", p.ImportPath, dep)
			}
		}
	}
}

var label = regexp.MustCompile(`^"troth/[a-z-]+(/[a-z-]+)*/v[0-9]+"$`)

// TestLabelsStandInOneTable finds every string literal of the form troth/…/v1: they stand in proof/label.go and nowhere else.
func TestLabelsStandInOneTable(t *testing.T) {
	eachGoFile(t, func(path string, f *ast.File, set *token.FileSet) {
		if strings.HasSuffix(path, "_test.go") || strings.HasPrefix(path, "proof/") {
			return
		}
		ast.Inspect(f, func(n ast.Node) bool {
			if l, ok := n.(*ast.BasicLit); ok && l.Kind == token.STRING && label.MatchString(l.Value) {
				t.Errorf("%s: %s belongs in proof/label.go", set.Position(l.Pos()), l.Value)
			}
			return true
		})
	})
}

// banned are words that must not stand in the repository, with the reason.
var banned = map[*regexp.Regexp]string{
	regexp.MustCompile(`proxy\.` + `golang\.org|deb\.` + `debian\.org|registry\.` + `npmjs`): "name packages, not registries' hosts",
	regexp.MustCompile(`(^|[^.\w])/` + `work/(main|shared)`):                                 "a path of one machine",
	regexp.MustCompile(`\b(TO` + `DO|FIX` + `ME)\b`):                                         "finish it, or say the limit in words",
}

// TestWords reads every tracked or new text file for banned words.
func TestWords(t *testing.T) {
	for _, path := range files(t) {
		if strings.HasSuffix(path, "go.sum") {
			continue
		}
		b, err := os.ReadFile(filepath.Join(root, path))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		for re, why := range banned {
			if m := re.Find(b); m != nil {
				t.Errorf("%s: %q: %s", path, m, why)
			}
		}
	}
}

// generated marks a file that a tool wrote.
var generated = regexp.MustCompile(`(?m)^// Code generated .* DO NOT EDIT\.$`)

// TestFileLength keeps files readable in one sitting; a longer one hides something with a name of its own.
func TestFileLength(t *testing.T) {
	for _, path := range files(t) {
		if !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			continue
		}
		b, err := os.ReadFile(filepath.Join(root, path))
		if err != nil || generated.Match(b) {
			continue
		}
		if n := strings.Count(string(b), "\n"); n > 450 {
			t.Errorf("%s: %d lines; ask what it hides", path, n)
		}
	}
}

// TestExactPins refuses pseudo-versions of main branches in the direct requirements.
func TestExactPins(t *testing.T) {
	b, err := os.ReadFile(filepath.Join(root, "go.mod"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"libvirt.org/go/libvirt v1.11010.0", "github.com/google/go-tpm v0.9.8", "github.com/coreos/go-systemd/v22 v22.7.0", "github.com/vishvananda/netlink v1.3.1", "golang.org/x/sys "} {
		if !strings.Contains(string(b), "\t"+want) {
			t.Errorf("go.mod does not require %s", want)
		}
	}
}

var attackID = regexp.MustCompile("^\\| `([A-Z]-[A-Z0-9]+)` \\|.*\\| (tested|next) \\|")

// TestAttacksAreTested compares docs/attacks.md with the subtests: an id that is said to be tested has a subtest of that name,
// and a subtest has a row.
func TestAttacksAreTested(t *testing.T) {
	b, err := os.ReadFile(filepath.Join(root, "docs/attacks.md"))
	if err != nil {
		t.Fatal(err)
	}
	rows := map[string]string{}
	for line := range strings.Lines(string(b)) {
		if m := attackID.FindStringSubmatch(line); m != nil {
			rows[m[1]] = m[2]
		}
	}
	if len(rows) < 40 {
		t.Fatalf("docs/attacks.md: only %d rows could be read", len(rows))
	}
	found := map[string]string{}
	id := regexp.MustCompile(`^"([A-Z]-[A-Z][A-Z0-9]+)"$`)
	eachGoFile(t, func(path string, f *ast.File, _ *token.FileSet) {
		if !strings.HasSuffix(path, "_test.go") || strings.HasPrefix(path, "test/rules/") {
			return
		}
		ast.Inspect(f, func(n ast.Node) bool {
			if l, ok := n.(*ast.BasicLit); ok && l.Kind == token.STRING {
				if m := id.FindStringSubmatch(l.Value); m != nil {
					found[m[1]] = path
				}
			}
			return true
		})
	})
	for row, state := range rows {
		if state == "tested" && found[row] == "" {
			t.Errorf("docs/attacks.md says that %s is tested; no test names it", row)
		}
	}
	for name, path := range found {
		if rows[name] != "tested" {
			t.Errorf("%s tests %s, which docs/attacks.md does not list, or not as tested", path, name)
		}
	}
}

// files lists what git tracks and what it would add.
func files(t *testing.T) []string {
	t.Helper()
	cmd := exec.Command("git", "ls-files", "-co", "--exclude-standard")
	cmd.Dir = root
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("git ls-files: %v", err)
	}
	return strings.Fields(string(out))
}

func eachGoFile(t *testing.T, do func(path string, f *ast.File, set *token.FileSet)) {
	t.Helper()
	for _, path := range files(t) {
		if !strings.HasSuffix(path, ".go") {
			continue
		}
		set := token.NewFileSet()
		f, err := parser.ParseFile(set, filepath.Join(root, path), nil, parser.SkipObjectResolution)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", path, err)
			continue
		}
		do(path, f, set)
	}
}

var decision = regexp.MustCompile(`(?:\[(?:decision )?(\d+)\]\()?decisions/(\d{4}(?:-[a-z0-9-]+\.md)?)`)

// TestDecisionsAreNumbered wants decision records numbered without gaps, each headed by its number, and every reference to one to
// lead to the one that it says.
func TestDecisionsAreNumbered(t *testing.T) {
	records, err := filepath.Glob(filepath.Join(root, "docs/decisions/*.md"))
	if err != nil || len(records) == 0 {
		t.Fatal("no decision records: ", err)
	}
	known := map[string]string{} // the number, by name and by its four digits
	for i, file := range records {
		name, n := filepath.Base(file), strconv.Itoa(i+1)
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(name, fmt.Sprintf("%04d-", i+1)) || !strings.HasPrefix(string(b), "# "+n+". ") {
			t.Errorf("%s: want number %s in its name and its heading", name, n)
		}
		known[name], known[name[:4]] = n, n
	}
	for _, path := range files(t) {
		b, err := os.ReadFile(filepath.Join(root, path))
		if err != nil {
			continue // it is gone, which other rules are about
		}
		for _, m := range decision.FindAllSubmatch(b, -1) {
			said, n := string(m[1]), known[string(m[2])]
			if n == "" || said != "" && said != n {
				t.Errorf("%s: %s leads to no decision of that number", path, m[0])
			}
		}
	}
}
