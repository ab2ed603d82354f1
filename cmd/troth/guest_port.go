package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"troth/proof"
)

// What a guest finds in itself. hostd makes both: a fw_cfg file that libvirt
// hands to QEMU, and a virtio-serial port (docs/cli.md, "In the guest").
const (
	guestPort       = "troth.guest.0"
	guestCredential = "troth.guest"
	guestFwCfg      = "sys/firmware/qemu_fw_cfg/by_name/opt/io.systemd.credentials/troth.guest/raw"
)

// guestCredentials names the files that may hold the guest's secret: systemd's
// credential if this is a service, then QEMU's fw_cfg entry.
func guestCredentials(root, credentials string) []string {
	var names []string
	if credentials != "" {
		names = append(names, filepath.Join(credentials, guestCredential))
	}
	return append(names, filepath.Join(root, guestFwCfg))
}

// findGuestPort names the device of the port: the link that udev makes, or,
// without udev (an initrd), the one whose name the kernel gives in sysfs.
func findGuestPort(root string) (string, error) {
	link := filepath.Join(root, "dev/virtio-ports", guestPort)
	if _, err := os.Stat(link); err == nil {
		return link, nil
	}
	names, err := filepath.Glob(filepath.Join(root, "sys/class/virtio-ports/*/name"))
	if err != nil {
		return "", fmt.Errorf("cannot list the virtio ports: %w", err)
	}
	for _, n := range names {
		b, err := os.ReadFile(n)
		if err != nil {
			continue // a port that was unplugged meanwhile is not ours
		}
		if strings.TrimRight(string(b), "\n") == guestPort {
			return filepath.Join(root, "dev", filepath.Base(filepath.Dir(n))), nil
		}
	}
	return "", fmt.Errorf("cannot find the virtio port %s: %w", guestPort, fs.ErrNotExist)
}

// until repeats try until it succeeds, the wait is over or the context ends:
// fw_cfg entries and ports appear a moment after their kernel modules.
func until[T any](ctx context.Context, wait time.Duration, try func() (T, error)) (T, error) {
	deadline := time.Now().Add(wait)
	for {
		v, err := try()
		if err == nil || time.Now().After(deadline) {
			return v, err
		}
		select {
		case <-ctx.Done():
			return v, errors.Join(err, ctx.Err())
		case <-time.After(guestPause):
		}
	}
}

// guestPause is how long the responder waits when the host's end of the port is
// closed (a read then returns at once with nothing) before it looks again.
const guestPause = 100 * time.Millisecond

// guestWrite bounds the write of one answer: a host that stops reading must not
// hold the responder.
const guestWrite = 5 * time.Second

// serveGuest answers every challenge that arrives on the port, one line each way
// (proof.MaxGuestLine), until the context ends or the port breaks. A longer line
// is thrown away up to its end. What is no challenge gets no answer: the channel
// carries anything that the host writes into it.
func serveGuest(ctx context.Context, port io.ReadWriter, c *proof.GuestCredential, say func(string, ...any)) error {
	var in lines
	buf := make([]byte, 4096)
	for {
		n, err := port.Read(buf)
		for _, line := range in.add(buf[:n]) {
			if line == nil {
				say("a line of more than %d bytes was thrown away", proof.MaxGuestLine)
			} else if err := answerGuest(port, line, c, say); err != nil {
				return err
			}
		}
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, io.EOF):
			// The host's end is closed; half a line of its last user is nobody's.
			in = lines{}
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(guestPause):
			}
		case err != nil:
			return fmt.Errorf("cannot read from the port: %w", err)
		}
	}
}

// lines cuts a stream into lines of at most proof.MaxGuestLine bytes, newline
// included.
type lines struct {
	held []byte
	skip bool // the present line is too long
}

// add gives the lines that b completes; nil stands for one that was too long.
func (l *lines) add(b []byte) [][]byte {
	var out [][]byte
	for len(b) > 0 {
		end := bytes.IndexByte(b, '\n') + 1
		part := b[:end]
		if end == 0 {
			part = b
		}
		b = b[len(part):]
		if len(l.held)+len(part) > proof.MaxGuestLine {
			l.held, l.skip = nil, true
		}
		if !l.skip {
			l.held = append(l.held, part...)
		}
		if end == 0 {
			break
		}
		if l.skip {
			out = append(out, nil)
		} else {
			out = append(out, l.held)
		}
		*l = lines{}
	}
	return out
}

func answerGuest(port io.Writer, line []byte, c *proof.GuestCredential, say func(string, ...any)) error {
	challenge, err := proof.ParseGuestChallenge(line)
	if err != nil {
		say("no answer: %s", err)
		return nil
	}
	out, err := proof.EncodeGuestAnswer(c, challenge)
	if err != nil {
		return err
	}
	if d, ok := port.(interface{ SetWriteDeadline(time.Time) error }); ok {
		if err := d.SetWriteDeadline(time.Now().Add(guestWrite)); err != nil && !errors.Is(err, os.ErrNoDeadline) {
			return fmt.Errorf("cannot bound a write: %w", err)
		}
	}
	if _, err := port.Write(out); errors.Is(err, os.ErrDeadlineExceeded) {
		say("nobody read the answer")
	} else if err != nil {
		return fmt.Errorf("cannot write to the port: %w", err)
	}
	return nil
}
