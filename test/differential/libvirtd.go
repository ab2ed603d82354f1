package differential

import (
	"bytes"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

//go:embed libvirtd.sh
var script string

// maxLog is how many bytes of libvirtd's last words are told.
const maxLog = 2000

// Libvirtd is one private libvirtd.
type Libvirtd struct {
	cmd   *exec.Cmd
	stdin io.Closer
	log   bytes.Buffer
	uri   string
}

// Start runs a libvirtd that keeps its socket in dir and ends when the caller does. It needs root.
func Start(dir string) (*Libvirtd, error) {
	l := &Libvirtd{uri: "qemu+unix:///system?socket=" + filepath.Join(dir, "libvirt-sock")}
	l.cmd = exec.Command("unshare", "--mount", "--net", "--ipc", "--pid", "--uts", "--fork", "--kill-child", "--mount-proc",
		"bash", "-c", script, "libvirtd.sh", dir)
	l.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	l.cmd.Stderr = &l.log
	in, err := l.cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	l.stdin = in
	out, err := l.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := l.cmd.Start(); err != nil {
		return nil, fmt.Errorf("cannot start libvirtd in namespaces (root is needed): %w", err)
	}
	ready := make(chan error, 1)
	go func() {
		line := make([]byte, 6)
		_, err := io.ReadFull(out, line)
		ready <- err
	}()
	select {
	case err = <-ready:
	case <-time.After(time.Minute):
		err = os.ErrDeadlineExceeded
	}
	if err == nil {
		err = answers(filepath.Join(dir, "libvirt-sock"))
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("cannot start libvirtd in namespaces (root, libvirtd and unshare are needed): %w", err), l.Stop())
	}
	return l, nil
}

// answers waits until somebody listens on a socket: libvirtd makes the file before it does.
func answers(socket string) error {
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		c, err := net.Dial("unix", socket)
		if err == nil {
			return c.Close()
		}
		if time.Now().After(deadline) {
			return err
		}
	}
}

// URI is where to connect to.
func (l *Libvirtd) URI() string { return l.uri }

// Stop ends it; its words are in the error if it ended by itself.
func (l *Libvirtd) Stop() error {
	if err := l.stdin.Close(); err != nil { // the script waits for that
		return err
	}
	if err := l.cmd.Wait(); err != nil {
		return fmt.Errorf("libvirtd: %w\n%s", err, l.log.Bytes()[max(0, l.log.Len()-maxLog):])
	}
	return nil
}
