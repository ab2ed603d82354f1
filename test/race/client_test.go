package race

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"

	"troth/test/lab"
	"troth/test/scene"
)

// client is a virsh that stays connected and takes one command after another, as a management program does: to start a program for each would cost more
// than what is measured.
type client struct {
	cmd  *exec.Cmd
	in   io.WriteCloser
	out  *bufio.Reader
	asks int
}

// connect starts one; it ends with the test.
func connect(ctx context.Context, t *testing.T, h *lab.Host) *client {
	t.Helper()
	c := &client{cmd: h.Command(ctx, "stdbuf", "-o0", "virsh", "-q", "-c", "qemu:///system")}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	c.out = bufio.NewReader(r)
	c.cmd.Stdout, c.cmd.Stderr = w, w
	c.in = scene.Must[io.WriteCloser](t)(c.cmd.StdinPipe())
	if err := errors.Join(c.cmd.Start(), w.Close()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(c.in.Close(), c.cmd.Wait(), r.Close()); err != nil {
			t.Error(err)
		}
	})
	if _, err := c.do("version"); err != nil {
		t.Fatal(err)
	}
	return c
}

// do gives one command and returns what it printed. A command that failed is an error with libvirt's words.
func (c *client) do(command string) (string, error) {
	c.asks++
	end := fmt.Sprintf("end of %d", c.asks)
	if _, err := fmt.Fprintf(c.in, "%s\necho '%s'\n", command, end); err != nil {
		return "", err
	}
	// Without a terminal virsh repeats what it reads, so the mark comes twice; the second time it ends the output.
	var all []byte
	for mark := []byte("echo '" + end + "'\n" + end); !bytes.HasSuffix(all, mark); {
		b, err := c.out.ReadByte()
		if err != nil {
			return "", fmt.Errorf("%s: %w: %s", command, err, all)
		}
		all = append(all, b)
	}
	_, out, _ := strings.Cut(string(all), "\n")
	out, _, _ = strings.Cut(out, "virsh # echo")
	if strings.Contains(out, "error:") {
		return out, fmt.Errorf("%s: %s", command, strings.TrimSpace(out))
	}
	return out, nil
}
