package serve

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"troth/hostd"
	"troth/hostd/api"
	"troth/hostd/audit"
	"troth/hostd/journal"
	"troth/proof"
)

// call makes a request that fits a route but for what it asks for.
func call(t *testing.T, route string) (method, path, body string) {
	t.Helper()
	method, path, _ = strings.Cut(route, " ")
	path = strings.NewReplacer("{uuid}", "6a0f0a5e-4c55-4a53-9d5c-0d8b6f1f2a11", "{id}", "0123").Replace(path)
	if method == "POST" {
		body = "{}"
		if strings.HasSuffix(path, "/launches") {
			body = launchBody(t, nil)
		}
		if strings.HasSuffix(path, "/challenge") {
			body = `{"challenge":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"}`
		}
	}
	return method, path, body
}

func TestAttack(t *testing.T) {
	r := newRig(t)
	t.Run("N-ROUTES", func(t *testing.T) {
		other := newPKI(t)
		past := func(p *pki, ou string) tls.Certificate {
			return p.issue(&x509.Certificate{Subject: pkix.Name{CommonName: "old", OrganizationalUnit: []string{ou}}, NotBefore: time.Now().Add(-2 * time.Hour),
				NotAfter: time.Now().Add(-time.Hour), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
		}
		routes := r.server.Routes()
		if len(routes) < 15 {
			t.Fatalf("only %d routes", len(routes))
		}
		for route, roles := range routes {
			method, path, body := call(t, route)
			for _, role := range []string{Engine, Operator, Tenant, "host", "public", "root", ""} {
				c := r.client(r.pki.client(role))
				resp, b, err := r.do(c, method, r.url(path), body, "Idempotency-Key", "routes-1")
				if err != nil {
					t.Fatalf("%s as %s: %v", route, role, err)
				}
				may := slices.Contains(roles, Public) || slices.Contains(roles, role)
				if refused := resp.StatusCode == http.StatusForbidden; refused == may {
					t.Errorf("%s as %q: status %d, may %v: %s", route, role, resp.StatusCode, may, b)
				}
			}
			public := slices.Contains(roles, Public)
			for name, certs := range map[string][]tls.Certificate{
				"none":      nil,
				"two roles": {r.pki.client(Engine, Operator)},
				"no role":   {r.pki.client()},
				"server's": {r.pki.issue(&x509.Certificate{Subject: pkix.Name{CommonName: "srv", OrganizationalUnit: []string{Operator}},
					ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})},
				"expired":         {past(r.pki, Operator)},
				"another CA's":    {other.client(Operator)},
				"another CA's, a": {other.client(Engine)},
			} {
				resp, b, err := r.do(r.client(certs...), method, r.url(path), body, "Idempotency-Key", "routes-2")
				if err != nil {
					continue // turned away in the handshake
				}
				if !public && resp.StatusCode != http.StatusForbidden {
					t.Errorf("%s with %s certificate: status %d: %s", route, name, resp.StatusCode, b)
				}
			}
		}
		for _, miss := range []string{"GET /", "GET /v1", "POST /v1/status", "GET /v1/domains/../status/x", "PATCH /v1/launches", "GET /v1/domains/x/y"} {
			method, path, _ := strings.Cut(miss, " ")
			resp, b, err := r.do(r.client(r.pki.client(Operator)), method, r.url(path), "")
			if err != nil || resp.StatusCode/100 == 2 {
				t.Errorf("%s: %v %s", miss, err, b)
			}
		}
	})
	t.Run("N-ROUTES/table", func(t *testing.T) {
		// A file in which a route lost its roles, or gained unknown ones, starts no daemon.
		spec := string(api.Spec)
		for name, broken := range map[string]string{
			"a route without roles": strings.Replace(spec, "      x-troth-roles: [engine, operator]\n", "", 1),
			"an unknown role":       strings.Replace(spec, "[engine, operator]", "[engine, everyone]", 1),
			"another form":          strings.Replace(spec, "x-troth-roles: [public]", "x-troth-roles: public", 1),
			"roles twice":           strings.Replace(spec, "      x-troth-roles: [public]\n", "      x-troth-roles: [public]\n      x-troth-roles: [public]\n", 1),
			"no routes":             "paths:\n",
		} {
			if broken == spec {
				t.Fatalf("%s: nothing was changed", name)
			}
			if _, err := Table([]byte(broken)); err == nil {
				t.Errorf("%s was taken", name)
			}
		}
	})
	t.Run("N-ROUTES/expires", func(t *testing.T) {
		// A certificate's time is over while its connection is kept busy.
		c := r.client(r.pki.client(Operator))
		defer r.daemon.Clock.Dated(time.Now().Unix())
		for _, step := range []struct {
			ahead  time.Duration
			status int
		}{{0, 200}, {2 * time.Hour, 403}, {0, 200}, {-2 * time.Hour, 403}} {
			r.daemon.Clock.Dated(time.Now().Add(step.ahead).Unix())
			resp, b := r.must(c, "GET", r.url("/v1/status"), "")
			if resp.StatusCode != step.status || step.status == 403 && !strings.Contains(string(b), "not valid now") {
				t.Errorf("%v ahead: %d %s", step.ahead, resp.StatusCode, b)
			}
			if resp, _ := r.must(c, "GET", r.url("/healthz"), ""); resp.StatusCode != 200 {
				t.Errorf("%v ahead, what anybody may call: %d", step.ahead, resp.StatusCode)
			}
		}
	})
	t.Run("N-RESUME", func(t *testing.T) {
		cache := tls.NewLRUClientSessionCache(8)
		for n := range 3 {
			conf := &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: r.pki.pool, ServerName: "127.0.0.1", Certificates: []tls.Certificate{r.pki.client(Operator)}, ClientSessionCache: cache}
			c, err := tls.Dial("tcp", r.tcp, conf)
			if err != nil {
				t.Fatal(err)
			}
			// A ticket would come after the handshake, with the first answer.
			if _, err := fmt.Fprintf(c, "GET /healthz HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"); err != nil {
				t.Fatal(err)
			}
			if _, err := bufio.NewReader(c).ReadString('\n'); err != nil {
				t.Fatal(err)
			}
			if c.ConnectionState().DidResume {
				t.Errorf("connection %d resumed a session", n)
			}
			if err := c.Close(); err != nil {
				t.Fatal(err)
			}
		}
		for _, version := range []uint16{tls.VersionTLS10, tls.VersionTLS11, tls.VersionTLS12} {
			if c, err := tls.Dial("tcp", r.tcp, &tls.Config{MinVersion: version, MaxVersion: version, RootCAs: r.pki.pool}); err == nil {
				t.Errorf("TLS %#x was spoken: %v", version, c.Close())
			}
		}
	})
	t.Run("X-JSON", func(t *testing.T) {
		c := r.local()
		good := launchBody(t, nil)
		for name, body := range map[string]string{
			"doubled key": strings.Replace(good, `"action"`, `"action":"stop","action"`, 1),
			"unknown key": strings.Replace(good, `{`, `{"extra":1,`, 1),
			"other case":  strings.Replace(good, `"action"`, `"Action"`, 1),
			"missing key": `{"token":"a","domain":"b"}`,
			"null":        strings.Replace(good, `"start"`, `null`, 1),
			"number":      strings.Replace(good, `"start"`, `7`, 1),
			"trailing":    good + "{}",
			"deep":        strings.Repeat(`{"token":`, 100),
			"array":       "[" + good + "]",
			"empty":       " ",
			"not UTF-8":   strings.Replace(good, "start", "st\xffrt", 1),
			"large":       `{"token":"` + strings.Repeat("x", maxBody) + `"}`,
		} {
			resp, b, err := r.do(c, "POST", "http://h/v1/launches", body, "Idempotency-Key", "json-0001")
			if err != nil {
				t.Errorf("%s: %v", name, err)
				continue
			}
			if resp.StatusCode != 400 || !strings.Contains(string(b), string(proof.RequestInvalid)) {
				t.Errorf("%s: %d %s", name, resp.StatusCode, b)
			}
		}
		resp, b := r.must(c, "POST", "http://h/v1/launches", good, "Idempotency-Key", "json-0002", "Content-Type", "text/plain")
		r.problem(resp, b, 400, proof.RequestInvalid)
		for _, k := range []string{"", "short", strings.Repeat("k", 129), "with space"} {
			resp, b := r.must(c, "POST", "http://h/v1/launches", good, "Idempotency-Key", k)
			r.problem(resp, b, 400, proof.RequestInvalid)
		}
		for _, wait := range []string{"61s", "-1s", "x", "1e9h"} {
			resp, b := r.must(c, "GET", "http://h/v1/launches/0123?wait="+wait, "")
			r.problem(resp, b, 400, proof.RequestInvalid)
		}
	})
	t.Run("X-PATH", func(t *testing.T) {
		for _, uuid := range []string{"..", "%2e%2e", "6a0f0a5e-4c55-4a53-9d5c-0d8b6f1f2a1/", "-rf", "x%00y", strings.Repeat("a", 36)} {
			resp, b := r.must(r.local(), "GET", "http://h/v1/domains/"+uuid+"/proof", "")
			if resp.StatusCode/100 == 2 {
				t.Errorf("%s: %s", uuid, b)
			}
		}
	})
	t.Run("X-SLOW", func(t *testing.T) {
		// Connections that dribble, in the handshake, in the header and in the body, while an honest client works.
		n := 1000
		if testing.Short() {
			n = 200
		}
		var slow []net.Conn
		for i := range n {
			network, address := "tcp", r.tcp
			if i%2 == 0 {
				network, address = "unix", r.unix
			}
			c, err := net.Dial(network, address)
			if err != nil {
				t.Fatalf("connection %d: %v", i, err)
			}
			slow = append(slow, c)
			start := "\x16\x03\x01"
			if network == "unix" {
				start = "POST /v1/launches HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nIdempotency-Key: slow-slow\r\nContent-Length: 100\r\n\r\n{"
				if i%4 == 0 {
					start = "GET /healthz HT"
				}
			}
			if _, err := c.Write([]byte(start)); err != nil {
				t.Fatal(err)
			}
		}
		c := r.client(r.pki.client(Operator))
		for range 20 {
			begin := time.Now()
			if resp, b := r.must(c, "GET", r.url("/v1/status"), ""); resp.StatusCode != 200 || time.Since(begin) > 4*time.Second {
				t.Fatalf("an honest request beside slow ones: %d after %v: %s", resp.StatusCode, time.Since(begin), b)
			}
		}
		for _, c := range slow {
			if err := c.Close(); err != nil {
				t.Fatal(err)
			}
		}
	})
	t.Run("R-PANIC", func(t *testing.T) {
		broken := *r.server
		broken.mux = http.NewServeMux()
		broken.mux.HandleFunc("GET /healthz", func(http.ResponseWriter, *http.Request) { panic("in a handler") })
		w := httptest.NewRecorder()
		broken.ServeHTTP(w, httptest.NewRequest("GET", "/healthz", nil))
		r.problem(&answered{w.Code, w.Header()}, w.Body.Bytes(), 500, proof.Internal)
		if resp, _ := r.must(r.local(), "GET", "http://h/healthz", ""); resp.StatusCode != 200 {
			t.Error("the next request suffers")
		}
	})
	t.Run("S-ORACLE", func(t *testing.T) {
		// The API has no call that takes a statement, a quote, bytes to MAC or a sealed blob: a launch and a challenge to the guest are all.
		var wg sync.WaitGroup
		for route := range r.server.Routes() {
			method, _, _ := strings.Cut(route, " ")
			if method != "POST" {
				continue
			}
			for _, extra := range []string{`"statement":"AA"`, `"mac":"AA"`, `"sealed":"AA"`, `"nonce":"AA"`, `"quote":{}`} {
				wg.Go(func() {
					method, path, body := call(t, route)
					body = strings.Replace(body, "{", "{"+extra+",", 1)
					body = strings.Replace(body, ",}", "}", 1)
					resp, b, err := r.do(r.local(), method, "http://h"+path, body, "Idempotency-Key", "oracle-1")
					if err != nil || resp.StatusCode/100 == 2 {
						t.Errorf("%s with %s: %v %s", route, extra, err, b)
					}
				})
			}
		}
		wg.Wait()
	})
}

// TestForbiddenCallsWashNothingAway: whoever may not call, or may and changes nothing, leaves a bounded number of lines, and none of the room of another kind.
func TestForbiddenCallsWashNothingAway(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	l, err := audit.Open(journal.OS{}, path, time.Now, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	s, err := New(&hostd.Daemon{Audit: l, Clock: hostd.NewClock()}, slog.New(slog.DiscardHandler), "test")
	if err != nil {
		t.Fatal(err)
	}
	p := newPKI(t)
	const flood = 5000
	for _, c := range map[string]struct{ ou, method, path string }{
		"stranger":        {"", "GET", "/v1/domains"},
		"no role":         {"host", "DELETE", "/v1/domains/6a0f0a5e-4c55-4a53-9d5c-0d8b6f1f2a11"},
		"tenant may":      {Tenant, "POST", "/v1/domains/6a0f0a5e-4c55-4a53-9d5c-0d8b6f1f2a11/challenge"},
		"user of the API": {Operator, "POST", "/v1/domains/x/stop"},
	} {
		r := httptest.NewRequest(c.method, c.path, nil)
		if c.ou != "" {
			leaf, err := x509.ParseCertificate(p.client(c.ou).Certificate[0])
			if err != nil {
				t.Fatal(err)
			}
			r.TLS = &tls.ConnectionState{VerifiedChains: [][]*x509.Certificate{{leaf}}}
		}
		calls := flood
		if c.ou == Operator {
			calls = 300 // all of them have a line
		}
		for range calls {
			s.ServeHTTP(httptest.NewRecorder(), r)
		}
	}
	done := make(chan struct{})
	close(done)
	l.Run(done)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	log := string(b)
	if n := strings.Count(log, "\n"); n > 1+3*101+300 {
		t.Errorf("%d lines", n)
	}
	for want, n := range map[string]int{`"POST /v1/domains/{uuid}/stop"`: 300, `"actor":"nobody"`: 100, `"forbidden","actor":"strangers","code":"forbidden","count":4900`: 1,
		`"forbidden","actor":"callers","code":"forbidden","count":4900`: 1, `"asked","actor":"tenants","count":4900`: 1} {
		if got := strings.Count(log, want); got != n {
			t.Errorf("%d times %s, want %d", got, want, n)
		}
	}
}
