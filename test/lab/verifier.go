package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"troth/proof"
)

// Verifier is the node with troth-verifierd: configuration in /etc/troth/verifierd.toml, state in /var/lib/troth.
type Verifier struct {
	Node
	lab *Lab
}

// URL is the verifier's API on the lab's network.
func (v *Verifier) URL() string { return "https://verifier:8443" }

// Init writes the verifier's configuration and lets it make its keys. The authorities of all hosts' TPMs are its EK roots.
func (v *Verifier) Init(ctx context.Context) error {
	cert, err := v.lab.PKI.Server("verifier", "", "verifier", v.Address)
	if err != nil {
		return err
	}
	etc := v.Path("/etc/troth")
	for from, to := range map[string]string{v.lab.PKI.CAFile(): "ca.pem", cert.CertFile: "verifierd.pem"} {
		if err := copyFile(from, filepath.Join(etc, to), 0o644); err != nil {
			return err
		}
	}
	if err := copyFile(cert.KeyFile, filepath.Join(etc, "verifierd.key"), 0o600); err != nil {
		return err
	}
	var b strings.Builder
	fmt.Fprintf(&b, `issuer = "lab"
listen = ":8443"
state = "/var/lib/troth"
epoch = "%s"
verdict = "%s"
ek_intermediates = ["/etc/troth/ek-issuer.pem"]

[tls]
cert = "/etc/troth/verifierd.pem"
key = "/etc/troth/verifierd.key"
client_ca = "/etc/troth/ca.pem"

[[ek_root]]
file = "/etc/troth/ek-root.pem"
class = "software"
`, v.lab.options.Epoch, v.lab.options.Verdict)
	for from, to := range map[string]string{v.lab.EKRoot(): "ek-root.pem", v.lab.EKIssuer(): "ek-issuer.pem"} {
		if err := copyFile(from, filepath.Join(etc, to), 0o644); err != nil {
			return err
		}
	}
	if err := writeFile(filepath.Join(etc, "verifierd.toml"), b.String(), 0o644); err != nil {
		return err
	}
	_, err = v.Exec(ctx, "troth-verifierd", "init")
	return err
}

// Start starts troth-verifierd and waits until it is ready.
func (v *Verifier) Start(ctx context.Context) error {
	if err := v.start(ctx, "verifierd", binariesInside+"/troth-verifierd", "serve"); err != nil {
		return err
	}
	c, err := v.lab.Client("")
	if err != nil {
		return err
	}
	defer c.CloseIdleConnections()
	return v.await(ctx, "verifierd", func() error { return Call(ctx, c, "GET", v.URL()+"/readyz", nil, nil) })
}

// Stop ends troth-verifierd as systemd would.
func (v *Verifier) Stop(ctx context.Context) error { return v.stop(ctx, "verifierd", syscall.SIGTERM) }

// Kill ends troth-verifierd as the kernel would.
func (v *Verifier) Kill(ctx context.Context) error { return v.stop(ctx, "verifierd", syscall.SIGKILL) }

// Pause holds troth-verifierd where it is, or lets it go on: connections are accepted and nothing answers.
func (v *Verifier) Pause(ctx context.Context, hold bool) error {
	sig := syscall.SIGCONT
	if hold {
		sig = syscall.SIGSTOP
	}
	return v.signal(ctx, "verifierd", sig)
}

// Rotate renews the verifier's keys while it runs.
func (v *Verifier) Rotate(ctx context.Context) error { return v.renew(ctx, "rotate") }

// Revoke takes the keys that are in use out of the key set while the verifier runs.
func (v *Verifier) Revoke(ctx context.Context) error {
	b, err := os.ReadFile(v.TrustFile())
	if err != nil {
		return err
	}
	trust, err := proof.ParseTrust(b)
	if err != nil {
		return err
	}
	set, err := trust.KeySet()
	if err != nil {
		return err
	}
	return v.renew(ctx, "revoke", set.VerdictKeys[0].KeyID, set.TokenKey().KeyID)
}

// renew changes the key set and waits until the service gives the new one.
func (v *Verifier) renew(ctx context.Context, how string, keys ...string) error {
	const dir = "/var/lib/troth/keys/"
	if _, err := v.Exec(ctx, append([]string{"troth-verifierd", "keys", how, "--root", dir + "root.pem", "--"}, keys...)...); err != nil {
		return err
	}
	want, err := os.ReadFile(v.Path(dir + "keys.jws"))
	if err != nil {
		return err
	}
	if err := v.signal(ctx, "verifierd", syscall.SIGHUP); err != nil {
		return err
	}
	c, err := v.lab.Client("")
	if err != nil {
		return err
	}
	defer c.CloseIdleConnections()
	return v.await(ctx, "verifierd", func() error {
		var got struct{ Keys string }
		if err := Call(ctx, c, "GET", v.URL()+"/v1/keys", nil, &got); err != nil {
			return err
		}
		if got.Keys != strings.TrimSpace(string(want)) {
			return errors.New("it gives the old key set")
		}
		return nil
	})
}

// TrustFile is trust.json, what a tenant pins of this verifier, as a path outside.
func (v *Verifier) TrustFile() string { return filepath.Join(v.StateDir(), "keys/trust.json") }

// StateDir is troth-verifierd's state, as a path outside.
func (v *Verifier) StateDir() string { return v.Path("/var/lib/troth") }
