package verifier

import (
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"troth/proof"
)

// attackSSRF: an EK certificate says where its issuer, its revocation list and its responder are. Nobody is asked: neither for the
// certificate that is missing in a chain, nor about one whose chain is whole.
func attackSSRF(t *testing.T) {
	trap := must[net.Listener](t)(net.Listen("tcp", "127.0.0.1:0"))
	var asked atomic.Int64
	go func() {
		for {
			c, err := trap.Accept()
			if err != nil {
				return
			}
			asked.Add(1)
			if err := c.Close(); err != nil {
				return
			}
		}
	}()
	there := []string{"http://" + trap.Addr().String() + "/x", "ldap://" + trap.Addr().String() + "/cn=x"}
	inviting := func(c *x509.Certificate) {
		c.IssuingCertificateURL, c.OCSPServer, c.CRLDistributionPoints = there, there, there
	}
	w := newWorld(t)
	root := softCA(t)
	w.cfg.Roots.Software = append(slices.Clone(w.cfg.Roots.Software), root.cert)
	missing := intermediate(t, root, inviting)
	for name, issuer := range map[string]*authority{"missing": missing, "known": root} {
		m := newSoft(t)
		ek := must[*ecdsa.PrivateKey](t)(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
		m.ek = must[*ecdh.PrivateKey](t)(ek.ECDH())
		m.eks = []EK{{issuer.ekCertificate(t, &ek.PublicKey, inviting), tpm2.Marshal(eccPublic(tpm2.ECCEKTemplate, &ek.PublicKey))}}
		h := &host{m, "inviting-" + name, proof.Hash(proof.LabelEnrol, []byte(name))}
		if issuer == root {
			w.enrol(h)
			continue
		}
		_, err := w.Enrol(t.Context(), h.spki, w.begin(h))
		refused(t, err, proof.EvidenceInvalid, "")
	}
	time.Sleep(100 * time.Millisecond)
	if n := asked.Load(); n > 0 {
		t.Errorf("the verifier dialled out %d times", n)
	}
	check(t, trap.Close())
}

// intermediate is an authority below another.
func intermediate(t *testing.T, a *authority, change func(*x509.Certificate)) *authority {
	t.Helper()
	key := must[*ecdsa.PrivateKey](t)(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "between"}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	change(tmpl)
	der := must[[]byte](t)(x509.CreateCertificate(rand.Reader, tmpl, a.cert, &key.PublicKey, a.key))
	return &authority{must[*x509.Certificate](t)(x509.ParseCertificate(der)), key}
}
