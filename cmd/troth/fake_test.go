package main

import (
	"encoding/json"
	"encoding/pem"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"troth/proof"
)

// fake is a daemon of the test: it keeps what it was asked and answers from a
// table of "METHOD /path".
type fake struct {
	mu      sync.Mutex
	asked   []string // "METHOD /path?query body"
	answers map[string]func(r *http.Request, body []byte) (int, any)
}

func (f *fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		panic(err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked = append(f.asked, r.Method+" "+r.URL.RequestURI()+" "+string(body))
	answer, ok := f.answers[r.Method+" "+r.URL.Path]
	if !ok {
		w.WriteHeader(http.StatusTeapot)
		return
	}
	status, v := answer(r, body)
	if raw, ok := v.([]byte); ok {
		w.WriteHeader(status)
		if _, err := w.Write(raw); err != nil {
			panic(err)
		}
		return
	}
	w.WriteHeader(status)
	if v != nil {
		if err := json.NewEncoder(w).Encode(v); err != nil {
			panic(err)
		}
	}
}

func (f *fake) on(route string, status int, v any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.answers == nil {
		f.answers = map[string]func(*http.Request, []byte) (int, any){}
	}
	f.answers[route] = func(*http.Request, []byte) (int, any) { return status, v }
}

func (f *fake) last() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.asked) == 0 {
		return ""
	}
	return f.asked[len(f.asked)-1]
}

func (f *fake) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.asked)
}

// fakeVerifier serves over TLS; flags are those that reach it.
func fakeVerifier(t *testing.T) (f *fake, flags []string) {
	t.Helper()
	t.Setenv("XDG_CONFIG_HOME", t.TempDir())
	f = &fake{}
	s := httptest.NewTLSServer(f)
	t.Cleanup(s.Close)
	ca := write(t, "ca.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}))
	return f, []string{"--verifier", s.URL, "--ca", ca}
}

// fakeHostd serves on a unix socket.
func fakeHostd(t *testing.T) (f *fake, flags []string) {
	t.Helper()
	t.Setenv("XDG_CONFIG_HOME", t.TempDir())
	f = &fake{}
	dir, err := os.MkdirTemp("", "troth") // a short path: sun_path has 108 bytes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	l, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: f, ReadHeaderTimeout: time.Second}
	go func() {
		if err := s.Serve(l); err != http.ErrServerClosed {
			panic(err)
		}
	}()
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return f, []string{"--hostd", "unix://" + filepath.Join(dir, "s")}
}

type object map[string]any

func testHost(standing string) object {
	return object{
		"name": "host1", "state": "approved", "standing": standing, "class": "hardware", "ak_name": "000b11", "profiles": []string{},
		"ek": strings.Repeat("ab", 32), "met": []object{{"name": "gold", "digest": strings.Repeat("11", 32)}},
	}
}

func problem(c proof.Code, sentence string, facts ...proof.Fact) proof.Problem {
	return proof.Refuse(c, sentence, facts...).Problem()
}
