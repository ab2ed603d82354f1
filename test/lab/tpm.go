package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	"troth/test/lab/txt"
)

// prepareTPM is the body of a process that manufactures a TPM; it runs in a node, so that swtpm_setup and what that
// starts end with the lab.
func prepareTPM(dir, ca string) error { return txt.Prepare(context.Background(), dir, ca) }

// tpmDir is where swtpm keeps its state and sockets; the path is the same inside and outside.
func (h *Host) tpmDir() string { return filepath.Join(h.dir, "tpm") }

// TPMSocket is swtpm's socket, by the same path inside and outside; its control socket has ".ctrl" added.
func (h *Host) TPMSocket() string { return filepath.Join(h.tpmDir(), "sock") }

// EventLog is the event log of the last dynamic launch, by the same path inside and outside.
func (h *Host) EventLog() string { return filepath.Join(h.tpmDir(), "drtm-log") }

// tpmAuthority is the directory of the authority that signs the lab's EK certificates: one for all hosts, as one
// manufacturer's chips have.
func (l *Lab) tpmAuthority() string { return filepath.Join(l.dir, "ek-ca") }

// EKRoot is the PEM file with the root of the authority of the lab's EK certificates.
func (l *Lab) EKRoot() string { return txt.RootFile(l.tpmAuthority()) }

// EKIssuer is the PEM file with the authority's issuer, which signs EK certificates.
func (l *Lab) EKIssuer() string { return txt.IssuerFile(l.tpmAuthority()) }

// StartTPM powers the TPM on, and manufactures it the first time. There is no dynamic launch yet.
func (h *Host) StartTPM(ctx context.Context) error {
	if _, err := os.Stat(filepath.Join(h.tpmDir(), "state", "tpm2-00.permall")); errors.Is(err, os.ErrNotExist) {
		if _, err := h.lab.Outside.Exec(ctx, tpmName, h.tpmDir(), h.lab.tpmAuthority()); err != nil {
			return fmt.Errorf("cannot manufacture the TPM of %s: %w", h.Name, err)
		}
	}
	return h.serveTPM(ctx, txt.Command(h.tpmDir()).Args)
}

// serveTPM starts swtpm and gives its sockets to those who use a TPM.
func (h *Host) serveTPM(ctx context.Context, argv []string) error {
	if err := h.start(ctx, "swtpm", argv...); err != nil {
		return err
	}
	if err := h.await(ctx, "swtpm", func() error { _, err := txt.Attach(h.tpmDir()); return err }); err != nil {
		return err
	}
	if err := h.give(ctx, "tss", "0711", h.tpmDir()); err != nil {
		return err
	}
	return h.give(ctx, "tss", "0660", h.TPMSocket())
}

// KillTPM takes the TPM away: its sockets refuse connections. A chip writes its clock down while it runs; swtpm does when it is shut down, and would else
// start again at zero, which after four seconds it calls safe, as after TPM2_Clear.
func (h *Host) KillTPM(ctx context.Context) error {
	if err := h.withTPM((*txt.TPM).Shutdown); err != nil {
		return err
	}
	return h.killTPM(ctx)
}

func (h *Host) killTPM(ctx context.Context) error { return h.stop(ctx, "swtpm", syscall.SIGKILL) }

// PauseTPM holds the TPM where it is, or lets it go on: it takes commands and answers none.
func (h *Host) PauseTPM(ctx context.Context, hold bool) error {
	sig := syscall.SIGCONT
	if hold {
		sig = syscall.SIGSTOP
	}
	return h.signal(ctx, "swtpm", sig)
}

// ReplaceTPM puts another process in swtpm's place, with all of its state: the TPM was away for a moment, and nothing has happened to it.
func (h *Host) ReplaceTPM(ctx context.Context) error {
	if err := h.withTPM((*txt.TPM).Keep); err != nil {
		return err
	}
	if err := h.killTPM(ctx); err != nil {
		return err
	}
	return h.serveTPM(ctx, txt.Resume(h.tpmDir()).Args)
}

// TPM is the host's software TPM, for whatever the methods below do not do.
func (h *Host) TPM() (*txt.TPM, error) { return txt.Attach(h.tpmDir()) }

// Script is what the host measures when it is launched with nothing changed: every host of a lab is of one make.
func (h *Host) Script() txt.Script { return txt.Example(txt.TbootLegacy) }

// TXTBoot does a dynamic launch of a script: the host's own, or the one given. It returns PCR 17 to 19 as computed from
// the script alone.
func (h *Host) TXTBoot(script ...txt.Script) (map[int][32]byte, error) {
	s := h.Script()
	if len(script) > 0 {
		s = script[0]
	}
	tpm, err := h.TPM()
	if err != nil {
		return nil, err
	}
	want, err := s.Expected()
	if err != nil {
		return nil, err
	}
	// A command that troth-hostd sends between two steps of a launch can spoil it, as no chipset would allow: look, and launch again.
	for range 5 {
		if err = tpm.Boot(s); err != nil {
			continue
		}
		var measured bool
		if measured, err = h.measured(want); measured {
			return want, nil
		}
	}
	return nil, fmt.Errorf("%s: the launch did not measure what its script says: %w", h.Name, errors.Join(err, errors.New("five times")))
}

// measured reads PCR 17 to 19 with another tool than ours and compares them.
func (h *Host) measured(want map[int][32]byte) (bool, error) {
	dir, err := os.MkdirTemp(h.dir, "pcrs") // there, since a lab that is killed leaves it
	if err != nil {
		return false, err
	}
	defer os.RemoveAll(dir) //nolint:errcheck // a directory of temporary files
	file := filepath.Join(dir, "values")
	out, err := exec.Command("tpm2_pcrread", "-T", "swtpm:path="+h.TPMSocket(), "sha256:17,18,19", "-o", file).CombinedOutput()
	if err != nil {
		return false, fmt.Errorf("tpm2_pcrread: %w: %s", err, out)
	}
	got, err := os.ReadFile(file)
	if err != nil {
		return false, err
	}
	var all []byte
	for _, i := range []int{17, 18, 19} {
		value := want[i]
		all = append(all, value[:]...)
	}
	return bytes.Equal(got, all), nil
}

// Relaunch does a second dynamic launch while the host runs: the same values if no script is given, and restartCount moves.
func (h *Host) Relaunch(script ...txt.Script) (map[int][32]byte, error) { return h.TXTBoot(script...) }

// S3 suspends the host's TPM and resumes it: no dynamic launch is left.
func (h *Host) S3() error { return h.withTPM((*txt.TPM).S3) }

// Reset restarts the host's TPM as a power cycle does: no dynamic launch is left and resetCount moves.
func (h *Host) Reset() error { return h.withTPM((*txt.TPM).Reset) }

func (h *Host) withTPM(do func(*txt.TPM) error) error {
	tpm, err := h.TPM()
	if err != nil {
		return err
	}
	if err := do(tpm); err != nil {
		return fmt.Errorf("%s: %w", h.Name, err)
	}
	return nil
}
