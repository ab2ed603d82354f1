package main

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"troth/proof"
)

func TestProofVerify(t *testing.T) {
	t.Setenv("XDG_CONFIG_HOME", t.TempDir())
	s := newScene(t, t.TempDir(), nil)
	o := troth(t, "", "proof", "verify", "--trust", s.trust, "--key", s.key, s.proof)
	o.want(t, exitYes, "GENUINE AND WANTED", "web ("+testUUID+")", "launched         between 20", "It says nothing about now", "does not say")
	if o.stderr != "" {
		t.Errorf("stderr: %s", o.stderr)
	}
	o = troth(t, "", "proof", "verify", "--trust", s.trust, s.proof)
	o.want(t, exitUndecided, "NOT DECIDED", "quote-signature", "mac                not checked", "without the tenant's key")
	o = troth(t, "", "proof", "verify", "--trust", s.trust, "--public", s.proof)
	o.want(t, exitYes, "HOLDS IN PUBLIC", "Without the tenant's key it does not say")
	if strings.Contains(o.stdout, "GENUINE") {
		t.Error("the public question was answered with another word")
	}
	for _, args := range [][]string{{"--key", s.key}, {}, {"--public"}} {
		var v verifyAnswer
		o := troth(t, "", append([]string{"proof", "verify", "-o", "json", "--trust", s.trust, s.proof}, args...)...)
		if err := json.Unmarshal([]byte(o.stdout), &v); err != nil || int(v.Exit) != o.code || v.Window == nil || len(v.Held) < 30 {
			t.Errorf("%v: %v, %+v", args, err, v)
		}
		if (v.Genuine == yes) != (len(args) == 2) {
			t.Errorf("%v: genuine %q", args, v.Genuine)
		}
	}

	// Another tenant's key, another verifier's root, another launch's proof.
	other := newScene(t, t.TempDir(), nil)
	troth(t, "", "proof", "verify", "--trust", s.trust, "--key", other.key, s.proof).want(t, exitNo, "NOT GENUINE", "key-token")
	troth(t, "", "proof", "verify", "--trust", other.trust, "--key", s.key, s.proof).want(t, exitNo, "NOT GENUINE", "verdict-signature")
	troth(t, "", "proof", "verify", "--trust", other.trust, "--public", s.proof).want(t, exitNo, "NOT GENUINE")
	troth(t, "", "proof", "verify", "--trust", other.trust, s.proof).want(t, exitNo, "NOT GENUINE")
	troth(t, "", "proof", "verify", "--trust", s.trust, "--key", s.key, other.proof).want(t, exitNo, "NOT GENUINE")
	troth(t, "", "proof", "verify", "--trust", s.trust, "--key", s.key, s.proof+".none").want(t, exitNo, "unreadable")
	troth(t, "", "proof", "verify", "--trust", s.trust, "--key", s.key+".none", s.proof).want(t, exitUndecided)
	troth(t, "", "proof", "verify", "--trust", s.trust+".none", "--key", s.key, s.proof).want(t, exitUndecided)
}

// TestProofVerifyWanted: genuine is not enough.
func TestProofVerifyWanted(t *testing.T) {
	t.Setenv("XDG_CONFIG_HOME", t.TempDir())
	evil := sha256Text("init=/bin/sh")
	s := newScene(t, t.TempDir(), func(st *proof.Statement) { st.Measurements.CommandLine = &evil })
	args := []string{"proof", "verify", "--trust", s.trust, "--key", s.key, s.proof}
	troth(t, "", args...).want(t, exitNo, "NOT WANTED", "command_line: want "+sha256Text("quiet").String(), "command_line:  got "+evil.String())
	o := troth(t, "", append(args, "-o", "json")...)
	o.want(t, exitNo, `"genuine": "yes"`, `"wanted": "no"`)

	good := newScene(t, t.TempDir(), nil)
	mine := proof.Reference{Name: "mine", Values: []proof.PCR{{Index: 18, Value: sha256Text("18")}}}
	args = []string{"proof", "verify", "--trust", good.trust, "--key", good.key, good.proof}
	troth(t, "", append(args, "--reference", write(t, "r", need[[]byte](t)(json.Marshal(mine))))...).want(t, exitYes)
	mine.Values[0].Value = sha256Text("tampered")
	bad := write(t, "r", need[[]byte](t)(json.Marshal(mine)))
	troth(t, "", append(args, "--reference", bad)...).want(t, exitNo, "NOT WANTED", "mine PCR 18")
	troth(t, "", "proof", "verify", "--trust", good.trust, "--public", "--reference", bad, good.proof).want(t, exitNo, "NOT WANTED")
	troth(t, "", append(args, "--reference", write(t, "r", []byte(`{"name":"x"}`)))...).want(t, exitUsage)
}

func TestProofVerifyOnline(t *testing.T) {
	f, flags := fakeVerifier(t)
	s := newScene(t, t.TempDir(), nil)
	route := "GET /v1/chains/" + s.record.Token.String()
	chain := object{"token": s.record.Token, "state": "open", "link": s.link, "number": 1, "attempt": 1, "events": []object{}}
	args := append(flags, "proof", "verify", "--online", "--trust", s.trust, "--key", s.key, s.proof)
	f.on(route, 200, chain)
	troth(t, "", args...).want(t, exitYes, "GENUINE AND WANTED: all", "chain now        open")
	for _, state := range []string{"closed", "broken", "reserved", "free", "saved", ""} {
		chain["state"] = state
		troth(t, "", args...).want(t, exitNo, "when it was made", "chain of this launch is "+state)
	}
	chain["state"], chain["revoked"] = "open", true
	troth(t, "", args...).want(t, exitNo, "revoked the host")
	chain["revoked"], chain["link"] = false, proof.Digest{9}
	troth(t, "", args...).want(t, exitNo, "not the newest one")
	delete(chain, "link")
	troth(t, "", args...).want(t, exitNo, "not the newest one")
	f.on(route, 503, problem(proof.Internal, "no disk"))
	troth(t, "", args...).want(t, exitUndecided, "no disk")
	// An online yes never saves a proof that is not genuine, and is not even asked for.
	before := f.count()
	other := newScene(t, t.TempDir(), nil)
	troth(t, "", append(flags, "proof", "verify", "--online", "--trust", s.trust, "--key", other.key, s.proof)...).want(t, exitNo, "NOT GENUINE")
	if f.count() != before {
		t.Error("the verifier was asked about a proof that is not genuine")
	}
}

func TestProofShow(t *testing.T) {
	t.Setenv("XDG_CONFIG_HOME", t.TempDir())
	s := newScene(t, t.TempDir(), nil)
	troth(t, "", "proof", "show", "--trust", s.trust, "--key", s.key, s.proof).want(t, exitYes, "this proof is genuine", `Domain "web"`, "What it does not say:", "runs now")
	troth(t, "", "proof", "show", s.proof).want(t, exitYes, "trusting ", "without the tenant's key", "the MAC was not checked")
	o := troth(t, "", "proof", "show", "-o", "json", s.proof)
	o.want(t, exitYes, `"checked": "public"`)
	if err := oneJSON([]byte(o.stdout)); err != nil {
		t.Error(err)
	}
	b := need[[]byte](t)(os.ReadFile(s.proof))
	alone := write(t, "proof.json", b)
	troth(t, "", "proof", "show", alone).want(t, exitYes, "Nothing was checked", "It claims:", `Domain "web"`)
	troth(t, string(b), "proof", "show", "-").want(t, exitYes, "Nothing was checked")
	troth(t, "", "proof", "show", "--key", s.key, alone).want(t, exitUsage)
	troth(t, "", "proof", "show", write(t, "x", b[1:])).want(t, exitNo)
	other := newScene(t, t.TempDir(), nil)
	troth(t, "", "proof", "show", "--trust", other.trust, s.proof).want(t, exitNo, "not genuine")

	troth(t, "", "verdict", "show", "--trust", s.trust, s.proof).want(t, exitYes, "good: of a verifier that you trust", "affirming", "gold@")
	troth(t, "", "verdict", "show", s.proof).want(t, exitYes, "not checked", "affirming", "gold@")
	troth(t, "", "verdict", "show", "--trust", other.trust, s.proof).want(t, exitNo)
}

// TestProofLost: a host's report is its own, about this launch, and whole; or it is none.
func TestProofLost(t *testing.T) {
	s, other := newScene(t, t.TempDir(), nil), newScene(t, t.TempDir(), nil)
	lost := &proof.TrustLost{UUID: testUUID, Link: s.link, Token: s.record.Token, At: 1_800_000_000, Code: proof.ConfigurationChanged, Sentence: "a disk was attached",
		Facts: []proof.Fact{{Name: "disk vdz", Want: "none", Got: "/etc/shadow"}}, Reaction: "pause"}
	report := need[[]byte](t)(lost.Sign(s.host))
	check := func(code exit, report []byte, words ...string) {
		t.Helper()
		troth(t, "", "proof", "lost", "--trust", s.trust, s.proof, write(t, "report", report)).want(t, code, words...)
	}
	check(exitYes, report, "does not hold any more", "configuration-changed", "a disk was attached", "want none, got /etc/shadow", "pause")
	check(exitYes, []byte(base64.RawURLEncoding.EncodeToString(report)+"\n"), "a disk was attached")
	check(exitNo, need[[]byte](t)(lost.Sign(other.host)), "not the host's key")
	changed := bytes.Clone(report)
	changed[len(changed)/2] ^= 1
	check(exitNo, changed)
	check(exitNo, nil)
	lost.Link[0] ^= 1
	check(exitNo, need[[]byte](t)(lost.Sign(s.host)), "another launch")
	troth(t, "", "proof", "lost", "--trust", other.trust, s.proof, write(t, "report", report)).want(t, exitNo, "not genuine")
	o := troth(t, "", "proof", "lost", "-o", "json", "--trust", s.trust, s.proof, write(t, "report", report))
	o.want(t, exitYes, `"reaction": "pause"`)
	if err := oneJSON([]byte(o.stdout)); err != nil {
		t.Error(err)
	}
}

func TestProofExport(t *testing.T) {
	t.Setenv("XDG_CONFIG_HOME", t.TempDir())
	s := newScene(t, t.TempDir(), nil)
	dir := filepath.Join(t.TempDir(), "parts")
	args := []string{"proof", "export", "--dir", dir, "--trust", s.trust, s.proof}
	troth(t, "", args...).want(t, exitYes, "quote.msg", "verdict.pem")
	for _, n := range []string{"quote.msg", "quote.sig", "pcrs.bin", "ak.pem", "verdict.jwt", "verdict.tbs", "verdict.sig", "verdict.pem",
		"receipt.jwt", "jwks.json", "statement.json"} {
		if info, err := os.Stat(filepath.Join(dir, n)); err != nil || info.Size() == 0 {
			t.Errorf("%s: %v", n, err)
		}
	}
	troth(t, "", args...).want(t, exitNo, "exists")
	troth(t, "", append(args, "--force")...).want(t, exitYes)
	other := newScene(t, t.TempDir(), nil)
	troth(t, "", "proof", "export", "--dir", filepath.Join(dir, "no"), "--trust", other.trust, s.proof).want(t, exitNo)
	if _, err := os.Stat(filepath.Join(dir, "no")); err == nil {
		t.Error("something was exported of a proof that is not genuine")
	}
	troth(t, "", "verdict", "show", "--trust", s.trust, filepath.Join(dir, "verdict.jwt")).want(t, exitYes, "affirming")
}

// TestChangedBytes: the lab does it by exec over a real proof; here each 64th
// byte of a proof is changed, in process.
func TestChangedBytes(t *testing.T) {
	t.Setenv("XDG_CONFIG_HOME", t.TempDir())
	s := newScene(t, t.TempDir(), nil)
	b := need[[]byte](t)(os.ReadFile(s.proof))
	for i := 0; i < len(b); i += 64 {
		b[i] ^= 1
		o := troth(t, string(b), "proof", "verify", "--trust", s.trust, "--key", s.key, "-")
		if o.code != int(exitNo) {
			t.Errorf("byte %d: exit %d", i, o.code)
		}
		b[i] ^= 1
	}
	troth(t, string(b), "proof", "verify", "--trust", s.trust, "--key", s.key, "-").want(t, exitYes)
}
