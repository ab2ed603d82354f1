package secret

import (
	"bufio"
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"troth/proof"
)

func room(t *testing.T) (*Room, string) {
	t.Helper()
	r, err := Open(t.TempDir(), -1, -1)
	if err != nil {
		t.Fatal(err)
	}
	return r, "6a0f0a5e-4c55-4a53-9d5c-0d8b6f1f2a11"
}

func TestFile(t *testing.T) {
	r, id := room(t)
	for _, content := range []string{"first", "second"} {
		if err := r.Put(id, proof.NewSecret([]byte(content))); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(r.File(id))
		if err != nil || string(b) != content {
			t.Fatalf("%q, %v", b, err)
		}
	}
	info, err := os.Lstat(r.File(id))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("mode %v, %v", info.Mode(), err)
	}
	if err := r.Sweep(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(r.File(id)); !errors.Is(err, os.ErrNotExist) {
		t.Fatal("a sweep left a secret")
	}
	if err := r.Remove(id); err != nil {
		t.Errorf("removing nothing: %v", err)
	}
}

// TestLink: a link in the file's place is not followed.
func TestLink(t *testing.T) {
	r, id := room(t)
	target := filepath.Join(t.TempDir(), "target")
	if err := os.WriteFile(target, []byte("untouched"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(target, r.File(id)); err != nil {
		t.Fatal(err)
	}
	if err := r.Put(id, proof.NewSecret([]byte("secret"))); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(target); err != nil || string(b) != "untouched" {
		t.Fatalf("%q, %v", b, err)
	}
	dir := r.of("99999999-4c55-4a53-9d5c-0d8b6f1f2a11")
	if err := os.Symlink(t.TempDir(), dir); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Channel("99999999-4c55-4a53-9d5c-0d8b6f1f2a11"); err == nil {
		t.Error("a link was taken for a guest's folder")
	}
}

func TestOnlyUUIDs(t *testing.T) {
	r, _ := room(t)
	for _, bad := range []string{"", "..", "../../etc/passwd-../../etc/passwd-xxxx", strings.Repeat("/", 36), strings.Repeat("A", 36)} {
		if _, err := r.Channel(bad); err == nil {
			t.Errorf("a folder for %q", bad)
		}
		if err := r.Put(bad, proof.NewSecret([]byte("x"))); err == nil {
			t.Errorf("a file for %q", bad)
		}
		if err := r.Forget(bad); err == nil {
			t.Errorf("%q was removed", bad)
		}
		if _, _, err := r.Challenge(context.Background(), bad, make([]byte, 32)); err == nil {
			t.Errorf("%q was challenged", bad)
		}
	}
}

// guest serves a channel as QEMU does, and answers with reply.
func guest(t *testing.T, r *Room, id string, reply func(line []byte) []string) {
	t.Helper()
	path, err := r.Channel(id)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			in := bufio.NewReader(c)
			for {
				line, err := in.ReadBytes('\n')
				if err != nil {
					break
				}
				for _, s := range reply(line) {
					if _, err := c.Write([]byte(s)); err != nil {
						break
					}
				}
			}
			if err := c.Close(); err != nil {
				return
			}
		}
	}()
}

func TestChallenge(t *testing.T) {
	r, id := room(t)
	credential := &proof.GuestCredential{Link: proof.Digest{4}, Secret: proof.NewSecret(make([]byte, 32))}
	guest(t, r, id, func(line []byte) []string {
		challenge, err := proof.ParseGuestChallenge(line)
		if err != nil {
			return []string{"what?\n"}
		}
		answer, err := proof.EncodeGuestAnswer(credential, challenge)
		if err != nil {
			return nil
		}
		// Noise first: a boot message, a line without end of more than the bound, a late answer to another challenge.
		late, err := proof.EncodeGuestAnswer(credential, []byte(strings.Repeat("x", 16)))
		if err != nil {
			return nil
		}
		return []string{"boot\n", strings.Repeat("y", 3*proof.MaxGuestLine) + "\n", string(late), string(answer)}
	})
	challenge := []byte(strings.Repeat("c", 32))
	answer, link, err := r.Challenge(context.Background(), id, challenge)
	if err != nil {
		t.Fatal(err)
	}
	if link != credential.Link || string(answer) != string(proof.GuestAnswer(credential.Secret, challenge, link)) {
		t.Error("another answer came through")
	}
	if _, _, err := r.Challenge(context.Background(), id, []byte("short")); err == nil || errors.Is(err, ErrNoAnswer) {
		t.Errorf("a short challenge: %v", err)
	}
}

func TestNoAnswer(t *testing.T) {
	r, id := room(t)
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	challenge := []byte(strings.Repeat("c", 32))
	if _, _, err := r.Challenge(ctx, id, challenge); !errors.Is(err, ErrNoAnswer) {
		t.Errorf("no channel: %v", err)
	}
	guest(t, r, id, func([]byte) []string { return nil })
	begin := time.Now()
	if _, _, err := r.Challenge(ctx, id, challenge); !errors.Is(err, ErrNoAnswer) || time.Since(begin) > 5*time.Second {
		t.Errorf("a silent guest: %v after %v", err, time.Since(begin))
	}
	noisy := "77777777-4c55-4a53-9d5c-0d8b6f1f2a11"
	guest(t, r, noisy, func([]byte) []string { return []string{strings.Repeat(strings.Repeat("z", 100)+"\n", 400)} })
	ctx2, cancel2 := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel2()
	if _, _, err := r.Challenge(ctx2, noisy, challenge); !errors.Is(err, ErrNoAnswer) || ctx2.Err() != nil {
		t.Errorf("a guest that never stops talking: %v", err)
	}
}
