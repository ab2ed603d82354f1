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
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"troth/hostd"
	"troth/hostd/api"
	"troth/launcher"
	"troth/launcher/domain"
	"troth/proof"
	"troth/tpm"
	"troth/tpm/chip"
	"troth/tpm/pcr"
	vapi "troth/verifier/api"
)

// nothing is a host on which nothing works: every launch is refused, and the API has to say so well.
type nothing struct{}

var errNothing = errors.New("nothing works here")

func (nothing) Unseal(context.Context) ([]byte, error) { return nil, chip.ErrUnavailable }
func (nothing) Quote(context.Context, pcr.Selection, []byte) (tpm.Quote, error) {
	return tpm.Quote{}, chip.ErrUnavailable
}
func (nothing) Identity(context.Context) (*chip.Identity, error) { return nil, chip.ErrUnavailable }
func (nothing) PCRs(context.Context, pcr.Selection) (pcr.Values, error) {
	return nil, chip.ErrUnavailable
}
func (nothing) Install(context.Context, tpm.SealedSeed, pcr.Selection, tpm.Counters) error {
	return chip.ErrUnavailable
}
func (nothing) Challenge(context.Context) (*vapi.Challenge, error)        { return nil, errNothing }
func (nothing) Attest(context.Context, []byte) (*vapi.Attestation, error) { return nil, errNothing }
func (nothing) Inactive(context.Context, domain.UUID) ([]byte, error)     { return nil, nil }
func (nothing) Live(context.Context, domain.UUID) ([]byte, error)         { return nil, nil }
func (nothing) Named(context.Context, string) (domain.UUID, error)        { return domain.UUID{}, nil }
func (nothing) Define(context.Context, []byte) error                      { return errNothing }
func (nothing) Undefine(context.Context, domain.UUID) error               { return errNothing }
func (nothing) CreatePaused(context.Context, []byte) error                { return errNothing }
func (nothing) Save(context.Context, domain.UUID, string) error           { return errNothing }
func (nothing) RestorePaused(context.Context, string, []byte) error       { return errNothing }
func (nothing) Resume(context.Context, domain.UUID) error                 { return errNothing }
func (nothing) Destroy(context.Context, domain.UUID) error                { return errNothing }
func (nothing) Runs(context.Context, domain.UUID, *uint32) (bool, error)  { return false, nil }
func (nothing) Autostart(context.Context, domain.UUID) (bool, error)      { return false, errNothing }
func (nothing) RemoveKeys(context.Context, domain.UUID) error             { return errNothing }
func (nothing) SweepKeys(context.Context, func(domain.UUID) func()) error { return errNothing }
func (nothing) PutKey(context.Context, domain.UUID, string, proof.Secret) error {
	return errNothing
}
func (nothing) Pause(context.Context, domain.UUID) error              { return errNothing }
func (nothing) Taints(context.Context, domain.UUID) ([]string, error) { return nil, errNothing }
func (nothing) ProcessAt(context.Context, int, uint64) (*launcher.Process, error) {
	return nil, errNothing
}
func (nothing) Version(context.Context) (string, error)           { return "", errNothing }
func (nothing) Running(context.Context) ([]domain.UUID, error)    { return nil, errNothing }
func (nothing) Report(context.Context, launcher.ChainEvent) error { return errNothing }
func (nothing) Process(context.Context, domain.UUID, *uint32) (*launcher.Process, error) {
	return nil, errNothing
}
func (nothing) Session() uint64                { return 0 }
func (nothing) Next(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
func (nothing) Verdict(context.Context, string) (*proof.Verdict, *proof.VerdictKeys, error) {
	return nil, nil, errNothing
}
func (nothing) Release(context.Context, string, []byte) (launcher.Release, error) {
	return launcher.Release{}, errNothing
}

// pki is an authority and what it issued.
type pki struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
	n    int64
}

func newPKI(t *testing.T) *pki {
	t.Helper()
	p := &pki{t: t}
	c := p.issue(&x509.Certificate{Subject: pkix.Name{CommonName: "ca"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign})
	leaf, err := x509.ParseCertificate(c.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	p.cert, p.key, p.pool = leaf, c.PrivateKey.(*ecdsa.PrivateKey), x509.NewCertPool()
	p.pool.AddCert(leaf)
	return p
}

func (p *pki) issue(template *x509.Certificate) tls.Certificate {
	p.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		p.t.Fatal(err)
	}
	p.n++
	template.SerialNumber = big.NewInt(p.n)
	if template.NotAfter.IsZero() {
		template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	}
	parent, signer := p.cert, p.key
	if parent == nil {
		parent, signer = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		p.t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func (p *pki) client(ou ...string) tls.Certificate {
	return p.issue(&x509.Certificate{Subject: pkix.Name{CommonName: "client", OrganizationalUnit: ou}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
}

func (p *pki) files(dir, name string, c tls.Certificate) (cert, key string) {
	p.t.Helper()
	cert, key = filepath.Join(dir, name+".pem"), filepath.Join(dir, name+".key")
	der, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
	if err != nil {
		p.t.Fatal(err)
	}
	for path, b := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: c.Certificate[0]}, key: {Type: "PRIVATE KEY", Bytes: der}} {
		if err := os.WriteFile(path, pem.EncodeToMemory(b), 0o600); err != nil {
			p.t.Fatal(err)
		}
	}
	return cert, key
}

type rig struct {
	t      *testing.T
	daemon *hostd.Daemon
	server *Server
	pki    *pki
	tcp    string
	unix   string
}

func newRig(t *testing.T) *rig {
	t.Helper()
	dir := t.TempDir()
	p := newPKI(t)
	cert, key := p.files(dir, "hostd", p.issue(&x509.Certificate{Subject: pkix.Name{CommonName: "hostd"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}))
	ca := filepath.Join(dir, "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: p.cert.Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	c := hostd.Default()
	c.Name, c.StateDir, c.RunDir = "host1", filepath.Join(dir, "state"), filepath.Join(dir, "run")
	c.TPM.Socket = "/nowhere"
	c.Stray.Policy = launcher.StrayReport // this daemon sees the machine's own processes, and none of them are its to end
	c.Verifier.URL, c.Verifier.CA, c.Verifier.Cert, c.Verifier.Key = []string{"https://127.0.0.1:1"}, ca, cert, key
	c.API.Listen, c.API.ClientCA = "127.0.0.1:0", ca
	c.API.AllowUIDs = []int{os.Getuid()} // make check needs no root
	if err := c.Check(); err != nil {
		t.Fatal(err)
	}
	id, err := hostd.LoadIdentity(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	d := &hostd.Daemon{Config: c, Identity: id, Log: log, Chip: nothing{}, Virt: nothing{}, Judge: nothing{}, Verifier: nothing{}, Images: hostd.Images{}, Clock: hostd.NewClock()}
	ctx, cancel := context.WithCancel(context.Background())
	if err := d.Open(ctx); err != nil {
		t.Fatal(err)
	}
	s, err := New(d, log, "test")
	if err != nil {
		t.Fatal(err)
	}
	listeners, err := s.Listen()
	if err != nil {
		t.Fatal(err)
	}
	served, worked := make(chan error, 1), make(chan error, 1)
	go func() { served <- s.Run(ctx, listeners) }()
	go func() { worked <- d.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := errors.Join(<-served, <-worked); err != nil {
			t.Error(err)
		}
	})
	return &rig{t: t, daemon: d, server: s, pki: p, tcp: listeners[1].Addr().String(), unix: c.API.Socket}
}

// client speaks over TLS with a certificate, or none.
func (r *rig) client(certs ...tls.Certificate) *http.Client {
	conf := &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: r.pki.pool, Certificates: certs}
	tr := &http.Transport{TLSClientConfig: conf}
	r.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 20 * time.Second}
}

func (r *rig) local() *http.Client {
	tr := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", r.unix)
	}}
	r.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 20 * time.Second}
}

func (r *rig) url(path string) string { return "https://" + r.tcp + path }

// answered is a response whose body was read.
type answered struct {
	StatusCode int
	Header     http.Header
}

// do sends a request and returns status, headers and body.
func (r *rig) do(c *http.Client, method, url, body string, headers ...string) (*answered, []byte, error) {
	req, err := http.NewRequest(method, url, bytes.NewReader([]byte(body)))
	if err != nil {
		return nil, nil, err
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i+1 < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := c.Do(req)
	if err != nil {
		return nil, nil, err
	}
	b, err := io.ReadAll(resp.Body)
	return &answered{resp.StatusCode, resp.Header}, b, errors.Join(err, resp.Body.Close())
}

func (r *rig) must(c *http.Client, method, url, body string, headers ...string) (*answered, []byte) {
	r.t.Helper()
	resp, b, err := r.do(c, method, url, body, headers...)
	if err != nil {
		r.t.Fatal(err)
	}
	return resp, b
}

// problem asserts a refusal: its type, its code, its remedy.
func (r *rig) problem(resp *answered, body []byte, status int, code proof.Code) api.Problem {
	r.t.Helper()
	var p api.Problem
	if err := json.Unmarshal(body, &p); err != nil {
		r.t.Fatalf("%v: %s", err, body)
	}
	if resp.StatusCode != status || resp.Header.Get("Content-Type") != "application/problem+json" || p.Code != string(code) || p.Detail == "" || p.Remedy == "" {
		r.t.Fatalf("status %d, type %q, want %d %s: %s", resp.StatusCode, resp.Header.Get("Content-Type"), status, code, body)
	}
	return p
}

func launchBody(t *testing.T, change func(m map[string]any)) string {
	t.Helper()
	m := map[string]any{"token": "a.b.c", "domain": "<domain/>", "action": "start"}
	if change != nil {
		change(m)
	}
	b, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestLaunchesAreAsynchronousAndIdempotent(t *testing.T) {
	r := newRig(t)
	c := r.local()
	resp, b := r.must(c, "POST", "http://h/v1/launches", launchBody(t, nil), "Idempotency-Key", "key-00001")
	var first, again api.Launch
	if err := json.Unmarshal(b, &first); err != nil || resp.StatusCode != http.StatusAccepted || first.Id == "" {
		t.Fatalf("%d %s %v", resp.StatusCode, b, err)
	}
	_, b = r.must(c, "POST", "http://h/v1/launches", launchBody(t, nil), "Idempotency-Key", "key-00001")
	if err := json.Unmarshal(b, &again); err != nil || again.Id != first.Id {
		t.Fatalf("the same key gave %s, then %s", first.Id, b)
	}
	resp, b = r.must(c, "POST", "http://h/v1/launches", launchBody(t, func(m map[string]any) { m["token"] = "x.y.z" }), "Idempotency-Key", "key-00001")
	r.problem(resp, b, 400, proof.RequestInvalid)
	// Another caller's key of the same text names another launch.
	engine := r.client(r.pki.client(Engine))
	_, b = r.must(engine, "POST", r.url("/v1/launches"), launchBody(t, nil), "Idempotency-Key", "key-00001")
	if err := json.Unmarshal(b, &again); err != nil || again.Id == first.Id {
		t.Fatalf("two callers share the launch %s", b)
	}
	resp, b = r.must(c, "GET", "http://h/v1/launches/"+first.Id+"?wait=10s", "")
	if err := json.Unmarshal(b, &again); err != nil || resp.StatusCode != 200 || again.State != hostd.LaunchRefused || again.Refusal == nil || again.Refusal.Code != string(proof.TokenInvalid) {
		t.Fatalf("%d %s", resp.StatusCode, b)
	}
	resp, b = r.must(c, "GET", "http://h/v1/launches/0123", "")
	r.problem(resp, b, 404, proof.NotRegistered)
}

func TestStatusSaysWhatToMend(t *testing.T) {
	r := newRig(t)
	var s api.Status
	deadline := time.Now().Add(10 * time.Second)
	for {
		_, b := r.must(r.local(), "GET", "http://h/v1/status", "")
		if err := json.Unmarshal(b, &s); err != nil {
			t.Fatal(err)
		}
		if s.Conditions[0].State == hostd.Failed && s.Conditions[4].State == hostd.Failed || time.Now().After(deadline) {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	names := []string{}
	for _, c := range s.Conditions {
		names = append(names, c.Name)
		if c.State == hostd.Failed && (c.Evidence == "" || c.Remedy == "") {
			t.Errorf("%+v", c)
		}
	}
	if fmt.Sprint(names) != "[tpm dynamic-launch verifier verdict libvirt hook registry strays workers]" || s.Conditions[0].Code == nil || *s.Conditions[0].Code != string(proof.TPMUnavailable) || s.State != hostd.Unknown {
		t.Errorf("%+v", s)
	}
	last := len(names) - 1
	if said := strings.Join(names[:last], ", ") + " or " + names[last]; !strings.Contains(string(api.Spec), `"`+said+`"`) {
		t.Errorf("the OpenAPI file does not name the conditions as %q", said)
	}
	resp, b := r.must(r.client(), "GET", r.url("/readyz"), "")
	if p := r.problem(resp, b, 503, proof.TPMUnavailable); p.Facts != nil {
		t.Errorf("readyz tells facts to everyone: %s", b)
	}
}

// TestLongWork: what takes longer than the server waits for other answers is answered all the same.
func TestLongWork(t *testing.T) {
	r := newRig(t)
	const uuid = "6a0f0a5e-4c55-4a53-9d5c-0d8b6f1f2a11"
	if err := r.daemon.Launcher.Book.Write(&launcher.Entry{What: launcher.WroteRefused, Launch: "l1", UUID: uuid, Refusal: proof.Refuse(proof.Internal, "before")}); err != nil {
		t.Fatal(err)
	}
	h := r.server.http(nil)
	h.WriteTimeout = 100 * time.Millisecond
	for refuse, code := range map[bool]proof.Code{false: "", true: proof.ImageChanged} {
		h.Handler = http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			if (handlers{r.server}).carry(w, req, uuid, time.Minute, func(context.Context, string) *proof.Refusal {
				time.Sleep(300 * time.Millisecond)
				if refuse {
					return proof.Refuse(code, "in the end")
				}
				return nil
			}) {
				w.WriteHeader(http.StatusNoContent)
			}
		})
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		go h.Serve(l) //nolint:errcheck // it ends with the listener
		resp, b := r.must(http.DefaultClient, "POST", "http://"+l.Addr().String(), "")
		if refuse {
			r.problem(resp, b, code.Info().Status, code)
		} else if resp.StatusCode != http.StatusNoContent {
			t.Errorf("%d %s", resp.StatusCode, b)
		}
		l.Close()
	}
	http.DefaultClient.CloseIdleConnections()
	if err := h.Close(); err != nil {
		t.Error(err)
	}
}
