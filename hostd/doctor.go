package hostd

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"troth/proof"
	"troth/tpm"
	"troth/tpm/chip"
	"troth/tpm/pcr"
)

// Finding is one line of the doctor.
type Finding struct {
	Name     string `json:"name"`
	State    string `json:"state"` // ok, failed or unknown
	Evidence string `json:"evidence"`
	Remedy   string `json:"remedy,omitempty"`
}

// Examined is the chip as the doctor looks at it.
type Examined interface {
	Identity(ctx context.Context) (*chip.Identity, error)
	PCRs(ctx context.Context, sel pcr.Selection) (pcr.Values, error)
	Banks(ctx context.Context) ([]pcr.Bank, error)
	Clock(ctx context.Context) (uint64, tpm.Counters, error)
}

// Doctor looks at everything that a launch needs, one thing at a time; what one thing shows does not stop the others. It changes nothing.
type Doctor struct {
	Config *Config
	// OpenChip opens the TPM. While a troth-hostd is at work it has the TPM for itself: then its API is asked in place of the chip.
	OpenChip func(ctx context.Context) (Examined, func() error, error)
	// Libvirt returns its version.
	Libvirt func(ctx context.Context) (string, error)
	// Serving asks a troth-hostd that is at work for its conditions.
	Serving func(ctx context.Context) ([]Finding, error)
	Now     func() time.Time
}

func good(name, format string, a ...any) Finding {
	return Finding{Name: name, State: OK, Evidence: fmt.Sprintf(format, a...)}
}

func bad(name, remedy, format string, a ...any) Finding {
	return Finding{Name: name, State: Failed, Evidence: fmt.Sprintf(format, a...), Remedy: remedy}
}

func unknown(name, remedy, format string, a ...any) Finding {
	return Finding{Name: name, State: Unknown, Evidence: fmt.Sprintf(format, a...), Remedy: remedy}
}

// Examine returns one finding for each thing, always in the same order.
func (d *Doctor) Examine(ctx context.Context) []Finding {
	var all []Finding
	all = append(all, d.chip(ctx)...)
	all = append(all, d.libvirt(ctx), d.hook(ctx), d.hookSocket())
	all = append(all, Access{}.Findings()...)
	all = append(all, d.verifier(ctx)...)
	return all
}

func (d *Doctor) chip(ctx context.Context) []Finding {
	names := []string{"tpm", "dynamic-launch", "banks", "ek-certificate"}
	c, done, err := d.OpenChip(ctx)
	if errors.Is(err, chip.ErrLocked) {
		return d.serving(ctx, names)
	}
	if err != nil {
		all := []Finding{bad(names[0], proof.TPMUnavailable.Info().Remedy, "%v", err)}
		for _, n := range names[1:] {
			all = append(all, unknown(n, "Mend the TPM first.", "the TPM cannot be asked"))
		}
		return all
	}
	all := []Finding{d.keys(ctx, c), d.dynamicLaunch(ctx, c), d.banks(ctx, c), d.certificate(ctx, c)}
	if err := done(); err != nil {
		all[0] = bad(names[0], proof.TPMUnavailable.Info().Remedy, "cannot close the TPM: %v", err)
	}
	return all
}

// serving takes the findings from a daemon that has the TPM; what it does not say is unknown.
func (d *Doctor) serving(ctx context.Context, names []string) []Finding {
	said, err := d.Serving(ctx)
	all := make([]Finding, 0, len(names))
	for _, n := range names {
		at := slices.IndexFunc(said, func(f Finding) bool { return f.Name == n })
		switch {
		case err != nil:
			all = append(all, unknown(n, "Stop the process that has the TPM, or ask it.", "another process has the TPM, and troth-hostd does not answer: %v", err))
		case at >= 0:
			f := said[at]
			f.Evidence = "troth-hostd at work says: " + f.Evidence
			all = append(all, f)
		default:
			tpmAt := slices.IndexFunc(said, func(f Finding) bool { return f.Name == "verdict" })
			if tpmAt >= 0 && said[tpmAt].State == OK {
				all = append(all, good(n, "troth-hostd at work has a verdict, which needs it"))
				continue
			}
			all = append(all, unknown(n, "Stop troth-hostd and run doctor again.", "troth-hostd at work has the TPM"))
		}
	}
	return all
}

func (d *Doctor) keys(ctx context.Context, c Examined) Finding {
	where := d.Config.TPM.Device
	if where == "" {
		where = "software TPM at " + d.Config.TPM.Socket
	}
	clock, counters, err := c.Clock(ctx)
	if err != nil {
		return bad("tpm", proof.TPMUnavailable.Info().Remedy, "%s: %v", where, err)
	}
	id, err := c.Identity(ctx)
	if errors.Is(err, chip.ErrNotProvisioned) {
		return bad("tpm", "Run `troth-hostd provision`.", "%s answers, and has no keys of this host", where)
	}
	if err != nil {
		return bad("tpm", proof.TPMUnavailable.Info().Remedy, "%s: %v", where, err)
	}
	ak, err := tpm.ParseAK(id.AKPublic)
	if err != nil {
		return bad("tpm", "Run `troth-hostd provision`.", "%s: %v", where, err)
	}
	return good("tpm", "%s answers: attestation key %v, reset %d, restart %d, clock %d ms", where, ak.Name(), counters.Reset, counters.Restart, clock)
}

func (d *Doctor) dynamicLaunch(ctx context.Context, c Examined) Finding {
	const name = "dynamic-launch"
	sel, err := pcr.Select(pcr.SHA256, 17, 18, 19)
	if err != nil {
		return unknown(name, "", "%v", err)
	}
	values, err := c.PCRs(ctx, sel)
	if err != nil {
		return unknown(name, "See the lines about the TPM and its banks.", "PCRs cannot be read: %v", err)
	}
	if err := values.DynamicLaunch(); err != nil {
		return bad(name, proof.NoDynamicLaunch.Info().Remedy, "%v", err)
	}
	return good(name, "PCR 17 is %x", values[17])
}

func (d *Doctor) banks(ctx context.Context, c Examined) Finding {
	banks, err := c.Banks(ctx)
	if err != nil {
		return unknown("banks", "See the line about the TPM.", "%v", err)
	}
	var names []string
	for _, b := range banks {
		names = append(names, b.String())
	}
	if !slices.Contains(banks, pcr.SHA256) {
		return bad("banks", proof.BankUnallocated.Info().Remedy, "allocated: %s", strings.Join(names, ", "))
	}
	return good("banks", "allocated: %s", strings.Join(names, ", "))
}

func (d *Doctor) certificate(ctx context.Context, c Examined) Finding {
	const name = "ek-certificate"
	id, err := c.Identity(ctx)
	if err != nil {
		return unknown(name, "See the line about the TPM.", "%v", err)
	}
	var said []string
	for _, ek := range id.EKs {
		if len(ek.Certificate) == 0 {
			continue
		}
		cert, err := x509.ParseCertificate(ek.Certificate)
		if err != nil {
			return bad(name, "Ask the maker of the TPM for a good one.", "%v", err)
		}
		said = append(said, fmt.Sprintf("%s, issued by %q", cert.PublicKeyAlgorithm, cert.Issuer.String()))
	}
	if len(said) == 0 {
		return bad(name, "Have the maker's certificate written into the TPM; without one nobody can say what it is.", "the TPM holds none")
	}
	return good(name, "%s", strings.Join(said, "; "))
}

func (d *Doctor) libvirt(ctx context.Context) Finding {
	version, err := d.Libvirt(ctx)
	if err != nil {
		return bad("libvirt", startLibvirt, "%s: %v", d.Config.Libvirt.URI, err)
	}
	return good("libvirt", "%s: %s", d.Config.Libvirt.URI, version)
}

// hook looks at the file itself; whether libvirt calls it, only a troth-hostd at work can try.
func (d *Doctor) hook(ctx context.Context) Finding {
	if err := CheckScript(d.Config.Hook.Script); err != nil {
		return bad("hook", "Install troth-hook as "+d.Config.Hook.Script+" and send libvirtd or virtqemud a SIGHUP.", "%v", err)
	}
	said, err := d.Serving(ctx)
	at := slices.IndexFunc(said, func(f Finding) bool { return f.Name == "hook" })
	if err != nil || at < 0 {
		return unknown("hook", "Start troth-hostd, which tries it.", "%s is there and executable; nobody has tried whether libvirt calls it", d.Config.Hook.Script)
	}
	f := said[at]
	f.Evidence = "troth-hostd at work says: " + f.Evidence
	return f
}

func (d *Doctor) hookSocket() Finding {
	conn, err := net.DialTimeout("unix", d.Config.Hook.Socket, time.Second)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
		return bad("hook-socket", "Start troth-hostd: until it runs, trusted domains do not start.", "nobody serves %s", d.Config.Hook.Socket)
	}
	if err != nil {
		return unknown("hook-socket", "Run doctor as root.", "%v", err)
	}
	if err := conn.Close(); err != nil {
		return unknown("hook-socket", "Run doctor again.", "%v", err)
	}
	return good("hook-socket", "%s is served", d.Config.Hook.Socket)
}

// mendVerifier is the remedy of what only a verifier that answers can show.
const mendVerifier = "Mend the line verifier first. Where that speaks of a certificate that is not valid now, compare `date -u` with a clock that is right. Where it is in order, see what stands between host and verifier: the Date of an answer is missing."

// verifier asks for readiness and for a challenge, and compares the clocks by the Date of what is answered.
func (d *Doctor) verifier(ctx context.Context) []Finding {
	id, err := LoadIdentity(d.Config.Verifier.Cert, d.Config.Verifier.Key)
	if err != nil {
		return []Finding{bad("verifier", "See verifier.cert and verifier.key in the configuration.", "%v", err), unknown("clock", mendVerifier, "no verifier to compare with")}
	}
	v, err := NewVerifiers(d.Config.Verifier, id, d.Now)
	if err != nil {
		return []Finding{bad("verifier", "See verifier.ca in the configuration.", "%v", err), unknown("clock", mendVerifier, "no verifier to compare with")}
	}
	defer v.http.CloseIdleConnections() // of the transport, not of what stands before it
	answers := &dated{RoundTripper: v.http.Transport, now: d.Now}
	v.http = &http.Client{Transport: answers}
	said := good("verifier", "%s is ready and gives challenges", strings.Join(d.Config.Verifier.URL, ", "))
	if err := v.Ready(ctx); err != nil {
		said = bad("verifier", proof.VerifierUnreachable.Info().Remedy, "%v", err)
	} else if _, err := v.Challenge(ctx); err != nil {
		said = bad("verifier", asRefusal(err).Remedy, "%v", err)
	}
	return []Finding{said, answers.clock()}
}

// dated keeps how far the clock of whoever answers is ahead of ours.
type dated struct {
	http.RoundTripper
	now   func() time.Time
	ahead *time.Duration // of the newest answer that told its time
}

// RoundTrip implements http.RoundTripper.
func (t *dated) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := t.RoundTripper.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	if date, err := http.ParseTime(resp.Header.Get("Date")); err == nil {
		ahead := date.Sub(t.now()).Round(time.Second)
		t.ahead = &ahead
	}
	return resp, nil
}

// clockApart is how far the clocks of host and verifier may be apart either way, before somebody should look: a third of a verdict's life. Nothing is decided by
// the host's clock but the certificates before its first verdict, and replicas of a verifier, whose clocks count, may be 10 s apart.
const clockApart = time.Minute

func (t *dated) clock() Finding {
	switch {
	case t.ahead == nil:
		return unknown("clock", mendVerifier, "no verifier told its time")
	case t.ahead.Abs() > clockApart:
		return bad("clock", "Set whichever clock is wrong: this host's, which certificates are checked against before the first verdict and which dates its logs, or the verifier's, by which tokens and verdicts end.",
			"the verifier's clock is %v ahead of this host's", *t.ahead)
	}
	return good("clock", "the verifier's clock is %v ahead of this host's", *t.ahead)
}
