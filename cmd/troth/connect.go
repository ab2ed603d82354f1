package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	hostdapi "troth/hostd/api"
	"troth/proof"
	verifierapi "troth/verifier/api"
)

// transport makes the HTTP client of both daemons: TLS 1.3, certificates of the
// settings only, no session tickets, no redirects (an answer that points
// elsewhere is an answer of somebody else).
func (s *settings) transport() (*http.Client, error) {
	t := &http.Transport{Proxy: http.ProxyFromEnvironment, TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS13}}
	if s.CA != "" {
		b, err := os.ReadFile(s.CA)
		if err != nil {
			return nil, usagef("ca: cannot read: %w", err)
		}
		t.TLSClientConfig.RootCAs = x509.NewCertPool()
		if !t.TLSClientConfig.RootCAs.AppendCertsFromPEM(b) {
			return nil, usagef("ca: %s holds no certificate in PEM form", s.CA)
		}
	}
	if s.Cert != "" {
		key := s.Key
		if key == "" {
			key = s.Cert
		}
		c, err := tls.LoadX509KeyPair(s.Cert, key)
		if err != nil {
			return nil, usagef("cert: cannot read the client's certificate: %w", err)
		}
		t.TLSClientConfig.Certificates = []tls.Certificate{c}
	}
	return &http.Client{
		Transport:     t,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}, nil
}

// verifier connects to the verifier of the settings.
func (a *app) verifier() (*verifierapi.Client, *peer, error) {
	s, err := a.settings()
	if err != nil {
		return nil, nil, err
	}
	if s.Verifier == "" {
		return nil, nil, usagef("no verifier: give --verifier URL or set verifier in the settings file")
	}
	h, err := s.transport()
	if err != nil {
		return nil, nil, err
	}
	c, err := verifierapi.NewClient(s.Verifier, verifierapi.WithHTTPClient(h))
	if err != nil {
		return nil, nil, usagef("verifier: %w", err)
	}
	return c, &peer{name: "verifier", address: s.Verifier, unreachable: proof.VerifierUnreachable, timeout: s.Timeout.D()}, nil
}

// hostd connects to the host's daemon of the settings, over TLS or its socket.
func (a *app) hostd() (*hostdapi.Client, *peer, error) {
	s, err := a.settings()
	if err != nil {
		return nil, nil, err
	}
	base := s.Hostd
	h, err := s.transport()
	if err != nil {
		return nil, nil, err
	}
	if path, ok := strings.CutPrefix(s.Hostd, "unix://"); ok {
		base = "http://hostd"
		h.Transport = &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", path)
		}}
	}
	c, err := hostdapi.NewClient(base, hostdapi.WithHTTPClient(h))
	if err != nil {
		return nil, nil, usagef("hostd: %w", err)
	}
	return c, &peer{name: "hostd", address: s.Hostd, unreachable: proof.HostdUnreachable, timeout: s.Timeout.D(), named: s.named}, nil
}

// peer is whom a request went to, for what is said when it does not answer.
type peer struct {
	name        string
	address     string
	unreachable proof.Code
	timeout     time.Duration
	named       bool // the timeout, by the user
}

// slow waits longer, for a request that the peer answers when all is done, unless the user said how long.
func (p *peer) slow(within time.Duration) *peer {
	if p.named {
		return p
	}
	q := *p
	q.timeout = within
	return &q
}

// ask sends one request and reads its bounded answer. A refusal of the peer comes
// back as *proof.Refusal, silence as the peer's own "unreachable" refusal.
func (p *peer) ask(ctx context.Context, send func(context.Context) (*http.Response, error)) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, p.timeout)
	defer cancel()
	resp, err := send(ctx)
	if err != nil {
		return nil, p.silent(err)
	}
	defer resp.Body.Close()
	b, err := readBounded(resp.Body, "the answer of "+p.name)
	if err != nil {
		return nil, p.silent(err)
	}
	if resp.StatusCode/100 == 2 {
		return b, nil
	}
	if r := readRefusal(b); r != nil {
		return nil, r
	}
	return nil, undecidedf("%s (%s) answered %s, which is not a refusal that this program knows", p.name, p.address, resp.Status)
}

// readRefusal reads problem+json. Only the members that both daemons write alike:
// a verifier's challenge beside verdict-stale is for hosts.
func readRefusal(b []byte) *proof.Refusal {
	var p struct {
		Detail string       `json:"detail"`
		Code   proof.Code   `json:"code"`
		Remedy string       `json:"remedy"`
		Facts  []proof.Fact `json:"facts"`
		Also   []proof.Code `json:"also"`
	}
	if err := json.Unmarshal(b, &p); err != nil || p.Code == "" {
		return nil
	}
	return proof.Problem{Detail: p.Detail, Code: p.Code, Remedy: p.Remedy, Facts: p.Facts, Also: p.Also}.Refusal()
}

func (p *peer) silent(err error) error {
	if errors.Is(err, context.Canceled) {
		return undecidedf("interrupted while waiting for %s", p.name)
	}
	return proof.Refuse(p.unreachable, "cannot reach "+p.name,
		proof.Fact{Name: "address", Value: p.address}, proof.Fact{Name: "cause", Value: err.Error()})
}

// asking is ask with the answer read into a value.
func asking[T any](ctx context.Context, p *peer, send func(context.Context) (*http.Response, error)) (*T, error) {
	b, err := p.ask(ctx, send)
	if err != nil {
		return nil, err
	}
	v := new(T)
	if err := json.Unmarshal(b, v); err != nil {
		return nil, undecidedf("cannot read the answer of %s (%s): %w", p.name, p.address, err)
	}
	return v, nil
}
