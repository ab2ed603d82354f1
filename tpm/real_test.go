package tpm_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
	"github.com/google/go-tpm/tpm2/transport/linuxudstpm"

	"troth/test/lab/txt"
	"troth/tpm"
	"troth/tpm/chip"
	"troth/tpm/pcr"
)

var drtm = pcr.Selection{Bank: pcr.SHA256, Mask: [3]byte{0, 0, 0x0E}}

// captured is what a real TPM made: the attacks change these bytes.
type captured struct {
	identity *chip.Identity
	ak       *tpm.AK
	ek       *tpm.EK
	quote    tpm.Quote
	certify  tpm.Quote
	values   pcr.Values
	root     *x509.Certificate
	issuer   *x509.Certificate
	txt      *txt.TPM
	raw      transport.TPM // the chip is closed: whoever has the device can do all of this
}

// shared is one TPM for all tests of the package; TestMain ends it.
var shared = struct {
	sync.Once
	dir string
	txt *txt.TPM
	*captured
}{}

func TestMain(m *testing.M) {
	code := m.Run()
	if shared.txt != nil {
		if err := shared.txt.Stop(); err != nil {
			panic(err)
		}
	}
	if shared.dir != "" {
		if err := os.RemoveAll(shared.dir); err != nil {
			panic(err)
		}
	}
	os.Exit(code)
}

func real(t *testing.T) *captured {
	t.Helper()
	if testing.Short() {
		t.Skip("needs swtpm")
	}
	shared.Do(func() {
		dir, err := os.MkdirTemp("", "troth-tpm-*")
		shared.dir = must(t, dir, err)
		shared.txt, err = txt.Start(t.Context(), dir)
		c := &captured{txt: must(t, shared.txt, err)}
		if err := c.txt.Boot(txt.Example(txt.TbootLegacy)); err != nil {
			t.Fatal(err)
		}
		device, err := chip.Open(t.Context(), chip.Config{Socket: c.txt.Socket()})
		must(t, device, err)
		c.identity, err = device.Provision(t.Context())
		c.ak, err = tpm.ParseAK(must(t, c.identity, err).AKPublic)
		must(t, c.ak, err)
		c.ek, err = tpm.ParseEK(c.identity.EKs[0].Public)
		must(t, c.ek, err)
		c.quote, err = device.Quote(t.Context(), drtm, []byte("challenge"))
		must(t, 0, err)
		c.certify, err = device.CertifySRK(t.Context(), []byte("challenge"))
		must(t, 0, err)
		c.values, err = device.PCRs(t.Context(), drtm)
		must(t, 0, err)
		if err := device.Close(); err != nil {
			t.Fatal(err)
		}
		c.root, c.issuer = readPEM(t, txt.RootFile(filepath.Join(dir, "ca"))), readPEM(t, txt.IssuerFile(filepath.Join(dir, "ca")))
		raw, err := linuxudstpm.Open(c.txt.Socket())
		c.raw = must(t, raw, err)
		shared.captured = c
	})
	if shared.captured == nil {
		t.Fatal("there is no TPM")
	}
	return shared.captured
}

func must[T any](t testing.TB, v T, err error) T {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func readPEM(t testing.TB, path string) *x509.Certificate {
	t.Helper()
	b, err := os.ReadFile(path)
	block, _ := pem.Decode(must(t, b, err))
	if block == nil {
		t.Fatalf("no PEM in %s", path)
	}
	c, err := x509.ParseCertificate(block.Bytes)
	return must(t, c, err)
}

// forger has an AK whose public area is flawless and whose private half is in software: with it a test can sign what
// no TPM would, and so reach the checks behind the signature.
type forger struct {
	*testing.T
	key *ecdsa.PrivateKey
	ak  *tpm.AK
}

func newForger(t *testing.T) *forger {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, key, err)
	template := tpm.AKTemplate(nil)
	point, err := key.PublicKey.Bytes()
	must(t, point, err)
	template.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
		X: tpm2.TPM2BECCParameter{Buffer: point[1:33]}, Y: tpm2.TPM2BECCParameter{Buffer: point[33:]},
	})
	ak, err := tpm.ParseAK(tpm2.Marshal(template))
	return &forger{t, key, must(t, ak, err)}
}

// own returns a captured message with this AK's qualified Name in place of the real one.
func (f *forger) own(c *captured, message []byte) []byte {
	f.Helper()
	was, now := qualified(tpm2.TPMRHEndorsement, c.ak.Name()), qualified(tpm2.TPMRHEndorsement, f.ak.Name())
	if bytes.Count(message, was) != 1 {
		f.Fatal("the message does not hold the qualified name once")
	}
	return bytes.Replace(message, was, now, 1)
}

func (f *forger) sign(message []byte) tpm.Quote {
	f.Helper()
	digest := sha256.Sum256(message)
	r, s, err := ecdsa.Sign(rand.Reader, f.key, digest[:])
	must(f, r, err)
	sig, err := tpm.NormalizeSignature(&f.key.PublicKey, r.Bytes(), s.Bytes())
	return tpm.Quote{Message: message, Signature: must(f, sig, err)}
}

func qualified(hierarchy tpm2.TPMHandle, n tpm.Name) []byte {
	h := sha256.Sum256(append([]byte{byte(hierarchy >> 24), byte(hierarchy >> 16), byte(hierarchy >> 8), byte(hierarchy)}, n[:]...))
	return append([]byte{0, 0x0B}, h[:]...)
}
