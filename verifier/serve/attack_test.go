package serve

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"troth/proof"
	"troth/verifier/api"
)

func TestAttack(t *testing.T) {
	for id, run := range map[string]func(*testing.T){
		"N-ROUTES": attackRoutes, "N-RESUME": attackResume, "N-SSRF": attackSSRF, "X-SLOW": attackSlow, "X-JSON": attackJSON, "X-LOG": attackLogs, "R-PANIC": attackPanic,
	} {
		t.Run(id, run)
	}
}

// attackPanic: a panic over a request is that caller's trouble: internal, which nobody takes for a verdict or a release. One in the middle of an answer
// ends the answer there, which is no document.
func attackPanic(t *testing.T) {
	s := &server{log: slog.New(slog.DiscardHandler)}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /early", func(http.ResponseWriter, *http.Request) { panic("over a request") })
	mux.HandleFunc("POST /late", func(w http.ResponseWriter, _ *http.Request) {
		if _, err := io.WriteString(w, `{"verdict":"`); err != nil {
			t.Error(err)
		}
		panic("over an answer")
	})
	h := s.outer(mux)
	early := httptest.NewRecorder()
	h.ServeHTTP(early, httptest.NewRequest(http.MethodPost, "/early", nil))
	var p api.Problem
	if err := json.Unmarshal(early.Body.Bytes(), &p); err != nil || early.Code != http.StatusInternalServerError || p.Code != proof.Internal {
		t.Errorf("%d %s: %v", early.Code, early.Body, err)
	}
	late := httptest.NewRecorder()
	h.ServeHTTP(late, httptest.NewRequest(http.MethodPost, "/late", nil))
	if json.Valid(late.Body.Bytes()) {
		t.Errorf("a document was made of half an answer: %s", late.Body)
	}
}

// attackRoutes enumerates the OpenAPI file's routes with every role and every kind of certificate.
func attackRoutes(t *testing.T) {
	s := newService(t)
	other := newPKI(t)
	routes := must[map[string][]api.Role](t)(api.Roles())
	if len(routes) != 25 {
		t.Errorf("%d routes: look at the new one's roles and change this number", len(routes))
	}
	all := []api.Role{api.RoleHost, api.RoleOperator, api.RoleEngine, api.RoleTenant}
	clients := map[string]*http.Client{"none": s.client()}
	for _, r := range all {
		clients[string(r)] = s.client(s.pki.client(string(r)))
	}
	clients["unknown role"] = s.client(s.pki.client("root"))
	clients["role in other case"] = s.client(s.pki.client("Operator"))
	clients["the word public"] = s.client(s.pki.client("public"))
	clients["two roles"] = s.client(s.pki.issue("x", []string{"host", "operator"}, time.Hour, x509.ExtKeyUsageClientAuth))
	clients["no role"] = s.client(s.pki.issue("operator", nil, time.Hour, x509.ExtKeyUsageClientAuth))
	broken := map[string]*http.Client{ // these do not get through the handshake, not even to public routes
		"expired":     s.client(s.pki.issue("x", []string{"operator"}, -time.Hour, x509.ExtKeyUsageClientAuth)),
		"wrong CA":    s.client(other.client("operator")),
		"server cert": s.client(s.pki.issue("x", []string{"operator"}, time.Hour, x509.ExtKeyUsageServerAuth)),
	}
	for route, roles := range routes {
		method, path, _ := strings.Cut(route, " ")
		path = strings.NewReplacer("{name}", "n1", "{id}", "0123", "{token}", strings.Repeat("ab", 32)).Replace(path)
		body := ""
		if method == http.MethodPost {
			body = "{"
		}
		public := slices.Contains(roles, api.RolePublic)
		for who, c := range clients {
			status, _, b, err := s.do(c, method, path, body)
			if err != nil {
				t.Fatal(err)
			}
			allowed := public || slices.Contains(roles, api.Role(who))
			if public && (who == "two roles" || who == "no role") {
				allowed = false // a certificate of ours that says nothing clear is refused everywhere
			}
			if forbidden := status == http.StatusForbidden && bytes.Contains(b, []byte(`"forbidden"`)); forbidden == allowed {
				t.Errorf("%s by %s: status %d, allowed %v: %s", route, who, status, allowed, b)
			}
		}
		for who, c := range broken {
			if status, _, _, err := s.do(c, method, path, body); err == nil {
				t.Errorf("%s by %s: answered %d", route, who, status)
			}
		}
	}
	// No route outside the file, and no method that it does not name.
	op := clients["operator"]
	s.problem(op, "GET", "/v1/nothing", "", http.StatusNotFound, proof.RequestInvalid)
	s.problem(op, "GET", "/debug/pprof/", "", http.StatusNotFound, proof.RequestInvalid)
	s.problem(op, "DELETE", "/v1/hosts", "", http.StatusMethodNotAllowed, proof.RequestInvalid)
	s.problem(op, "GET", "/v1/hosts/nobody", "", http.StatusNotFound, proof.RequestInvalid)
	if status, _, _, err := s.do(op, "GET", "/v1/hosts", ""); err != nil || status != http.StatusOK {
		t.Fatalf("honest operator: %d %v", status, err)
	}
}

// TestRolesHaveNoDefault: a file whose operation names no role is an error and opens nothing.
func TestRolesHaveNoDefault(t *testing.T) {
	for name, spec := range map[string]string{
		"no roles": "paths:\n  /a:\n    get:\n      summary: x\n",
		"empty":    "paths:\n  /a:\n    get:\n      x-troth-roles: []\n",
		"unknown":  "paths:\n  /a:\n    get:\n      x-troth-roles: [admin]\n",
		"nothing":  "openapi: 3.1.0\n",
		"method":   "paths:\n  /a:\n    fetch:\n      x-troth-roles: [host]\n",
	} {
		if got, err := api.ReadRoles([]byte(spec)); err == nil {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// attackResume: with tickets off no session is resumed, and nothing older than TLS 1.3 is spoken.
func attackResume(t *testing.T) {
	s := newService(t)
	config := s.config(s.pki.client("operator"))
	config.ClientSessionCache = tls.NewLRUClientSessionCache(8)
	for range 3 {
		c := must[*tls.Conn](t)(tls.Dial("tcp", s.addr, config))
		if _, err := io.WriteString(c, "GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		b := must[[]byte](t)(io.ReadAll(c))
		if !bytes.HasPrefix(b, []byte("HTTP/1.1 200")) {
			t.Fatalf("%s", b)
		}
		if state := c.ConnectionState(); state.DidResume || state.Version != tls.VersionTLS13 {
			t.Fatalf("resumed %v, version %x", state.DidResume, state.Version)
		}
	}
	if _, ok := config.ClientSessionCache.Get("127.0.0.1"); ok {
		t.Fatal("the server gave a session ticket")
	}
	old := s.config(s.pki.client("operator"))
	old.MaxVersion = tls.VersionTLS12
	if c, err := tls.Dial("tcp", s.addr, old); err == nil {
		t.Fatal("TLS 1.2 was spoken", c.Close())
	}
	// A certificate that ends while its connection is open ends the caller's role.
	short := s.pki.issue("op", []string{"operator"}, 2*time.Second, x509.ExtKeyUsageClientAuth)
	client := s.client(short)
	if status, _, _, err := s.do(client, "GET", "/v1/hosts", ""); err != nil || status != http.StatusOK {
		t.Fatalf("%d %v", status, err)
	}
	time.Sleep(2100 * time.Millisecond)
	s.problem(client, "GET", "/v1/hosts", "", http.StatusForbidden, proof.Forbidden)
}

// attackSSRF: nothing in the product's verifier can dial; a URL in any field reaches nobody.
func attackSSRF(t *testing.T) {
	s := newService(t)
	trap := must[net.Listener](t)(net.Listen("tcp", "127.0.0.1:0"))
	hit := make(chan struct{}, 1)
	go func() {
		for {
			c, err := trap.Accept()
			if err != nil {
				return
			}
			hit <- struct{}{}
			if err := c.Close(); err != nil {
				return
			}
		}
	}()
	url := "http://" + trap.Addr().String() + "/x"
	op, host := s.client(s.pki.client("operator")), s.client(s.pki.client("host"))
	s.problem(op, "POST", "/v1/references", fmt.Sprintf(`{"name":%q,"launcher":%q,"values":[]}`, url, url), 400, proof.RequestInvalid)
	s.problem(op, "POST", "/v1/references/import", fmt.Sprintf(`{"host":%q,"name":"x","launcher":"slaunch","apply":true}`, url), 404, proof.RequestInvalid)
	s.problem(host, "POST", "/v1/releases", fmt.Sprintf(`{"token":%q,"statement":""}`, url), 400, proof.RequestInvalid)
	select {
	case <-hit:
		t.Fatal("the verifier dialled out")
	case <-time.After(100 * time.Millisecond):
	}
	if err := trap.Close(); err != nil {
		t.Fatal(err)
	}
	// Nor is there code that could: the rooms of the verifier name no dialer and no HTTP client.
	for _, dir := range []string{"..", ".", "../store"} {
		for _, f := range must[[]string](t)(filepath.Glob(filepath.Join(dir, "*.go"))) {
			if strings.HasSuffix(f, "_test.go") {
				continue
			}
			b := must[[]byte](t)(os.ReadFile(f))
			for _, word := range []string{"net.Dial", "Dialer", "http.Client", "http.Get", "http.DefaultClient", "http.Post", "exec.Command"} {
				if bytes.Contains(b, []byte(word)) {
					t.Errorf("%s: %s", f, word)
				}
			}
		}
	}
}

// attackSlow: a thousand connections that dribble hold nobody up, and are gone after the limits.
func attackSlow(t *testing.T) {
	s := newService(t)
	const many = 1000
	conns := make([]net.Conn, 0, many)
	defer func() {
		for _, c := range conns {
			if err := c.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
				t.Error(err)
			}
		}
	}()
	for i := range many {
		c := must[net.Conn](t)(net.Dial("tcp", s.addr))
		conns = append(conns, c)
		if i%2 == 0 { // half say nothing, half begin a handshake
			if _, err := c.Write([]byte{0x16, 3, 1}); err != nil {
				t.Fatal(err)
			}
		}
	}
	client := s.client(s.pki.client("operator"))
	for range 5 {
		start := time.Now()
		if status, _, _, err := s.do(client, "GET", "/v1/hosts", ""); err != nil || status != http.StatusOK || time.Since(start) > 4*time.Second {
			t.Fatalf("honest client: %d %v after %v", status, err, time.Since(start))
		}
	}
	if testing.Short() {
		return
	}
	// A body that never ends, from a caller with a role.
	slow := must[*tls.Conn](t)(tls.Dial("tcp", s.addr, s.config(s.pki.client("host"))))
	if _, err := io.WriteString(slow, "POST /v1/releases HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{"); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	for _, c := range conns {
		if err := c.SetReadDeadline(start.Add(headerTime + 5*time.Second)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadAll(c); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("a silent connection is open after %v", time.Since(start))
		}
	}
	if err := slow.SetReadDeadline(time.Now().Add(requestTime + 5*time.Second)); err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(slow)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal("a dribbling body is open after the limit")
	}
	if len(b) > 0 && !bytes.Contains(b, []byte("request-invalid")) {
		t.Fatalf("%s", b)
	}
}

// attackJSON: every way to read a body twice is refused, and the field is named.
func attackJSON(t *testing.T) {
	s := newService(t)
	op, host := s.client(s.pki.client("operator")), s.client(s.pki.client("host"))
	good := `{"name":"r","launcher":"slaunch","values":[{"index":17,"value":"%[1]s"},{"index":18,"value":"%[1]s"}]}`
	d := strings.Repeat("11", 32)
	for name, c := range map[string]struct{ body, field string }{
		"unknown":       {`{"name":"r","launcher":"slaunch","values":[],"evil":1}`, "evil"},
		"duplicate":     {`{"name":"r","name":"s","launcher":"slaunch","values":[]}`, "name"},
		"case":          {`{"Name":"r","launcher":"slaunch","values":[]}`, "Name"},
		"missing":       {`{"name":"r","values":[]}`, "launcher"},
		"inner unknown": {`{"name":"r","launcher":"slaunch","values":[{"index":17,"value":"` + d + `","x":0}]}`, "values[0].x"},
		"inner twice":   {`{"name":"r","launcher":"slaunch","values":[{"index":17,"index":18,"value":"` + d + `"}]}`, "values[0].index"},
		"trailing":      {fmt.Sprintf(good, d) + "{}", ""},
		"depth":         {strings.Repeat(`{"name":`, 40) + "1" + strings.Repeat("}", 40), "nests"},
		"null":          {`{"name":null,"launcher":"slaunch","values":[]}`, "name"},
		"number":        {`{"name":"r","launcher":"slaunch","values":[{"index":1e400,"value":"` + d + `"}]}`, "index"},
		"fraction":      {`{"name":"r","launcher":"slaunch","values":[{"index":17.5,"value":"` + d + `"}]}`, "index"},
		"upper hex":     {fmt.Sprintf(good, strings.Repeat("AB", 32)), "values[0].value"},
		"not UTF-8":     {"{\"name\":\"\xff\",\"launcher\":\"slaunch\",\"values\":[]}", "UTF-8"},
		"array":         {`[]`, "array"},
		"nothing":       {` `, ""},
	} {
		p := s.problem(op, "POST", "/v1/references", c.body, 400, proof.RequestInvalid)
		if !strings.Contains(p.Detail, c.field) {
			t.Errorf("%s: %q does not name %q", name, p.Detail, c.field)
		}
	}
	if p := s.problem(op, "POST", "/v1/references", `{"name":"`+strings.Repeat("x", maxReference)+`"}`, 400, proof.RequestInvalid); !strings.Contains(p.Detail, "large") {
		t.Errorf("large: %+v", p)
	}
	if p := s.problem(host, "POST", "/v1/attestations", `{"version":"troth-evidence/v1","version":"x"}`, 400, proof.EvidenceInvalid); p.Challenge == "" || !strings.Contains(p.Detail, "version") {
		t.Errorf("evidence: %+v", p)
	}
	for _, field := range []string{"challenge", "ak", "quote", "pcrs"} {
		body := map[string]any{"version": "troth-evidence/v1", "challenge": "", "ak": "000b" + strings.Repeat("00", 32), "quote": map[string]string{"message": "", "signature": ""}, "pcrs": []int{}}
		delete(body, field)
		if p := s.problem(host, "POST", "/v1/attestations", string(must[[]byte](t)(json.Marshal(body))), 400, proof.EvidenceInvalid); !strings.Contains(p.Detail, field) {
			t.Errorf("%s: %+v", field, p)
		}
	}
	req := must[*http.Request](t)(http.NewRequestWithContext(t.Context(), "POST", "https://"+s.addr+"/v1/references", strings.NewReader("x=1")))
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	resp, err := op.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	if err := resp.Body.Close(); err != nil || resp.StatusCode != 400 {
		t.Fatalf("a form was read: %d %v", resp.StatusCode, err)
	}
	if status, _, b, err := s.do(op, "POST", "/v1/references", fmt.Sprintf(good, d)); err != nil || status != 200 {
		t.Fatalf("honest: %d %v %s", status, err, b)
	}
}

// attackLogs: control bytes in a path, a certificate's name or a body make no line of their own.
func attackLogs(t *testing.T) {
	s := newService(t)
	evil := s.client(s.pki.issue("x\n2026 level=INFO msg=forged\x1b[2J", []string{"operator"}, time.Hour, x509.ExtKeyUsageClientAuth))
	s.problem(evil, "GET", "/v1/hosts/a%0Atime=now%20level=INFO%1B%5B2J", "", 404, proof.RequestInvalid)
	s.problem(evil, "POST", "/v1/hosts/a%0Ab/approve", "", 404, proof.RequestInvalid)
	s.problem(evil, "GET", "/v1/%0A%00forged", "", 404, proof.RequestInvalid)
	s.logs.mu.Lock()
	defer s.logs.mu.Unlock()
	text := s.logs.b.String()
	if !strings.Contains(text, "forged") {
		t.Fatal("the requests are not in the log")
	}
	for line := range strings.Lines(text) {
		if !strings.HasPrefix(line, "time=2") {
			t.Errorf("a line of its own: %q", line)
		}
		for _, c := range strings.TrimSuffix(line, "\n") {
			if c < ' ' || c == 0x7f {
				t.Errorf("control byte in %q", line)
			}
		}
	}
}
