package main

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"troth/proof"
)

func testCredential(t testing.TB) (*proof.GuestCredential, []byte, proof.Secret) {
	t.Helper()
	nonce := proof.RandomSecret(proof.NonceSize)
	link := proof.Digest{1, 2, 3}
	c := &proof.GuestCredential{Link: link, Secret: proof.GuestSecret(nonce, link), Token: proof.NewSecret([]byte("disk key of the tenant"))}
	b, err := c.EncodePrivate()
	if err != nil {
		t.Fatal(err)
	}
	return c, b, nonce
}

// TestServeGuest talks to the responder as hostd does, through everything that a
// rude host may write in between.
func TestServeGuest(t *testing.T) {
	c, _, nonce := testCredential(t)
	host, guest := net.Pipe()
	ctx, cancel := context.WithCancel(t.Context())
	var said bytes.Buffer
	var mu sync.Mutex
	done := make(chan error, 1)
	go func() {
		done <- serveGuest(ctx, guest, c, func(format string, args ...any) {
			mu.Lock()
			defer mu.Unlock()
			said.WriteString(format + "\n")
		})
	}()
	answers := bufio.NewReader(host)
	for i, noise := range []string{"", "\n", "garbage\n", "{}\n", strings.Repeat("x", 3*proof.MaxGuestLine) + "\n", "\x00\xff\n"} {
		if _, err := io.WriteString(host, noise); err != nil {
			t.Fatal(err)
		}
		challenge := bytes.Repeat([]byte{byte(i + 1)}, challengeSize)
		line, err := proof.EncodeGuestChallenge(challenge)
		if err != nil {
			t.Fatal(err)
		}
		// In two halves: a line may arrive in pieces.
		for _, half := range [][]byte{line[:7], line[7:]} {
			if _, err := host.Write(half); err != nil {
				t.Fatal(err)
			}
		}
		got, err := answers.ReadBytes('\n')
		if err != nil {
			t.Fatal(err)
		}
		link, answer, err := proof.ParseGuestAnswer(got, challenge)
		if err != nil {
			t.Fatalf("after %q: %v", noise, err)
		}
		if err := proof.CheckGuestAnswer(nonce, link, challenge, answer); err != nil || link != c.Link {
			t.Errorf("after %q: link %s: %v", noise, link, err)
		}
		if err := proof.CheckGuestAnswer(proof.RandomSecret(32), link, challenge, answer); err == nil {
			t.Error("another nonce accepts the answer")
		}
	}
	cancel()
	if err := guest.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err == nil {
		t.Error("ended without the context's error")
	}
	mu.Lock()
	defer mu.Unlock()
	if !strings.Contains(said.String(), "thrown away") {
		t.Errorf("nothing was said of the long line: %s", said.String())
	}
}

// hangup is a port whose host end closes in the middle of a line, as virtio does:
// a read then returns nothing and no error but EOF, and later there is a host again.
type hangup struct {
	parts [][]byte // nil: the host is gone
	out   bytes.Buffer
}

func (h *hangup) Read(b []byte) (int, error) {
	if len(h.parts) == 0 {
		return 0, os.ErrClosed
	}
	part := h.parts[0]
	h.parts = h.parts[1:]
	if part == nil {
		return 0, io.EOF
	}
	return copy(b, part), nil
}

func (h *hangup) Write(b []byte) (int, error) { return h.out.Write(b) }

func TestServeGuestAfterHangup(t *testing.T) {
	c, _, nonce := testCredential(t)
	challenge := bytes.Repeat([]byte{7}, challengeSize)
	line, err := proof.EncodeGuestChallenge(challenge)
	if err != nil {
		t.Fatal(err)
	}
	port := &hangup{parts: [][]byte{line[:20], nil, nil, line}}
	if err := serveGuest(t.Context(), port, c, t.Logf); err == nil {
		t.Fatal("a broken port is no error")
	}
	link, answer, err := proof.ParseGuestAnswer(port.out.Bytes(), challenge)
	if err != nil {
		t.Fatalf("%v: %q", err, port.out.String())
	}
	if err := proof.CheckGuestAnswer(nonce, link, challenge, answer); err != nil {
		t.Error(err)
	}
}

// guestRoot is a file system as a guest's kernel shows it, without udev.
func guestRoot(t *testing.T) string {
	t.Helper()
	root := t.TempDir()
	for name, content := range map[string]string{
		"sys/class/virtio-ports/vport1p1/name": "org.qemu.guest_agent.0\n",
		"sys/class/virtio-ports/vport2p1/name": "troth.guest.0\n",
		"dev/vport1p1":                         "",
		"dev/vport2p1":                         "",
	} {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func TestFindGuestPort(t *testing.T) {
	root := guestRoot(t)
	if got, err := findGuestPort(root); err != nil || got != filepath.Join(root, "dev/vport2p1") {
		t.Errorf("without udev: %q, %v", got, err)
	}
	link := filepath.Join(root, "dev/virtio-ports/troth.guest.0")
	if err := os.MkdirAll(filepath.Dir(link), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("../vport2p1", link); err != nil {
		t.Fatal(err)
	}
	if got, err := findGuestPort(root); err != nil || got != link {
		t.Errorf("with udev: %q, %v", got, err)
	}
	if _, err := findGuestPort(t.TempDir()); err == nil {
		t.Error("a guest without the port has one")
	}
}

func TestReadGuestCredential(t *testing.T) {
	c, b, _ := testCredential(t)
	root, credentials := t.TempDir(), t.TempDir()
	if _, err := readGuestCredential(guestOptions{root: root, credentials: credentials}); err == nil {
		t.Fatal("found where there is none")
	}
	fwcfg := filepath.Join(root, guestFwCfg)
	if err := os.MkdirAll(filepath.Dir(fwcfg), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(fwcfg, b, 0o400); err != nil {
		t.Fatal(err)
	}
	got, err := readGuestCredential(guestOptions{root: root, credentials: credentials})
	if err != nil || got.Link != c.Link || !got.Secret.Equal(c.Secret) {
		t.Errorf("fw_cfg: %v", err)
	}
	if err := os.WriteFile(filepath.Join(credentials, "troth.guest"), []byte("{}"), 0o400); err != nil {
		t.Fatal(err)
	}
	if _, err := readGuestCredential(guestOptions{root: root, credentials: credentials}); err == nil {
		t.Error("a damaged credential was passed over")
	}
}

// TestGuestRespond runs the whole command over a pair of terminals' worth of
// device: the credential appears late, the port is a pty, and SIGTERM (the
// context) ends it with 0.
func TestGuestRespond(t *testing.T) {
	c, b, nonce := testCredential(t)
	root := guestRoot(t)
	host, device := openPTY(t)
	if err := os.Remove(filepath.Join(root, "dev/vport2p1")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(device, filepath.Join(root, "dev/vport2p1")); err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(50*time.Millisecond, func() {
		fwcfg := filepath.Join(root, guestFwCfg)
		if os.MkdirAll(filepath.Dir(fwcfg), 0o755) != nil || os.WriteFile(fwcfg, b, 0o400) != nil {
			panic("cannot write the credential")
		}
	})
	ctx, cancel := context.WithCancel(t.Context())
	var stderr bytes.Buffer
	a := &app{stdout: io.Discard, stderr: &stderr, now: time.Now}
	done := make(chan error, 1)
	go func() { done <- a.respond(ctx, guestOptions{root: root, wait: 10 * time.Second}) }()

	challenge := bytes.Repeat([]byte{9}, challengeSize)
	line, err := proof.EncodeGuestChallenge(challenge)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := host.Write(line); err != nil {
		t.Fatal(err)
	}
	got, err := bufio.NewReader(host).ReadBytes('\n')
	if err != nil {
		t.Fatal(err)
	}
	link, answer, err := proof.ParseGuestAnswer(got, challenge)
	if err != nil {
		t.Fatal(err)
	}
	if err := proof.CheckGuestAnswer(nonce, link, challenge, answer); err != nil || link != c.Link {
		t.Error(err)
	}
	cancel()
	select {
	case err := <-done:
		if err != nil {
			t.Errorf("told to stop: %v", err)
		}
	case <-time.After(5 * time.Second):
		t.Fatal("does not stop")
	}
	if holds(stderr.Bytes(), c.Secret.Reveal()) || holds(stderr.Bytes(), []byte("disk key of the tenant")) {
		t.Error("a secret was printed")
	}
}

func TestGuestRespondWithoutSecret(t *testing.T) {
	o := troth(t, "", "guest", "respond", "--secret", filepath.Join(t.TempDir(), "none"), "--wait", "1ms")
	o.want(t, exitUndecided, "cannot find the guest's secret")
}

// openPTY gives a pseudo terminal in raw mode: the nearest to a virtio port that
// needs no guest.
func openPTY(t *testing.T) (host *os.File, device string) {
	t.Helper()
	host, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := host.Close(); err != nil {
			t.Error(err)
		}
	})
	fd := int(host.Fd())
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	mode, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	mode.Iflag, mode.Oflag, mode.Lflag = 0, 0, 0
	if err := unix.IoctlSetTermios(fd, unix.TCSETS, mode); err != nil {
		t.Fatal(err)
	}
	return host, filepath.Join("/dev/pts", strconv.Itoa(n))
}
