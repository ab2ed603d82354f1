package main

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"

	"github.com/rogpeppe/go-internal/testscript"

	"troth/proof"
)

var errTrailing = errors.New("something follows the JSON document")

// cmdExits runs a command and asks for its exact exit status:
//
//	exits 1 troth token show garbage
func cmdExits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits N command…")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		e, ok := errors.AsType[*exec.ExitError](err)
		if !ok {
			ts.Fatalf("cannot run: %v", err)
		}
		got = e.ExitCode()
	}
	if got != want {
		ts.Fatalf("exit %d, want %d", got, want)
	}
}

// cmdJSON asks that standard output of the last command is one JSON document.
func cmdJSON(ts *testscript.TestScript, neg bool, args []string) {
	if err := oneJSON([]byte(ts.ReadFile("stdout"))); err != nil {
		ts.Fatalf("standard output is not one JSON document: %v", err)
	}
}

// cmdMode asks for a file's permissions: mode 0600 nonce.key
func cmdMode(ts *testscript.TestScript, neg bool, args []string) {
	info, err := os.Stat(ts.MkAbs(args[1]))
	ts.Check(err)
	if got := fmt.Sprintf("%#o", info.Mode().Perm()); got != args[0] {
		ts.Fatalf("%s has mode %s, want %s", args[1], got, args[0])
	}
}

// cmdLeaks searches files for a key's nonce and secret, raw, hex, base64 and
// base64url; stdout and stderr are those of the last command. The key file itself
// must be found first, or the search would find nothing anywhere.
//
//	! leaks nonce.key stdout stderr token
func cmdLeaks(ts *testscript.TestScript, neg bool, args []string) {
	if !neg {
		ts.Fatalf("usage: ! leaks KEY FILE…")
	}
	b := ts.ReadFile(args[0])
	k, err := proof.ParseKey([]byte(b))
	ts.Check(err)
	secrets := [][]byte{k.Nonce.Reveal()}
	if !k.Secret.IsZero() {
		secrets = append(secrets, k.Secret.Reveal())
	}
	for _, s := range secrets {
		if !holds([]byte(b), s) {
			ts.Fatalf("the search does not even find the secret in %s", args[0])
		}
		for _, f := range args[1:] {
			if holds([]byte(ts.ReadFile(f)), s) {
				ts.Fatalf("%s holds a secret of %s", f, args[0])
			}
		}
	}
}

func holds(b, secret []byte) bool {
	forms := [][]byte{secret, []byte(hex.EncodeToString(secret)),
		[]byte(base64.RawStdEncoding.EncodeToString(secret)), []byte(base64.RawURLEncoding.EncodeToString(secret))}
	for _, f := range forms {
		if bytes.Contains(b, f) {
			return true
		}
	}
	return false
}

// cmdFlips changes every 64th byte of a proof and asks that verification with
// the given trust and key ends with 1 each time: flips trust key proof
func cmdFlips(ts *testscript.TestScript, neg bool, args []string) {
	whole := []byte(ts.ReadFile(args[2]))
	for i := 0; i < len(whole); i += 64 {
		b := bytes.Clone(whole)
		b[i] ^= 1
		ts.Check(os.WriteFile(ts.MkAbs("flipped"), b, 0o600))
		cmdExits(ts, false, []string{"1", "troth", "proof", "verify", "--trust", args[0], "--key", args[1], "flipped"})
	}
}
