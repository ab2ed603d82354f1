package lab

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"troth/proof"
)

// needRoot is for tests that make namespaces. With -short they do not run; without it a missing part is a failure.
func needRoot(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("makes namespaces: not with -short")
	}
	if os.Geteuid() != 0 {
		t.Fatal("needs root, for namespaces")
	}
}

// newLab builds a lab for a test that makes namespaces.
func newLab(t *testing.T, o Options) *Lab {
	t.Helper()
	needRoot(t)
	return ForTest(testContext(t), t, o)
}

func testContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// TestLabGuestBoots boots the lab's guest under each host's libvirtd, waits for its user space, and lets it answer a
// challenge on the channel with the secret that it was given.
func TestLabGuestBoots(t *testing.T) {
	l := newLab(t, Options{Hosts: 2, Until: Libvirt})
	ctx := testContext(t)
	for _, h := range l.Hosts() {
		credential := &proof.GuestCredential{Link: proof.Digest{1}, Secret: proof.NewSecret(bytes.Repeat([]byte{7}, 32))}
		data, err := credential.EncodePrivate()
		if err != nil {
			t.Fatal(err)
		}
		const dir = "/run/guest" // below /run/troth no hook would let it pass
		if err := writeFile(h.Path(dir+"/secret"), string(data), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(h.Path(dir), 0o777); err != nil { // QEMU's user makes its socket in it
			t.Fatal(err)
		}
		domain := l.Guest.XML(Domain{Name: "guest", UUID: nodeUUID("guest-" + h.Name), Sysinfo: dir + "/secret", ChannelPath: dir + "/channel"})
		if err := writeFile(h.Path("/tmp/guest.xml"), domain, 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := h.Virsh(ctx, "define", "/tmp/guest.xml"); err != nil {
			t.Fatal(err)
		}
		begun := time.Now()
		if _, err := h.Virsh(ctx, "start", "guest"); err != nil {
			t.Fatal(err, h.tail("libvirtd"))
		}
		started := time.Since(begun)
		if err := h.AwaitConsole(ctx, "guest", UserSpaceUp); err != nil {
			t.Fatal(err)
		}
		t.Logf("%s: started after %v, in user space after %v", h.Name, started, time.Since(begun))
		challenge := make([]byte, 32)
		rand.Read(challenge)
		link, answer := ask1(t, h.Path(dir+"/channel"), challenge)
		if link != credential.Link || !bytes.Equal(answer, proof.GuestAnswer(credential.Secret, challenge, credential.Link)) {
			t.Errorf("%s: the guest's answer is %x for link %v", h.Name, answer, link)
		}
		t.Logf("%s: answered after %v", h.Name, time.Since(begun))
	}
}

// ask1 sends a challenge over a guest's channel and reads the answer.
func ask1(t *testing.T, path string, challenge []byte) (proof.Digest, []byte) {
	t.Helper()
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	line, err := proof.EncodeGuestChallenge(challenge)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write(line); err != nil {
		t.Fatal(err)
	}
	back, err := bufio.NewReader(conn).ReadBytes('\n')
	if err != nil {
		t.Fatal(err)
	}
	link, answer, err := proof.ParseGuestAnswer(back, challenge)
	if err != nil {
		t.Fatal(err)
	}
	return link, answer
}

// TestLabVerifier starts the verifier and reaches it with and without a certificate, from outside and from a host.
func TestLabVerifier(t *testing.T) {
	l := newLab(t, Options{Until: Verifying})
	ctx := testContext(t)
	var hosts []struct{ Name string }
	if err := l.operate(ctx, "GET", "/v1/hosts", nil, &hosts); err != nil || len(hosts) != 0 {
		t.Errorf("hosts before any has enrolled: %v, %v", hosts, err)
	}
	c, err := l.Client("")
	if err != nil {
		t.Fatal(err)
	}
	var p *Problem
	if err := Call(ctx, c, "GET", l.Verifier.URL()+"/v1/hosts", nil, nil); !errors.As(err, &p) || p.Code != "forbidden" {
		t.Errorf("hosts without a certificate: %v", err)
	}
	if _, err := os.Stat(l.Verifier.TrustFile()); err != nil {
		t.Error(err)
	}
	h := l.Host(1)
	connect := []string{"openssl", "s_client", "-connect", "verifier:8443", "-CAfile", l.PKI.CAFile(), "-verify_return_error", "-brief"}
	if _, err := h.Exec(ctx, connect...); err != nil {
		t.Error(err)
	}
	if err := h.Cut(true); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Exec(ctx, append([]string{"timeout", "1"}, connect...)...); err == nil {
		t.Error("a host that is cut off reaches the verifier")
	}
	if err := h.Cut(false); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Exec(ctx, connect...); err != nil {
		t.Error(err)
	}
	if err := l.Verifier.Kill(ctx); err != nil {
		t.Fatal(err)
	}
	if err := l.Verifier.Start(ctx); err != nil {
		t.Error(err)
	}
}

// TestLabReady brings two hosts all the way up: what they attested is what the lab computed from its boot script alone. Then
// a host loses its dynamic launch and its trust, and gets both back without a restart of anything.
func TestLabReady(t *testing.T) {
	l := newLab(t, Options{Hosts: 2})
	ctx := testContext(t)
	for _, h := range l.Hosts() {
		want, err := h.Script().Expected()
		if err != nil {
			t.Fatal(err)
		}
		seen, err := h.Import(ctx, Golden, false)
		if err != nil {
			t.Fatal(err)
		}
		if len(seen.Difference) > 0 || seen.Applied || len(seen.Values) != 3 {
			t.Errorf("%s: a second import says %+v", h.Name, seen)
		}
		for _, v := range seen.Values {
			if w := want[v.Index]; v.Value != hex.EncodeToString(w[:]) {
				t.Errorf("%s: PCR %d is %s, want %x", h.Name, v.Index, v.Value, w)
			}
		}
	}
	h := l.Host(1)
	c := h.UnixClient()
	ready := func() error { return Call(ctx, c, "GET", "http://hostd/readyz", nil, nil) }
	if err := h.Reset(); err != nil {
		t.Fatal(err)
	}
	err := until(ctx, "a host without a dynamic launch stays trusted", func() error {
		var p *Problem
		if err := ready(); !errors.As(err, &p) || p.Code != "no-dynamic-launch" {
			return fmt.Errorf("readyz says %w", err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.TXTBoot(); err != nil {
		t.Fatal(err)
	}
	if err := h.AwaitReady(ctx); err != nil {
		t.Error(err)
	}
	if err := Call(ctx, l.Host(2).UnixClient(), "GET", "http://hostd/readyz", nil, nil); err != nil {
		t.Errorf("the other host: %v", err)
	}
}

// TestLabInitrdReproducible builds the initrd twice.
func TestLabInitrdReproducible(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{"troth": "program", "modules/01-a.ko": "a", "modules/02-b.ko": "b"} {
		if err := writeFile(filepath.Join(dir, name), text, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	build := func() []byte {
		b, err := BuildInitrd(filepath.Join(dir, "modules"), filepath.Join(dir, "troth"))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	a := build()
	for name := range map[string]bool{"troth": true, "modules/01-a.ko": true} {
		if err := os.Chtimes(filepath.Join(dir, name), time.Unix(1, 0), time.Unix(2, 0)); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(a, build()) {
		t.Error("two initrds of the same content differ")
	}
}
