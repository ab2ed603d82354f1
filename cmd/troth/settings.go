package main

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"troth/config"
)

// settings is the client's settings file; this comment is its manual. It is
// ~/.config/troth/config.toml if that exists, otherwise /etc/troth/troth.toml,
// or exactly the file given with --config. Environment (TROTH_TROTH_VERIFIER …)
// and flags come after it, later wins; an unknown key is an error.
//
//	verifier = "https://verifier.example:8443"   # the verifier's address
//	hostd    = "unix:///run/troth/hostd.sock"    # a host's daemon: unix:///path or https://host:8444
//	ca       = "/etc/troth/ca.pem"               # certificates that vouch for both (PEM, one or more)
//	cert     = "/etc/troth/me.pem"               # this client's certificate; its OU is its role
//	key      = "/etc/troth/me.key"               # default: in the same file as cert
//	trust    = "/home/me/trust.json"             # the tenant's trust file, when --trust is not given
//	timeout  = "30s"                             # for one request; unless it is given, longer for those that take longer
type settings struct {
	Verifier string          `toml:"verifier" json:"verifier"`
	Hostd    string          `toml:"hostd" json:"hostd"`
	CA       string          `toml:"ca" json:"ca"`
	Cert     string          `toml:"cert" json:"cert"`
	Key      string          `toml:"key" json:"key"`
	Trust    string          `toml:"trust" json:"trust"`
	Timeout  config.Duration `toml:"timeout" json:"timeout"`

	named bool // the timeout is not the default
}

// defaultTimeout is for one request. Tests have less patience.
var defaultTimeout = 30 * time.Second

// What hostd answers when it is done, and may take that long and a moment for undoing it.
const (
	stopTimeout = 3 * time.Minute
	saveTimeout = 12 * time.Minute
)

// unnamed stands in the place of a timeout that nobody gave.
const unnamed = config.Duration(math.MinInt64)

func defaultSettings() settings {
	return settings{Hostd: "unix:///run/troth/hostd.sock", Timeout: unnamed}
}

// connectionFlags are the persistent flags that override the settings file.
// Where a command has a --key of its own (the tenant's nonce.key), the key of the
// client's certificate is --cert-key, which means the same everywhere.
type connectionFlags struct {
	root *cobra.Command
	file string
}

// settingFlags maps flags to keys of the settings file.
var settingFlags = [...]struct{ flag, key, usage string }{
	{"verifier", "verifier", "address of the verifier (https://…)"},
	{"hostd", "hostd", "address of a host's daemon (https://… or unix:///path)"},
	{"ca", "ca", "file of certificates that vouch for verifier and hostd"},
	{"cert", "cert", "this client's certificate (PEM)"},
	{"key", "key", "key of this client's certificate (PEM; default: in the file of --cert)"},
	{"cert-key", "key", "the same as --key, also where --key is the tenant's nonce.key"},
	{"timeout", "timeout", "longest wait for one request"},
}

func (c *connectionFlags) register(root *cobra.Command) {
	c.root = root
	f := root.PersistentFlags()
	f.StringVar(&c.file, "config", "", "settings file (default ~/.config/troth/config.toml or /etc/troth/troth.toml)")
	for _, s := range settingFlags {
		f.String(s.flag, "", s.usage)
	}
}

// settings loads and checks the settings file and the flags over it.
func (a *app) settings() (*settings, error) {
	s := defaultSettings()
	given := map[string]string{}
	for _, f := range settingFlags {
		if fl := a.flags.root.PersistentFlags().Lookup(f.flag); fl.Changed {
			given[f.key] = fl.Value.String()
		}
	}
	if err := config.Load(&s, config.Source{Name: "troth", File: a.settingsFile(), Flags: given}); err != nil {
		return nil, usagef("settings: %w", err)
	}
	if s.named = s.Timeout != unnamed; !s.named {
		s.Timeout = config.Duration(defaultTimeout)
	}
	if err := s.check(); err != nil {
		return nil, usagef("settings: %w", err)
	}
	return &s, nil
}

// settingsFile is --config, or the person's own file if there is one, or "" for
// the machine's.
func (a *app) settingsFile() string {
	if a.flags.file != "" {
		return a.flags.file
	}
	dir, err := os.UserConfigDir()
	if err != nil {
		return "" // neither HOME nor XDG_CONFIG_HOME: only the machine's file is left
	}
	own := filepath.Join(dir, "troth", "config.toml")
	if _, err := os.Stat(own); errors.Is(err, fs.ErrNotExist) {
		return ""
	}
	return own
}

func (s *settings) check() error {
	var errs []error
	if s.Verifier != "" {
		if u, err := url.Parse(s.Verifier); err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil {
			errs = append(errs, fmt.Errorf("verifier: %q is not an https URL", s.Verifier))
		}
	}
	if path, ok := strings.CutPrefix(s.Hostd, "unix://"); ok {
		if !filepath.IsAbs(path) {
			errs = append(errs, fmt.Errorf("hostd: %q: the path of the socket must be absolute", s.Hostd))
		}
	} else if u, err := url.Parse(s.Hostd); err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil {
		errs = append(errs, fmt.Errorf("hostd: %q is neither an https URL nor unix:///path", s.Hostd))
	}
	if s.Cert == "" && s.Key != "" {
		errs = append(errs, errors.New("key is given without cert"))
	}
	if s.Timeout <= 0 {
		errs = append(errs, fmt.Errorf("timeout: %s is not a positive duration", s.Timeout.D()))
	}
	return errors.Join(errs...)
}
