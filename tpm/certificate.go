package tpm

import (
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"fmt"
	"slices"
	"time"
)

// Class says what vouches for a TPM: a maker's root, or the root of a software TPM's authority.
type Class string

// The classes. A verdict carries the class, and a tenant says whether software is enough.
const (
	Hardware Class = "hardware"
	Software Class = "software"
)

// Roots are the pinned authorities of EK certificates.
type Roots struct{ Hardware, Software []*x509.Certificate }

var (
	oidEKCertificate  = asn1.ObjectIdentifier{2, 23, 133, 8, 1} // tcg-kp-EKCertificate
	oidSubjectAltName = asn1.ObjectIdentifier{2, 5, 29, 17}
)

// CheckCertificate checks an EK certificate (TCG EK Credential Profile 2.5, 3): one that is no authority, says EK
// certificate, has the EK's key and chains to a root by signatures that are not weak. It returns the root's class.
//
// Two things differ from TLS: the subject alternative name is critical and in a form that crypto/x509 does not know,
// so that one extension is accepted unread; and an expired certificate is good, since a TPM outlives it: the chain is
// judged at the certificate's own dates, not today's.
func (e *EK) CheckCertificate(der []byte, roots Roots, intermediates ...*x509.Certificate) (Class, error) {
	c, err := x509.ParseCertificate(der)
	if err != nil {
		return "", failed(CheckCertificate, "", "%v", err)
	}
	if c.IsCA {
		return "", failed(CheckCertificate, "", "the EK certificate is an authority's")
	}
	if !slices.ContainsFunc(c.UnknownExtKeyUsage, oidEKCertificate.Equal) {
		return "", failed(CheckCertificate, "extended key usage "+oidEKCertificate.String(), "%v", c.UnknownExtKeyUsage)
	}
	if !equalKeys(e.key, c.PublicKey) {
		return "", failed(CheckCertificate, "", "the certificate is of another key")
	}
	c.UnhandledCriticalExtensions = slices.DeleteFunc(c.UnhandledCriticalExtensions, oidSubjectAltName.Equal)

	var last error
	for _, r := range []struct {
		class Class
		roots []*x509.Certificate
	}{{Hardware, roots.Hardware}, {Software, roots.Software}} {
		if err := chain(c, r.roots, intermediates); err != nil {
			last = err
			continue
		}
		return r.class, nil
	}
	return "", failed(CheckCertificate, "a chain to a pinned root", "%v", last)
}

// chain verifies c at its first and at its last day.
func chain(c *x509.Certificate, roots, intermediates []*x509.Certificate) error {
	options := x509.VerifyOptions{
		Roots: pool(roots), Intermediates: pool(intermediates),
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}, // the EK usage was checked; authorities carry none
	}
	var last error
	for _, at := range []time.Time{c.NotBefore, c.NotAfter} {
		options.CurrentTime = at
		chains, err := c.Verify(options)
		if err != nil {
			last = err
			continue
		}
		for _, path := range chains {
			if last = strong(path); last == nil {
				return nil
			}
		}
	}
	return last
}

// strong refuses keys that are too short; crypto/x509 has refused SHA-1 and MD5 signatures. The root is pinned: its
// own signature says nothing.
func strong(path []*x509.Certificate) error {
	for _, c := range path {
		switch k := c.PublicKey.(type) {
		case *rsa.PublicKey:
			if k.N.BitLen() < 2048 {
				return fmt.Errorf("%q has an RSA key of %d bits", c.Subject, k.N.BitLen())
			}
		case *ecdsa.PublicKey:
			if k.Curve.Params().BitSize < 256 {
				return fmt.Errorf("%q has a key on %s", c.Subject, k.Curve.Params().Name)
			}
		default:
			return fmt.Errorf("%q has a key of type %T", c.Subject, k)
		}
	}
	return nil
}

func equalKeys(a, b any) bool {
	switch a := a.(type) {
	case *rsa.PublicKey:
		k, ok := b.(*rsa.PublicKey)
		return ok && a.Equal(k)
	case *ecdsa.PublicKey:
		k, ok := b.(*ecdsa.PublicKey)
		return ok && a.Equal(k)
	default:
		panic(fmt.Sprintf("EK has a key of type %T", a)) // ParseEK makes no other
	}
}

func pool(certificates []*x509.Certificate) *x509.CertPool {
	p := x509.NewCertPool()
	for _, c := range certificates {
		p.AddCert(c)
	}
	return p
}
