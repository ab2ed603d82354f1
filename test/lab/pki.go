package lab

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// Role is what a client's certificate says of it, in the OU of its subject.
type Role string

// The roles of the two APIs.
const (
	RoleHost     Role = "host"
	RoleOperator Role = "operator"
	RoleEngine   Role = "engine"
	RoleTenant   Role = "tenant"
)

// PKI is the lab's certificate authority and what it has issued: in its directory ca.pem, and NAME.pem and NAME.key for
// verifier, operator, engine, tenant and each host.
type PKI struct {
	Dir string

	ca  *x509.Certificate
	key crypto.Signer
}

// Certificate is a certificate with its key, in files.
type Certificate struct{ CertFile, KeyFile string }

// NewPKI makes an authority and certificates for a verifier, an operator, an engine and a tenant.
func NewPKI(dir string) (*PKI, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		Subject: pkix.Name{CommonName: "Troth lab CA"}, IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	p := &PKI{Dir: dir, key: key}
	if p.ca, err = p.sign(template, template, key.Public()); err != nil {
		return nil, err
	}
	if err := p.write("ca", p.ca, key); err != nil {
		return nil, err
	}
	for name, role := range map[string]Role{"operator": RoleOperator, "engine": RoleEngine, "tenant": RoleTenant} {
		if _, err := p.Client(name, role); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// LoadPKI opens the authority in a directory.
func LoadPKI(dir string) (*PKI, error) {
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "ca.pem"), filepath.Join(dir, "ca.key"))
	if err != nil {
		return nil, fmt.Errorf("cannot load the lab's authority: %w", err)
	}
	return &PKI{Dir: dir, ca: pair.Leaf, key: pair.PrivateKey.(crypto.Signer)}, nil
}

// CAFile is the authority's certificate.
func (p *PKI) CAFile() string { return filepath.Join(p.Dir, "ca.pem") }

// Client issues a client certificate, or returns the one of this name if there is one.
func (p *PKI) Client(name string, role Role) (Certificate, error) {
	return p.issue(name, role, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth})
}

// Server issues a certificate for a server, good for the names and addresses given. With a role it serves as the
// server's client certificate as well.
func (p *PKI) Server(name string, role Role, names ...string) (Certificate, error) {
	usage := []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	if role != "" {
		usage = append(usage, x509.ExtKeyUsageClientAuth)
	}
	return p.issue(name, role, usage, names...)
}

func (p *PKI) issue(name string, role Role, usage []x509.ExtKeyUsage, names ...string) (Certificate, error) {
	c := Certificate{CertFile: filepath.Join(p.Dir, name+".pem"), KeyFile: filepath.Join(p.Dir, name+".key")}
	if _, err := os.Stat(c.KeyFile); err == nil {
		return c, nil
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return c, err
	}
	template := &x509.Certificate{
		Subject: pkix.Name{CommonName: name}, KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: usage, BasicConstraintsValid: true,
	}
	if role != "" {
		template.Subject.OrganizationalUnit = []string{string(role)}
	}
	for _, n := range names {
		if ip := net.ParseIP(n); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, n)
		}
	}
	cert, err := p.sign(template, p.ca, key.Public())
	if err != nil {
		return c, err
	}
	return c, p.write(name, cert, key)
}

// sign completes a template with serial number and validity, and signs it.
func (p *PKI) sign(template, parent *x509.Certificate, public crypto.PublicKey) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, err
	}
	template.SerialNumber = serial
	template.NotBefore = time.Now().Add(-time.Hour)
	template.NotAfter = time.Now().Add(30 * 24 * time.Hour)
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, p.key)
	if err != nil {
		return nil, fmt.Errorf("cannot issue a certificate: %w", err)
	}
	return x509.ParseCertificate(der)
}

func (p *PKI) write(name string, cert *x509.Certificate, key *ecdsa.PrivateKey) error {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	for _, f := range []struct {
		suffix, kind string
		der          []byte
		mode         os.FileMode
	}{{".pem", "CERTIFICATE", cert.Raw, 0o644}, {".key", "PRIVATE KEY", der, 0o600}} {
		data := pem.EncodeToMemory(&pem.Block{Type: f.kind, Bytes: f.der})
		if err := os.WriteFile(filepath.Join(p.Dir, name+f.suffix), data, f.mode); err != nil {
			return fmt.Errorf("cannot write a certificate: %w", err)
		}
	}
	return nil
}

// TLS is a client's configuration: with a certificate, or with none if cert is empty.
func (p *PKI) TLS(cert Certificate) (*tls.Config, error) {
	pool := x509.NewCertPool()
	pool.AddCert(p.ca)
	c := &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS13}
	if cert != (Certificate{}) {
		pair, err := tls.LoadX509KeyPair(cert.CertFile, cert.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("cannot load a certificate: %w", err)
		}
		c.Certificates = []tls.Certificate{pair}
	}
	return c, nil
}

// existing finds a certificate that was issued under a name.
func (p *PKI) existing(name string) (Certificate, error) {
	c := Certificate{CertFile: filepath.Join(p.Dir, name+".pem"), KeyFile: filepath.Join(p.Dir, name+".key")}
	if _, err := os.Stat(c.KeyFile); err != nil {
		return c, fmt.Errorf("cannot find a certificate for %q: %w", name, err)
	}
	return c, nil
}
