package txt

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// TPM is a software TPM and the directory that all of it lies in.
type TPM struct {
	dir     string
	process *exec.Cmd // nil if Attach found it running
	exited  chan ended
}

// ended is how the process ended; once it has been told to end, nobody asks.
type ended struct{ status error }

// Socket is where the TPM takes commands: what chip.Config.Socket names.
func (t *TPM) Socket() string { return filepath.Join(t.dir, "sock") }

// Control is swtpm's control channel.
func (t *TPM) Control() string { return filepath.Join(t.dir, "sock.ctrl") }

// LogFile holds the event log of the last boot.
func (t *TPM) LogFile() string { return filepath.Join(t.dir, "drtm-log") }

// RootFile is the PEM file with the certificate of an authority's root.
func RootFile(ca string) string { return filepath.Join(ca, "swtpm-localca-rootca-cert.pem") }

// IssuerFile is the PEM file with the certificate of an authority's issuer, which the root has signed and which signs
// EK certificates. The TPM does not carry it.
func IssuerFile(ca string) string { return filepath.Join(ca, "issuercert.pem") }

// CA is the directory of the authority that Start makes for a TPM that was not prepared with another.
func (t *TPM) CA() string { return filepath.Join(t.dir, "ca") }

// Prepare makes a new TPM in dir, which must be an absolute path: EK certificates (RSA-2048, P-384) signed by the
// authority in the directory ca, which is made if it is not there. Several TPMs may share one authority; calls for
// one authority wait for each other.
func Prepare(ctx context.Context, dir, ca string) error {
	state := filepath.Join(dir, "state")
	for _, d := range []string{state, ca} {
		if !filepath.IsAbs(d) {
			return fmt.Errorf("cannot prepare TPM: %s is not an absolute path", d)
		}
		if err := os.MkdirAll(d, 0o700); err != nil {
			return fmt.Errorf("cannot prepare TPM: %w", err)
		}
	}
	lock, err := os.OpenFile(filepath.Join(ca, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("cannot prepare TPM: %w", err)
	}
	err = unix.Flock(int(lock.Fd()), unix.LOCK_EX)
	if err == nil {
		err = setup(ctx, state, ca)
	}
	if err := errors.Join(err, lock.Close()); err != nil {
		return fmt.Errorf("cannot prepare TPM: %w", err)
	}
	return nil
}

// setup runs swtpm_setup. Its configuration lies beside the authority: the default one writes to a system directory.
func setup(ctx context.Context, state, ca string) error {
	files := map[string]string{
		"localca.conf": fmt.Sprintf("statedir = %s\nsigningkey = %s/signkey.pem\nissuercert = %s/issuercert.pem\ncertserial = %s/certserial\n",
			ca, ca, ca, ca),
		"localca.options": "--platform-manufacturer Troth\n--platform-version 1\n--platform-model lab\n",
		"setup.conf": fmt.Sprintf("create_certs_tool = swtpm_localca\ncreate_certs_tool_config = %s/localca.conf\n"+
			"create_certs_tool_options = %s/localca.options\nactive_pcr_banks = sha256\n", ca, ca),
	}
	tool, err := exec.LookPath("swtpm_localca")
	if err != nil {
		return err
	}
	files["setup.conf"] = string(bytes.Replace([]byte(files["setup.conf"]), []byte("= swtpm_localca"), []byte("= "+tool), 1))
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(ca, name), []byte(content), 0o600); err != nil {
			return err
		}
	}
	c := exec.CommandContext(ctx, "swtpm_setup", "--tpm2", "--tpmstate", state, "--create-ek-cert", "--not-overwrite",
		"--pcr-banks", "sha1,sha256,sha384", "--config", filepath.Join(ca, "setup.conf"))
	c.Env = append(os.Environ(), "TMPDIR="+ca) // what it leaves when it is killed goes with the authority
	if out, err := c.CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, bytes.TrimSpace(out))
	}
	return nil
}

// Command returns the command that runs the TPM in dir, for a caller that starts it in a namespace of its own.
func Command(dir string) *exec.Cmd {
	t := &TPM{dir: dir}
	return exec.Command("swtpm", "socket", "--tpm2", "--tpmstate", "dir="+filepath.Join(dir, "state"),
		"--ctrl", "type=unixio,path="+t.Control(), "--server", "type=unixio,path="+t.Socket(),
		"--flags", "startup-clear,not-need-init", "--locality", "allow-set-locality")
}

// Resume returns the command that goes on with the TPM in dir from the whole state that Keep left: nothing has happened to that TPM.
func Resume(dir string) *exec.Cmd {
	c := Command(dir)
	for i, a := range c.Args {
		if a == "startup-clear,not-need-init" {
			c.Args[i] = "not-need-init"
		}
	}
	return c
}

// Keep writes the TPM's volatile state beside its permanent one (CMD_STORE_VOLATILE): whoever starts it next goes on from there, once.
func (t *TPM) Keep() error {
	r, err := exchange(t.Control(), []byte{0, 0, 0, 0x0a}, 4)
	if err == nil && !bytes.Equal(r, make([]byte, 4)) {
		err = fmt.Errorf("result %x", r)
	}
	if err != nil {
		return fmt.Errorf("cannot keep the TPM's state: %w", err)
	}
	return nil
}

// Start starts a TPM in dir as a power-on does, after Prepare with an authority in dir if there is none yet. The
// TPM shows no dynamic launch until Boot.
func Start(ctx context.Context, dir string) (*TPM, error) {
	t := &TPM{dir: dir, exited: make(chan ended, 1)}
	if _, err := os.Stat(filepath.Join(dir, "state", "tpm2-00.permall")); errors.Is(err, os.ErrNotExist) {
		if err := Prepare(ctx, dir, t.CA()); err != nil {
			return nil, err
		}
	}
	t.process = Command(dir)
	var out bytes.Buffer
	t.process.Stdout, t.process.Stderr = &out, &out
	if err := t.process.Start(); err != nil {
		return nil, fmt.Errorf("cannot start TPM: %w", err)
	}
	go func() { t.exited <- ended{t.process.Wait()} }()
	for range 6000 {
		_, err := exchange(t.Control(), []byte{0, 0, 0, 1}, 4) // get capabilities
		if err == nil {
			err = t.send(ccReadClock, false, nil) // both sockets listen
		}
		if err == nil {
			return t, nil
		}
		select {
		case e := <-t.exited:
			return nil, fmt.Errorf("cannot start TPM: it exited: %w: %s", e.status, bytes.TrimSpace(out.Bytes()))
		case <-time.After(10 * time.Millisecond):
		}
	}
	return nil, errors.Join(errors.New("cannot start TPM: no answer after a minute"), t.Stop())
}

// Attach returns the TPM that another process runs in dir.
func Attach(dir string) (*TPM, error) {
	t := &TPM{dir: dir}
	if err := t.send(ccReadClock, false, nil); err != nil {
		return nil, fmt.Errorf("cannot attach to TPM: %w", err)
	}
	return t, nil
}

// Stop ends the process: by the control channel, and after two seconds by a signal. Its state stays.
func (t *TPM) Stop() error {
	_, err := t.control(ctrlShutdown, nil)
	if t.process == nil {
		return err
	}
	select {
	case e := <-t.exited: // with whatever status: it has been told to end
		t.exited <- e // for whoever stops it again
		return nil
	case <-time.After(2 * time.Second):
	}
	if err := t.process.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("cannot stop TPM: %w", err)
	}
	t.exited <- <-t.exited
	return nil
}
