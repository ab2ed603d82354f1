package proof

import (
	"encoding/json"
	"errors"
	"flag"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"troth/proof/strict"
)

var update = flag.Bool("update", false, "write the golden files anew")

const vectorDir = "testdata/vectors"

// fileName is the result that is expected, then which way: "proof-form.space.json".
func (f forgery) fileName() string {
	variant := strings.TrimPrefix(strings.TrimPrefix(f.name, f.check), "-")
	if variant == "" {
		return f.check
	}
	return f.check + "." + variant
}

// unwanted are genuine proofs of what the tenant did not ask for.
func unwanted() map[string]func(*scene) {
	return map[string]func(*scene){
		"unwanted-profile": func(s *scene) {
			s.onVerdict = func(v *Verdict) { v.Profiles[0].Digest = testDigest("changed profile") }
		},
		"unwanted-domain": func(s *scene) { s.onStatement = func(x *Statement) { x.UUID = "6f1e2c1a-0000-4000-8000-000000000002" } },
		"unwanted-pins": func(s *scene) {
			s.onStatement = func(x *Statement) { x.Measurements.Initrd = ptr(testDigest("engine's")) }
		},
		"unwanted-policy": func(s *scene) { s.onReceipt = func(r *Receipt) { r.Policy.Restarts = RestartsAny } },
		"unwanted-expiry": func(s *scene) {
			s.onVerdict = func(v *Verdict) { v.IssuedAt, v.Expires = sceneTime+3590, sceneTime+3770 }
			s.onReceipt = func(r *Receipt) { r.IssuedAt = sceneTime + 3601 }
		},
	}
}

func TestVectors(t *testing.T) {
	if *update {
		writeVectors(t)
	}
	read := func(name string) []byte { return must[[]byte](t)(os.ReadFile(filepath.Join(vectorDir, name))) }
	orElse := func(name, other string) []byte {
		if b, err := os.ReadFile(filepath.Join(vectorDir, name)); err == nil {
			return b
		}
		return read(other)
	}
	expected := map[string]bool{"genuine": true}
	for _, f := range forgeries() {
		expected[f.fileName()] = true
	}
	for name := range unwanted() {
		expected[name] = true
	}
	for name := range expected {
		t.Run(name, func(t *testing.T) {
			trust, err := ParseTrust(orElse(name+".trust", "trust"))
			if name == "trust-keys.root" || name == "trust-keys.issuer" {
				if err == nil {
					t.Error("its trust was read")
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			key := must[*Key](t)(ParseKey(orElse(name+".key", "nonce.key")))
			g, err := Verify(read(name+".json"), trust, key)
			var invalid *Invalid
			if errors.As(err, &invalid) {
				if check, _, _ := strings.Cut(name, "."); invalid.Name != check {
					t.Errorf("got %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			want := WantOf(key)
			want.Domain = "6f1e2c1a-0000-4000-8000-000000000001"
			err = Validate(g, want)
			var not *Unwanted
			if errors.As(err, &not) {
				if name != "unwanted-"+not.Name {
					t.Errorf("got %v", err)
				}
				return
			}
			if err != nil || name != "genuine" {
				t.Errorf("genuine and wanted (%v), want %s", err, name)
			}
		})
	}
	files := must[[]string](t)(filepath.Glob(filepath.Join(vectorDir, "*.json")))
	for _, f := range files {
		if name := strings.TrimSuffix(filepath.Base(f), ".json"); !expected[name] && name != "labels" {
			t.Errorf("%s is no vector of this version", f)
		}
	}
}

func writeVectors(t *testing.T) {
	if err := os.MkdirAll(vectorDir, 0o755); err != nil {
		t.Fatal(err)
	}
	write := func(name string, b []byte) {
		if err := os.WriteFile(filepath.Join(vectorDir, name), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	tokenKey := testTokenKey(t, "token key")
	if _, err := os.Stat(filepath.Join(vectorDir, "token")); err != nil {
		write("token", []byte(must[string](t)(NewToken(sceneToken(), tokenKey.Public()))))
	}
	write("token.private.pem", must[[]byte](t)(tokenKey.PEM()))
	s := newScene(t)
	trust, key := compact(t, s.trust(t)), must[[]byte](t)(s.key().EncodePrivate())
	write("trust", trust)
	write("nonce.key", key)
	write("genuine.json", s.make(t))
	for name, spoil := range unwanted() {
		s := newScene(t)
		spoil(s)
		write(name+".json", s.make(t))
	}
	for _, f := range forgeries() {
		b, tr, k := f.forge(t)
		write(f.fileName()+".json", b)
		if x := compact(t, tr); string(x) != string(trust) {
			write(f.fileName()+".trust", x)
		}
		if x := must[[]byte](t)(k.EncodePrivate()); string(x) != string(key) {
			write(f.fileName()+".key", x)
		}
	}
	write("labels.json", append(must[[]byte](t)(json.MarshalIndent(labelVectors(), "", " ")), '\n'))
}

// labelVectors gives for each label Hash(l, "a", "bc"), and HKDF and HMAC with
// a key of 32 bytes 0x01.
func labelVectors() map[string]map[string]string {
	key := NewSecret([]byte(strings.Repeat("\x01", 32)))
	m := map[string]map[string]string{}
	for _, l := range Labels() {
		m[string(l)] = map[string]string{
			"hash":   Hash(l, []byte("a"), []byte("bc")).String(),
			"derive": Digest(Derive(key, l, []byte("a"), []byte("bc")).Reveal()).String(),
			"mac":    MAC(key, l, []byte("a"), []byte("bc")).String(),
		}
	}
	return m
}

func TestLabelVectors(t *testing.T) {
	var want map[string]map[string]string
	b := must[[]byte](t)(os.ReadFile(filepath.Join(vectorDir, "labels.json")))
	if err := strict.JSON(b, 1<<20, &want); err != nil {
		t.Fatal(err)
	}
	if !maps.EqualFunc(want, labelVectors(), maps.Equal) {
		t.Error("a label, or how messages are framed, has changed")
	}
	all := Labels()
	if slices.Sort(all); len(slices.Compact(all)) != len(Labels()) {
		t.Error("a label stands twice")
	}
}

// The published token opens with the published key, to the published record.
func TestTokenVector(t *testing.T) {
	k := must[*TokenPrivateKey](t)(ParseTokenPrivateKey(must[[]byte](t)(os.ReadFile(filepath.Join(vectorDir, "token.private.pem")))))
	text := string(must[[]byte](t)(os.ReadFile(filepath.Join(vectorDir, "token"))))
	tok := must[*Token](t)(must[*SealedToken](t)(ParseToken(text)).Open(k))
	want := must[[]byte](t)(os.ReadFile(filepath.Join(vectorDir, "nonce.key")))
	if got := must[[]byte](t)(NewKey(tok, text).EncodePrivate()); string(got) != string(want) {
		t.Errorf("got %s, want %s", got, want)
	}
}
