// Command mutate removes, one at a time, every check of the functions that decide, and runs the tests of their package: a mutant
// that passes is a check that nobody would miss, and the command ends 1.
//
// A check is an `if` whose body ends by returning something other than nil, or by recording a refusal; removing it turns its
// condition into `false && (condition)`, so that everything in it still compiles. It is also what a function with one result returns at
// its end; removing it ignores that and returns nil. A condition that no input can reach is
// excused by a comment `//mutate:keep reason` on its line; the list of excuses is printed.
//
// The source is never touched: mutants are built with `go test -overlay`.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"
)

// target names the functions of one package that decide.
type target struct {
	Package string   // folder, from the top of the repository
	Files   []string // whose every function counts
	Run     string   // tests that must go red; empty for all short tests
}

var targets = []target{
	{Package: "proof", Files: []string{"verify.go", "checks.go"}},
	{Package: "verifier", Files: []string{"appraise.go"}},
	{Package: "launcher", Files: []string{"decide.go", "decide_images.go"}, Run: "TestDecide|TestNothingIsNoPermit|TestSealed|TestLaunch$|TestDryRun"},
}

type mutant struct {
	target
	File  string
	Line  int
	Text  string // the condition, or the deleted element
	Start int    // byte offsets of what is replaced
	End   int
	With  string
}

func main() {
	only := flag.String("only", "", "mutate this package alone")
	jobs := flag.Int("j", runtime.NumCPU(), "mutants tested at the same time")
	listOnly := flag.Bool("list", false, "list the mutants and stop")
	flag.Parse()
	survivors, err := run(*only, *jobs, *listOnly)
	if err != nil {
		fmt.Fprintln(os.Stderr, "mutate:", err)
		os.Exit(3)
	}
	if survivors > 0 {
		os.Exit(1)
	}
}

func run(only string, jobs int, listOnly bool) (survivors int, err error) {
	var all []mutant
	for _, t := range targets {
		if only != "" && only != t.Package {
			continue
		}
		before := len(all)
		for _, f := range t.Files {
			ms, err := find(t, filepath.Join(t.Package, f))
			if err != nil {
				return 0, err
			}
			all = append(all, ms...)
		}
		if len(all) == before {
			return 0, fmt.Errorf("no check found in %s %v: the list of targets is stale", t.Package, t.Files)
		}
	}
	if listOnly {
		for _, m := range all {
			fmt.Printf("%s:%d: %s\n", m.File, m.Line, m.Text)
		}
		return 0, nil
	}
	// A package whose tests fail unchanged would kill every mutant for nothing.
	for _, t := range targets {
		if only != "" && only != t.Package {
			continue
		}
		if out, err := gotest(t, ""); err != nil {
			return 0, fmt.Errorf("the tests of %s fail before any change: %w\n%s", t.Package, err, out)
		}
	}
	start := time.Now()
	results := make([]string, len(all))
	work := make(chan int)
	var wg sync.WaitGroup
	var mu sync.Mutex
	done := 0
	for range jobs {
		wg.Go(func() {
			for i := range work {
				results[i] = try(all[i])
				mu.Lock()
				done++
				if results[i] != "killed" || done%10 == 0 || done == len(all) {
					fmt.Printf("%d/%d %s:%d: %s: %s\n", done, len(all), all[i].File, all[i].Line, results[i], all[i].Text)
				}
				mu.Unlock()
			}
		})
	}
	for i := range all {
		work <- i
	}
	close(work)
	wg.Wait()
	for _, r := range results {
		if r != "killed" {
			survivors++
		}
	}
	fmt.Printf("%d checks removed one at a time in %v: %d survivors\n", len(all), time.Since(start).Round(time.Second), survivors)
	return survivors, nil
}

// find lists the mutants of one file.
func find(t target, path string) ([]mutant, error) {
	src, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	set := token.NewFileSet()
	f, err := parser.ParseFile(set, path, src, parser.ParseComments)
	if err != nil {
		return nil, err
	}
	excused := map[int]string{}
	for _, g := range f.Comments {
		for _, c := range g.List {
			if why, ok := strings.CutPrefix(c.Text, "//mutate:keep "); ok {
				excused[set.Position(c.Pos()).Line] = why
			}
		}
	}
	var out []mutant
	ast.Inspect(f, func(n ast.Node) bool {
		var checked ast.Expr
		var with string // with %s for what is checked
		switch s := n.(type) {
		case *ast.IfStmt:
			if refuses(s.Body) {
				checked, with = s.Cond, "false && (%s)"
			}
		case *ast.FuncDecl:
			if last := lastResult(s); last != nil {
				result := s.Type.Results.List[0].Type
				kind := string(src[set.Position(result.Pos()).Offset:set.Position(result.End()).Offset])
				checked, with = last, "func() "+kind+" { _ = %s; return nil }()"
			}
		}
		if checked == nil {
			return true
		}
		line := set.Position(checked.Pos()).Line
		start, end := set.Position(checked.Pos()).Offset, set.Position(checked.End()).Offset
		text := string(src[start:end])
		if why, ok := excused[line]; ok {
			fmt.Printf("%s:%d: kept: %s: %s\n", path, line, text, why)
			return true
		}
		out = append(out, mutant{target: t, File: path, Line: line, Text: text, Start: start, End: end, With: fmt.Sprintf(with, text)})
		return true
	})
	slices.SortFunc(out, func(a, b mutant) int { return a.Line - b.Line })
	return out, nil
}

// lastResult is what a function with one result, an error or a refusal, returns at its end, unless that is nil.
func lastResult(f *ast.FuncDecl) ast.Expr {
	if f.Body == nil || len(f.Body.List) == 0 || f.Type.Results == nil || f.Type.Results.NumFields() != 1 {
		return nil
	}
	switch kind := f.Type.Results.List[0].Type.(type) {
	case *ast.Ident:
		if kind.Name != "error" {
			return nil
		}
	case *ast.StarExpr:
		if sel, ok := kind.X.(*ast.SelectorExpr); !ok || sel.Sel.Name != "Refusal" {
			return nil
		}
	default:
		return nil
	}
	ret, ok := f.Body.List[len(f.Body.List)-1].(*ast.ReturnStmt)
	if !ok || len(ret.Results) != 1 {
		return nil
	}
	if id, ok := ret.Results[0].(*ast.Ident); ok && id.Name == "nil" {
		return nil
	}
	return ret.Results[0]
}

// refuses says whether a block ends by returning something other than a bare nil, or records a refusal.
func refuses(b *ast.BlockStmt) bool {
	if len(b.List) == 0 {
		return false
	}
	switch last := b.List[len(b.List)-1].(type) {
	case *ast.ReturnStmt:
		for _, r := range last.Results {
			if id, ok := r.(*ast.Ident); ok && (id.Name == "nil" || id.Name == "true") {
				continue
			}
			return true
		}
	case *ast.ExprStmt, *ast.AssignStmt:
		var text bytes.Buffer
		ast.Inspect(last, func(n ast.Node) bool {
			if id, ok := n.(*ast.Ident); ok {
				text.WriteString(strings.ToLower(id.Name) + " ")
			}
			return true
		})
		return strings.Contains(text.String(), "refus") || strings.Contains(text.String(), "fail")
	}
	return false
}

// try builds one mutant and runs the tests: killed, survived, or why it could not be tried.
func try(m mutant) string {
	src, err := os.ReadFile(m.File)
	if err != nil {
		return "unreadable: " + err.Error()
	}
	dir, err := os.MkdirTemp("", "mutate")
	if err != nil {
		return "no room: " + err.Error()
	}
	defer func() {
		if err := os.RemoveAll(dir); err != nil {
			fmt.Fprintln(os.Stderr, "mutate: cannot clean up:", err)
		}
	}()
	mutated := slices.Concat(src[:m.Start], []byte(m.With), src[m.End:])
	file := filepath.Join(dir, filepath.Base(m.File))
	if err := os.WriteFile(file, mutated, 0o600); err != nil {
		return "no room: " + err.Error()
	}
	abs, err := filepath.Abs(m.File)
	if err != nil {
		return "no path: " + err.Error()
	}
	overlay, err := json.Marshal(map[string]map[string]string{"Replace": {abs: file}})
	if err != nil {
		return "no overlay: " + err.Error()
	}
	list := filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(list, overlay, 0o600); err != nil {
		return "no room: " + err.Error()
	}
	out, err := gotest(m.target, list)
	switch {
	case err == nil:
		return "SURVIVED"
	case bytes.Contains(out, []byte("[build failed]")):
		return "does not build: " + firstLine(out)
	default:
		return "killed"
	}
}

func gotest(t target, overlay string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	args := []string{"test", "-short", "-failfast", "-vet=off", "-count=1"}
	if overlay != "" {
		args = append(args, "-overlay", overlay)
	}
	if t.Run != "" {
		args = append(args, "-run", t.Run)
	}
	return exec.CommandContext(ctx, "go", append(args, "./"+t.Package)...).CombinedOutput()
}

func firstLine(out []byte) string {
	for line := range bytes.Lines(out) {
		if !bytes.HasPrefix(line, []byte("#")) {
			return strings.TrimSpace(string(line))
		}
	}
	return ""
}
