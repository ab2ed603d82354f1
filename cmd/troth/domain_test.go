package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"troth/proof"
	"troth/tpm"
)

const testUUID = "6b1e0000-1111-4222-8333-444455556666"

// launchFiles are a token and an XML; hostd of the test does not read them.
func launchFiles(t *testing.T) []string {
	return []string{"--token", write(t, "token", []byte("the.token.text\n")), "--domain", write(t, "d.xml", []byte("<domain/>"))}
}

func TestDomainLaunch(t *testing.T) {
	f, flags := fakeHostd(t)
	step := 0
	states := []object{
		{"state": "running", "step": "measure", "bytes_hashed": 1 << 30, "bytes_total": 4 << 30},
		{"state": "running", "step": "create"},
		{"state": "done", "step": "done"},
	}
	launch := func(more object) object {
		l := object{"id": "l1", "uuid": testUUID, "name": "web", "bytes_hashed": 0, "bytes_total": 0, "dry_run": false}
		for k, v := range more {
			l[k] = v
		}
		return l
	}
	f.on("GET /v1/domains/"+testUUID+"/proof", 200, []byte(`{"version":"<exact> bytes"}`))
	f.answers["POST /v1/launches"] = func(r *http.Request, body []byte) (int, any) {
		if r.Header.Get("Idempotency-Key") != "key-of-mine" {
			t.Errorf("idempotency key %q", r.Header.Get("Idempotency-Key"))
		}
		if string(body) != `{"action":"start","domain":"\u003cdomain/\u003e","dry_run":false,"token":"the.token.text"}` {
			t.Errorf("body %s", body)
		}
		step = 0
		return 202, launch(object{"state": "running", "step": "read"})
	}
	f.answers["GET /v1/launches/l1"] = func(*http.Request, []byte) (int, any) {
		step++
		return 200, launch(states[step-1])
	}
	out := filepath.Join(t.TempDir(), "proof.json")
	args := append(append(flags, "domain", "launch", "--idempotency-key", "key-of-mine"), launchFiles(t)...)
	troth(t, "", args...).want(t, exitYes, "launch           l1", "state            running", "idempotency key key-of-mine")
	troth(t, "", append(args, "--wait")...).want(t, exitYes, "state            done")
	troth(t, "", append(args, "--proof-out", out)...).want(t, exitYes, "state            done", out)
	if b, err := os.ReadFile(out); err != nil || string(b) != `{"version":"<exact> bytes"}` {
		t.Errorf("proof %s, %v", b, err)
	}
	before := f.count()
	troth(t, "", append(args, "--proof-out", out)...).want(t, exitNo, "exists")
	if f.count() != before {
		t.Error("something was launched although the proof could not be written")
	}

	states[1] = object{"state": "refused", "step": "release", "refusal": problem(proof.TokenUsed, "the token is used", proof.Fact{Name: "host", Value: "other"})}
	troth(t, "", append(args, "--wait")...).want(t, exitNo, "refused: token-used: the token is used", "host: other", "remedy: Stop that launch first")
	o := troth(t, "", append(args, "--wait", "-o", "json")...)
	o.want(t, exitNo, `"code": "token-used"`)
	if err := oneJSON([]byte(o.stdout)); err != nil {
		t.Error(err)
	}
	states[1] = object{"state": "refused", "step": "release", "refusal": problem(proof.VerifierUnreachable, "no verifier answers")}
	troth(t, "", append(args, "--wait")...).want(t, exitUndecided, "could not decide: verifier-unreachable")
	states[1] = object{"state": "exploded"}
	troth(t, "", append(args, "--wait")...).want(t, exitUndecided, "exploded")
}

func TestDomainLaunchDryRun(t *testing.T) {
	f, flags := fakeHostd(t)
	f.on("POST /v1/launches", 202, object{
		"id": "l1", "uuid": testUUID, "name": "web", "state": "done", "step": "decide", "dry_run": true, "bytes_hashed": 0, "bytes_total": 0,
		"would": object{"configuration": "c0ffee", "kernel": "beef", "token": "70", "verdict": "80", "host": "000b", "interactive": "no", "disks": []object{{"target": "vda", "read_only": true, "digest": "d15c"}}},
	})
	args := append(append(flags, "domain", "launch", "--dry-run"), launchFiles(t)...)
	troth(t, "", args...).want(t, exitYes, "c0ffee", "beef", "d15c", "idempotency key ")
	if !strings.Contains(f.last(), `"dry_run":true`) {
		t.Errorf("asked %s", f.last())
	}
	troth(t, "", append(args, "--proof-out", "p")...).want(t, exitUsage)
}

func TestDomainStart(t *testing.T) {
	f, flags := fakeHostd(t)
	done := object{"id": "l2", "uuid": testUUID, "name": "web", "state": "done", "step": "done", "dry_run": false, "bytes_hashed": 0, "bytes_total": 0}
	f.on("POST /v1/domains/"+testUUID+"/start", 202, done)
	args := append(flags, "domain", "start", testUUID)
	troth(t, "", args...).want(t, exitYes, "idempotency key ", "state            done")
	if !strings.HasSuffix(f.last(), ` {"dry_run":false}`) {
		t.Errorf("asked %s", f.last())
	}
	troth(t, "", append(args, "--token", write(t, "token", []byte("a.b.c\n")), "--wait")...).want(t, exitYes)
	if !strings.HasSuffix(f.last(), ` {"dry_run":false,"token":"a.b.c"}`) {
		t.Errorf("asked %s", f.last())
	}
	f.on("POST /v1/domains/"+testUUID+"/start", 409, problem(proof.TokenUsed, "one launch in all"))
	troth(t, "", args...).want(t, exitNo, "refused: token-used")
}

func TestDomainVerbs(t *testing.T) {
	f, flags := fakeHostd(t)
	d := object{"uuid": testUUID, "name": "web\x1b[2J", "state": "proved", "link": strings.Repeat("aa", 32), "token": strings.Repeat("bb", 32), "since": 1700000000}
	f.on("GET /v1/domains", 200, object{"domains": []object{d}})
	f.on("GET /v1/domains/"+testUUID, 200, d)
	f.on("POST /v1/domains/"+testUUID+"/stop", 200, d)
	f.on("GET /v1/domains/"+testUUID+"/proof", 404, problem(proof.NotRegistered, "no proof"))
	f.on("GET /v1/domains/"+testUUID+"/why", 200, object{
		"domain":     d,
		"conditions": []object{{"name": "tpm", "state": "ok"}, {"name": "verifier", "state": "failed", "evidence": "no answer", "remedy": "look", "since": 1}},
		"history": []object{{"at": 1700000000, "launch": "l1", "what": "refused", "code": "token-used", "sentence": "it is used"},
			{"at": 1700000001, "launch": "l1", "what": "stray", "code": "grant-missing", "sentence": "found", "facts": []object{{"name": "done", "value": "destroyed"}}}},
	})
	troth(t, "", append(flags, "domain", "list")...).want(t, exitYes, testUUID, `web\x1b[2J`, "proved", "2023-11-14")
	troth(t, "", append(flags, "domain", "show", strings.ToUpper(testUUID))...).want(t, exitYes, "proved")
	troth(t, "", append(flags, "domain", "stop", testUUID)...).want(t, exitYes)
	o := troth(t, "", append(flags, "domain", "why", testUUID)...)
	o.want(t, exitYes, "verifier is failed: no answer", "remedy: look", "token-used: it is used", "grant-missing: found\n  done: destroyed")
	if strings.Contains(o.stdout, "host: tpm") {
		t.Error("a condition in order is told as a reason")
	}
	f.on("DELETE /v1/domains/"+testUUID, 204, nil)
	troth(t, "", append(flags, "domain", "remove", testUUID)...).want(t, exitYes, "removed "+testUUID)
	troth(t, "", append(flags, "domain", "proof", testUUID)...).want(t, exitNo, "refused: not-registered")
	f.on("GET /v1/domains/"+testUUID+"/proof", 200, []byte("exact"))
	if o := troth(t, "", append(flags, "domain", "proof", testUUID)...); o.code != 0 || o.stdout != "exact" {
		t.Errorf("%+v", o)
	}
}

// TestUnhappyPeers: a peer that is away, slow, mute or speaks nonsense never
// gives a yes and never a no.
func TestUnhappyPeers(t *testing.T) {
	f, flags := fakeHostd(t)
	list := append(flags, "domain", "list")
	troth(t, "", list...).want(t, exitUndecided, "418")
	f.on("GET /v1/domains", 200, []byte("<html>"))
	troth(t, "", list...).want(t, exitUndecided, "cannot read the answer of hostd")
	f.on("GET /v1/domains", 302, nil)
	troth(t, "", list...).want(t, exitUndecided, "302")
	f.on("GET /v1/domains", 500, []byte(`{"code":""}`))
	troth(t, "", list...).want(t, exitUndecided, "500")
	f.on("GET /v1/domains", 418, object{"code": "code-of-next-year", "detail": "new"})
	troth(t, "", list...).want(t, exitUndecided, "code-of-next-year")
	f.on("GET /v1/domains", 200, bytes.Repeat([]byte(" "), maxDocument+1))
	troth(t, "", list...).want(t, exitUndecided, fmt.Sprintf("more than %d bytes", maxDocument))
	f.on("GET /v1/domains", 409, object{"code": "verdict-stale", "detail": "old", "challenge": object{"challenge": "AA", "expires": 1}})
	troth(t, "", list...).want(t, exitNo, "refused: verdict-stale: old")
	f.answers["GET /v1/domains"] = func(r *http.Request, _ []byte) (int, any) {
		<-r.Context().Done()
		return 200, nil
	}
	troth(t, "", append(list, "--timeout", "50ms")...).want(t, exitUndecided, "hostd-unreachable")

	_, vflags := fakeVerifier(t)
	troth(t, "", "host", "list", "--verifier", vflags[1]).want(t, exitUndecided, "verifier-unreachable", "certificate")
}

// TestSlowAnswers: what hostd answers only when it is done is waited for longer than anything else, unless the user said how long.
func TestSlowAnswers(t *testing.T) {
	before := defaultTimeout
	defaultTimeout = 100 * time.Millisecond
	t.Cleanup(func() { defaultTimeout = before })
	f, flags := fakeHostd(t)
	f.answers = map[string]func(*http.Request, []byte) (int, any){}
	domain := object{"uuid": testUUID, "name": "web", "state": "saved", "registered": true, "launch": "l1"}
	for route, answer := range map[string]object{"GET /v1/domains": {"domains": []object{}}, "POST /v1/domains/" + testUUID + "/save": domain,
		"POST /v1/domains/" + testUUID + "/stop": domain, "DELETE /v1/domains/" + testUUID: {}} {
		f.answers[route] = func(r *http.Request, _ []byte) (int, any) {
			select {
			case <-r.Context().Done():
			case <-time.After(300 * time.Millisecond):
			}
			return 200, answer
		}
	}
	for _, verb := range []string{"save", "stop", "remove"} {
		troth(t, "", append(flags, "domain", verb, testUUID)...).want(t, exitYes)
		troth(t, "", append(flags, "domain", verb, testUUID, "--timeout", "100ms")...).want(t, exitUndecided, "hostd-unreachable")
	}
	troth(t, "", append(flags, "domain", "list")...).want(t, exitUndecided, "hostd-unreachable")
}

// challengeFiles are a key and a proof of one link.
func challengeFiles(t *testing.T) (key *proof.Key, keyFile, proofFile string, link proof.Digest) {
	t.Helper()
	tok := &proof.Token{Migration: "deny", Restarts: "0", OnTrustLost: "report"}
	tok.Profile = proof.ProfileRef{Name: "gold", Digest: proof.Digest{1}}
	tok.Expiry, tok.ChainExpiry = 1_800_000_000, 1_800_000_001
	_, _, to := testKeySet(t, time.Now())
	text, err := proof.NewToken(tok, to.Public())
	if err != nil {
		t.Fatal(err)
	}
	key = proof.NewKey(tok, text)
	b, err := key.EncodePrivate()
	if err != nil {
		t.Fatal(err)
	}
	s := &proof.Statement{
		UUID: testUUID, Name: "web", Action: "start", Mode: "paused", Interactive: "no", Token: key.Token,
		Host: tpm.Name{0, 0x0b, 1}, Attempt: 1, Blinder: proof.NewBlinder(),
	}
	statement, err := s.Encode()
	if err != nil {
		t.Fatal(err)
	}
	p, err := (&proof.Proof{Version: proof.ProofVersion, Statement: statement, Count: 1, Quote: proof.QuoteDoc{}, PCRs: []proof.PCR{}}).Encode()
	if err != nil {
		t.Fatal(err)
	}
	return key, write(t, "nonce.key", b), write(t, "proof.json", p), proof.Link(statement)
}

func TestDomainChallenge(t *testing.T) {
	f, flags := fakeHostd(t)
	key, keyFile, proofFile, link := challengeFiles(t)
	args := append(flags, "domain", "challenge", testUUID, "--key", keyFile, "--proof", proofFile)
	seen := map[string]bool{}
	guest := func(nonce proof.Secret, l proof.Digest) {
		f.answers = map[string]func(*http.Request, []byte) (int, any){}
		f.answers["POST /v1/domains/"+testUUID+"/challenge"] = func(_ *http.Request, body []byte) (int, any) {
			var q struct{ Challenge proof.Bytes }
			if err := json.Unmarshal(body, &q); err != nil || len(q.Challenge) != challengeSize || seen[string(q.Challenge)] {
				t.Errorf("challenge %s: %v", body, err)
			}
			seen[string(q.Challenge)] = true
			return 200, object{"answer": proof.Bytes(proof.GuestAnswer(proof.GuestSecret(nonce, l), q.Challenge, l)).String(), "link": l.String()}
		}
	}
	guest(key.Nonce, link)
	o := troth(t, "", args...)
	o.want(t, exitYes, "answered:", "It does not say")
	troth(t, "", append(args, "-o", "json")...).want(t, exitYes, `"answered": true`)
	guest(proof.RandomSecret(32), link)
	troth(t, "", args...).want(t, exitNo, "not made with the guest secret of this link")
	guest(key.Nonce, proof.Digest{9})
	troth(t, "", args...).want(t, exitNo, "newest proof")
	f.on("POST /v1/domains/"+testUUID+"/challenge", 200, object{"answer": "!", "link": link.String()})
	troth(t, "", args...).want(t, exitNo, "cannot be read")
	f.on("POST /v1/domains/"+testUUID+"/challenge", 503, problem(proof.Internal, "the guest does not answer"))
	troth(t, "", args...).want(t, exitUndecided, "the guest does not answer")

	before := f.count()
	_, otherFile, _, _ := challengeFiles(t)
	troth(t, "", append(flags, "domain", "challenge", testUUID, "--key", otherFile, "--proof", proofFile)...).want(t, exitNo, "another token")
	troth(t, "", append(flags, "domain", "challenge", "00000000-0000-4000-8000-000000000001", "--key", keyFile, "--proof", proofFile)...).want(t, exitNo, testUUID)
	trust, _ := testTrust(t, time.Now())
	troth(t, "", append(args, "--trust", write(t, "trust.json", trust))...).want(t, exitNo, "not genuine")
	if f.count() != before {
		t.Error("a guest was asked for a proof that is not its own")
	}
}
