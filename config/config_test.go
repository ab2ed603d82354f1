package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

type sample struct {
	Listen string   `toml:"listen"`
	Epoch  Duration `toml:"epoch"`
	State  string   `toml:"state_dir"`
	TLS    struct {
		Cert string   `toml:"cert"`
		CAs  []string `toml:"cas"`
		On   bool     `toml:"on"`
	} `toml:"tls"`
	Roots []struct {
		File string `toml:"file"`
	} `toml:"root"`
}

func write(t *testing.T, dir, name, text string) string {
	t.Helper()
	p := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(p), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return p
}

func TestLayers(t *testing.T) {
	dir := t.TempDir()
	f := write(t, dir, "x.toml", "listen = 'file'\nepoch = '2s'\nstate_dir = 'a'\n[tls]\ncert = 'c'\n[[root]]\nfile = 'r1'\n")
	write(t, dir, "x.toml.d/10-a.toml", "state_dir = 'b'\n[tls]\non = true\n")
	write(t, dir, "x.toml.d/20-b.toml", "state_dir = 'c'\n")
	c := sample{Listen: "default", Epoch: Duration(time.Minute)}
	err := Load(&c, Source{Name: "x", File: f, Flags: map[string]string{"listen": "flag"},
		Env: []string{"TROTH_X_TLS_CAS=[\"p\",\"q\"]", "TROTH_X_EPOCH=5s", "TROTH_X_LISTEN=env", "TROTH_XY_Z=1"}})
	if err != nil {
		t.Fatal(err)
	}
	if c.Listen != "flag" || c.Epoch.D() != 5*time.Second || c.State != "c" || c.TLS.Cert != "c" || !c.TLS.On ||
		len(c.TLS.CAs) != 2 || len(c.Roots) != 1 || c.Roots[0].File != "r1" {
		t.Fatalf("layers: %+v", c)
	}
}

func TestUnknownKeyIsAnError(t *testing.T) {
	dir := t.TempDir()
	bad := write(t, dir, "bad.toml", "[tls]\ncrt = 'x'\n")
	good := write(t, dir, "good.toml", "listen = 'x'\n")
	for name, tc := range map[string]struct {
		s    Source
		want []string
	}{
		"file":        {Source{File: bad, Env: []string{}}, []string{bad, "tls.crt"}},
		"environment": {Source{File: good, Env: []string{"TROTH_X_LISTN=1"}}, []string{"TROTH_X_LISTN"}},
		"flag":        {Source{File: good, Env: []string{}, Flags: map[string]string{"nope": "1"}}, []string{"nope"}},
		"missing":     {Source{File: dir + "/none.toml", Env: []string{}}, []string{"none.toml"}},
		"type":        {Source{File: good, Env: []string{"TROTH_X_EPOCH=fast"}}, []string{"TROTH_X_EPOCH"}},
	} {
		t.Run(name, func(t *testing.T) {
			tc.s.Name = "x"
			err := Load(&sample{}, tc.s)
			if err == nil {
				t.Fatal("accepted")
			}
			for _, w := range tc.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("%q does not name %q", err, w)
				}
			}
		})
	}
}
