package tpm_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"troth/tpm"
	"troth/tpm/eventlog"
)

func parsed(t *testing.T, log []byte) []eventlog.Event {
	t.Helper()
	events, err := eventlog.Parse(log)
	return must(t, events, err)
}

// attackAttributes has the real TPM make keys that look like an AK and are none.
func attackAttributes(t *testing.T, c *captured) {
	for name, change := range map[string]func(*tpm2.TPMTPublic){
		"unrestricted": func(p *tpm2.TPMTPublic) { p.ObjectAttributes.Restricted = false },
		"decrypt": func(p *tpm2.TPMTPublic) {
			p.ObjectAttributes.Restricted, p.ObjectAttributes.Decrypt = false, true
			e, err := p.Parameters.ECCDetail()
			must(t, e, err).Scheme = tpm2.TPMTECCScheme{Scheme: tpm2.TPMAlgNull}
		},
		"stClear":            func(p *tpm2.TPMTPublic) { p.ObjectAttributes.STClear = true },
		"adminWithPolicy":    func(p *tpm2.TPMTPublic) { p.ObjectAttributes.AdminWithPolicy = true },
		"dictionary attacks": func(p *tpm2.TPMTPublic) { p.ObjectAttributes.NoDA = false },
		"policy":             func(p *tpm2.TPMTPublic) { p.AuthPolicy.Buffer = make([]byte, 32) },
		"curve P-384": func(p *tpm2.TPMTPublic) {
			e, err := p.Parameters.ECCDetail()
			must(t, e, err).CurveID = tpm2.TPMECCNistP384
		},
		"SHA-384": func(p *tpm2.TPMTPublic) {
			e, err := p.Parameters.ECCDetail()
			must(t, e, err).Scheme.Details = tpm2.NewTPMUAsymScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSigSchemeECDSA{HashAlg: tpm2.TPMAlgSHA384})
		},
		"any scheme": func(p *tpm2.TPMTPublic) {
			p.ObjectAttributes.Restricted = false
			e, err := p.Parameters.ECCDetail()
			must(t, e, err).Scheme = tpm2.TPMTECCScheme{Scheme: tpm2.TPMAlgNull}
		},
		"nameAlg SHA-384": func(p *tpm2.TPMTPublic) { p.NameAlg = tpm2.TPMAlgSHA384 },
	} {
		template := tpm.AKTemplate(nil)
		change(&template)
		public := create(t, c, tpm2.TPMRHEndorsement, template, nil)
		if _, err := tpm.ParseAK(public); err == nil {
			t.Errorf("%s: accepted as an AK", name)
		}
	}
	// Public areas that no TPM makes for a primary: duplicable, or made outside.
	for name, change := range map[string]func(*tpm2.TPMTPublic){
		"duplicable":    func(p *tpm2.TPMTPublic) { p.ObjectAttributes.FixedTPM, p.ObjectAttributes.FixedParent = false, false },
		"group":         func(p *tpm2.TPMTPublic) { p.ObjectAttributes.FixedTPM = false },
		"made outside":  func(p *tpm2.TPMTPublic) { p.ObjectAttributes.SensitiveDataOrigin = false },
		"reserved bit":  func(p *tpm2.TPMTPublic) { p.ObjectAttributes.SetReservedBit(0, true) },
		"off the curve": func(p *tpm2.TPMTPublic) { e, err := p.Unique.ECC(); must(t, e, err).X.Buffer[0] ^= 1 },
		"at infinity":   func(p *tpm2.TPMTPublic) { setPoint(p, make([]byte, 32), make([]byte, 32)) },
		"no point":      func(p *tpm2.TPMTPublic) { setPoint(p, nil, nil) },
		"padded": func(p *tpm2.TPMTPublic) {
			e, err := p.Unique.ECC()
			setPoint(p, append([]byte{0}, must(t, e, err).X.Buffer...), e.Y.Buffer)
		},
	} {
		p, err := tpm2.Unmarshal[tpm2.TPMTPublic](bytes.Clone(c.ak.Public()))
		change(must(t, p, err))
		if _, err := tpm.ParseAK(tpm2.Marshal(*p)); err == nil {
			t.Errorf("%s: accepted as an AK", name)
		}
	}
	for name, public := range map[string][]byte{
		"SRK": c.identity.SRKPublic, "EK": c.identity.EKs[0].Public, "empty": nil,
		"trailing byte": append(bytes.Clone(c.ak.Public()), 0), "truncated": c.ak.Public()[:60], "huge": make([]byte, 1<<16),
	} {
		if _, err := tpm.ParseAK(public); err == nil {
			t.Errorf("%s: accepted as an AK", name)
		}
	}
	if _, err := tpm.ParseSRK(c.ak.Public()); err == nil {
		t.Error("an AK was accepted as an SRK")
	}
	if _, err := tpm.ParseEK(c.identity.SRKPublic); err == nil {
		t.Error("an SRK was accepted as an EK")
	}

	// Same attributes, another hierarchy: only the qualified name in what it signs tells.
	for name, hierarchy := range map[string]tpm2.TPMHandle{"owner": tpm2.TPMRHOwner, "NULL": tpm2.TPMRHNull, "platform": tpm2.TPMRHPlatform} {
		var q tpm.Quote
		public := create(t, c, hierarchy, tpm.AKTemplate(nil), func(h tpm2.NamedHandle) {
			r, err := tpm2.Quote{
				SignHandle: tpm2.AuthHandle{Handle: h.Handle, Name: h.Name, Auth: tpm2.PasswordAuth(nil)}, InScheme: tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull},
				PCRSelect: tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{{Hash: tpm2.TPMAlgSHA256, PCRSelect: drtm.Mask[:]}}},
			}.Execute(c.raw)
			q = toQuote(t, c.ak, must(t, r, err))
		})
		ak, err := tpm.ParseAK(public)
		_, err = must(t, ak, err).VerifyQuote(q)
		refused(t, "AK of the "+name+" hierarchy", err, tpm.CheckQualifiedSigner)
	}
}

func setPoint(p *tpm2.TPMTPublic, x, y []byte) {
	p.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{X: tpm2.TPM2BECCParameter{Buffer: x}, Y: tpm2.TPM2BECCParameter{Buffer: y}})
}

// create makes a primary on the real TPM, uses it and flushes it.
func create(t *testing.T, c *captured, hierarchy tpm2.TPMHandle, template tpm2.TPMTPublic, use func(tpm2.NamedHandle)) []byte {
	t.Helper()
	r, err := tpm2.CreatePrimary{PrimaryHandle: tpm2.AuthHandle{Handle: hierarchy, Auth: tpm2.PasswordAuth(nil)}, InPublic: tpm2.New2B(template)}.Execute(c.raw)
	must(t, r, err)
	if use != nil {
		use(tpm2.NamedHandle{Handle: r.ObjectHandle, Name: r.Name})
	}
	_, err = tpm2.FlushContext{FlushHandle: r.ObjectHandle}.Execute(c.raw)
	must(t, 0, err)
	return r.OutPublic.Bytes()
}

// issuerOf makes certificates for attackCertificate.
type issuerOf struct {
	*testing.T
	key  crypto.Signer
	cert *x509.Certificate
}

var ekUsage = asn1.ObjectIdentifier{2, 23, 133, 8, 1}

func newAuthority(t *testing.T, key crypto.Signer, parent *issuerOf) *issuerOf {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "authority"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Unix(1e9, 0), NotAfter: time.Unix(2e9, 0), KeyUsage: x509.KeyUsageCertSign,
	}
	i := &issuerOf{t, key, template}
	if parent == nil {
		parent = i
	} else {
		template.Subject.CommonName = "issuer"
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent.cert, key.Public(), parent.key)
	cert, err2 := x509.ParseCertificate(must(t, der, err))
	i.cert = must(t, cert, err2)
	return i
}

func (i *issuerOf) issue(key any, change func(*x509.Certificate)) []byte {
	i.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), NotBefore: time.Unix(1.1e9, 0), NotAfter: time.Unix(1.2e9, 0), BasicConstraintsValid: true,
		UnknownExtKeyUsage: []asn1.ObjectIdentifier{ekUsage},
	}
	if change != nil {
		change(template)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, i.cert, key, i.key)
	return must(i, der, err)
}

func attackCertificate(t *testing.T, c *captured) {
	good := c.identity.EKs[0].Certificate
	software := tpm.Roots{Software: []*x509.Certificate{c.root}}
	accepted := func(name string, der []byte, roots tpm.Roots, want tpm.Class, chain ...*x509.Certificate) {
		t.Helper()
		if class, err := c.ek.CheckCertificate(der, roots, chain...); err != nil || class != want {
			t.Errorf("%s: %q, %v, want %q", name, class, err, want)
		}
	}
	accepted("real", good, software, tpm.Software, c.issuer)
	accepted("the same root, marked hardware", good, tpm.Roots{Hardware: []*x509.Certificate{c.root}}, tpm.Hardware, c.issuer)

	p256, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	weakRSA, err2 := rsa.GenerateKey(rand.Reader, 1024)
	p224, err3 := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	stranger, err4 := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	for _, err := range []error{err, err2, err3, err4} {
		must(t, 0, err)
	}
	ca := newAuthority(t, p256, nil)
	ours := tpm.Roots{Hardware: []*x509.Certificate{ca.cert}}
	key := c.ek.Key()
	accepted("expired long ago", ca.issue(key, nil), ours, tpm.Hardware)
	san := asn1.ObjectIdentifier{2, 5, 29, 17}
	accepted("critical subject alternative name", ca.issue(key, extension(san)), ours, tpm.Hardware)
	weak, small := newAuthority(t, weakRSA, ca), newAuthority(t, p224, ca)
	flipped := bytes.Clone(good)
	flipped[len(flipped)-1] ^= 1
	self := newAuthority(t, stranger, nil)

	for _, x := range []struct {
		name  string
		der   []byte
		roots tpm.Roots
		chain []*x509.Certificate
	}{
		{"self-signed authority", self.issue(key, nil), ours, nil},
		{"its own root as an intermediate", self.issue(key, nil), ours, []*x509.Certificate{self.cert}},
		{"no roots", good, tpm.Roots{}, []*x509.Certificate{c.issuer, c.root}},
		{"no intermediate", good, software, nil},
		{"no usage", ca.issue(key, func(c *x509.Certificate) { c.UnknownExtKeyUsage = nil }), ours, nil},
		{"wrong usage", ca.issue(key, func(c *x509.Certificate) {
			c.UnknownExtKeyUsage, c.ExtKeyUsage = nil, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
		}), ours, nil},
		{"authority leaf", ca.issue(key, func(c *x509.Certificate) { c.IsCA = true }), ours, nil},
		{"unknown critical extension", ca.issue(key, extension(asn1.ObjectIdentifier{1, 2, 3, 4})), ours, nil},
		{"another key", ca.issue(stranger.Public(), nil), ours, nil},
		{"issuer with RSA-1024", weak.issue(key, func(c *x509.Certificate) { c.SignatureAlgorithm = x509.SHA256WithRSA }), ours, []*x509.Certificate{weak.cert}},
		{"issuer on P-224", small.issue(key, nil), ours, []*x509.Certificate{small.cert}},
		{"SHA-1", ca.issue(key, func(c *x509.Certificate) { c.SignatureAlgorithm = x509.ECDSAWithSHA1 }), ours, nil},
		{"signature changed", flipped, software, []*x509.Certificate{c.issuer}},
		{"trailing byte", append(bytes.Clone(good), 0), software, []*x509.Certificate{c.issuer}},
		{"truncated", good[:100], software, []*x509.Certificate{c.issuer}},
		{"empty", nil, software, nil},
		{"issued by a leaf", (&issuerOf{t, stranger, mustParse(t, ca.issue(stranger.Public(), nil))}).issue(key, nil), ours,
			[]*x509.Certificate{mustParse(t, ca.issue(stranger.Public(), nil))}},
	} {
		_, err := c.ek.CheckCertificate(x.der, x.roots, x.chain...)
		refused(t, x.name, err, tpm.CheckCertificate)
	}
	other, err := tpm.ParseEK(c.identity.EKs[1].Public)
	_, err = must(t, other, err).CheckCertificate(good, software, c.issuer)
	refused(t, "the certificate of the TPM's other EK", err, tpm.CheckCertificate)
}

func mustParse(t *testing.T, der []byte) *x509.Certificate {
	t.Helper()
	c, err := x509.ParseCertificate(der)
	return must(t, c, err)
}

func extension(id asn1.ObjectIdentifier) func(*x509.Certificate) {
	return func(c *x509.Certificate) {
		// directoryName with an empty name: crypto/x509 knows no such alternative name
		c.ExtraExtensions = []pkix.Extension{{Id: id, Critical: true, Value: []byte{0x30, 0x04, 0xa4, 0x02, 0x30, 0x00}}}
	}
}
