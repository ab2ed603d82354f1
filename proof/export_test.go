package proof

import (
	"bytes"
	"crypto/ecdsa"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

func exported(t *testing.T) (string, map[string][]byte) {
	t.Helper()
	s := newScene(t)
	files := must[map[string][]byte](t)(Export(s.make(t), s.trust(t)))
	dir := t.TempDir()
	for name, b := range files {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir, files
}

// run starts a tool that this test cannot do without.
func run(t *testing.T, dir, name string, args ...string) (string, error) {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		t.Fatalf("%s is not installed: %v", name, err)
	}
	c := exec.Command(name, args...)
	c.Dir = dir
	out, err := c.CombinedOutput()
	return string(out), err
}

func TestExportIsAcceptedByOtherTools(t *testing.T) {
	dir, files := exported(t)
	checkquote := func(qualification string) (string, error) {
		return run(t, dir, "tpm2_checkquote", "-u", "ak.pem", "-m", "quote.msg", "-s", "quote.sig", "-f", "pcrs.bin", "-g", "sha256", "-q", qualification)
	}
	q := string(files["qualification.hex"])
	if out, err := checkquote(q); err != nil {
		t.Errorf("tpm2_checkquote: %v\n%s", err, out)
	}
	if _, err := checkquote(strings.Repeat("00", 32)); err == nil {
		t.Error("tpm2_checkquote accepts another qualification")
	}
	for _, name := range []string{"verdict", "receipt"} {
		verify := func() (string, error) {
			return run(t, dir, "openssl", "dgst", "-sha256", "-verify", name+".pem", "-signature", name+".sig", name+".tbs")
		}
		if out, err := verify(); err != nil {
			t.Errorf("openssl, %s: %v\n%s", name, err, out)
		}
		if err := os.WriteFile(filepath.Join(dir, name+".tbs"), append(files[name+".tbs"], 'x'), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := verify(); err == nil {
			t.Errorf("openssl accepts a changed %s", name)
		}
	}
	values := bytes.Clone(files["pcrs.bin"])
	values[132+4+4+2] ^= 1 // first byte of the first value
	if err := os.WriteFile(filepath.Join(dir, "pcrs.bin"), values, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := checkquote(q); err == nil {
		t.Error("tpm2_checkquote accepts other PCR values")
	}
}

// A JWT library that shares no code with go-jose reads verdict and jwks.json.
func TestExportIsAcceptedByAnotherJWTLibrary(t *testing.T) {
	_, files := exported(t)
	var set struct{ Keys []JWK }
	if err := json.Unmarshal(files["jwks.json"], &set); err != nil {
		t.Fatal(err)
	}
	parser := jwt.NewParser(jwt.WithValidMethods([]string{"ES256"}), jwt.WithIssuer("verifier.example"),
		jwt.WithTimeFunc(func() time.Time { return time.Unix(sceneTime+30, 0) }))
	for _, name := range []string{"verdict.jwt", "receipt.jwt"} {
		token, err := parser.Parse(string(files[name]), func(x *jwt.Token) (any, error) {
			for _, k := range set.Keys {
				if k.KeyID == x.Header["kid"] {
					return must[*ecdsa.PublicKey](t)(k.PublicKey()), nil
				}
			}
			return nil, jwt.ErrTokenUnverifiable
		})
		if err != nil || !token.Valid {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestExportRefusesWhatIsNotGenuine(t *testing.T) {
	s := newScene(t)
	s.onQuote = func(a *attestation) { a.reset++ }
	if _, err := Export(s.make(t), s.trust(t)); err == nil || !strings.Contains(err.Error(), "reset-count") {
		t.Errorf("got %v", err)
	}
}

func TestPCRsBinHasTheSizesOfTheCStructs(t *testing.T) {
	v := scenePCRs()
	b := must[[]byte](t)(pcrsBin(sceneSelection, v))
	if len(b) != 132+4+532 {
		t.Errorf("%d bytes", len(b))
	}
	delete(v, 18)
	if _, err := pcrsBin(sceneSelection, v); err == nil {
		t.Error("a value is missing and nothing is said")
	}
}
