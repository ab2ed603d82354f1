package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"troth/proof"
)

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// setup writes a certificate that is its own authority, and a configuration.
func setup(t *testing.T, more string) (file string, pool *x509.CertPool, address string) {
	t.Helper()
	dir := t.TempDir()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(t, err)
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "verifier"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	check(t, err)
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	check(t, err)
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	check(t, os.WriteFile(filepath.Join(dir, "cert.pem"), cert, 0o600))
	check(t, os.WriteFile(filepath.Join(dir, "key.pem"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}), 0o600))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	address = l.Addr().String()
	check(t, l.Close())
	file = filepath.Join(dir, "verifierd.toml")
	check(t, os.WriteFile(file, fmt.Appendf(nil, `issuer = "auditor.example"
listen = %[2]q
state = "%[1]s/state"
epoch = "2s"
verdict = "6s"
%[3]s
[tls]
cert = "%[1]s/cert.pem"
key = "%[1]s/key.pem"
client_ca = "%[1]s/cert.pem"
[[ek_root]]
file = "%[1]s/cert.pem"
class = "software"
`, dir, address, more), 0o600))
	pool = x509.NewCertPool()
	pool.AppendCertsFromPEM(cert)
	return file, pool, address
}

func execute(t *testing.T, args ...string) (string, error) {
	t.Helper()
	var out bytes.Buffer
	c := command()
	c.SetArgs(args)
	c.SetOut(&out)
	err := c.ExecuteContext(t.Context())
	return out.String(), err
}

func TestInitServeStop(t *testing.T) {
	file, pool, address := setup(t, "")
	if _, err := execute(t, "--config", file, "config", "check"); err == nil || !strings.Contains(err.Error(), "init") {
		t.Fatalf("without keys: %v", err)
	}
	out, err := execute(t, "--config", file, "init")
	if err != nil || !strings.Contains(out, "trust.json") {
		t.Fatal(out, err)
	}
	if _, err := execute(t, "--config", file, "init"); err == nil || !strings.Contains(err.Error(), "there already") {
		t.Fatalf("init twice: %v", err)
	}
	state := filepath.Join(filepath.Dir(file), "state")
	b, err := os.ReadFile(filepath.Join(state, "keys", "trust.json"))
	check(t, err)
	if trust, err := proof.ParseTrust(b); err != nil || !trust.AllowSoftwareTPM || trust.Verifier != "auditor.example" {
		t.Fatalf("%+v %v", trust, err)
	}
	for _, name := range []string{"root.pem", "verdict.pem", "token.pem", "challenge.key"} {
		if fi, err := os.Stat(filepath.Join(state, "keys", name)); err != nil || fi.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v %v", name, fi, err)
		}
	}
	check(t, os.Remove(filepath.Join(state, "keys", "root.pem"))) // serve needs no root
	if out, err := execute(t, "--config", file, "config", "check"); err != nil || !strings.Contains(out, "good") {
		t.Fatal(out, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- run(ctx, file) }()
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}, Timeout: time.Second}
	ready := false
	for range 1200 {
		resp, err := client.Get("https://" + address + "/readyz")
		if err == nil {
			body, err := io.ReadAll(resp.Body)
			check(t, err)
			check(t, resp.Body.Close())
			ready = resp.StatusCode == 200 && strings.Contains(string(body), "ready")
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	if !ready {
		t.Fatal("not ready")
	}
	client.CloseIdleConnections()
	cancel()
	select {
	case err := <-done:
		check(t, err)
	case <-time.After(time.Minute):
		t.Fatal("it does not stop")
	}
}

// TestRefusesToStart: what disagrees is named.
func TestRefusesToStart(t *testing.T) {
	for name, c := range map[string]struct {
		more string
		env  [2]string
		want string
	}{
		"unknown key":       {`listne = "x"`, [2]string{}, "listne"},
		"challenge":         {`challenge = "1s"`, [2]string{}, "challenge"},
		"environment":       {"", [2]string{"TROTH_VERIFIERD_VERDICT", "1s"}, "verdict"},
		"unknown variable":  {"", [2]string{"TROTH_VERIFIERD_VERDIKT", "1s"}, "TROTH_VERIFIERD_VERDIKT"},
		"another issuer":    {"", [2]string{"TROTH_VERIFIERD_ISSUER", "other.example"}, "other.example"},
		"certificate":       {"", [2]string{"TROTH_VERIFIERD_TLS_CERT", "/nowhere"}, "tls.cert"},
		"intermediate file": {`ek_intermediates = ["/nowhere"]`, [2]string{}, "ek_intermediates[0]"},
	} {
		t.Run(name, func(t *testing.T) {
			file, _, _ := setup(t, "")
			if _, err := execute(t, "--config", file, "init"); err != nil {
				t.Fatal(err)
			}
			b, err := os.ReadFile(file)
			check(t, err)
			check(t, os.WriteFile(file, append([]byte(c.more+"\n"), b...), 0o600))
			if c.env[0] != "" {
				t.Setenv(c.env[0], c.env[1])
			}
			if err := run(t.Context(), file); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("%v does not name %q", err, c.want)
			}
		})
	}
}

// TestKeys renews and revokes keys as an operator does, and has the service that runs take them.
// TestExit: what was wrongly typed or configured ends with 2, what failed with 1.
func TestExit(t *testing.T) {
	empty := filepath.Join(t.TempDir(), "empty.toml")
	if err := os.WriteFile(empty, []byte("state = \""+t.TempDir()+"\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for args, want := range map[string]int{
		"--help": 0, "--version": 0, "": 2, "srve": 2, "config": 2, "config chek": 2, "keys": 2, "keys shw": 2, "keys rotate": 2, "serve x": 2, "serve --no": 2,
		"serve --config /nonexistent": 2, "keys show --config " + empty: 1,
	} {
		var out, errs strings.Builder
		c := command()
		c.SetArgs(strings.Fields(args))
		c.SetOut(&out)
		if got := exitStatus(t.Context(), c, &errs); got != want || got != 0 && errs.Len() == 0 {
			t.Errorf("%q ends with %d (%s), want %d", args, got, errs.String(), want)
		}
	}
}

func TestKeys(t *testing.T) {
	file, pool, address := setup(t, "")
	if _, err := execute(t, "--config", file, "init"); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(filepath.Dir(file), "state", "keys")
	root := filepath.Join(filepath.Dir(file), "root.pem")
	check(t, os.Rename(filepath.Join(dir, "root.pem"), root))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- run(ctx, file) }()
	defer func() {
		cancel()
		check(t, <-done)
	}()
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}, Timeout: time.Second}
	defer client.CloseIdleConnections()
	serves := func(want string) {
		t.Helper()
		got := ""
		for range 3000 {
			if resp, err := client.Get("https://" + address + "/v1/keys"); err == nil {
				body, err := io.ReadAll(resp.Body)
				check(t, errors.Join(err, resp.Body.Close()))
				if got = string(body); strings.Contains(got, want) {
					return
				}
			}
			time.Sleep(20 * time.Millisecond)
		}
		t.Fatalf("the service gives other keys: %s, want %s", got, want)
	}
	set := func() string {
		t.Helper()
		b, err := os.ReadFile(filepath.Join(dir, "keys.jws"))
		check(t, err)
		return strings.TrimSpace(string(b))
	}
	first := set()
	serves(first)
	for want, args := range map[string][]string{
		"root":                      {"rotate"},
		"neither verdict nor token": {"rotate", "--root", root, "--only", "both"},
		"PEM":                       {"rotate", "--root", file},
		"names no":                  {"revoke", "--root", root, "nobody"},
		"at least 1 arg":            {"revoke", "--root", root},
	} {
		if out, err := execute(t, append([]string{"--config", file, "keys"}, args...)...); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("keys %q: %s, %v", args, out, err)
		}
	}
	if set() != first {
		t.Fatal("what was refused has changed the key set")
	}
	out, err := execute(t, "--config", file, "keys", "rotate", "--root", root)
	if err != nil || strings.Count(out, "in use") != 2 || strings.Count(out, "good, not used") != 2 || !strings.Contains(out, "reload") {
		t.Fatal(out, err)
	}
	check(t, syscall.Kill(os.Getpid(), syscall.SIGHUP))
	second := set()
	serves(second)
	shown, err := execute(t, "--config", file, "keys", "show")
	if err != nil || !strings.HasPrefix(out, shown) {
		t.Fatal(shown, err)
	}
	inUse := strings.Fields(strings.Split(shown, "\n")[1])[2]
	if out, err = execute(t, "--config", file, "keys", "revoke", "--root", root, "--", inUse); err != nil || strings.Contains(out, inUse) {
		t.Fatal(out, err)
	}
	check(t, syscall.Kill(os.Getpid(), syscall.SIGHUP))
	serves(set())
}
