package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"io"
	"log"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"troth/proof"
	"troth/verifier/api"
)

func TestHost(t *testing.T) {
	f, flags := fakeVerifier(t)
	f.on("GET /v1/hosts", 200, []object{testHost("trusted")})
	f.on("GET /v1/hosts/host1", 200, testHost("trusted"))
	f.on("POST /v1/hosts/host1/approve", 200, testHost("unknown"))
	f.on("POST /v1/hosts/host1/revoke", 200, testHost("untrusted"))
	f.on("GET /v1/hosts/host1/why", 200, object{
		"host": testHost("untrusted"), "standing": "untrusted",
		"reasons": []any{problem(proof.PCRMismatch, "PCR 18 differs", proof.Fact{Name: "pcr 18", Want: "aa", Got: "bb"})},
	})
	f.on("GET /v1/hosts/nobody", 404, problem(proof.HostNotApproved, "no such host"))

	troth(t, "", append(flags, "host", "list")...).want(t, exitYes, "NAME", "host1", "trusted", "gold")
	o := troth(t, "", append(flags, "host", "list", "-o", "json")...)
	o.want(t, exitYes, `"name": "host1"`)
	if err := oneJSON([]byte(o.stdout)); err != nil {
		t.Error(err)
	}
	troth(t, "", append(flags, "host", "show", "host1")...).want(t, exitYes, "ek digest", strings.Repeat("ab", 32))
	troth(t, "", append(flags, "host", "why", "host1")...).want(t, exitYes, "host1 is untrusted", "pcr-mismatch: PCR 18 differs", "want aa", "got bb", "remedy:")
	troth(t, "", append(flags, "host", "revoke", "host1")...).want(t, exitYes)
	troth(t, "", append(flags, "host", "show", "nobody")...).want(t, exitNo, "refused: host-not-approved: no such host", "remedy:")

	troth(t, "", append(flags, "host", "approve", "host1", "--profile", "gold", "--ek", strings.Repeat("ab", 32))...).want(t, exitYes)
	if got := f.last(); got != `POST /v1/hosts/host1/approve {"ek":"`+strings.Repeat("ab", 32)+`","profiles":["gold"]}` {
		t.Errorf("asked %s", got)
	}
	troth(t, "", append(flags, "host", "approve", "host1")...).want(t, exitYes)
	if got := f.last(); got != `POST /v1/hosts/host1/approve {}` {
		t.Errorf("asked %s", got)
	}
	before := f.count()
	troth(t, "", append(flags, "host", "approve", "host1", "--ek", "cd")...).want(t, exitUsage, "--ek")
	if f.count() != before {
		t.Errorf("asked with a bad digest: %s", f.last())
	}
}

func TestProfileAndReference(t *testing.T) {
	f, flags := fakeVerifier(t)
	gold := object{"name": "gold", "launcher": "tboot-da", "selection": "sha256:17,18,19", "references": []string{"g1"}, "digest": strings.Repeat("11", 32)}
	set := object{"name": "g1", "launcher": "tboot-da", "values": []object{{"index": 17, "value": strings.Repeat("77", 32)}}}
	f.on("POST /v1/profiles", 200, gold)
	f.on("GET /v1/profiles", 200, []object{gold})
	f.on("GET /v1/profiles/gold", 200, gold)
	f.on("DELETE /v1/profiles/gold", 204, nil)
	f.on("POST /v1/references", 200, set)
	f.on("GET /v1/references", 200, []object{set})
	f.on("DELETE /v1/references/g1", 204, nil)

	troth(t, "", append(flags, "profile", "add", "gold", "--launcher", "tboot-da", "--reference", "g1")...).want(t, exitYes, "gold@1111")
	if got := f.last(); got != `POST /v1/profiles {"launcher":"tboot-da","name":"gold","references":["g1"],"selection":"sha256:17,18,19"}` {
		t.Errorf("asked %s", got)
	}
	troth(t, "", append(flags, "profile", "list")...).want(t, exitYes, "gold", "tboot-da")
	troth(t, "", append(flags, "profile", "remove", "gold")...).want(t, exitYes, "removed gold")

	// What profile show -o json prints is what token new --profile takes.
	o := troth(t, "", append(flags, "profile", "show", "gold", "-o", "json")...)
	o.want(t, exitYes)
	ref, err := (&app{}).profileRef(write(t, "gold.json", []byte(o.stdout)))
	if err != nil || ref.Name != "gold" || ref.Digest.String() != strings.Repeat("11", 32) {
		t.Errorf("%+v, %v", ref, err)
	}

	troth(t, "", append(flags, "reference", "list")...).want(t, exitYes, "g1", "17=7777")
	troth(t, "", append(flags, "reference", "remove", "g1")...).want(t, exitYes)
	want := `POST /v1/references {"launcher":"tboot-da","name":"g1","values":[{"index":17,"value":"` + strings.Repeat("77", 32) + `"}]}`
	troth(t, "", append(flags, "reference", "add", "g1", "--launcher", "tboot-da", "--pcr", "17="+strings.Repeat("77", 32))...).want(t, exitYes)
	if got := f.last(); got != want {
		t.Errorf("asked %s", got)
	}
	b, err := json.Marshal(set)
	if err != nil {
		t.Fatal(err)
	}
	troth(t, string(b), append(flags, "reference", "add", "--file", "-")...).want(t, exitYes)
	if got := f.last(); got != want {
		t.Errorf("asked %s", got)
	}
}

// TestReferenceImport: nothing is applied before a yes.
func TestReferenceImport(t *testing.T) {
	f, flags := fakeVerifier(t)
	answer := object{
		"difference": []object{{"pcr": 18, "want": "aa11", "got": "bb22"}}, "applied": false,
		"values": []object{{"index": 18, "value": strings.Repeat("bb", 32)}},
	}
	f.on("POST /v1/references/import", 200, answer)
	args := append(flags, "reference", "import", "host1", "--name", "g1", "--launcher", "tboot-legacy")
	dry := `POST /v1/references/import {"apply":false,"host":"host1","launcher":"tboot-legacy","name":"g1"}`
	for _, typed := range []string{"", "n\n", "no\n", "yep\n"} {
		troth(t, typed, args...).want(t, exitNo, "SET SAYS", "aa11", "bb22", "[y/N]", "nothing was changed")
		if f.last() != dry {
			t.Errorf("typed %q: asked %s", typed, f.last())
		}
	}
	// What was shown is what is confirmed, asked or not.
	wet := strings.TrimSuffix(strings.Replace(dry, "false", "true", 1), "}") + `,"values":[{"index":18,"value":"` + strings.Repeat("bb", 32) + `"}]}`
	troth(t, "y\n", args...).want(t, exitYes, strings.Repeat("bb", 32))
	if f.last() != wet {
		t.Errorf("asked %s", f.last())
	}
	o := troth(t, "", append(args, "--yes", "-o", "json")...)
	o.want(t, exitYes)
	if err := oneJSON([]byte(o.stdout)); err != nil || strings.Contains(o.stderr, "[y/N]") || f.last() != wet {
		t.Errorf("%v: %s: asked %s", err, o.stderr, f.last())
	}
}

// TestReferenceImportChanges: the host attests other values after they were shown, and nothing is stored.
func TestReferenceImportChanges(t *testing.T) {
	f, flags := fakeVerifier(t)
	var has byte
	var stored []api.PCR
	f.answers = map[string]func(*http.Request, []byte) (int, any){"POST /v1/references/import": func(_ *http.Request, body []byte) (int, any) {
		var in api.ImportRequest
		if err := json.Unmarshal(body, &in); err != nil {
			t.Error(err)
		}
		values := []api.PCR{{Index: 18, Value: proof.Digest{has}}}
		has++ // the next attestation
		if in.Apply && !slices.Equal(in.Values, values) {
			return 403, problem(proof.PCRMismatch, "the host has other values", proof.Fact{Name: "PCR 18", Want: "aa", Got: "bb"})
		}
		if in.Apply {
			stored = values
		}
		return 200, object{"difference": []object{}, "applied": in.Apply, "values": values}
	}}
	args := append(flags, "reference", "import", "host1", "--name", "g1", "--profile", "gold")
	for _, more := range [][]string{nil, {"--yes"}} {
		troth(t, "y\n", append(slices.Clone(args), more...)...).want(t, exitNo, "pcr-mismatch", "PCR 18", "want aa", "got bb")
		if stored != nil || f.count() != int(has) || has%2 != 0 {
			t.Fatalf("stored %v after %d questions", stored, f.count())
		}
	}
}

func TestTrustFetch(t *testing.T) {
	f, flags := fakeVerifier(t)
	root, set, _ := testKeySet(t, time.Now())
	other, _, _ := testKeySet(t, time.Now())
	out := filepath.Join(t.TempDir(), "trust.json")
	args := append(flags, "trust", "fetch", "--out", out)

	f.on("GET /v1/keys", 200, object{"keys": set})
	troth(t, "", args...).want(t, exitUsage, "--root")

	f.on("GET /v1/keys", 200, object{"keys": set, "root": root.JWK()})
	troth(t, "n\n", args...).want(t, exitNo, "Pin the root "+root.KeyID(), "nothing was pinned")
	troth(t, "y\n", append(args, "--fingerprint", other.KeyID())...).want(t, exitNo, "want "+other.KeyID(), "got "+root.KeyID())
	if _, err := os.Stat(out); err == nil {
		t.Fatal("it was pinned all the same")
	}
	troth(t, "yes\n", args...).want(t, exitYes, "root             "+root.KeyID(), "software tpm     refused")
	troth(t, "", "trust", "show", out).want(t, exitYes, root.KeyID())

	// Renewal under the pinned root asks nobody and takes no other root.
	f.on("GET /v1/keys", 200, object{"keys": set})
	troth(t, "", append(args, "--root", out)...).want(t, exitNo, "exists")
	troth(t, "", append(args, "--root", out, "--force")...).want(t, exitYes, root.KeyID())
	_, foreign, _ := testKeySet(t, time.Now())
	f.on("GET /v1/keys", 200, object{"keys": foreign})
	troth(t, "", append(args, "--root", out, "--force")...).want(t, exitNo, "cannot read key set")
	older, err := proof.SignKeySet(&proof.KeySet{
		Issuer: "https://verifier.example", IssuedAt: 1000, NotBefore: 1000, NotAfter: 2000,
		VerdictKeys: []proof.JWK{root.JWK()}, TokenKeys: mustKeySet(t, set, root).TokenKeys,
	}, root)
	if err != nil {
		t.Fatal(err)
	}
	f.on("GET /v1/keys", 200, object{"keys": older})
	troth(t, "", append(args, "--root", out, "--force")...).want(t, exitNo, "older")
}

func mustKeySet(t *testing.T, jws string, root *proof.SigningKey) *proof.KeySet {
	t.Helper()
	k, err := proof.ParseKeySet(jws, root.JWK())
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// TestClientCertificate: the verifier knows its caller by certificate, and the
// key may stand in the same file.
func TestClientCertificate(t *testing.T) {
	t.Setenv("XDG_CONFIG_HOME", t.TempDir())
	f := &fake{}
	f.on("GET /v1/hosts", 200, []object{})
	s := httptest.NewUnstartedServer(f)
	s.TLS = &tls.Config{MinVersion: tls.VersionTLS13, ClientAuth: tls.RequireAnyClientCert}
	s.Config.ErrorLog = log.New(io.Discard, "", 0) // it tells of the refused handshake below
	s.StartTLS()
	t.Cleanup(s.Close)
	key := need[*ecdsa.PrivateKey](t)(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der := need[[]byte](t)(x509.CreateCertificate(rand.Reader, template, template, key.Public(), key))
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	keyPEM := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: need[[]byte](t)(x509.MarshalPKCS8PrivateKey(key))})
	ca := write(t, "ca.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}))
	cert, keyFile, both := write(t, "c.pem", certPEM), write(t, "c.key", keyPEM), write(t, "both.pem", append(certPEM, keyPEM...))
	args := []string{"host", "list", "--verifier", s.URL, "--ca", ca}
	troth(t, "", append(args, "--cert", cert, "--key", keyFile)...).want(t, exitYes)
	troth(t, "", append(args, "--cert", cert, "--cert-key", keyFile)...).want(t, exitYes)
	troth(t, "", append(args, "--cert", both)...).want(t, exitYes)
	troth(t, "", append(args, "--cert", cert)...).want(t, exitUsage, "cannot read the client's certificate")
	troth(t, "", args...).want(t, exitUndecided, "verifier-unreachable")
}
