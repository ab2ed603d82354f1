// Package serve is the attestation service over HTTPS: TLS 1.3, the caller's role out of its certificate, who may call what
// out of the OpenAPI file, bodies read strictly and bounded, every error as problem+json, one log line for each request.
//
// It promises that no handler runs for a caller whose role the file does not name for that route, and that slow or
// talkative strangers hold nothing for longer than the limits below. It trusts crypto/tls, the pinned client authority and
// package verifier; it decides nothing itself.
package serve

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"runtime/debug"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"troth/proof"
	"troth/verifier"
	"troth/verifier/api"
)

// Limits against slow clients (X-SLOW): a handshake or a header takes headerTime at most, a whole request requestTime.
const (
	headerTime     = 5 * time.Second
	requestTime    = 15 * time.Second
	writeTime      = 30 * time.Second
	idleTime       = 180 * time.Second // outlives an epoch, so that a host keeps its connection
	maxHeader      = 16 << 10
	maxConnections = 8192 // above it new connections are closed at once, never queued
)

// TLSConfig accepts TLS 1.3 alone and verifies every certificate that a client shows against the pinned authority. Public
// routes need none. Session tickets are off: a resumed session would carry an identity past its certificate (N-RESUME).
func TLSConfig(cert tls.Certificate, clients *x509.CertPool) *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		Certificates:           []tls.Certificate{cert},
		ClientAuth:             tls.VerifyClientCertIfGiven,
		ClientCAs:              clients,
		SessionTicketsDisabled: true,
		NextProtos:             []string{"h2", "http/1.1"},
	}
}

// Server wires handler, TLS and limits together.
func Server(h http.Handler, config *tls.Config, log *slog.Logger) *http.Server {
	return &http.Server{Handler: h, TLSConfig: config, ReadHeaderTimeout: headerTime, ReadTimeout: requestTime, WriteTimeout: writeTime,
		IdleTimeout: idleTime, MaxHeaderBytes: maxHeader, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug)}
}

// Listen listens on address and never holds more than maxConnections.
func Listen(ctx context.Context, address string) (net.Listener, error) {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("cannot listen: %w", err)
	}
	return Limit(l), nil
}

// Limit bounds how many connections of l are open at once.
func Limit(l net.Listener) net.Listener { return &limited{Listener: l} }

type limited struct {
	net.Listener
	open atomic.Int64
}

func (l *limited) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if l.open.Add(1) <= maxConnections {
			return &counted{Conn: c, l: l}, nil
		}
		l.open.Add(-1)
		if err := c.Close(); err != nil {
			return nil, err
		}
	}
}

type counted struct {
	net.Conn
	l    *limited
	done atomic.Bool
}

func (c *counted) Close() error {
	if c.done.CompareAndSwap(false, true) {
		c.l.open.Add(-1)
	}
	return c.Conn.Close()
}

// caller is who the TLS peer proved to be.
type caller struct {
	role api.Role
	name string       // common name, for the log
	spki proof.Digest // of its key
}

type callerKey struct{}

func callerOf(r *http.Request) caller {
	c, ok := r.Context().Value(callerKey{}).(caller)
	if !ok {
		panic("a handler ran without a caller")
	}
	return c
}

// identify reads the caller out of the verified chain: exactly one organizational unit, which names a role. The
// certificate's times are looked at for each request, since a connection may outlive them.
func identify(r *http.Request, now time.Time) (caller, error) {
	if r.TLS == nil || len(r.TLS.VerifiedChains) == 0 || r.TLS.DidResume {
		return caller{role: api.RolePublic}, nil
	}
	leaf := r.TLS.VerifiedChains[0][0]
	if now.Before(leaf.NotBefore) || now.After(leaf.NotAfter) {
		return caller{}, errors.New("the certificate is not valid now")
	}
	c := caller{name: leaf.Subject.CommonName, spki: sha256.Sum256(leaf.RawSubjectPublicKeyInfo)}
	if len(leaf.Subject.OrganizationalUnit) != 1 {
		return c, errors.New("the certificate does not have exactly one organizational unit")
	}
	c.role = api.Role(leaf.Subject.OrganizationalUnit[0])
	return c, nil
}

// Handler serves the API of v.
func Handler(v *verifier.Verifier, log *slog.Logger) (http.Handler, error) {
	roles, err := api.Roles()
	if err != nil {
		return nil, err
	}
	s := &server{v: v, log: log}
	mux := http.NewServeMux()
	gate := func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			// r.Pattern is the route of the OpenAPI file; one that the file does not name lets nobody in.
			allowed := roles[r.Pattern]
			c, err := identify(r, time.Now())
			if err != nil || !(slices.Contains(allowed, c.role) || slices.Contains(allowed, api.RolePublic)) {
				detail := "this role may not call this"
				if err != nil {
					detail = err.Error()
				}
				s.refuse(w, r, proof.Refuse(proof.Forbidden, detail, proof.Fact{Name: "role", Want: fmt.Sprint(allowed), Got: strconv.Quote(string(c.role))}))
				return
			}
			next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), callerKey{}, c)))
		})
	}
	api.HandlerWithOptions(s, api.StdHTTPServerOptions{BaseRouter: mux, Middlewares: []api.MiddlewareFunc{gate},
		ErrorHandlerFunc: func(w http.ResponseWriter, r *http.Request, err error) {
			s.refuse(w, r, proof.Refuse(proof.RequestInvalid, err.Error(), proof.Fact{Name: "path", Value: "refused"}))
		}})
	return s.outer(mux), nil
}

// outer logs each request, turns a panic into a refusal and the mux's own 404 and 405 into problem+json.
func (s *server) outer(mux *http.ServeMux) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		start := time.Now()
		rec := &recorder{ResponseWriter: w, status: http.StatusOK}
		defer func() {
			if p := recover(); p != nil {
				s.log.Error("panic", "path", strconv.Quote(r.URL.Path), "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
				if !rec.wrote {
					s.refuse(rec, r, proof.Refuse(proof.Internal, "the service failed on this request"))
				}
			}
			name := ""
			if r.TLS != nil && len(r.TLS.PeerCertificates) > 0 {
				name = r.TLS.PeerCertificates[0].Subject.String()
			}
			s.log.Debug("request", "method", strconv.Quote(r.Method), "path", strconv.Quote(r.URL.Path), "peer", r.RemoteAddr,
				"subject", strconv.Quote(name), "status", rec.status, "took", time.Since(start).Round(time.Microsecond).String())
		}()
		rec.Header().Set("Cache-Control", "no-store")
		rec.Header().Set("X-Content-Type-Options", "nosniff")
		if _, pattern := mux.Handler(r); pattern == "" {
			s.unrouted(rec, r, mux)
			return
		}
		mux.ServeHTTP(rec, r)
	})
}

// unrouted asks the mux what it would say, and says it as a problem.
func (s *server) unrouted(w http.ResponseWriter, r *http.Request, mux *http.ServeMux) {
	probe := &recorder{ResponseWriter: discard{http.Header{}}, status: http.StatusOK}
	mux.ServeHTTP(probe, r)
	p := proof.Refuse(proof.RequestInvalid, "there is no such route", proof.Fact{Name: "path", Got: strconv.Quote(r.URL.Path)}).Problem()
	p.Status = http.StatusNotFound
	if probe.status == http.StatusMethodNotAllowed {
		w.Header().Set("Allow", probe.Header().Get("Allow"))
		p.Status, p.Detail = http.StatusMethodNotAllowed, "this route has no such method"
	}
	s.problem(w, p)
}

type discard struct{ h http.Header }

func (d discard) Header() http.Header         { return d.h }
func (d discard) Write(b []byte) (int, error) { return len(b), nil }
func (d discard) WriteHeader(int)             {}

type recorder struct {
	http.ResponseWriter
	status int
	wrote  bool
}

func (r *recorder) WriteHeader(status int) {
	r.status, r.wrote = status, true
	r.ResponseWriter.WriteHeader(status)
}

func (r *recorder) Write(b []byte) (int, error) {
	r.wrote = true
	return r.ResponseWriter.Write(b)
}

// Unwrap lets http.ResponseController and http.MaxBytesReader reach the connection.
func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }
