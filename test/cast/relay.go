package cast

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"troth/test/lab"
)

// Relay is an attacker who owns the network between a host and the verifier, and more: it holds the host's own TLS key and a
// certificate that the host takes for the verifier's, so that nothing is hidden from it or protected by TLS. What stops it must be
// in the documents.
type Relay struct {
	URL string // what the host is told to call the verifier

	server *http.Server
	mu     sync.Mutex
	held   map[string]chan struct{}
	seen   map[string]chan struct{} // closed when a request for a held path has arrived
	change map[string]func([]byte) []byte
	last   map[string][]byte // the newest good answer for a path
	replay map[string]bool
}

// NewRelay starts a relay between h and the verifier, at an address of its own outside the hosts.
func NewRelay(l *lab.Lab, h *lab.Host, port int) (*Relay, error) {
	listener, err := l.Outside.Listen(fmt.Sprintf("%s:%d", l.Outside.Address, port))
	if err != nil {
		return nil, err
	}
	cert, err := l.PKI.Server("relay", "", "outside", l.Outside.Address)
	if err != nil {
		return nil, err
	}
	front, err := tls.LoadX509KeyPair(cert.CertFile, cert.KeyFile)
	if err != nil {
		return nil, err
	}
	etc := h.Path("/etc/troth")
	back, err := l.PKI.TLS(lab.Certificate{CertFile: etc + "/hostd.pem", KeyFile: etc + "/hostd.key"})
	if err != nil {
		return nil, err
	}
	target, err := url.Parse(l.Verifier.URL())
	if err != nil {
		return nil, err
	}
	r := &Relay{
		URL:  fmt.Sprintf("https://%s:%d", l.Outside.Address, port),
		held: map[string]chan struct{}{}, seen: map[string]chan struct{}{}, change: map[string]func([]byte) []byte{},
		last: map[string][]byte{}, replay: map[string]bool{},
	}
	proxy := &httputil.ReverseProxy{
		Rewrite:        func(p *httputil.ProxyRequest) { p.SetURL(target); p.Out.Host = target.Host },
		Transport:      &http.Transport{DialContext: l.Outside.DialContext, TLSClientConfig: back, ForceAttemptHTTP2: true},
		ModifyResponse: r.modify,
		ErrorLog:       slog.NewLogLogger(slog.DiscardHandler, slog.LevelError),
	}
	r.server = &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
			if old := r.old(q); old != nil {
				w.Header().Set("Content-Type", "application/json")
				if _, err := w.Write(old); err != nil {
					return // the host has gone away
				}
				return
			}
			r.wait(q)
			proxy.ServeHTTP(w, q)
		}),
		TLSConfig:         &tls.Config{Certificates: []tls.Certificate{front}, MinVersion: tls.VersionTLS13, ClientAuth: tls.RequestClientCert},
		ReadHeaderTimeout: 10 * time.Second,
		ErrorLog:          slog.NewLogLogger(slog.DiscardHandler, slog.LevelError),
	}
	go func() {
		if err := r.server.ServeTLS(listener, "", ""); !errors.Is(err, http.ErrServerClosed) {
			fmt.Fprintln(os.Stderr, "relay:", err)
		}
	}()
	return r, nil
}

// Hold makes requests for a path wait until Release, and returns a channel that is closed when the first has come.
func (r *Relay) Hold(path string) <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.held[path], r.seen[path] = make(chan struct{}), make(chan struct{})
	return r.seen[path]
}

// Release lets what is held go on.
func (r *Relay) Release(path string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if c := r.held[path]; c != nil {
		close(c)
		delete(r.held, path)
		delete(r.seen, path)
	}
}

// Change rewrites the answers for a path; nil leaves them alone again.
func (r *Relay) Change(path string, change func(body []byte) []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.change[path] = change
}

// Replay keeps requests for a path back and answers them with the newest good answer that passed; off lets them through again.
func (r *Relay) Replay(path string, on bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.replay[path] = on
}

// old is the answer that stands in for a request that is kept back, or nil.
func (r *Relay) old(q *http.Request) []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.replay[q.URL.Path] {
		return nil
	}
	return r.last[q.URL.Path]
}

// Close ends the relay.
func (r *Relay) Close() error { return r.server.Close() }

func (r *Relay) wait(q *http.Request) {
	r.mu.Lock()
	held, seen := r.held[q.URL.Path], r.seen[q.URL.Path]
	if seen != nil {
		select {
		case <-seen:
		default:
			close(seen)
		}
	}
	r.mu.Unlock()
	if held == nil {
		return
	}
	select {
	case <-held:
	case <-q.Context().Done():
	}
}

func (r *Relay) modify(a *http.Response) error {
	if a.StatusCode != http.StatusOK {
		return nil
	}
	body, err := io.ReadAll(a.Body)
	if err != nil {
		return err
	}
	r.mu.Lock()
	change := r.change[a.Request.URL.Path]
	r.last[a.Request.URL.Path] = body
	r.mu.Unlock()
	if change != nil {
		body = change(body)
	}
	a.Body = io.NopCloser(bytes.NewReader(body))
	a.ContentLength = int64(len(body))
	a.Header.Set("Content-Length", fmt.Sprint(len(body)))
	return nil
}

// Through makes a host call the relay instead of the verifier. hostd must be started after it.
func (r *Relay) Through(h *lab.Host, verifier string) error {
	path := h.Path("/etc/troth/hostd.toml")
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if !strings.Contains(string(b), verifier) {
		return fmt.Errorf("%s does not name %s", path, verifier)
	}
	return os.WriteFile(path, []byte(strings.ReplaceAll(string(b), verifier, r.URL)), 0o644)
}
