package proof

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"troth/proof/strict"
	"troth/tpm"
	"troth/tpm/pcr"
)

// A scene is one launch with software keys: everything that makes a proof, so
// that a test can make one that is signed throughout and wrong in one thing.
// Each hook runs after the part is filled in and before it is signed.
type scene struct {
	root, signer *SigningKey
	akKey        *ecdsa.PrivateKey
	akPublic     []byte
	nonce        Secret
	tokenText    string
	others       []Digest // links beside ours in the batch

	onKeySet    func(*KeySet)
	onTrust     func(*Trust)
	onVerdict   func(*Verdict)
	onStatement func(*Statement)
	onReceipt   func(*Receipt)
	onQuote     func(*attestation)
	onProof     func(*Proof) // before the MAC
	onSealed    func(*Proof) // after the MAC, before the sum
	onKey       func(*Key)
}

// attestation is a TPMS_ATTEST of a quote, field by field.
type attestation struct {
	magic          uint32
	typ            uint16
	hierarchy      uint32
	extraData      []byte
	clock          uint64
	reset, restart uint32
	selection      []byte
	pcrDigest      Digest
	tail           []byte
	highS          bool
}

const sceneTime = 1_800_000_000

var sceneSelection = func() pcr.Selection {
	s, err := pcr.Select(pcr.SHA256, 17, 18, 19)
	if err != nil {
		panic(err)
	}
	return s
}()

func testScalar(name string) []byte {
	d := sha256.Sum256([]byte("troth test key: " + name))
	d[0] = 1 // below the order
	return d[:]
}

func testECKey(t testing.TB, name string) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), testScalar(name))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func testSigningKey(t testing.TB, name string) *SigningKey {
	t.Helper()
	k, err := NewSigningKey(testECKey(t, name))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func testTokenKey(t testing.TB, name string) *TokenPrivateKey {
	t.Helper()
	k, err := NewTokenPrivateKey(NewSecret(testScalar(name)))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// testAK writes the public area of an AK as a TPM would; change may spoil it.
func testAK(t testing.TB, k *ecdsa.PrivateKey, change func(*tpm2.TPMTPublic)) []byte {
	t.Helper()
	point, err := k.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	p := tpm.AKTemplate(nil)
	p.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
		X: tpm2.TPM2BECCParameter{Buffer: point[1:33]},
		Y: tpm2.TPM2BECCParameter{Buffer: point[33:]},
	})
	if change != nil {
		change(&p)
	}
	return tpm2.Marshal(p)
}

func testDigest(name string) Digest { return sha256.Sum256([]byte(name)) }

func scenePCRs() pcr.Values {
	return pcr.Values{17: testDigest("pcr 17"), 18: testDigest("pcr 18"), 19: testDigest("pcr 19")}
}

func ptr[T any](v T) *T { return &v }

func scenePins() *Pins {
	return &Pins{
		Kernel: ptr(testDigest("kernel")), Initrd: ptr(testDigest("initrd")), CommandLine: ptr(testDigest("command line")),
		Disks: []Disk{{"vda", DiskImmutable, testDigest("disk"), nil}}, Interactive: InteractiveNo,
	}
}

func sceneToken() *Token {
	return &Token{
		Header: Header{Version: TokenVersion, ID: "example", Profile: ProfileRef{"tboot", testDigest("profile")},
			Expiry: sceneTime + 3600, ChainExpiry: sceneTime + 86400},
		Nonce: NewSecret(testScalar("nonce")), Pins: scenePins(),
		Migration: MigrationDeny, Restarts: RestartsClosedFirst, OnTrustLost: TrustLostReport, MaxUnproven: 600,
	}
}

func newScene(t testing.TB) *scene {
	t.Helper()
	ak := testECKey(t, "ak")
	tokenText := "e30.AA.AA" // only while the vectors are written for the first time
	if b, err := os.ReadFile(filepath.Join(vectorDir, "token")); err == nil {
		tokenText = string(b)
	}
	return &scene{
		root: testSigningKey(t, "root"), signer: testSigningKey(t, "verdict"), akKey: ak, akPublic: testAK(t, ak, nil),
		nonce: NewSecret(testScalar("nonce")), tokenText: tokenText,
		others: []Digest{testDigest("other launch 1"), testDigest("other launch 2"), testDigest("other launch 3")},
	}
}

func call[T any](f func(T), v T) {
	if f != nil {
		f(v)
	}
}

func must[T any](t testing.TB) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func (s *scene) trust(t testing.TB) *Trust {
	t.Helper()
	set := &KeySet{Version: keySetVersion, Issuer: "verifier.example", IssuedAt: sceneTime - 1000, NotBefore: sceneTime - 1000, NotAfter: sceneTime + 1_000_000,
		VerdictKeys: []JWK{s.signer.JWK()}, TokenKeys: []TokenKey{testTokenKey(t, "token key").Public()}}
	call(s.onKeySet, set)
	tr := &Trust{Version: trustVersion, Verifier: "verifier.example", Root: s.root.JWK(), AllowSoftwareTPM: true}
	tr.Keys = must[string](t)(signJWS(typeKeySet, set, s.root))
	call(s.onTrust, tr)
	return tr
}

func (s *scene) key() *Key {
	tok := sceneToken()
	k := &Key{TokenDigest(s.tokenText), tok.ID, tok.Profile, tok.Expiry, tok.ChainExpiry, s.nonce, Secret{}, tok.Pins, tok.Policy()}
	call(s.onKey, k)
	return k
}

func (s *scene) akName(t testing.TB) tpm.Name {
	t.Helper()
	d := sha256.Sum256(s.akPublic)
	return tpm.Name(append([]byte{0, 0x0B}, d[:]...))
}

func (s *scene) verdict(t testing.TB) string {
	t.Helper()
	pub := must[Bytes](t)(ReleasePublic(testScalar("release seed")))
	digest := must[[32]byte](t)(scenePCRs().Digest(sceneSelection))
	v := &Verdict{
		Issuer: "verifier.example", Host: s.akName(t), Confirmation: testDigest("spki"), Class: tpm.Software,
		Selection: sceneSelection, PCRDigest: digest, Counters: tpm.Counters{Reset: 7, Restart: 3}, Clock: 1_000_000,
		Profiles: []ProfileRef{{"tboot", testDigest("profile")}}, Status: Affirming, Release: pub,
		IssuedAt: sceneTime, Expires: sceneTime + 180, NextCheck: sceneTime + 60,
	}
	call(s.onVerdict, v)
	return must[string](t)(signJWS(typeVerdict, v.claims(), s.signer))
}

func (s *scene) statement(t testing.TB, verdict string) *Statement {
	t.Helper()
	st := &Statement{
		Version: StatementVersion, UUID: "6f1e2c1a-0000-4000-8000-000000000001", Name: "guest", Action: ActionStart, Mode: ModePaused,
		Configuration: testDigest("configuration"),
		Measurements:  Measurements{Kernel: ptr(testDigest("kernel")), Initrd: ptr(testDigest("initrd")), CommandLine: ptr(testDigest("command line"))},
		Disks:         []StatementDisk{{"vda", DiskImmutable, true, ptr(testDigest("disk")), nil}},
		Interactive:   InteractiveNo, Token: TokenDigest(s.tokenText), Host: s.akName(t), Verdict: VerdictDigest(verdict),
		Attempt: 1, Blinder: testDigest("blinder"),
	}
	call(s.onStatement, st)
	return st
}

func (s *scene) quote(t testing.TB, extraData []byte) QuoteDoc {
	t.Helper()
	a := &attestation{
		magic: 0xFF544347, typ: 0x8018, hierarchy: 0x4000000B, extraData: extraData, clock: 1_030_000, reset: 7, restart: 3,
		selection: sceneSelection.Marshal(), pcrDigest: must[[32]byte](t)(scenePCRs().Digest(sceneSelection)),
	}
	call(s.onQuote, a)
	name := s.akName(t)
	h := sha256.Sum256(append(binary.BigEndian.AppendUint32(nil, a.hierarchy), name[:]...))
	be := binary.BigEndian
	m := be.AppendUint32(nil, a.magic)
	m = be.AppendUint16(m, a.typ)
	m = append(append(m, 0, 34, 0, 0x0B), h[:]...)
	m = append(be.AppendUint16(m, uint16(len(a.extraData))), a.extraData...)
	m = be.AppendUint64(m, a.clock)
	m = be.AppendUint32(be.AppendUint32(m, a.reset), a.restart)
	m = append(m, 1)                      // safe
	m = append(m, 1, 2, 3, 4, 5, 6, 7, 8) // firmwareVersion
	m = append(m, a.selection...)
	m = append(append(m, 0, 32), a.pcrDigest[:]...)
	m = append(m, a.tail...)
	k := must[*SigningKey](t)(NewSigningKey(s.akKey))
	sig := must[[]byte](t)(k.sign(m))
	if a.highS {
		sig = highS(sig)
	}
	return QuoteDoc{m, sig}
}

// make gives the encoded proof.
func (s *scene) make(t testing.TB) []byte {
	t.Helper()
	verdict := s.verdict(t)
	st := s.statement(t, verdict)
	statement := must[[]byte](t)(strict.Encode(st))
	r := &Receipt{Issuer: "verifier.example", IssuedAt: sceneTime + 20, Token: st.Token, Statement: Link(statement), Verdict: VerdictDigest(verdict),
		Link: 1, Previous: st.Previous, Attempt: st.Attempt, Policy: sceneToken().Policy()}
	if st.Previous != nil {
		r.Link = 2
	}
	call(s.onReceipt, r)
	receipt := must[string](t)(signJWS(typeReceipt, r, s.signer))
	links := append([]Digest{Link(statement)}, s.others...)
	batch := must[*Batch](t)(NewBatch(links))
	p := &Proof{
		Version: ProofVersion, Statement: statement, Index: 0, Count: batch.Count(), Path: batch.Path(0),
		Quote: s.quote(t, QuoteExtraData(batch.Root(), batch.Count(), VerdictDigest(verdict))),
		AK:    s.akPublic, PCRs: PCRList(scenePCRs(), sceneSelection), Verdict: verdict, Receipt: receipt,
	}
	call(s.onProof, p)
	p.MAC = must[Digest](t)(p.mac(s.nonce))
	call(s.onSealed, p)
	p.Sum = must[Digest](t)(p.sum())
	return must[[]byte](t)(strict.Encode(p))
}

func compact(t testing.TB, v any) []byte {
	t.Helper()
	return must[[]byte](t)(json.Marshal(v))
}
