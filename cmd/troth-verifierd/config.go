package main

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"troth/config"
	"troth/tpm"
	"troth/verifier"
)

// Config is /etc/troth/verifierd.toml. Each key can be set by environment too: TROTH_VERIFIERD_LISTEN, TROTH_VERIFIERD_TLS_CERT.
type Config struct {
	// Issuer is this service's name; it stands in verdicts, receipts and the key set, and tenants pin it. It cannot change after init.
	Issuer string `toml:"issuer"`
	// Listen is the address of the HTTPS API.
	Listen string `toml:"listen"`
	// State is the directory of the database and of keys/, readable by the service's user alone.
	State string `toml:"state"`
	// Epoch is how often a host attests; Verdict how long a verdict holds, at least an epoch; Challenge how old a challenge
	// may be (0: two epochs).
	Epoch     config.Duration `toml:"epoch"`
	Verdict   config.Duration `toml:"verdict"`
	Challenge config.Duration `toml:"challenge"`
	// LogLevel is debug, info, warn or error. debug logs every request.
	LogLevel slog.Level `toml:"log_level"`
	// TLS: the service's certificate and key, and the authority of all client certificates. A client's role is the one
	// organizational unit of its certificate: host, operator, engine or tenant.
	TLS struct {
		Cert     string `toml:"cert"`
		Key      string `toml:"key"`
		ClientCA string `toml:"client_ca"`
	} `toml:"tls"`
	// EKRoots are the authorities of EK certificates, each of class hardware or software. A file may hold several
	// certificates in PEM: self-signed ones are roots, the others intermediates.
	EKRoots []EKRoot `toml:"ek_root"`
	// EKIntermediates are files with further certificates between EKs and their roots.
	EKIntermediates []string `toml:"ek_intermediates"`
}

// EKRoot is one pinned authority.
type EKRoot struct {
	File  string    `toml:"file"`
	Class tpm.Class `toml:"class"`
}

func defaults() Config {
	d := verifier.DefaultConfig()
	return Config{Issuer: d.Issuer, Listen: ":8443", State: "/var/lib/troth-verifierd", Epoch: config.Duration(d.Epoch), Verdict: config.Duration(d.Lifetime)}
}

func load(file string) (*Config, error) {
	c := defaults()
	if err := config.Load(&c, config.Source{Name: "verifierd", File: file}); err != nil {
		return nil, misuse{err}
	}
	if c.Challenge == 0 {
		c.Challenge = 2 * c.Epoch
	}
	return &c, nil
}

func (c *Config) keys() string     { return filepath.Join(c.State, "keys") }
func (c *Config) database() string { return filepath.Join(c.State, "verifierd.db") }

// verifier is the judge's part of the configuration.
func (c *Config) verifier() (verifier.Config, error) {
	out := verifier.Config{Issuer: c.Issuer, Epoch: c.Epoch.D(), Lifetime: c.Verdict.D(), ChallengeAge: c.Challenge.D()}
	if c.Epoch.D() < time.Second || c.Verdict < c.Epoch || c.Challenge < c.Epoch {
		return out, errors.New("epoch, verdict, challenge: an epoch is at least 1s, and neither verdict nor challenge is shorter than it")
	}
	if len(c.EKRoots) == 0 {
		return out, errors.New("ek_root: name at least one authority of EK certificates, or no host can enrol")
	}
	for i, r := range c.EKRoots {
		certs, err := certificates(r.File)
		if err != nil {
			return out, fmt.Errorf("ek_root[%d]: %w", i, err)
		}
		for _, cert := range certs {
			switch {
			case cert.CheckSignatureFrom(cert) != nil:
				out.Intermediates = append(out.Intermediates, cert)
			case r.Class == tpm.Hardware:
				out.Roots.Hardware = append(out.Roots.Hardware, cert)
			case r.Class == tpm.Software:
				out.Roots.Software = append(out.Roots.Software, cert)
			default:
				return out, fmt.Errorf("ek_root[%d].class: must be hardware or software", i)
			}
		}
	}
	for i, file := range c.EKIntermediates {
		certs, err := certificates(file)
		if err != nil {
			return out, fmt.Errorf("ek_intermediates[%d]: %w", i, err)
		}
		out.Intermediates = append(out.Intermediates, certs...)
	}
	return out, nil
}

// softwareOnly reports whether no hardware TPM could ever enrol: a lab.
func softwareOnly(c verifier.Config) bool { return len(c.Roots.Hardware) == 0 }

// tls loads the service's certificate and the clients' authority.
func (c *Config) tls() (tls.Certificate, *x509.CertPool, error) {
	cert, err := tls.LoadX509KeyPair(c.TLS.Cert, c.TLS.Key)
	if err != nil {
		return cert, nil, fmt.Errorf("tls.cert, tls.key: %w", err)
	}
	certs, err := certificates(c.TLS.ClientCA)
	if err != nil {
		return cert, nil, fmt.Errorf("tls.client_ca: %w", err)
	}
	pool := x509.NewCertPool()
	for _, ca := range certs {
		pool.AddCert(ca)
	}
	return cert, pool, nil
}

// certificates reads all certificates of a PEM file.
func certificates(file string) ([]*x509.Certificate, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var out []*x509.Certificate
	for {
		var block *pem.Block
		if block, b = pem.Decode(b); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		out = append(out, cert)
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%s: holds no certificate in PEM", file)
	}
	return out, nil
}
