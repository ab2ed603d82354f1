package main

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"troth/proof"
)

// TestMain lets the stories run the real main by the name troth.
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"troth": main})
}

// TestScript runs the stories of testdata/script, one per file. $trust is a
// trust.json that is valid now; $vectors are the published vectors of proof,
// $requests the domains of launcher/domain.
func TestScript(t *testing.T) {
	vectors, err := filepath.Abs("../../proof/testdata/vectors")
	if err != nil {
		t.Fatal(err)
	}
	requests, err := filepath.Abs("../../launcher/domain/testdata/requests")
	if err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits": cmdExits,
			"json":  cmdJSON,
			"mode":  cmdMode,
			"leaks": cmdLeaks,
			"flips": cmdFlips,
		},
		Setup: func(e *testscript.Env) error {
			e.Setenv("vectors", vectors)
			e.Setenv("requests", requests)
			e.Setenv("trust", filepath.Join(e.WorkDir, "trust.json"))
			b, _ := testTrust(t, time.Now())
			return os.WriteFile(filepath.Join(e.WorkDir, "trust.json"), b, 0o644)
		},
	})
}

// testTrust makes the trust file of a verifier whose keys are valid around now.
func testTrust(t testing.TB, now time.Time) (file []byte, token *proof.TokenPrivateKey) {
	t.Helper()
	root, set, token := testKeySet(t, now)
	b, err := (&proof.Trust{Verifier: "https://verifier.example", Root: root.JWK(), Keys: set}).Encode()
	if err != nil {
		t.Fatal(err)
	}
	return b, token
}

func testKeySet(t testing.TB, now time.Time) (root *proof.SigningKey, set string, token *proof.TokenPrivateKey) {
	t.Helper()
	root, err := proof.GenerateSigningKey()
	if err != nil {
		t.Fatal(err)
	}
	verdict, err := proof.GenerateSigningKey()
	if err != nil {
		t.Fatal(err)
	}
	if token, err = proof.GenerateTokenKey(); err != nil {
		t.Fatal(err)
	}
	set, err = proof.SignKeySet(&proof.KeySet{
		Issuer: "https://verifier.example", IssuedAt: now.Unix(), NotBefore: now.Add(-time.Hour).Unix(), NotAfter: now.Add(time.Hour).Unix(),
		VerdictKeys: []proof.JWK{verdict.JWK()}, TokenKeys: []proof.TokenKey{token.Public()},
	}, root)
	if err != nil {
		t.Fatal(err)
	}
	return root, set, token
}

// outcome is what one run of the program did.
type outcome struct {
	code           int
	stdout, stderr string
}

// troth runs one command line in process.
func troth(t testing.TB, stdin string, args ...string) outcome {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var out, errs bytes.Buffer
	code := run(ctx, args, strings.NewReader(stdin), &out, &errs)
	return outcome{code, out.String(), errs.String()}
}

func (o outcome) want(t testing.TB, code exit, in ...string) {
	t.Helper()
	if o.code != int(code) {
		t.Errorf("exit %d, want %d\nstdout: %s\nstderr: %s", o.code, code, o.stdout, o.stderr)
	}
	for _, s := range in {
		if !strings.Contains(o.stdout+o.stderr, s) {
			t.Errorf("output lacks %q\nstdout: %s\nstderr: %s", s, o.stdout, o.stderr)
		}
	}
}

func write(t testing.TB, name string, b []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// oneJSON asks for exactly one JSON document.
func oneJSON(b []byte) error {
	d := json.NewDecoder(bytes.NewReader(b))
	var v any
	if err := d.Decode(&v); err != nil {
		return err
	}
	if d.More() {
		return errTrailing
	}
	return nil
}
