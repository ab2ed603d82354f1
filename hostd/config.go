package hostd

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"path/filepath"
	"slices"
	"time"

	"troth/hooks"
	"troth/launcher"
)

// Config is /etc/troth/hostd.toml; this comment is its manual. Every key may also stand in hostd.toml.d/*.toml and in the environment
// (TROTH_HOSTD_…, see the room config); an unknown key is an error. Paths are absolute.
//
//	name      = "host1"                  # as the verifier and its operator call this host
//	state_dir = "/var/lib/troth"         # one hostd alone; journal, registry (state_dir/gate/registry), what provisioning left
//	run_dir   = "/run/troth"             # hostd.sock, hook.sock, guest/
//
//	[tpm]
//	device    = "/dev/tpmrm0"            # one of device and socket
//	socket    = ""                       # swtpm's socket: the only way in which a software TPM is accepted
//	event_log = "/sys/kernel/security/slaunch/eventlog"   # log of the dynamic launch; empty: none is sent
//	log_kind  = "tcg2"
//	timeout   = "20s"                    # for one operation: a TPM that hangs keeps a launch waiting no longer. A key that another user makes may take 15 s
//
//	[verifier]
//	url  = ["https://verifier:8443"]     # tried in this order
//	ca   = "/etc/troth/verifier-ca.pem"
//	cert = "/etc/troth/hostd.pem"        # the key of this certificate is bound into every quote
//	key  = "/etc/troth/hostd.key"
//	timeout = "10s"
//
//	[libvirt]
//	uri = "qemu:///system"               # virtqemud's socket where that is, else libvirtd's; "?mode=legacy" and "?socket=…" say otherwise
//
//	[api]
//	listen     = ":8444"                 # empty: the unix socket only
//	cert, key  = …                       # the certificate that engines see; default: the verifier section's
//	client_ca  = "/etc/troth/clients-ca.pem"
//	socket     = "/run/troth/hostd.sock" # default: run_dir/hostd.sock
//	allow_uids = [ ]                     # besides root, who may use the unix socket
//
//	[hook]
//	socket = "/run/troth/hook.sock"      # default: run_dir/hook.sock
//	script = "/etc/libvirt/hooks/qemu"   # what libvirt runs; libvirt must be seen to call it (docs/hook.md), or no launch is permitted
//	uids   = [ ]                         # besides root, who libvirtd or virtqemud runs hooks as
//
//	[qemu]
//	user = "libvirt-qemu"                # who QEMU runs as; its processes must be this user's. Empty: not compared
//
//	[launch]
//	max       = 64                       # launches at work at one time; four times as many (at least 64) wait, more are refused with tpm-busy
//	timeout   = "15m"                    # one launch, measuring included
//
//	[stray]
//	policy = "destroy"                   # what is done to a running guest that is trusted and has no grant: destroy, pause, report
//	reaper = "/run/troth-reaper/socket"  # who ends emulators of other users (troth-hostd reap); where nobody listens, hostd tries itself
type Config struct {
	Name     string         `toml:"name"`
	StateDir string         `toml:"state_dir"`
	RunDir   string         `toml:"run_dir"`
	TPM      TPMConfig      `toml:"tpm"`
	Verifier VerifierConfig `toml:"verifier"`
	Libvirt  LibvirtConfig  `toml:"libvirt"`
	API      APIConfig      `toml:"api"`
	Hook     HookConfig     `toml:"hook"`
	QEMU     QEMUConfig     `toml:"qemu"`
	Launch   LaunchConfig   `toml:"launch"`
	Stray    StrayConfig    `toml:"stray"`
}

// TPMConfig says where the chip is. A software TPM is accepted only through Socket.
type TPMConfig struct {
	Device   string `toml:"device"`
	Socket   string `toml:"socket"`
	EventLog string `toml:"event_log"`
	LogKind  string `toml:"log_kind"`
	Timeout  string `toml:"timeout"`
}

// VerifierConfig says who judges this host and with which certificate it speaks to them.
type VerifierConfig struct {
	URL     []string `toml:"url"`
	CA      string   `toml:"ca"`
	Cert    string   `toml:"cert"`
	Key     string   `toml:"key"`
	Timeout string   `toml:"timeout"`
}

// LibvirtConfig names the libvirt daemon.
type LibvirtConfig struct {
	URI string `toml:"uri"`
}

// APIConfig says where engines, operators and tenants call.
type APIConfig struct {
	Listen    string `toml:"listen"`
	Cert      string `toml:"cert"`
	Key       string `toml:"key"`
	ClientCA  string `toml:"client_ca"`
	Socket    string `toml:"socket"`
	AllowUIDs []int  `toml:"allow_uids"`
}

// HookConfig says where troth-hook asks.
type HookConfig struct {
	Socket string `toml:"socket"`
	Script string `toml:"script"`
	UIDs   []int  `toml:"uids"`
}

// QEMUConfig says who QEMU runs as.
type QEMUConfig struct {
	User string `toml:"user"`
}

// StrayConfig says what becomes of trusted guests without a grant.
type StrayConfig struct {
	Policy string `toml:"policy"`
	Reaper string `toml:"reaper"`
}

// LaunchConfig bounds launches.
type LaunchConfig struct {
	Max     int    `toml:"max"`
	Timeout string `toml:"timeout"`
}

// Default is the configuration before any file is read.
func Default() *Config {
	return &Config{
		StateDir: "/var/lib/troth",
		RunDir:   "/run/troth",
		TPM:      TPMConfig{LogKind: "tcg2", Timeout: "20s"},
		Verifier: VerifierConfig{Timeout: "10s"},
		Libvirt:  LibvirtConfig{URI: "qemu:///system"},
		Hook:     HookConfig{Script: "/etc/libvirt/hooks/qemu"},
		Launch:   LaunchConfig{Max: 64, Timeout: "15m"},
		Stray:    StrayConfig{Policy: launcher.StrayDestroy, Reaper: "/run/troth-reaper/socket"},
	}
}

// own are the folders and keys that no guest may have and that the hook does not know by itself: those that the configuration, or a link, puts elsewhere.
func (c *Config) own() (out []string) {
	for _, p := range []string{c.StateDir, c.RunDir, c.Verifier.Key, c.API.Key} {
		real, err := filepath.EvalSymlinks(p)
		if err != nil {
			real = p // it may come later
		}
		for _, p := range []string{filepath.Clean(p), filepath.Clean(real)} {
			if filepath.IsAbs(p) && !hooks.Keeps(p) && !slices.Contains(out, p) {
				out = append(out, p)
			}
		}
	}
	return out
}

// Check completes defaults that depend on other keys and says every disagreement. The daemon does not start on one.
func (c *Config) Check() error {
	var errs []error
	bad := func(key, format string, a ...any) {
		errs = append(errs, fmt.Errorf("%s: %s", key, fmt.Sprintf(format, a...)))
	}
	if c.API.Socket == "" {
		c.API.Socket = filepath.Join(c.RunDir, "hostd.sock")
	}
	if c.Hook.Socket == "" {
		c.Hook.Socket = filepath.Join(c.RunDir, "hook.sock")
	}
	if c.API.Cert == "" && c.API.Key == "" {
		c.API.Cert, c.API.Key = c.Verifier.Cert, c.Verifier.Key
	}
	if c.Name == "" || len(c.Name) > 64 {
		bad("name", "must have 1 to 64 characters")
	}
	for key, path := range map[string]string{"state_dir": c.StateDir, "run_dir": c.RunDir, "api.socket": c.API.Socket, "hook.socket": c.Hook.Socket,
		"verifier.ca": c.Verifier.CA, "verifier.cert": c.Verifier.Cert, "verifier.key": c.Verifier.Key} {
		if !filepath.IsAbs(path) {
			bad(key, "must be an absolute path, got %q", path)
		}
	}
	if (c.TPM.Device == "") == (c.TPM.Socket == "") {
		bad("tpm", "exactly one of device and socket must be set")
	}
	if len(c.Verifier.URL) == 0 {
		bad("verifier.url", "names no verifier")
	}
	for _, u := range c.Verifier.URL {
		p, err := url.Parse(u)
		if err != nil || p.Scheme != "https" || p.Host == "" || p.User != nil {
			bad("verifier.url", "%q is not an https URL", u)
		}
	}
	if d, err := time.ParseDuration(c.TPM.Timeout); err != nil || d <= 0 {
		bad("tpm.timeout", "%q is not a positive duration", c.TPM.Timeout)
	}
	if d, err := time.ParseDuration(c.Verifier.Timeout); err != nil || d <= 0 {
		bad("verifier.timeout", "%q is not a positive duration", c.Verifier.Timeout)
	}
	if d, err := time.ParseDuration(c.Launch.Timeout); err != nil || d <= 0 {
		bad("launch.timeout", "%q is not a positive duration", c.Launch.Timeout)
	}
	for _, uid := range append(append([]int(nil), c.API.AllowUIDs...), c.Hook.UIDs...) {
		if uid < 0 || uid > 1<<32-2 {
			bad("uids", "%d is not a user", uid)
		}
	}
	switch c.Stray.Policy {
	case launcher.StrayDestroy, launcher.StrayPause, launcher.StrayReport:
	default:
		bad("stray.policy", "must be destroy, pause or report, got %q", c.Stray.Policy)
	}
	if !filepath.IsAbs(c.Stray.Reaper) {
		bad("stray.reaper", "must be an absolute path, got %q", c.Stray.Reaper)
	}
	if c.Launch.Max < 1 || c.Launch.Max > 4096 {
		bad("launch.max", "must be 1 to 4096, got %d", c.Launch.Max)
	}
	if c.API.Listen != "" {
		if _, _, err := net.SplitHostPort(c.API.Listen); err != nil {
			bad("api.listen", "%v", err)
		}
		if c.API.Cert == "" || c.API.Key == "" || c.API.ClientCA == "" {
			bad("api", "listen needs cert, key and client_ca")
		}
	}
	return errors.Join(errs...)
}
