package proof

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// docs/proof-format.md has a heading for each check, in order, and under it the
// check's own sentence.
func TestChecksAreDocumented(t *testing.T) {
	doc := string(must[[]byte](t)(os.ReadFile("../docs/proof-format.md")))
	var want []string
	for _, c := range Checks() {
		want = append(want, fmt.Sprintf("### %d. %s\n\n%s\n", c.Number, c.Name, c.Says))
	}
	for _, c := range Wishes() {
		want = append(want, fmt.Sprintf("### V%d. %s\n\n%s\n", c.Number, c.Name, c.Says))
	}
	got := regexp.MustCompile(`(?m)^### .*\n\n.*\n`).FindAllString(doc, -1)
	if !slices.Equal(got, want) {
		t.Errorf("the headings are %q\nwant %q", got, want)
	}
	for _, l := range Labels() {
		if strings.Contains(doc, "`"+string(l)+"`") {
			continue
		}
		if slices.Contains([]Label{LabelQuote, LabelStatement, LabelVerdict, LabelProof, LabelMAC}, l) {
			t.Errorf("a verifier needs label %s, and the format does not tell it", l)
		}
	}
}

// The room is pure: no file, no socket, no clock, no environment.
func TestPure(t *testing.T) {
	allowed := []string{"bytes", "crypto", "encoding", "errors", "fmt", "io", "log/slog", "math/big", "math/bits", "reflect", "regexp", "slices", "strings", "sync", "time", "unicode",
		"github.com/go-jose/go-jose/v4", "golang.org/x/mod/sumdb/tlog", "troth/proof/strict", "troth/tpm", "troth/tpm/pcr", "troth/tpm/eventlog"}
	for _, dir := range []string{".", "strict"} {
		files := must[[]string](t)(filepath.Glob(filepath.Join(dir, "*.go")))
		for _, name := range files {
			if strings.HasSuffix(name, "_test.go") {
				continue
			}
			f := must[*ast.File](t)(parser.ParseFile(token.NewFileSet(), name, nil, 0))
			for _, i := range f.Imports {
				path := strings.Trim(i.Path.Value, `"`)
				if !slices.ContainsFunc(allowed, func(a string) bool {
					return path == a || !strings.Contains(a, ".") && !strings.HasPrefix(a, "troth") && strings.HasPrefix(path, a+"/")
				}) {
					t.Errorf("%s imports %s", name, path)
				}
			}
			ast.Inspect(f, func(n ast.Node) bool {
				if s, ok := n.(*ast.SelectorExpr); ok {
					if x, ok := s.X.(*ast.Ident); ok && x.Name == "time" && !slices.Contains([]string{"Unix", "Time", "Duration", "Second"}, s.Sel.Name) {
						t.Errorf("%s uses time.%s", name, s.Sel.Name)
					}
				}
				return true
			})
		}
	}
}
