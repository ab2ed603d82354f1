package verifier

import (
	"bytes"
	"context"
	"crypto"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/binary"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"troth/test/lab/txt"
	"troth/tpm"
	"troth/tpm/chip"
	"troth/tpm/pcr"
)

// machine is a host's TPM as the tests need it: a real swtpm that went through a real dynamic launch, or, in -short runs,
// one forged in software whose every signed byte a test may choose.
type machine interface {
	identity() ([]EK, []byte, []byte) // EKs, AK, SRK
	certify(t testing.TB, extra []byte) tpm.Quote
	activate(t testing.TB, blob, encrypted []byte) []byte
	quote(t testing.TB, sel pcr.Selection, extra []byte) tpm.Quote
	values(t testing.TB, sel pcr.Selection) pcr.Values
	log(t testing.TB) []byte // nil: none
	boot(t testing.TB, s txt.Script)
	reset(t testing.TB)
	hashOnly(t testing.TB) // the processor's hash sequence without any launcher
}

func must[T any](t testing.TB) func(T, error) T {
	t.Helper()
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// machines are made once and shared: each test boots them anew.
var machines struct {
	sync.Mutex
	dir  string
	made map[string]machine
	stop []func() error
}

func TestMain(m *testing.M) {
	code := m.Run()
	for _, stop := range machines.stop {
		if err := stop(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	if machines.dir != "" {
		if err := os.RemoveAll(machines.dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

// newMachine gives machine number n, booted through a dynamic launch.
func newMachine(t testing.TB, n int) machine {
	t.Helper()
	machines.Lock()
	defer machines.Unlock()
	key := fmt.Sprint(testing.Short(), n)
	if machines.made == nil {
		machines.made = map[string]machine{}
	}
	m := machines.made[key]
	if m == nil {
		if testing.Short() {
			m = newSoft(t)
		} else {
			m = newReal(t, n)
		}
		machines.made[key] = m
	}
	m.boot(t, txt.Example(txt.TbootLegacy))
	return m
}

// trusted are the authorities that the machines' EK certificates chain to.
func trusted(t testing.TB) (roots tpm.Roots, between []*x509.Certificate) {
	t.Helper()
	if testing.Short() {
		return tpm.Roots{Software: []*x509.Certificate{softCA(t).cert}}, nil
	}
	ca := filepath.Join(machines.dir, "ca")
	return tpm.Roots{Software: []*x509.Certificate{readCert(t, txt.RootFile(ca))}}, []*x509.Certificate{readCert(t, txt.IssuerFile(ca))}
}

func readCert(t testing.TB, file string) *x509.Certificate {
	t.Helper()
	block, _ := pem.Decode(must[[]byte](t)(os.ReadFile(file)))
	if block == nil {
		t.Fatalf("%s: no PEM", file)
	}
	return must[*x509.Certificate](t)(x509.ParseCertificate(block.Bytes))
}

// realTPM is a swtpm.
type realTPM struct {
	tpm  *txt.TPM
	chip *chip.Chip
	id   *chip.Identity
}

func newReal(t testing.TB, n int) machine {
	t.Helper()
	ctx := context.Background() // outlives the test that came first
	if machines.dir == "" {
		machines.dir = must[string](t)(os.MkdirTemp("", "troth-verifier-*"))
	}
	dir := filepath.Join(machines.dir, fmt.Sprint("tpm", n))
	check(t, os.Mkdir(dir, 0o700))
	check(t, txt.Prepare(ctx, dir, filepath.Join(machines.dir, "ca")))
	s := must[*txt.TPM](t)(txt.Start(ctx, dir))
	machines.stop = append(machines.stop, s.Stop)
	c := must[*chip.Chip](t)(chip.Open(ctx, chip.Config{Socket: s.Socket()}))
	machines.stop = append([]func() error{c.Close}, machines.stop...)
	return &realTPM{s, c, must[*chip.Identity](t)(c.Provision(ctx))}
}

func (m *realTPM) identity() (eks []EK, ak, srk []byte) {
	for _, e := range m.id.EKs {
		eks = append(eks, EK{Certificate: e.Certificate, Public: e.Public})
	}
	return eks, m.id.AKPublic, m.id.SRKPublic
}

func (m *realTPM) certify(t testing.TB, extra []byte) tpm.Quote {
	return must[tpm.Quote](t)(m.chip.CertifySRK(t.Context(), extra))
}

func (m *realTPM) activate(t testing.TB, blob, encrypted []byte) []byte {
	return must[[]byte](t)(m.chip.ActivateCredential(t.Context(), blob, encrypted))
}

func (m *realTPM) quote(t testing.TB, sel pcr.Selection, extra []byte) tpm.Quote {
	return must[tpm.Quote](t)(m.chip.Quote(t.Context(), sel, extra))
}

func (m *realTPM) values(t testing.TB, sel pcr.Selection) pcr.Values {
	return must[pcr.Values](t)(m.chip.PCRs(t.Context(), sel))
}

func (m *realTPM) log(t testing.TB) []byte { return must[[]byte](t)(os.ReadFile(m.tpm.LogFile())) }

func (m *realTPM) boot(t testing.TB, s txt.Script) { check(t, m.tpm.Boot(s)) }
func (m *realTPM) reset(t testing.TB)              { check(t, m.tpm.Reset()) }
func (m *realTPM) hashOnly(t testing.TB)           { check(t, m.tpm.HashSequence([]byte("sinit"))) }

// softTPM signs what a TPM would sign, or what a test asks for.
type softTPM struct {
	ek       *ecdh.PrivateKey
	ak       *ecdsa.PrivateKey
	eks      []EK
	akPublic []byte
	akName   tpm.Name
	srk      []byte
	pcrs     pcr.Values
	events   []byte
	clock    uint64
	counters tpm.Counters
	safe     bool
}

type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

var softCA = func() func(testing.TB) *authority {
	var a *authority
	var once sync.Mutex
	return func(t testing.TB) *authority {
		once.Lock()
		defer once.Unlock()
		if a == nil {
			a = newAuthority(t, "TPM maker")
		}
		return a
	}
}()

func newAuthority(t testing.TB, name string) *authority {
	t.Helper()
	key := must[*ecdsa.PrivateKey](t)(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der := must[[]byte](t)(x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key))
	return &authority{must[*x509.Certificate](t)(x509.ParseCertificate(der)), key}
}

func eccPublic(p tpm2.TPMTPublic, pub *ecdsa.PublicKey) tpm2.TPMTPublic {
	b, err := pub.Bytes()
	if err != nil {
		panic(err)
	}
	p.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{X: tpm2.TPM2BECCParameter{Buffer: b[1:33]}, Y: tpm2.TPM2BECCParameter{Buffer: b[33:]}})
	return p
}

func newSoft(t testing.TB) *softTPM {
	t.Helper()
	ek := must[*ecdsa.PrivateKey](t)(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	m := &softTPM{ek: must[*ecdh.PrivateKey](t)(ek.ECDH()), clock: 1_000_000, safe: true}
	public := tpm2.Marshal(eccPublic(tpm2.ECCEKTemplate, &ek.PublicKey))
	m.eks = []EK{{softCA(t).ekCertificate(t, &ek.PublicKey), public}}
	m.newAK(t)
	srk := must[*ecdsa.PrivateKey](t)(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	m.srk = tpm2.Marshal(eccPublic(tpm.SRKTemplate(), &srk.PublicKey))
	return m
}

// newAK is what provisioning after TPM2_Clear makes.
func (m *softTPM) newAK(t testing.TB) {
	t.Helper()
	m.ak = must[*ecdsa.PrivateKey](t)(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	m.akPublic = tpm2.Marshal(eccPublic(tpm.AKTemplate(nil), &m.ak.PublicKey))
	m.akName = must[*tpm.AK](t)(tpm.ParseAK(m.akPublic)).Name()
}

// ekCertificate makes one with the critical directory name and the key usage of the EK Credential Profile, and what change does to it.
func (a *authority) ekCertificate(t testing.TB, pub *ecdsa.PublicKey, change ...func(*x509.Certificate)) []byte {
	t.Helper()
	name := must[[]byte](t)(asn1.Marshal(pkix.RDNSequence{{{Type: asn1.ObjectIdentifier{2, 23, 133, 2, 1}, Value: "id:00000000"}}}))
	san := must[[]byte](t)(asn1.Marshal([]asn1.RawValue{{Class: asn1.ClassContextSpecific, Tag: 4, IsCompound: true, Bytes: name}}))
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageKeyAgreement, UnknownExtKeyUsage: []asn1.ObjectIdentifier{{2, 23, 133, 8, 1}},
		ExtraExtensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Critical: true, Value: san}}}
	for _, c := range change {
		c(tmpl)
	}
	return must[[]byte](t)(x509.CreateCertificate(rand.Reader, tmpl, a.cert, pub, a.key))
}

func (m *softTPM) identity() ([]EK, []byte, []byte) { return m.eks, m.akPublic, m.srk }

// sign wraps a body into a TPMS_ATTEST of the type, signed by the AK.
func (m *softTPM) sign(t testing.TB, typ tpm2.TPMST, extra, body []byte) tpm.Quote {
	t.Helper()
	b := binary.BigEndian.AppendUint32(nil, uint32(tpm2.TPMGeneratedValue))
	b = binary.BigEndian.AppendUint16(b, uint16(typ))
	signer := sha256.Sum256(append(binary.BigEndian.AppendUint32(nil, uint32(tpm2.TPMRHEndorsement)), m.akName[:]...))
	b = sized(b, append([]byte{0, 0x0B}, signer[:]...))
	b = sized(b, extra)
	b = binary.BigEndian.AppendUint64(b, m.clock)
	b = binary.BigEndian.AppendUint32(b, m.counters.Reset)
	b = binary.BigEndian.AppendUint32(b, m.counters.Restart)
	safe := byte(0)
	if m.safe {
		safe = 1
	}
	b = append(append(b, safe), make([]byte, 8)...) // firmware version
	b = append(b, body...)
	digest := sha256.Sum256(b)
	r, s, err := ecdsa.Sign(rand.Reader, m.ak, digest[:])
	check(t, err)
	return tpm.Quote{Message: b, Signature: must[[]byte](t)(tpm.NormalizeSignature(&m.ak.PublicKey, r.Bytes(), s.Bytes()))}
}

func sized(b, field []byte) []byte {
	return append(binary.BigEndian.AppendUint16(b, uint16(len(field))), field...)
}

// quoteOf signs any selection and digest.
func (m *softTPM) quoteOf(t testing.TB, selection []byte, digest [32]byte, extra []byte) tpm.Quote {
	m.clock += 10
	return m.sign(t, tpm2.TPMSTAttestQuote, extra, sized(bytes.Clone(selection), digest[:]))
}

func (m *softTPM) quote(t testing.TB, sel pcr.Selection, extra []byte) tpm.Quote {
	return m.quoteOf(t, sel.Marshal(), must[[32]byte](t)(m.values(t, sel).Digest(sel)), extra)
}

func (m *softTPM) certify(t testing.TB, extra []byte) tpm.Quote {
	name := must[*tpm.SRK](t)(tpm.ParseSRK(m.srk)).Name()
	qualified := sha256.Sum256(append(binary.BigEndian.AppendUint32(nil, uint32(tpm2.TPMRHOwner)), name[:]...))
	return m.sign(t, tpm2.TPMSTAttestCertify, extra, sized(sized(nil, name[:]), append([]byte{0, 0x0B}, qualified[:]...)))
}

// activate is TPM2_ActivateCredential with an ECC EK (TPM 2.0 Part 1, 24 and appendix C).
func (m *softTPM) activate(t testing.TB, blob, encrypted []byte) []byte {
	t.Helper()
	point := must[*tpm2.TPMSECCPoint](t)(tpm2.Unmarshal[tpm2.TPMSECCPoint](encrypted))
	pub := must[*ecdh.PublicKey](t)(ecdh.P256().NewPublicKey(append(append([]byte{4}, pad(point.X.Buffer)...), pad(point.Y.Buffer)...)))
	z := must[[]byte](t)(m.ek.ECDH(pub))
	seed := tpm2.KDFe(crypto.SHA256, z, "IDENTITY", pad(point.X.Buffer), m.ek.PublicKey().Bytes()[1:33], 256)
	key := tpm2.KDFa(crypto.SHA256, seed, "STORAGE", m.akName[:], nil, 128)
	n := int(binary.BigEndian.Uint16(blob)) // the HMAC before the encrypted identity
	block := must[cipher.Block](t)(aes.NewCipher(key))
	out := make([]byte, len(blob)-2-n)
	cipher.NewCFBDecrypter(block, make([]byte, 16)).XORKeyStream(out, blob[2+n:]) //nolint:staticcheck // SA1019: TPM 2.0 Part 1, 24.4 asks for CFB
	return out[2:]
}

func pad(b []byte) []byte { return append(make([]byte, 32-len(b)), b...) }

func (m *softTPM) values(t testing.TB, sel pcr.Selection) pcr.Values {
	out := pcr.Values{}
	for _, i := range sel.Indexes() {
		out[i] = m.pcrs[i]
	}
	return out
}

func (m *softTPM) log(testing.TB) []byte { return m.events }

func (m *softTPM) boot(t testing.TB, s txt.Script) {
	t.Helper()
	m.counters.Restart++
	m.pcrs = pcr.Values{20: {}, 21: {}, 22: {}}
	for i, d := range must[map[int][32]byte](t)(s.Expected()) {
		m.pcrs[i] = d
	}
	m.events = must[[]byte](t)(s.Log())
}

func (m *softTPM) reset(testing.TB) {
	m.counters = tpm.Counters{Reset: m.counters.Reset + 1}
	for i := 17; i <= 22; i++ {
		m.pcrs[i] = [32]byte(bytes.Repeat([]byte{0xFF}, 32))
	}
}

func (m *softTPM) hashOnly(testing.TB) {
	m.counters.Restart++
	for i := 18; i <= 22; i++ {
		m.pcrs[i] = [32]byte{}
	}
	m.pcrs[17] = sha256.Sum256([]byte("sinit"))
}
