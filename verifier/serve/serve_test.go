package serve

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"troth/proof"
	"troth/verifier"
	"troth/verifier/api"
	"troth/verifier/store"
)

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

// pki is an authority and what it issued.
type pki struct {
	t    testing.TB
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newPKI(t testing.TB) *pki {
	t.Helper()
	key := must[*ecdsa.PrivateKey](t)(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "CA"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der := must[[]byte](t)(x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key))
	return &pki{t, must[*x509.Certificate](t)(x509.ParseCertificate(der)), key}
}

func (p *pki) issue(name string, ou []string, until time.Duration, usage x509.ExtKeyUsage) tls.Certificate {
	p.t.Helper()
	key := must[*ecdsa.PrivateKey](p.t)(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name, OrganizationalUnit: ou},
		NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: time.Now().Add(until), ExtKeyUsage: []x509.ExtKeyUsage{usage}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	der := must[[]byte](p.t)(x509.CreateCertificate(rand.Reader, tmpl, p.cert, &key.PublicKey, p.key))
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func (p *pki) client(role string) tls.Certificate {
	return p.issue(role+"-1", []string{role}, time.Hour, x509.ExtKeyUsageClientAuth)
}

func (p *pki) pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(p.cert)
	return pool
}

type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

// service is the real server on a real socket.
type service struct {
	t    testing.TB
	pki  *pki
	addr string
	logs *logBuffer
}

func newService(t testing.TB) *service {
	t.Helper()
	p, dir := newPKI(t), t.TempDir()
	s := &service{t: t, pki: p, logs: &logBuffer{}}
	log := slog.New(slog.NewTextHandler(s.logs, &slog.HandlerOptions{Level: slog.LevelDebug}))
	cfg := verifier.DefaultConfig()
	cfg.Issuer = "auditor.example"
	if err := verifier.InitKeys(filepath.Join(dir, "keys"), cfg.Issuer, true, time.Now()); err != nil {
		t.Fatal(err)
	}
	st := must[store.Store](t)(store.Open(t.Context(), filepath.Join(dir, "v.db")))
	v := must[*verifier.Verifier](t)(verifier.New(t.Context(), cfg, must[*verifier.Keys](t)(verifier.LoadKeys(filepath.Join(dir, "keys"))), st, log))
	h := must[http.Handler](t)(Handler(v, log))
	server := Server(h, TLSConfig(p.issue("verifier", nil, time.Hour, x509.ExtKeyUsageServerAuth), p.pool()), log)
	l := must[net.Listener](t)(Listen(t.Context(), "127.0.0.1:0"))
	s.addr = l.Addr().String()
	done := make(chan error, 1)
	go func() { done <- server.ServeTLS(l, "", "") }()
	t.Cleanup(func() {
		if err := server.Close(); err != nil {
			t.Error(err)
		}
		if err := <-done; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
		if err := st.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func (s *service) config(certs ...tls.Certificate) *tls.Config {
	return &tls.Config{RootCAs: s.pki.pool(), Certificates: certs, ServerName: "127.0.0.1"}
}

func (s *service) client(certs ...tls.Certificate) *http.Client {
	tr := &http.Transport{TLSClientConfig: s.config(certs...), ForceAttemptHTTP2: true}
	s.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 20 * time.Second}
}

// do sends a request and returns status, content type and body.
func (s *service) do(c *http.Client, method, path, body string) (int, http.Header, []byte, error) {
	s.t.Helper()
	req := must[*http.Request](s.t)(http.NewRequestWithContext(s.t.Context(), method, "https://"+s.addr+path, strings.NewReader(body)))
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := c.Do(req)
	if err != nil {
		return 0, nil, nil, err
	}
	defer func() {
		if err := resp.Body.Close(); err != nil {
			s.t.Error(err)
		}
	}()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, resp.Header, b, err
}

// problem asserts a refusal in its form and returns it.
func (s *service) problem(c *http.Client, method, path, body string, status int, code proof.Code) proof.Problem {
	s.t.Helper()
	got, header, b, err := s.do(c, method, path, body)
	if err != nil {
		s.t.Fatal(err)
	}
	var p proof.Problem
	if err := json.Unmarshal(b, &p); err != nil || header.Get("Content-Type") != "application/problem+json" {
		s.t.Fatalf("%s %s: no problem: %v %q", method, path, err, b)
	}
	if got != status || p.Status != status || p.Code != code || p.Remedy == "" || p.Title == "" {
		s.t.Fatalf("%s %s: %d %+v, want %d %s", method, path, got, p, status, code)
	}
	return p
}

// TestGenerated: api.gen.go is what the generator makes of openapi.yaml.
func TestGenerated(t *testing.T) {
	if testing.Short() {
		t.Log("the generator is built and run in full test runs only")
		return
	}
	dir := t.TempDir()
	out := filepath.Join(dir, "api.gen.go")
	config := strings.Replace(string(must[[]byte](t)(os.ReadFile("../api/oapi.yaml"))), "output: api.gen.go", "output: "+out, 1)
	if err := os.WriteFile(filepath.Join(dir, "oapi.yaml"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "go", "tool", "-modfile=../../tools/go.mod", "oapi-codegen", "-config", filepath.Join(dir, "oapi.yaml"), "openapi.yaml")
	cmd.Dir = "../api"
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	if !bytes.Equal(must[[]byte](t)(os.ReadFile(out)), must[[]byte](t)(os.ReadFile("../api/api.gen.go"))) {
		t.Fatal("run go generate ./verifier/api")
	}
}

// TestPublic: what needs no certificate.
func TestPublic(t *testing.T) {
	s := newService(t)
	c := s.client()
	for _, path := range []string{"/healthz", "/readyz", "/v1/refusals"} {
		if status, _, _, err := s.do(c, "GET", path, ""); err != nil || status != 200 {
			t.Errorf("%s: %d %v", path, status, err)
		}
	}
	_, _, b, err := s.do(c, "GET", "/v1/keys", "")
	if err != nil {
		t.Fatal(err)
	}
	var keys api.Keys
	if err := json.Unmarshal(b, &keys); err != nil {
		t.Fatal(err)
	}
	if set, err := proof.ParseKeySet(keys.Keys, *keys.Root); err != nil || set.Issuer != "auditor.example" {
		t.Fatalf("%+v %v", set, err)
	}
	hostClient := s.client(s.pki.client("host"))
	var ch api.Challenge
	if _, _, b, err := s.do(hostClient, "GET", "/v1/challenge", ""); err != nil || json.Unmarshal(b, &ch) != nil || ch.Selection != "sha256:17,18,19" || len(ch.Challenge) != 56 {
		t.Fatalf("%s %v", b, err)
	}
}
