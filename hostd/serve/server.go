// Package serve is troth-hostd's API: handlers, who may call them, and over which sockets.
//
// It promises that a route answers only roles which openapi.yaml names for it; that over the network only TLS 1.3 with a fresh handshake is spoken
// (no tickets, so that every connection shows its certificate); that bodies are bounded and read strictly, and every failure is problem+json
// with a code; and that a panic in one handler is that caller's trouble alone. It trusts the client CA to put the right OU into certificates,
// and the kernel's word about who is behind a unix socket.
package serve

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"troth/hostd"
	"troth/hostd/api"
	"troth/hostd/audit"
	"troth/proof"
)

// Bounds of the API.
const (
	maxBody     = 3 << 20 // a domain of 1 MiB, escaped, and a token
	maxWait     = 60 * time.Second
	maxRequests = 512 // at work at one time
)

// Server serves the API of a daemon.
type Server struct {
	Daemon  *hostd.Daemon
	Log     *slog.Logger
	Version string

	roles map[string][]string
	mux   *http.ServeMux
	slots chan struct{}
}

// recorder lets the generated code register its routes and notes them.
type recorder struct {
	*http.ServeMux
	patterns []string
}

func (r *recorder) HandleFunc(pattern string, h func(http.ResponseWriter, *http.Request)) {
	r.patterns = append(r.patterns, pattern)
	r.ServeMux.HandleFunc(pattern, h)
}

// New makes the server. It fails when the routes of the generated code and those of the OpenAPI file are not the same.
func New(d *hostd.Daemon, log *slog.Logger, version string) (*Server, error) {
	s := &Server{Daemon: d, Log: log, Version: version, slots: make(chan struct{}, maxRequests)}
	var err error
	if s.roles, err = Table(api.Spec); err != nil {
		return nil, err
	}
	r := &recorder{ServeMux: http.NewServeMux()}
	api.HandlerWithOptions(handlers{s}, api.StdHTTPServerOptions{BaseRouter: r, ErrorHandlerFunc: func(w http.ResponseWriter, _ *http.Request, err error) {
		s.refuse(w, proof.Refuse(proof.RequestInvalid, err.Error()))
	}})
	for _, p := range r.patterns {
		if s.roles[p] == nil {
			return nil, fmt.Errorf("route %s has no roles", p)
		}
	}
	if len(r.patterns) != len(s.roles) {
		return nil, fmt.Errorf("%d routes and %d entries in the OpenAPI file", len(r.patterns), len(s.roles))
	}
	s.mux = r.ServeMux
	return s, nil
}

// Routes lists "METHOD /path" with the roles that may call it.
func (s *Server) Routes() map[string][]string { return s.roles }

// ServeHTTP decides who may call, bounds the request, and keeps panics in.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	caller := callerOf(r, s.Daemon.Time)
	defer func() {
		if p := recover(); p != nil {
			if err, ok := p.(error); ok && errors.Is(err, http.ErrAbortHandler) {
				panic(p)
			}
			s.Log.Error("panic in a handler", "method", r.Method, "caller", caller.ID, "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
			s.refuse(w, proof.Refuse(proof.Internal, "the request failed in a way that nobody foresaw"))
		}
	}()
	select {
	case s.slots <- struct{}{}:
		defer func() { <-s.slots }()
	default:
		s.refuse(w, proof.Refuse(proof.TPMBusy, "too many requests are at work"))
		return
	}
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.Header().Set("Cache-Control", "no-store")
	_, pattern := s.mux.Handler(r)
	roles, known := s.roles[pattern]
	if !known {
		s.notThere(w, r)
		return
	}
	if !caller.May(roles) {
		if s.audit(caller, pattern, r, true) {
			s.Log.Warn("forbidden", "route", pattern, "caller", caller.ID, "roles", caller.Roles)
		}
		s.refuse(w, proof.Refuse(proof.Forbidden, cmp.Or(caller.why, "this call needs another role"),
			proof.Fact{Name: "role", Want: fmt.Sprint(roles), Got: fmt.Sprint(caller.Roles)}))
		return
	}
	if r.Method != http.MethodGet && s.audit(caller, pattern, r, false) {
		s.Log.Info("request", "route", pattern, "path", r.URL.EscapedPath(), "caller", caller.ID)
	}
	r.Body = http.MaxBytesReader(w, r.Body, maxBody)
	s.mux.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), callerKey{}, caller)))
}

// audit notes a request that changes something, and one that its caller may not make. False: there were so many of them that it was only counted.
func (s *Server) audit(caller Caller, pattern string, r *http.Request, forbidden bool) bool {
	uuid := ""
	for _, part := range strings.Split(r.URL.Path, "/") {
		if len(part) == 36 {
			uuid = part
		}
	}
	return s.Daemon.Audited(caller.ID, few(caller, forbidden), pattern, uuid, forbidden)
}

// few is the kind of those whose calls the audit log does not take without limit: all but engines and operators, who may do what they ask for.
func few(c Caller, forbidden bool) string {
	switch {
	case !c.named:
		return audit.Strangers
	case forbidden:
		return audit.Callers
	case !c.May([]string{Engine, Operator}):
		return audit.Tenants
	}
	return ""
}

// notThere answers what no route takes.
func (s *Server) notThere(w http.ResponseWriter, r *http.Request) {
	p := proof.Refuse(proof.RequestInvalid, "there is no such route", proof.Fact{Name: "method", Value: r.Method}).Problem()
	p.Status = http.StatusNotFound
	s.problem(w, p)
}

func (s *Server) refuse(w http.ResponseWriter, r *proof.Refusal) { s.problem(w, r.Problem()) }

func (s *Server) problem(w http.ResponseWriter, p proof.Problem) {
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(p.Status)
	s.encode(w, p)
}

func (s *Server) answer(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	s.encode(w, v)
}

func (s *Server) encode(w http.ResponseWriter, v any) {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		s.Log.Debug("cannot send an answer", "error", err.Error())
	}
}

func (s *Server) http(context func(context.Context, net.Conn) context.Context) *http.Server {
	return &http.Server{
		Handler: s, ConnContext: context,
		ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 30 * time.Second, WriteTimeout: maxWait + 30*time.Second, IdleTimeout: time.Minute,
		MaxHeaderBytes: 16 << 10,
		TLSNextProto:   map[string]func(*http.Server, *tls.Conn, http.Handler){}, // HTTP/1.1 alone
		ErrorLog:       slog.NewLogLogger(s.Log.Handler(), slog.LevelDebug),
	}
}

// TLS is the configuration of the network socket. now is what certificates are checked against.
func TLS(own tls.Certificate, clients *x509.CertPool, now func() time.Time) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{own}, ClientCAs: clients, NextProtos: []string{"http/1.1"},
		ClientAuth:             tls.VerifyClientCertIfGiven, // public routes need none; every other one needs a role
		SessionTicketsDisabled: true, Time: now,
	}
}

// Listen opens the sockets that the configuration names.
func (s *Server) Listen() ([]net.Listener, error) {
	c := s.Daemon.Config.API
	unixListener, err := listenUnix(c.Socket, len(c.AllowUIDs) > 0)
	if err != nil {
		return nil, err
	}
	all := []net.Listener{unixListener}
	if c.Listen == "" {
		return all, nil
	}
	fail := func(err error) ([]net.Listener, error) { return nil, errors.Join(err, unixListener.Close()) }
	own, err := tls.LoadX509KeyPair(c.Cert, c.Key)
	if err != nil {
		return fail(fmt.Errorf("cannot load the API's certificate: %w", err))
	}
	clients, err := hostd.LoadPool(c.ClientCA)
	if err != nil {
		return fail(err)
	}
	tcp, err := net.Listen("tcp", c.Listen)
	if err != nil {
		return fail(fmt.Errorf("cannot listen: %w", err))
	}
	return append(all, tls.NewListener(tcp, TLS(own, clients, s.Daemon.Time))), nil
}

// listenUnix makes the socket in place of one that a dead daemon left. The mode keeps others out; who is in is decided by the peer's user.
func listenUnix(path string, others bool) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("cannot make the folder of the socket: %w", err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("cannot remove an old socket: %w", err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("cannot listen: %w", err)
	}
	mode := fs.FileMode(0o660)
	if others {
		mode = 0o666 // permissions cannot name users; the peer's user is what counts
	}
	if err := os.Chmod(path, mode); err != nil {
		return nil, errors.Join(fmt.Errorf("cannot set the socket's mode: %w", err), l.Close())
	}
	return l, nil
}

// Run serves the listeners until ctx ends, and then lets requests at work finish for a moment.
func (s *Server) Run(ctx context.Context, listeners []net.Listener) error {
	failed := make(chan error, len(listeners))
	var servers []*http.Server
	for _, l := range listeners {
		var peers func(context.Context, net.Conn) context.Context
		if l.Addr().Network() == "unix" {
			peers = peerContext(s.Daemon.Config.API.AllowUIDs)
		}
		h := s.http(peers)
		servers = append(servers, h)
		go func() { failed <- h.Serve(l) }()
	}
	var err error
	select {
	case <-ctx.Done():
	case err = <-failed:
	}
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	for _, h := range servers {
		if serr := h.Shutdown(stop); serr != nil {
			err = errors.Join(err, h.Close())
		}
	}
	if errors.Is(err, http.ErrServerClosed) {
		err = nil
	}
	return err
}

func sorted(codes []proof.Code) []string {
	out := make([]string, 0, len(codes))
	for _, c := range codes {
		out = append(out, string(c))
	}
	return slices.Clip(out)
}
