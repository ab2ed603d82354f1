package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"debug/elf"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"troth/proof"
	"troth/test/lab"
)

// pure are the programs that are built without cgo.
var pure = []string{"troth", "troth-hook", "troth-verifierd"}

// TestMain removes what the tests have built.
func TestMain(m *testing.M) {
	status := m.Run()
	if built != "" {
		if err := os.RemoveAll(built); err != nil {
			fmt.Fprintln(os.Stderr, err)
			status = max(status, 1)
		}
	}
	os.Exit(status)
}

var (
	built    string // set by programs
	programs = sync.OnceValues(buildPrograms)
)

// buildPrograms builds programs and demo as `make build lab` does, into a directory that shares the lab's cache.
func buildPrograms() (dir string, err error) {
	cache, err := lab.DefaultCache()
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return "", err
	}
	if built, err = os.MkdirTemp("", "troth-demo-"); err != nil {
		return "", err
	}
	if err := os.Chmod(built, 0o755); err != nil { // as build/ is
		return "", err
	}
	if err := os.Symlink(cache, filepath.Join(built, "lab-cache")); err != nil {
		return "", err
	}
	packages := []string{"./test/demo"}
	for _, name := range pure {
		packages = append(packages, "./cmd/"+name)
	}
	for _, b := range []struct {
		cgo, out string
		packages []string
	}{
		{"0", built + "/", packages[1:]},
		{"1", built + "/", []string{"./cmd/troth-hostd"}},
		{"0", filepath.Join(built, "tell"), packages[:1]},
	} {
		cmd := exec.Command("go", append([]string{"build", "-trimpath", "-ldflags", "-s -w", "-o", b.out}, b.packages...)...)
		cmd.Dir, cmd.Env = "../..", append(os.Environ(), "CGO_ENABLED="+b.cgo)
		if out, err := cmd.CombinedOutput(); err != nil {
			return "", fmt.Errorf("go build %v: %w: %s", b.packages, err, out)
		}
	}
	return built, nil
}

// theBuild is the directory with the programs, for a test that needs the lab.
func theBuild(t *testing.T) string {
	t.Helper()
	if testing.Short() {
		t.Skip("the demo needs the lab: make test")
	}
	return must[string](t)(programs())
}

// TestDemo runs the demo and then does to the proof that it leaves what only a finished proof allows.
func TestDemo(t *testing.T) {
	build := theBuild(t)
	w := watch(t)
	d := w.start(build)
	if err := d.cmd.Wait(); err != nil {
		t.Fatalf("the demo: %v\n%s", err, d.said())
	}
	w.gone(d)
	w.empty()
	said := strings.Split(strings.TrimSpace(d.said()), "\n")
	t.Log(strings.Join(said[max(0, len(said)-4):], "\n"))

	files := filepath.Join(build, "demo")
	if _, err := os.Stat(filepath.Join(files, "token")); err != nil {
		t.Error(err)
	}
	p := &left{build: build, proof: filepath.Join(files, "proof.json"), trust: filepath.Join(files, "trust.json"), key: filepath.Join(files, "nonce.key")}
	t.Run("bits", p.everyBit)
	t.Run("command", p.command)
	exported := filepath.Join(t.TempDir(), "parts")
	if exit, out := p.troth("export", "--dir", exported, "--trust", p.trust, p.proof); exit != 0 {
		t.Fatalf("export: exit %d: %s", exit, out)
	}
	t.Run("jwt", func(t *testing.T) { otherLibrary(t, exported) })
	t.Run("tools", func(t *testing.T) { otherTools(t, exported) })
}

// left is what the demo leaves: paths.
type left struct{ build, proof, trust, key string }

// troth runs `troth proof`.
func (p *left) troth(args ...string) (exit int, out string) {
	cmd := exec.Command(filepath.Join(p.build, "troth"), append([]string{"proof"}, args...)...)
	cmd.Env = append(os.Environ(), "HOME=/nonexistent", "XDG_CONFIG_HOME=/nonexistent")
	b, err := cmd.CombinedOutput()
	if cmd.ProcessState == nil {
		return -1, err.Error()
	}
	return cmd.ProcessState.ExitCode(), string(b)
}

// everyBit flips every bit of the proof, one at a time.
func (p *left) everyBit(t *testing.T) {
	b := must[[]byte](t)(os.ReadFile(p.proof))
	trust := must[*proof.Trust](t)(proof.ParseTrust(must[[]byte](t)(os.ReadFile(p.trust))))
	key := must[*proof.Key](t)(proof.ParseKey(must[[]byte](t)(os.ReadFile(p.key))))
	verify := func(b []byte) (with, without error) {
		_, with = proof.Verify(b, trust, key)
		_, without = proof.VerifyPublic(b, trust)
		return with, without
	}
	if with, without := verify(b); with != nil || without != nil {
		t.Fatalf("untouched: with the key %v, without %v", with, without)
	}
	begun := time.Now()
	inParallel(8*len(b), func(bit int) {
		mine := slices.Clone(b)
		mine[bit/8] ^= 1 << (bit % 8)
		with, without := verify(mine)
		if with == nil {
			t.Errorf("bit %d of byte %d flipped: accepted with the key", bit%8, bit/8)
		}
		if without == nil {
			t.Errorf("bit %d of byte %d flipped: accepted without the key", bit%8, bit/8)
		}
	})
	t.Logf("%d bytes, %d bits, with and without the key: %v", len(b), 8*len(b), time.Since(begun).Round(time.Millisecond))
}

// command asks the program, as a tenant would.
func (p *left) command(t *testing.T) {
	if exit, out := p.troth("verify", "--trust", p.trust, "--key", p.key, p.proof); exit != 0 {
		t.Errorf("untouched: exit %d: %s", exit, out)
	}
	if exit, out := p.troth("verify", "--trust", p.trust, p.proof); exit != 3 {
		t.Errorf("without the key: exit %d: %s", exit, out)
	}
	b := must[[]byte](t)(os.ReadFile(p.proof))
	dir, begun, n := t.TempDir(), time.Now(), (len(b)+15)/16
	inParallel(n, func(i int) {
		mine := slices.Clone(b)
		mine[16*i] ^= 1 << (i % 8)
		file := filepath.Join(dir, fmt.Sprintf("%d.json", i))
		if err := os.WriteFile(file, mine, 0o600); err != nil {
			t.Error(err)
			return
		}
		if exit, out := p.troth("verify", "--trust", p.trust, "--key", p.key, file); exit != 1 {
			t.Errorf("byte %d flipped: exit %d: %s", 16*i, exit, out)
		}
	})
	t.Logf("%d changed proofs in %v", n, time.Since(begun).Round(time.Millisecond))
}

// inParallel does n things, as many at once as there are processors.
func inParallel(n int, do func(i int)) {
	var next atomic.Int64
	var wg sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for i := next.Add(1) - 1; i < int64(n); i = next.Add(1) - 1 {
				do(int(i))
			}
		})
	}
	wg.Wait()
}

// otherLibrary lets a second JWT library check what was exported. The proof package uses another.
func otherLibrary(t *testing.T, dir string) {
	var set struct{ Keys []proof.JWK }
	if err := json.Unmarshal(must[[]byte](t)(os.ReadFile(filepath.Join(dir, "jwks.json"))), &set); err != nil {
		t.Fatal(err)
	}
	keys := make(map[any]*ecdsa.PublicKey)
	for _, k := range set.Keys {
		keys[k.KeyID] = must[*ecdsa.PublicKey](t)(k.PublicKey())
	}
	parse := func(text string) error {
		// A verdict holds for seconds; only its signature is asked about.
		_, err := jwt.Parse(text, func(j *jwt.Token) (any, error) {
			if k := keys[j.Header["kid"]]; k != nil {
				return k, nil
			}
			return nil, fmt.Errorf("no key %v", j.Header["kid"])
		}, jwt.WithValidMethods([]string{"ES256"}), jwt.WithoutClaimsValidation())
		return err
	}
	for _, name := range []string{"verdict.jwt", "receipt.jwt"} {
		text := string(must[[]byte](t)(os.ReadFile(filepath.Join(dir, name))))
		if err := parse(text); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		// One character in the middle of each part.
		parts := strings.Split(text, ".")
		for i := range parts {
			changed := slices.Clone(parts)
			b := []byte(parts[i])
			if b[len(b)/2] == 'A' {
				b[len(b)/2] = 'B'
			} else {
				b[len(b)/2] = 'A'
			}
			changed[i] = string(b)
			if parse(strings.Join(changed, ".")) == nil {
				t.Errorf("%s: accepted with a changed part %d", name, i+1)
			}
		}
	}
}

// otherTools lets tpm2-tools and openssl check what was exported, and something changed.
func otherTools(t *testing.T, dir string) {
	tool := func(argv ...string) error {
		cmd := exec.Command(argv[0], argv[1:]...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%v: %w: %s", argv, err, out)
		}
		return nil
	}
	q := string(must[[]byte](t)(os.ReadFile(filepath.Join(dir, "qualification.hex"))))
	quote := func(message, pcrs, qualification string) error {
		return tool("tpm2_checkquote", "-u", "ak.pem", "-m", message, "-s", "quote.sig", "-f", pcrs, "-g", "sha256", "-q", qualification)
	}
	if err := quote("quote.msg", "pcrs.bin", q); err != nil {
		t.Error(err)
	}
	// The last byte of the message is one of the digest over the PCRs.
	if quote(flipped(t, dir, "quote.msg", -1), "pcrs.bin", q) == nil {
		t.Error("tpm2_checkquote accepts a changed quote")
	}
	if quote("quote.msg", "pcrs.bin", strings.Repeat("00", len(q)/2)) == nil {
		t.Error("tpm2_checkquote accepts another qualification")
	}
	for _, name := range []string{"verdict", "receipt"} {
		digest := func(signed string) error {
			return tool("openssl", "dgst", "-sha256", "-verify", name+".pem", "-signature", name+".sig", signed)
		}
		if err := digest(name + ".tbs"); err != nil {
			t.Error(err)
		}
		if digest(flipped(t, dir, name+".tbs", 100)) == nil {
			t.Errorf("openssl accepts a changed %s", name)
		}
	}
}

// flipped writes a copy of a file with one byte changed, counted from the end if at is negative, and returns its name.
func flipped(t *testing.T, dir, name string, at int) string {
	t.Helper()
	b := bytes.Clone(must[[]byte](t)(os.ReadFile(filepath.Join(dir, name))))
	if at < 0 {
		at += len(b)
	}
	b[at] ^= 1
	name = "changed-" + name
	if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// TestStatic reads the programs' headers: what is pure Go asks for no interpreter, which is to say no libraries.
func TestStatic(t *testing.T) {
	build := theBuild(t)
	for _, name := range append(slices.Clone(pure), "troth-hostd") {
		f := must[*elf.File](t)(elf.Open(filepath.Join(build, name)))
		interpreter := slices.ContainsFunc(f.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP })
		f.Close()
		// hostd, which needs libvirt's library, shows that the check sees one.
		if want := name == "troth-hostd"; interpreter != want {
			t.Errorf("%s: an interpreter is asked for: %v, want %v", name, interpreter, want)
		}
	}
}

// must stops the test on an error.
func must[T any](t *testing.T) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// demoTime is far more than the demo takes.
const demoTime = 15 * time.Minute

// demo is a run of the demo.
type demo struct {
	cmd     *exec.Cmd
	log     string
	started map[int]uint64 // processes of it that were seen, with their start times
	spaces  map[string]bool
	ended   uint64 // when it was killed, in clock ticks since boot; 0 if it was not
}

func (d *demo) said() string {
	b, err := os.ReadFile(d.log)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// start starts the demo.
func (w *watcher) start(build string, args ...string) *demo {
	w.t.Helper()
	w.runs++
	log := must[*os.File](w.t)(os.Create(filepath.Join(w.logs, fmt.Sprintf("%d.log", w.runs))))
	defer log.Close()
	ctx, cancel := context.WithTimeout(context.Background(), demoTime)
	w.t.Cleanup(cancel)
	d := &demo{cmd: exec.CommandContext(ctx, filepath.Join(build, "tell"), append([]string{"-build", build}, args...)...), log: log.Name()}
	d.cmd.Env = append(os.Environ(), "TMPDIR="+w.dir)
	d.cmd.Stdout, d.cmd.Stderr = log, log // a file: a pipe would be held open by what is left
	if err := d.cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	return d
}
