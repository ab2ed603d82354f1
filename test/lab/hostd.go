package lab

import (
	"context"
	"fmt"
	"path/filepath"
	"syscall"
)

// hostdConf is hostd.toml; hostd's Config is its manual.
const hostdConf = `name = "%[1]s"

[tpm]
socket = "%[2]s"
event_log = "%[3]s"

[verifier]
url = ["https://verifier:8443"]
ca = "/etc/troth/ca.pem"
cert = "/etc/troth/hostd.pem"
key = "/etc/troth/hostd.key"

[api]
listen = ":8444"
client_ca = "/etc/troth/ca.pem"

[qemu]
user = "` + qemuUser + `"
`

// Configure issues the host's certificate and writes its configuration, as Provision does first.
func (h *Host) Configure(ctx context.Context) error {
	cert, err := h.lab.PKI.Server(h.Name, RoleHost, h.Name, h.Address)
	if err != nil {
		return err
	}
	etc := h.Path("/etc/troth")
	for from, to := range map[string]string{h.lab.PKI.CAFile(): "ca.pem", cert.CertFile: "hostd.pem"} {
		if err := copyFile(from, filepath.Join(etc, to), 0o644); err != nil {
			return err
		}
	}
	if err := copyFile(cert.KeyFile, filepath.Join(etc, "hostd.key"), 0o600); err != nil {
		return err
	}
	if err := h.give(ctx, Hostd, "0640", "/etc/troth/hostd.key"); err != nil {
		return err
	}
	return writeFile(filepath.Join(etc, "hostd.toml"), fmt.Sprintf(hostdConf, h.Name, h.TPMSocket(), h.EventLog()), 0o644)
}

// Provision enrols the host: troth-hostd provision. An operator has yet to approve it.
func (h *Host) Provision(ctx context.Context) error {
	if err := h.Configure(ctx); err != nil {
		return err
	}
	argv, err := h.hostdCommand("provision")
	if err != nil {
		return err
	}
	_, err = h.Exec(ctx, argv...)
	return err
}

// Approve lets the operator vouch for the host.
func (h *Host) Approve(ctx context.Context) error {
	return h.lab.operate(ctx, "POST", "/v1/hosts/"+h.Name+"/approve", nil, nil)
}

// StartHostd starts troth-hostd and waits until its API answers. That is before the first verdict.
func (h *Host) StartHostd(ctx context.Context) error {
	argv, err := h.hostdCommand("serve")
	if err != nil {
		return err
	}
	if err := h.start(ctx, "hostd", argv...); err != nil {
		return err
	}
	c := h.UnixClient()
	defer c.CloseIdleConnections()
	return h.await(ctx, "hostd", func() error { return Call(ctx, c, "GET", "http://hostd/healthz", nil, nil) })
}

// StopHostd ends troth-hostd as systemd would.
func (h *Host) StopHostd(ctx context.Context) error { return h.stop(ctx, "hostd", syscall.SIGTERM) }

// KillHostd ends troth-hostd as the kernel would.
func (h *Host) KillHostd(ctx context.Context) error { return h.stop(ctx, "hostd", syscall.SIGKILL) }

// PauseHostd holds troth-hostd where it is, or lets it go on: its sockets accept and nothing answers.
func (h *Host) PauseHostd(ctx context.Context, hold bool) error {
	sig := syscall.SIGCONT
	if hold {
		sig = syscall.SIGSTOP
	}
	return h.signal(ctx, "hostd", sig)
}

// AwaitReady waits until troth-hostd says that it would launch: it has a verdict, libvirt, and a live hook.
func (h *Host) AwaitReady(ctx context.Context) error {
	c := h.UnixClient()
	defer c.CloseIdleConnections()
	return h.await(ctx, "hostd", func() error { return Call(ctx, c, "GET", "http://hostd/readyz", nil, nil) })
}

// Golden is the name of the reference values and of the profile that BringUp makes.
const Golden = "lab"

// Difference is one disagreement between reference values and a host.
type Difference struct {
	PCR   int    `json:"pcr"`
	Event string `json:"event,omitempty"`
	Want  string `json:"want"`
	Got   string `json:"got"`
}

// Import is what the verifier answers to an import of reference values.
type Import struct {
	Difference []Difference `json:"difference"`
	Values     []struct {
		Index int    `json:"index"`
		Value string `json:"value"`
	} `json:"values"`
	Applied bool `json:"applied"`
}

// Import takes what the host attested last as reference values of that name, in the profile of the same name. Without
// apply it only tells the difference; with it, the values that were told are confirmed.
func (h *Host) Import(ctx context.Context, name string, apply bool) (*Import, error) {
	in := map[string]any{"host": h.Name, "name": name, "launcher": string(h.Script().Launcher), "profile": name, "apply": false}
	var out Import
	err := h.lab.operate(ctx, "POST", "/v1/references/import", in, &out)
	if err != nil || !apply {
		return &out, err
	}
	in["apply"], in["values"] = true, out.Values
	return &out, h.lab.operate(ctx, "POST", "/v1/references/import", in, &out)
}

// BringUp goes from an enrolled host to one that launches: approval, a first attestation, the import of what it shows as
// good, if no host before has brought it, and a verdict that affirms it.
func (h *Host) BringUp(ctx context.Context) error {
	if err := h.Approve(ctx); err != nil {
		return err
	}
	if err := h.StartHostd(ctx); err != nil {
		return err
	}
	err := until(ctx, "no evidence of "+h.Name+" to import", func() error {
		_, err := h.Import(ctx, Golden, true)
		return err
	})
	if err != nil {
		return err
	}
	return h.AwaitReady(ctx)
}
