package proof

import (
	"bytes"
	"encoding"
	"encoding/base64"
	"encoding/gob"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"

	"troth/proof/strict"
	"troth/tpm"
)

// Attacks on documents, named as in docs/attacks.md.
func TestAttack(t *testing.T) {
	t.Run("A-PARTIAL", attackPartial)
	t.Run("A-ALG", attackAlg)
	t.Run("A-NONCE", attackNonce)
	t.Run("S-REUSE", attackReuse)
	t.Run("S-RECEIPT", attackReceipt)
	t.Run("S-OLD", attackOld)
	t.Run("S-FORM", attackForm)
	t.Run("S-PINS", attackPins)
	t.Run("S-LEAK", attackLeak)
	t.Run("X-JSON", attackJSON)
}

// refusedBy asks that Verify names the check.
func refusedBy(t *testing.T, s *scene, check string) {
	t.Helper()
	_, err := Verify(s.make(t), s.trust(t), newScene(t).key())
	var invalid *Invalid
	if !errors.As(err, &invalid) || invalid.Name != check {
		t.Errorf("got %v, want check %s", err, check)
	}
}

// attackNonce: challenges of other lengths, and a quote bound to none, an empty
// or another challenge, or to another TLS key.
func attackNonce(t *testing.T) {
	s := newScene(t)
	q := s.quote(t, nil)
	for _, n := range []int{0, 1, MinChallenge - 1, MaxChallenge + 1} {
		e := Evidence{Challenge: make([]byte, n), AK: s.akName(t), Quote: q, PCRs: PCRList(scenePCRs(), sceneSelection)}
		if _, err := e.Encode(); err == nil || !strings.Contains(err.Error(), "challenge") {
			t.Errorf("challenge of %d bytes: %v", n, err)
		}
	}
	c, spki := bytes.Repeat([]byte{1}, 40), testDigest("spki")
	want := AttestExtraData(c, spki)
	for name, other := range map[string][]byte{
		"none": AttestExtraData(nil, spki), "short": AttestExtraData(c[:39], spki), "long": AttestExtraData(append(slices.Clone(c), 0), spki),
		"other": AttestExtraData(bytes.Repeat([]byte{2}, 40), spki), "other key": AttestExtraData(c, testDigest("other")),
		"moved border": AttestExtraData(append(slices.Clone(c), spki[0]), spki), "enrolment": EnrolExtraData(c, spki),
	} {
		if bytes.Equal(want, other) {
			t.Errorf("%s: the same extraData", name)
		}
	}
	for _, n := range []int{0, 16, 31, 33, 64} {
		tok := sceneToken()
		tok.Nonce = NewSecret(bytes.Repeat([]byte{1}, n))
		if n == 0 {
			tok.Nonce = secretOf([]byte{})
		}
		text, err := NewToken(tok, testTokenKey(t, "k").Public())
		if n == 0 {
			if err != nil || tok.Nonce.Len() != NonceSize {
				t.Errorf("no nonce given: %v, %d bytes drawn", err, tok.Nonce.Len())
			}
		} else if err == nil {
			t.Errorf("nonce of %d bytes: %s", n, text[:20])
		}
		if _, err := SealRelease(nil, Digest{}, Released{Nonce: NewSecret(make([]byte, n))}); err == nil {
			t.Errorf("a nonce of %d bytes was released", n)
		}
	}
	for _, n := range []int{0, MinGuestChallenge - 1, MaxGuestChallenge + 1} {
		if _, err := EncodeGuestChallenge(make([]byte, n)); err == nil {
			t.Errorf("guest challenge of %d bytes", n)
		}
	}
}

// attackReuse: keys derived from one nonce are different for every use and
// link, and nothing made for one token or link is taken for another.
func attackReuse(t *testing.T) {
	nonce := NewSecret(testScalar("nonce"))
	seen := map[string]string{}
	add := func(name string, b []byte) {
		if was, ok := seen[string(b)]; ok {
			t.Errorf("%s equals %s", name, was)
		}
		seen[string(b)] = name
	}
	for _, l := range Labels() {
		add("key "+string(l), Derive(nonce, l).Reveal())
		add("key with field "+string(l), Derive(nonce, l, []byte{}).Reveal())
		h := Hash(l)
		add("hash "+string(l), h[:])
		m := MAC(nonce, l)
		add("mac "+string(l), m[:])
	}
	for i := range 3 {
		add(fmt.Sprintf("guest secret %d", i), GuestSecret(nonce, testDigest(fmt.Sprint(i))).Reveal())
	}
	add("fields", testDigestOf(LabelMAC, "ab", "c"))
	add("moved fields", testDigestOf(LabelMAC, "a", "bc"))
	add("joined fields", testDigestOf(LabelMAC, "abc"))

	s := newScene(t)
	s.tokenText = "e30.AA.AB" // the nonce used with another token
	refusedBy(t, s, "key-token")

	c := NewConsent(nonce, tpm.Name{0, 0x0B, 1}, testDigest("link"))
	if err := c.Check(nonce, c.Destination, c.Link); err != nil {
		t.Error(err)
	}
	for name, err := range map[string]error{
		"destination": c.Check(nonce, tpm.Name{0, 0x0B, 2}, c.Link), "link": c.Check(nonce, c.Destination, testDigest("other")),
		"nonce": c.Check(NewSecret(testScalar("x")), c.Destination, c.Link), "none": (*Consent)(nil).Check(nonce, c.Destination, c.Link),
		"random": (&Consent{c.Destination, c.Link, c.Random[:31], c.MAC}).Check(nonce, c.Destination, c.Link),
		"mac":    (&Consent{c.Destination, c.Link, bytes.Repeat([]byte{1}, 32), c.MAC}).Check(nonce, c.Destination, c.Link),
	} {
		if err == nil {
			t.Errorf("consent with another %s holds", name)
		}
	}

	seed := testScalar("seed")
	pub := must[Bytes](t)(ReleasePublic(seed))
	box := must[Bytes](t)(SealRelease(pub, testDigest("receipt"), Released{Nonce: nonce}))
	if _, err := OpenRelease(seed, testDigest("receipt"), box); err != nil {
		t.Error(err)
	}
	if _, err := OpenRelease(seed, testDigest("another receipt"), box); err == nil {
		t.Error("a release opens beside another receipt")
	}
	if _, err := OpenRelease(testScalar("other"), testDigest("receipt"), box); err == nil {
		t.Error("a release opens with another seed")
	}
}

func testDigestOf(l Label, fields ...string) []byte {
	var b [][]byte
	for _, f := range fields {
		b = append(b, []byte(f))
	}
	d := Hash(l, b...)
	return d[:]
}

// attackReceipt: a host that once held the nonce makes a valid MAC over what
// the verifier never released.
func attackReceipt(t *testing.T) {
	other := newScene(t)
	other.onStatement = func(x *Statement) { x.Measurements.Initrd = ptr(testDigest("engine's initrd")) }
	honest := must[*Proof](t)(ParseProof(newScene(t).make(t)))

	s := newScene(t)
	s.onStatement = other.onStatement
	s.onProof = func(p *Proof) { p.Receipt = honest.Receipt }
	refusedBy(t, s, "receipt-statement")

	s = newScene(t) // token and statement mixed: a receipt for this statement and another token
	s.onReceipt = func(r *Receipt) { r.Token = testDigest("token of a friend") }
	refusedBy(t, s, "receipt-token")

	s = newScene(t) // a receipt that the host signs itself
	s.onProof = func(p *Proof) {
		r := must[*Receipt](t)(ParseReceipt(p.Receipt, must[*VerdictKeys](t)(NewVerdictKeys(s.signer.JWK()))))
		p.Receipt = must[string](t)(signJWS(typeReceipt, r, testSigningKey(t, "the host's own")))
	}
	refusedBy(t, s, "receipt-signature")

	s = newScene(t) // another proof's quote and path under an honest statement
	s.onStatement = func(x *Statement) { x.Attempt = 2 }
	s.onProof = func(p *Proof) { p.Quote, p.Path = honest.Quote, honest.Path }
	refusedBy(t, s, "quote-binding")
}

// attackOld: an old proof is genuine and says when it was; the guest secret of
// an earlier start is not that of a later one; a held-back nonce meets the
// token's expiry.
func attackOld(t *testing.T) {
	s := newScene(t)
	key := s.key()
	g := must[*Genuine](t)(Verify(s.make(t), s.trust(t), key))
	text := strings.Join(append(g.Sentences(), g.NotSaid()...), "\n")
	for _, want := range []string{"2027-01-15 08:00:20 UTC", "2027-01-15 08:04:02 UTC", "does not say that the domain runs now"} {
		if !strings.Contains(text, want) {
			t.Errorf("the sentences do not say %q:\n%s", want, text)
		}
	}
	late := WantOf(key)
	late.Expiry = g.Receipt.IssuedAt - 1
	var unwanted *Unwanted
	if err := Validate(g, late); !errors.As(err, &unwanted) || unwanted.Name != "expiry" {
		t.Errorf("released after the token's expiry: %v", err)
	}
	before, now := testDigest("link before"), g.Link
	challenge := bytes.Repeat([]byte{3}, 32)
	answer := GuestAnswer(GuestSecret(key.Nonce, before), challenge, now)
	if err := CheckGuestAnswer(key.Nonce, now, challenge, answer); err == nil {
		t.Error("the guest secret of an earlier start answers for a later one")
	}
	answer = GuestAnswer(GuestSecret(key.Nonce, now), challenge, now)
	if err := CheckGuestAnswer(key.Nonce, now, challenge, answer); err != nil {
		t.Error(err)
	}
	for name, err := range map[string]error{
		"other challenge": CheckGuestAnswer(key.Nonce, now, challenge[1:], answer),
		"other nonce":     CheckGuestAnswer(NewSecret(testScalar("x")), now, challenge, answer),
		"short answer":    CheckGuestAnswer(key.Nonce, now, challenge, answer[:31]),
		"no answer":       CheckGuestAnswer(key.Nonce, now, challenge, nil),
	} {
		if err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
	cred := &GuestCredential{now, GuestSecret(key.Nonce, now), Secret{}}
	line := must[[]byte](t)(EncodeGuestAnswer(cred, challenge))
	if _, _, err := ParseGuestAnswer(line, bytes.Repeat([]byte{4}, 32)); err == nil {
		t.Error("an answer to an earlier challenge is taken")
	}
}

// attackForm: n-s signatures, spare base64 bits, newlines, key case, white
// space, doubled keys.
func attackForm(t *testing.T) {
	s := newScene(t)
	b, trust, key := s.make(t), s.trust(t), s.key()
	p := must[*Proof](t)(ParseProof(b))
	spare := func(text string) string { // the last character with its spare bits set
		const digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
		return text[:len(text)-1] + string(digits[strings.IndexByte(digits, text[len(text)-1])+1])
	}
	replace := func(old, new string) []byte {
		out := bytes.Replace(b, []byte(old), []byte(new), 1)
		if bytes.Equal(out, b) {
			t.Fatalf("%q is not in the proof", old)
		}
		return out
	}
	verdict := strings.Split(p.Verdict, ".")
	for name, forged := range map[string][]byte{
		"spare bits in the quote":    replace(p.Quote.Signature.String(), spare(p.Quote.Signature.String())),
		"spare bits in the verdict":  replace(verdict[2], spare(verdict[2])),
		"newline in the verdict":     replace(verdict[1], verdict[1][:8]+`\n`+verdict[1][8:]),
		"padding in the verdict":     replace(verdict[2], verdict[2]+"=="),
		"standard base64":            replace(`"ak":"`+p.AK.String(), `"ak":"`+base64.RawStdEncoding.EncodeToString(append(p.AK, 0xff, 0xef))),
		"upper-case hex":             replace(`"mac":"`+p.MAC.String(), `"mac":"`+strings.ToUpper(p.MAC.String())),
		"key case":                   replace(`"quote"`, `"Quote"`),
		"white space":                replace(`"index":0`, `"index": 0`),
		"doubled key":                replace(`"index":0`, `"index":0,"index":0`),
		"minus zero":                 replace(`"index":0`, `"index":-0`),
		"high s in verdict":          replace(p.Verdict, jwsHighS(t, p.Verdict)),
		"high s in receipt":          replace(p.Receipt, jwsHighS(t, p.Receipt)),
		"high s in quote":            replace(p.Quote.Signature.String(), Bytes(highS(p.Quote.Signature)).String()),
		"verdict as a JSON web sign": replace(`"verdict":"`+p.Verdict+`"`, `"verdict":{"payload":"`+verdict[1]+`"}`),
	} {
		for how, err := range map[string]error{"with key": second(Verify(forged, trust, key)), "without": second(VerifyPublic(forged, trust))} {
			if err == nil {
				t.Errorf("%s, %s: accepted", name, how)
			}
		}
	}
	text := must[string](t)(NewToken(sceneToken(), testTokenKey(t, "k").Public()))
	for name, other := range map[string]string{"newline": text + "\n", "padding": text + "=", "part": text + ".AA", "space": " " + text, "dot": text + "."} {
		if _, err := ParseToken(other); err == nil {
			t.Errorf("a token with a %s is read", name)
		}
	}
}

func second[T any](_ T, err error) error { return err }

// attackLeak: a secret shows under no verb, in no encoding and in no error.
func attackLeak(t *testing.T) {
	canary := []byte("canary-7f3a-canary-7f3a-canary-7")
	s := NewSecret(canary)
	holder := struct {
		S Secret
		P *Secret
		s Secret
	}{s, &s, s}
	var out []string
	for _, v := range []any{s, &s, holder, &holder, []Secret{s}, map[string]Secret{"k": s},
		Token{Nonce: s, Secret: s}, &Key{Nonce: s, Secret: s}, Released{Nonce: s}, &GuestCredential{Secret: s}} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%c", "%U", "%T"} {
			out = append(out, fmt.Sprintf(verb, v))
		}
		b, err := json.Marshal(v)
		if err == nil && bytes.Contains(b, []byte("anary")) {
			t.Errorf("%T was marshalled: %s", v, b)
		}
		out = append(out, string(b), fmt.Sprint(err))
		var log bytes.Buffer
		slog.New(slog.NewTextHandler(&log, nil)).Info("x", "v", v)
		slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "v", v)
		out = append(out, log.String())
	}
	for name, f := range map[string]func() ([]byte, error){"json": s.MarshalJSON, "text": s.MarshalText, "binary": s.MarshalBinary, "gob": s.GobEncode} {
		if b, err := f(); err == nil || len(b) > 0 {
			t.Errorf("%s marshals a secret", name)
		}
	}
	if err := gob.NewEncoder(&bytes.Buffer{}).Encode(s); err == nil {
		t.Error("gob encodes a secret")
	}
	if err := json.Unmarshal([]byte(`"AA"`), &s); err == nil {
		t.Error("a secret was unmarshalled")
	}
	var _ encoding.TextMarshaler = s
	_, err := NewToken(&Token{Header: sceneToken().Header, Nonce: s, Secret: s}, testTokenKey(t, "k").Public())
	out = append(out, fmt.Sprint(err))

	// What travels: proof, token, receipt, consent carry it in no form.
	tok := sceneToken()
	tok.Nonce = s
	text := must[string](t)(NewToken(tok, testTokenKey(t, "k").Public()))
	sc := newScene(t)
	sc.nonce = s
	out = append(out, text, string(sc.make(t)), string(compact(t, NewConsent(s, tpm.Name{0, 0x0B}, Digest{}))))
	found := func(where string) bool {
		for _, form := range []string{string(canary), hex.EncodeToString(canary), strings.ToUpper(hex.EncodeToString(canary)),
			base64.StdEncoding.EncodeToString(canary), strict.EncodeBase64(canary), fmt.Sprintf("%d", canary), strings.Trim(fmt.Sprintf("%d", canary), "[]")} {
			if strings.Contains(where, form) {
				return true
			}
		}
		return false
	}
	if !found(string(canary)) || !found(fmt.Sprintf("%x", canary)) || !found(fmt.Sprintf("%d", canary)) {
		t.Fatal("the search does not find a planted canary")
	}
	for _, o := range out {
		if found(o) {
			t.Errorf("leaked in %q", o)
		}
	}
}
