package chip

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"github.com/google/go-tpm/tpm2"
	"golang.org/x/sys/unix"
)

const (
	maxResponse = 4096
	// A software TPM answers in a second; RSA primaries of a discrete one take up to 15 s, and drivers allow minutes.
	socketTimeout = 30 * time.Second
	deviceTimeout = 2 * time.Minute
	// How often a command is sent again that the TPM asked to send again, with pauses of 1, 2, 4 … 512 ms.
	maxRetries = 10
)

// link sends one command and reads one response. It is used by one goroutine.
type link interface {
	exchange(command []byte) ([]byte, error)
	Close() error
}

func openLink(config Config) (link, error) {
	if config.Socket != "" {
		info, err := os.Stat(config.Socket)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
		}
		if info.Mode()&os.ModeSocket == 0 {
			return nil, fmt.Errorf("%w: %s is no socket", ErrUnavailable, config.Socket)
		}
		return socketLink(config.Socket), nil
	}
	d := &deviceLink{path: config.Device, fd: -1}
	if err := d.open(); err != nil {
		return nil, err
	}
	return d, nil
}

// socketLink is the path of a swtpm socket. swtpm serves one connection at a time, so each command has its own: the
// lab can take its turn between two of ours, and a connection that broke is gone with its command.
type socketLink string

func (s socketLink) exchange(command []byte) ([]byte, error) {
	c, err := net.DialTimeout("unix", string(s), socketTimeout)
	for wait := time.Millisecond; errors.Is(err, unix.EAGAIN) && wait < socketTimeout; wait *= 2 { // others are in the queue
		time.Sleep(wait)
		c, err = net.DialTimeout("unix", string(s), socketTimeout)
	}
	if err != nil {
		return nil, err
	}
	response, err := func() ([]byte, error) {
		if err := c.SetDeadline(time.Now().Add(socketTimeout)); err != nil {
			return nil, err
		}
		if _, err := c.Write(command); err != nil {
			return nil, err
		}
		header := make([]byte, 10)
		if _, err := io.ReadFull(c, header); err != nil {
			return nil, err
		}
		size := binary.BigEndian.Uint32(header[2:])
		if size < 10 || size > maxResponse {
			return nil, fmt.Errorf("response claims %d bytes", size)
		}
		response := append(header, make([]byte, size-10)...)
		_, err := io.ReadFull(c, response[10:])
		return response, err
	}()
	if err := errors.Join(err, c.Close()); err != nil {
		return nil, err
	}
	return response, nil
}

func (s socketLink) Close() error { return nil }

// deviceLink is a TPM device node. After an error it is closed and opened again: the kernel may still hold the
// response of a command that we gave up on, and through a resource manager closing flushes what was ours.
type deviceLink struct {
	path string
	fd   int
}

func (d *deviceLink) open() error {
	// Not through os.File: its poller and the TPM driver disagree about reads that find nothing yet.
	fd, err := unix.Open(d.path, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("%w: cannot open %s: %w", ErrUnavailable, d.path, err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFCHR {
		return errors.Join(fmt.Errorf("%w: %s is no character device", ErrUnavailable, d.path), err, unix.Close(fd))
	}
	d.fd = fd
	return nil
}

func (d *deviceLink) exchange(command []byte) ([]byte, error) {
	if d.fd < 0 {
		if err := d.open(); err != nil {
			return nil, err
		}
	}
	response, err := d.writeAndRead(command)
	if err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return response, nil
}

func (d *deviceLink) writeAndRead(command []byte) ([]byte, error) {
	if n, err := uninterrupted(func() (int, error) { return unix.Write(d.fd, command) }); err != nil || n != len(command) {
		return nil, fmt.Errorf("cannot write command: %d of %d bytes: %w", n, len(command), err)
	}
	ready := []unix.PollFd{{Fd: int32(d.fd), Events: unix.POLLIN}}
	n, err := uninterrupted(func() (int, error) { return unix.Poll(ready, int(deviceTimeout.Milliseconds())) })
	if err != nil || n != 1 {
		return nil, fmt.Errorf("no response in %v: %w", deviceTimeout, err)
	}
	response := make([]byte, maxResponse)
	n, err = uninterrupted(func() (int, error) { return unix.Read(d.fd, response) })
	if err != nil {
		return nil, fmt.Errorf("cannot read response: %w", err)
	}
	return response[:n], nil
}

func (d *deviceLink) Close() error {
	if d.fd < 0 {
		return nil
	}
	fd := d.fd
	d.fd = -1
	return unix.Close(fd)
}

// uninterrupted repeats a system call that a signal interrupted.
func uninterrupted(call func() (int, error)) (int, error) {
	for {
		n, err := call()
		if !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}

// sender makes a link a transport.TPM: it knows what "try again" means, and which errors are the device's.
type sender struct {
	link
	ctx func() context.Context
}

func (s sender) Send(command []byte) ([]byte, error) {
	pause := time.Millisecond
	for attempt := 0; ; attempt++ {
		response, err := s.exchange(command)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
		}
		if len(response) < 10 || int(binary.BigEndian.Uint32(response[2:])) != len(response) {
			return nil, fmt.Errorf("%w: its response of %d bytes has no valid header", ErrUnavailable, len(response))
		}
		switch tpm2.TPMRC(binary.BigEndian.Uint32(response[6:])) {
		case tpm2.TPMRCRetry, tpm2.TPMRCYielded, tpm2.TPMRCTesting, tpm2.TPMRCNVRate:
		default:
			return response, nil
		}
		if attempt == maxRetries {
			return response, nil // classify calls it busy
		}
		select {
		case <-time.After(pause):
			pause *= 2
		case <-s.ctx().Done():
			return response, nil
		}
	}
}
