package hostd

import (
	"crypto/x509"
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestDoctorsClock: the clocks of host and verifier are compared both ways, also when the verifier refuses, and every line that is not in order has a remedy.
func TestDoctorsClock(t *testing.T) {
	var date string
	status := http.StatusOK
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header()["Date"] = []string{date}
		if date == "" {
			w.Header()["Date"] = nil
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		w.Write([]byte(`{"challenge":"AAAA","expires":1,"selection":"sha256:17,18"}`)) //nolint:errcheck // whoever asked says so
	}))
	defer s.Close()
	dir := t.TempDir()
	file := func(name, kind string, der []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	key, err := x509.MarshalPKCS8PrivateKey(s.TLS.Certificates[0].PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	c := Default()
	c.Verifier.URL = []string{s.URL}
	c.Verifier.Cert, c.Verifier.Key = file("c.pem", "CERTIFICATE", s.Certificate().Raw), file("c.key", "PRIVATE KEY", key)
	c.Verifier.CA = c.Verifier.Cert
	d := &Doctor{Config: c, Now: time.Now}
	look := func(what, verifier, clock string) {
		t.Helper()
		all := d.verifier(t.Context())
		if len(all) != 2 || all[0].Name != "verifier" || all[1].Name != "clock" || all[0].State != verifier || all[1].State != clock {
			t.Errorf("%s: %+v", what, all)
		}
		for _, f := range all {
			if (f.State == OK) != (f.Remedy == "") {
				t.Errorf("%s: %+v", what, f)
			}
		}
	}
	for ahead, want := range map[time.Duration]string{0: OK, 50 * time.Second: OK, -50 * time.Second: OK, 70 * time.Second: Failed, -70 * time.Second: Failed, 59 * time.Minute: Failed} {
		date = time.Now().Add(ahead).UTC().Format(http.TimeFormat)
		look(ahead.String(), OK, want)
	}
	date, status = time.Now().Add(-time.Hour).UTC().Format(http.TimeFormat), http.StatusInternalServerError
	look("a verifier that refuses", Failed, Failed)
	date, status = "", http.StatusOK
	look("no Date", OK, Unknown)
	d.Now = func() time.Time { return time.Now().AddDate(100, 0, 0) }
	look("a clock of which no certificate is valid", Failed, Unknown)
	if all := d.verifier(t.Context()); !strings.Contains(all[1].Remedy, "date -u") {
		t.Errorf("%+v", all)
	}
	s.Close()
	look("no verifier", Failed, Unknown)
	c.Verifier.CA = "/nowhere"
	look("no CA", Failed, Unknown)
	c.Verifier.Cert = "/nowhere"
	look("no certificate", Failed, Unknown)
}
