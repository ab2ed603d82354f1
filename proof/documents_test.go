package proof

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"troth/proof/strict"
)

// A paper is one kind of document: an example, and how it is read.
type paper struct {
	name     string
	text     []byte
	read     func([]byte) error
	optional []string // paths that may be absent
}

// signedPaper reads a payload by signing it first with the right key.
func signedPaper(t testing.TB, name, typ, jws string, k *SigningKey, read func(string) error, optional ...string) paper {
	s := must[*strict.Signed](t)(strict.JWS(jws, MaxKeySet))
	return paper{name, s.Payload, func(b []byte) error {
		text, err := signPayload(jwsHeader{"ES256", k.KeyID(), typ}, b, k)
		if err != nil {
			return err
		}
		return read(text)
	}, optional}
}

func papers(t testing.TB) []paper {
	s := newScene(t)
	s.onStatement = func(x *Statement) {
		x.Previous = ptr(testDigest("link before"))
		x.Measurements.Firmware = ptr(testDigest("firmware"))
	}
	b := s.make(t)
	p := must[*Proof](t)(ParseProof(b))
	keys := must[*VerdictKeys](t)(NewVerdictKeys(s.signer.JWK()))
	trust := s.trust(t)
	tokenKey := testTokenKey(t, "token key")
	tok := sceneToken()
	tok.Secret = NewSecret([]byte("disk key"))
	tok.Pins.Domain, tok.Pins.Configuration = "6f1e2c1a-0000-4000-8000-000000000001", ptr(testDigest("configuration"))
	text := must[string](t)(NewToken(tok, tokenKey.Public()))
	sealed := must[*SealedToken](t)(ParseToken(text))
	inside := must[[]byte](t)(strict.Encode(tokenBody{tok.Header, tok.Nonce.raw(), tok.Secret.raw(), tok.Pins, tok.Migration, tok.Restarts, tok.OnTrustLost, tok.MaxUnproven, tok.Saves}))
	ev := &Evidence{Challenge: bytes.Repeat([]byte{1}, 40), AK: s.akName(t), Quote: p.Quote, PCRs: p.PCRs, Logs: []Log{{LogTCG2, Bytes("log")}}}
	cred := &GuestCredential{testDigest("link"), GuestSecret(s.nonce, testDigest("link")), NewSecret([]byte("disk key"))}
	challenge := bytes.Repeat([]byte{7}, 32)
	contra := must[string](t)(SignVerdict(&Verdict{Issuer: "v", Class: "software", Selection: sceneSelection, Status: Contraindicated, Host: s.akName(t),
		Failed: []string{"pcr-mismatch"}, IssuedAt: 5, Expires: 9, NextCheck: 7}, s.signer))
	seed := testScalar("release seed")
	pub := must[Bytes](t)(ReleasePublic(seed))
	released := must[[]byte](t)(strict.Encode(releasedBody{s.nonce.raw(), []byte("disk key"), true}))
	verdict := func(j string) error { _, err := ParseVerdict(j, keys); return err }
	return []paper{
		{"proof", b, func(b []byte) error { _, err := ParseProof(b); return err }, []string{"path"}},
		{"statement", p.Statement, func(b []byte) error { _, err := ParseStatement(b); return err },
			[]string{"measurements.firmware", "measurements.kernel", "measurements.initrd", "measurements.command_line", "disks", "disks[0].digest", "previous"}},
		signedPaper(t, "verdict", typeVerdict, p.Verdict, s.signer, verdict),
		signedPaper(t, "verdict against", typeVerdict, contra, s.signer, verdict, "submods.host.troth_failed"),
		signedPaper(t, "receipt", typeReceipt, p.Receipt, s.signer, func(j string) error { _, err := ParseReceipt(j, keys); return err }),
		signedPaper(t, "key set", typeKeySet, trust.Keys, s.root, func(j string) error { _, err := ParseKeySet(j, s.root.JWK()); return err }),
		{"evidence", must[[]byte](t)(ev.Encode()), func(b []byte) error { _, err := ParseEvidence(b); return err }, []string{"logs"}},
		{"token header", sealed.header, func(b []byte) error {
			_, err := ParseToken(strict.EncodeBase64(b) + "." + strict.EncodeBase64(sealed.enc) + "." + strict.EncodeBase64(sealed.sealed))
			return err
		}, nil},
		{"token", inside, func(b []byte) error {
			enc, box, err := seal(tokenKey.Public().Public, LabelTokenSeal, sealed.header, b)
			if err != nil {
				return err
			}
			x := &SealedToken{Header: sealed.Header, header: sealed.header, enc: enc, sealed: box}
			_, err = x.Open(tokenKey)
			return err
		}, []string{"secret", "pins.domain", "pins.configuration", "pins.disks"}},
		{"release", released, func(b []byte) error {
			enc, box, err := seal(pub, LabelReleaseSeal, testDigestBytes("receipt"), b)
			if err != nil {
				return err
			}
			_, err = OpenRelease(seed, testDigest("receipt"), append(enc, box...))
			return err
		}, []string{"secret"}},
		{"key", must[[]byte](t)(NewKey(tok, text).EncodePrivate()), func(b []byte) error { _, err := ParseKey(b); return err },
			[]string{"secret", "pins", "pins.domain", "pins.configuration", "pins.kernel", "pins.initrd", "pins.command_line", "pins.disks", "pins.interactive"}},
		{"trust", must[[]byte](t)(trust.Encode()), func(b []byte) error { _, err := ParseTrust(b); return err }, nil},
		{"guest credential", must[[]byte](t)(cred.EncodePrivate()), func(b []byte) error { _, err := ParseGuestCredential(b); return err }, []string{"token_secret"}},
		{"guest challenge", chop(must[[]byte](t)(EncodeGuestChallenge(challenge))), func(b []byte) error { _, err := ParseGuestChallenge(append(b, '\n')); return err }, nil},
		{"guest answer", chop(must[[]byte](t)(EncodeGuestAnswer(cred, challenge))), func(b []byte) error { _, _, err := ParseGuestAnswer(append(b, '\n'), challenge); return err }, nil},
	}
}

func chop(line []byte) []byte { return bytes.TrimSuffix(line, []byte("\n")) }

func TestPapersAreRead(t *testing.T) {
	for _, p := range papers(t) {
		if err := p.read(slices.Clone(p.text)); err != nil {
			t.Errorf("%s: %v", p.name, err)
		}
	}
}

// object is a JSON object with its order kept, so that fields can be removed,
// doubled and renamed one at a time.
type member struct {
	key   string
	value any // *[]member-like object, []any, or json.RawMessage
}
type object []member

func readTree(t testing.TB, d *json.Decoder) any {
	tok := must[json.Token](t)(d.Token())
	switch tok {
	case json.Delim('{'):
		var o object
		for d.More() {
			key := must[json.Token](t)(d.Token()).(string)
			o = append(o, member{key, readTree(t, d)})
		}
		must[json.Token](t)(d.Token())
		return o
	case json.Delim('['):
		a := []any{}
		for d.More() {
			a = append(a, readTree(t, d))
		}
		must[json.Token](t)(d.Token())
		return a
	}
	return tok
}

func writeTree(t testing.TB, b *bytes.Buffer, v any) {
	switch v := v.(type) {
	case object:
		b.WriteByte('{')
		for i, m := range v {
			if i > 0 {
				b.WriteByte(',')
			}
			b.Write(compact(t, m.key))
			b.WriteByte(':')
			writeTree(t, b, m.value)
		}
		b.WriteByte('}')
	case []any:
		b.WriteByte('[')
		for i, e := range v {
			if i > 0 {
				b.WriteByte(',')
			}
			writeTree(t, b, e)
		}
		b.WriteByte(']')
	default:
		b.Write(must[[]byte](t)(strict.Encode(v)))
	}
}

// eachObject visits every object with a function that writes the whole
// document with that object replaced.
func eachObject(t testing.TB, root any, visit func(path string, o object, with func(any) []byte)) {
	write := func(v any) []byte {
		var b bytes.Buffer
		writeTree(t, &b, v)
		return b.Bytes()
	}
	var walk func(path string, v any, with func(any) []byte)
	walk = func(path string, v any, with func(any) []byte) {
		switch v := v.(type) {
		case object:
			visit(path, v, with)
			for i, m := range v {
				walk(strings.TrimPrefix(path+"."+m.key, "."), m.value, func(n any) []byte {
					c := slices.Clone(v)
					c[i].value = n
					return with(c)
				})
			}
		case []any:
			for i, e := range v {
				walk(fmt.Sprintf("%s[%d]", path, i), e, func(n any) []byte {
					c := slices.Clone(v)
					c[i] = n
					return with(c)
				})
			}
		}
	}
	walk("", root, write)
}

// attackPartial takes away, doubles, renames, re-cases and nulls every field of
// every document; each is refused by an error that names the field.
func attackPartial(t *testing.T) {
	for _, p := range papers(t) {
		t.Run(p.name, func(t *testing.T) {
			d := json.NewDecoder(bytes.NewReader(p.text))
			d.UseNumber()
			count := 0
			eachObject(t, readTree(t, d), func(path string, o object, with func(any) []byte) {
				refused := func(what, field string, text []byte) {
					t.Helper()
					count++
					if err := p.read(text); err == nil || !strings.Contains(err.Error(), field) {
						t.Errorf("%s %s: got %v, want it to name %q", what, field, err, field)
					}
				}
				refused("unknown", "unheard-of", with(append(slices.Clone(o), member{"unheard-of", "x"})))
				for i, m := range o {
					field := strings.TrimPrefix(path+"."+m.key, ".")
					refused("doubled", field, with(append(slices.Clone(o), m)))
					renamed := slices.Clone(o)
					renamed[i].key = strings.ToUpper(m.key[:1]) + m.key[1:]
					refused("other case", m.key, with(renamed))
					nulled := slices.Clone(o)
					nulled[i].value = nil
					if !slices.Contains(p.optional, field) {
						refused("removed", m.key, with(slices.Delete(slices.Clone(o), i, i+1)))
						refused("null", m.key, with(nulled))
					}
				}
			})
			t.Logf("%d changes refused", count)
		})
	}
}

func attackJSON(t *testing.T) {
	deep := strings.Repeat("[", 1000) + strings.Repeat("]", 1000)
	all := papers(t)
	for _, p := range all {
		size := MaxTrust
		if p.name == "evidence" {
			size = MaxEvidence
		}
		for what, text := range map[string][]byte{
			"empty": {}, "null": []byte("null"), "array": []byte("[]"), "text": []byte(`"x"`), "number": []byte("1e400"), "half": p.text[:len(p.text)/2],
			"two": append(slices.Clone(p.text), p.text...), "trailing": append(slices.Clone(p.text), 'x'), "zero byte": append(slices.Clone(p.text), 0),
			"deep":     []byte(deep),
			"deep in":  bytes.Replace(p.text, []byte(":"), []byte(":"+deep+",\"z\":"), 1),
			"huge":     append(append([]byte(`{"a":"`), bytes.Repeat([]byte("a"), size)...), `"}`...),
			"not utf8": bytes.Replace(p.text, []byte(`"`), []byte("\"\xff"), 1),
			"bom":      append([]byte("\xef\xbb\xbf"), p.text...),
		} {
			if err := p.read(slices.Clone(text)); err == nil {
				t.Errorf("%s: %s was read", p.name, what)
			}
		}
	}
	for field, text := range map[string]string{"index": "0.0", "count": "4e0", "pcrs[0].index": "17.0"} {
		b := all[0].text
		name := field[strings.LastIndex(field, ".")+1:]
		old := fmt.Sprintf("%q:", name)
		i := bytes.Index(b, []byte(old)) + len(old)
		if strings.HasPrefix(field, "pcrs") {
			i = bytes.LastIndex(b, []byte(`"pcrs":[{"index":`)) + len(`"pcrs":[{"index":`)
		}
		end := i + bytes.IndexAny(b[i:], ",}")
		if _, err := ParseProof(slices.Concat(b[:i], []byte(text), b[end:])); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("number %s for %s: %v", text, field, err)
		}
	}
}

// attackAlg gives each signed document where another is expected, and headers
// that name another algorithm, type or key.
func attackAlg(t *testing.T) {
	s := newScene(t)
	p := must[*Proof](t)(ParseProof(s.make(t)))
	keys := must[*VerdictKeys](t)(NewVerdictKeys(s.signer.JWK(), s.root.JWK()))
	readers := map[string]func(string) error{
		typeVerdict: func(j string) error { _, err := ParseVerdict(j, keys); return err },
		typeReceipt: func(j string) error { _, err := ParseReceipt(j, keys); return err },
		typeKeySet:  func(j string) error { _, err := ParseKeySet(j, s.root.JWK()); return err },
	}
	texts := map[string]string{typeVerdict: p.Verdict, typeReceipt: p.Receipt, typeKeySet: s.trust(t).Keys}
	for typ, read := range readers {
		for other, text := range texts {
			if err := read(text); (err == nil) != (typ == other) {
				t.Errorf("%s read as %s: %v", other, typ, err)
			}
		}
		k := s.signer
		if typ == typeKeySet {
			k = s.root
		}
		payload := must[*strict.Signed](t)(strict.JWS(texts[typ], MaxKeySet)).Payload
		for name, h := range map[string]string{
			"none": `{"alg":"none","kid":"%s","typ":"%s"}`, "HS256": `{"alg":"HS256","kid":"%s","typ":"%s"}`, "ES384": `{"alg":"ES384","kid":"%s","typ":"%s"}`,
			"RS256": `{"alg":"RS256","kid":"%s","typ":"%s"}`, "lower case": `{"alg":"es256","kid":"%s","typ":"%s"}`, "order": `{"kid":"%s","alg":"ES256","typ":"%s"}`,
			"space": `{"alg":"ES256", "kid":"%s","typ":"%s"}`, "crit": `{"alg":"ES256","crit":["b64"],"kid":"%s","typ":"%s"}`, "b64": `{"alg":"ES256","b64":false,"kid":"%s","typ":"%s"}`,
			"jwk": `{"alg":"ES256","jwk":{},"kid":"%s","typ":"%s"}`, "JWT": `{"alg":"ES256","kid":"%s","typ":"%.0sJWT"}`, "no typ": `{"alg":"ES256","kid":"%s"}%.0s`,
			"alg twice": `{"alg":"none","alg":"ES256","kid":"%s","typ":"%s"}`, "other key": `{"alg":"ES256","kid":"x%s","typ":"%s"}`,
		} {
			input := strict.EncodeBase64(fmt.Appendf(nil, h, k.KeyID(), typ)) + "." + strict.EncodeBase64(payload)
			text := input + "." + strict.EncodeBase64(must[[]byte](t)(k.sign([]byte(input))))
			if err := read(text); err == nil {
				t.Errorf("%s with header %q was read", typ, name)
			}
		}
		signed := must[*strict.Signed](t)(strict.JWS(texts[typ], MaxKeySet))
		for name, sig := range map[string][]byte{"zero": make([]byte, 64), "high s": highS(signed.Signature), "r zero": slices.Concat(make([]byte, 32), signed.Signature[32:])} {
			if err := read(signed.Input + "." + strict.EncodeBase64(sig)); err == nil || !strings.Contains(err.Error(), "signature") {
				t.Errorf("%s with signature %q: %v", typ, name, err)
			}
		}
	}
	noExp := must[*strict.Signed](t)(strict.JWS(p.Verdict, MaxVerdict)).Payload
	noExp = bytes.Replace(noExp, fmt.Appendf(nil, `"exp":%d,`, sceneTime+180), nil, 1)
	text := must[string](t)(signPayload(jwsHeader{"ES256", s.signer.KeyID(), typeVerdict}, noExp, s.signer))
	if _, err := ParseVerdict(text, keys); err == nil || !strings.Contains(err.Error(), "exp") {
		t.Errorf("a verdict without exp: %v", err)
	}
	if _, err := ParseVerdict(p.Verdict, nil); err == nil {
		t.Error("a verdict was read without any key")
	}
	var invalid *Invalid
	other := must[*SigningKey](t)(GenerateSigningKey())
	s.onProof = func(p *Proof) {
		p.Verdict = must[string](t)(signPayload(jwsHeader{"ES256", s.signer.KeyID(), typeVerdict}, noExp, other))
	}
	if _, err := VerifyPublic(s.make(t), s.trust(t)); !errors.As(err, &invalid) || invalid.Name != "verdict-signature" {
		t.Errorf("a verdict of another key under our kid: %v", err)
	}
}
