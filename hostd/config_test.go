package hostd

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"troth/config"
	"troth/hooks/ask"
	"troth/launcher"
)

const goodConfig = `name = "host1"
[tpm]
socket = "/run/swtpm/sock"
[verifier]
url = ["https://verifier:8443"]
ca = "/etc/troth/ca.pem"
cert = "/etc/troth/hostd.pem"
key = "/etc/troth/hostd.key"
[api]
listen = ":8444"
client_ca = "/etc/troth/ca.pem"
`

func loadText(t *testing.T, text string) (*Config, error) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "hostd.toml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	c := Default()
	if err := config.Load(c, config.Source{Name: "hostd", File: file, Env: []string{}}); err != nil {
		return nil, err
	}
	return c, c.Check()
}

func TestConfig(t *testing.T) {
	c, err := loadText(t, goodConfig)
	if err != nil {
		t.Fatal(err)
	}
	if c.API.Socket != "/run/troth/hostd.sock" || c.Hook.Socket != "/run/troth/hook.sock" || c.API.Cert != c.Verifier.Cert || c.TPM.LogKind != "tcg2" {
		t.Errorf("%+v", c)
	}
	for name, change := range map[string][2]string{
		"name":            {`name = "host1"`, `name = ""`},
		"tpm":             {`socket = "/run/swtpm/sock"`, "device = \"/dev/tpmrm0\"\nsocket = \"/x\""},
		"verifier.url":    {`https://verifier`, `http://verifier`},
		"verifier.ca":     {`ca = "/etc/troth/ca.pem"` + "\ncert", `ca = "ca.pem"` + "\ncert"},
		"api.listen":      {`":8444"`, `"8444"`},
		"api":             {`client_ca = "/etc/troth/ca.pem"`, ``},
		"unknown":         {`[api]`, "[api]\nextra = 1"},
		"uids":            {`[api]`, "[api]\nallow_uids = [-1]"},
		"launch.max":      {`[api]`, "[launch]\nmax = 0\n[api]"},
		"launch.timeout":  {`[api]`, "[launch]\ntimeout = \"soon\"\n[api]"},
		"verifier.timeou": {`[api]`, "timeout = \"-1s\"\n[api]"},
	} {
		text := strings.Replace(goodConfig, change[0], change[1], 1)
		if text == goodConfig {
			t.Fatalf("%s: nothing was changed", name)
		}
		if _, err := loadText(t, text); err == nil || !strings.Contains(err.Error(), strings.Split(name, ".")[0]) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

type kept struct{}

func (kept) Append(*launcher.Entry) error { return nil }

func TestRegistryFollowsTheBook(t *testing.T) {
	book, err := launcher.NewBook(kept{}, Clock{}.Now, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	r := &Registry{Path: RegistryPath(t.TempDir()), Book: book}
	if err := r.Publish(); err != nil {
		t.Fatal(err)
	}
	got, err := ask.ReadRegistry(r.Path)
	if err != nil || len(got.UUIDs) != 0 || got.All {
		t.Fatalf("%+v, %v", got, err)
	}
	r.Path = "/proc/nowhere/registry"
	if err := r.Publish(); err == nil || r.Failure() == "" {
		t.Error("a registry that cannot be written was published")
	}
}
