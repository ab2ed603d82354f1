package image

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"troth/proof"
)

func temp(t testing.TB) string {
	t.Helper()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func file(t testing.TB, dir, name string, content []byte) string {
	t.Helper()
	p := filepath.Join(dir, name)
	if err := os.WriteFile(p, content, 0o644); err != nil {
		t.Fatal(err)
	}
	return p
}

func closed(t testing.TB, h *Held) {
	t.Helper()
	if err := h.Close(); err != nil {
		t.Error(err)
	}
}

func wantRefusal(t testing.TB, err error, code proof.Code, word string) {
	t.Helper()
	var r *proof.Refusal
	if !errors.As(err, &r) || r.Code != code || !strings.Contains(err.Error(), word) {
		t.Errorf("got %v, want %s with %q", err, code, word)
	}
}

func measure(t testing.TB, path string) *Held {
	t.Helper()
	h, err := Measure(context.Background(), path, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closed(t, h) })
	return h
}

func TestMeasure(t *testing.T) {
	dir := temp(t)
	for _, size := range []int{0, 1, 1<<20 - 1, 1 << 20, 3<<20 + 7} {
		content := make([]byte, size)
		for i := range content {
			content[i] = byte(rand.Uint32())
		}
		p := file(t, dir, fmt.Sprint(size), content)
		var last, calls int64
		h, err := Measure(context.Background(), p, func(done, total int64) {
			if done < last || done > total || total != int64(size) {
				t.Errorf("progress goes from %d to %d of %d", last, done, total)
			}
			last = done
			calls++
		})
		if err != nil {
			t.Fatal(err)
		}
		if h.Digest != proof.Digest(sha256.Sum256(content)) || h.Size != int64(size) || last != int64(size) || calls == 0 || !h.Measured() {
			t.Errorf("size %d: digest %s, size %d, progress %d in %d calls", size, h.Digest, h.Size, last, calls)
		}
		if !h.Leased() {
			t.Error("no read lease on a local file")
		}
		if err := h.Recheck(); err != nil {
			t.Error(err)
		}
		closed(t, h)
		if h.Close() == nil {
			t.Error("a second Close succeeds")
		}
	}
}

// TestMeasureYields: whoever opens a large image for writing while it is hashed, as libvirt does for an instant, does not wait for the end.
func TestMeasureYields(t *testing.T) {
	path := filepath.Join(t.TempDir(), "large")
	if err := os.WriteFile(path, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	const size = 4 << 30 // a hole
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
	writer := exec.Command("sh", "-c", `exec 3<>"$1"`, "sh", path)
	var reached int64
	_, err := Measure(t.Context(), path, func(done, _ int64) {
		if reached = done; done == 0 {
			if err := writer.Start(); err != nil {
				t.Error(err)
			}
		}
	})
	if !errors.Is(err, &proof.Refusal{Code: proof.ImageChanged}) || reached >= size {
		t.Errorf("after %d of %d bytes: %v", reached, int64(size), err)
	}
	if err := writer.Wait(); err != nil {
		t.Error(err)
	}
}

func TestMeasureCancelled(t *testing.T) {
	p := file(t, temp(t), "big", make([]byte, 8<<20))
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	_, err := Measure(ctx, p, func(done, _ int64) {
		if done >= 2<<20 {
			cancel()
		}
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	fds(t, p, 0)
}

// fds counts the descriptors that this process has on a file.
func fds(t *testing.T, path string, want int) {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	got := 0
	for _, e := range entries {
		if to, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil && to == path {
			got++
		}
	}
	if got != want {
		t.Errorf("%d descriptors on %s, want %d", got, path, want)
	}
}

// TestOpen: a disk that the guest writes to may change, but not become another file.
func TestOpen(t *testing.T) {
	dir := temp(t)
	p := file(t, dir, "disk", []byte("one"))
	h, err := Open(p)
	if err != nil {
		t.Fatal(err)
	}
	defer closed(t, h)
	if h.Measured() || h.Leased() || !h.Digest.IsZero() {
		t.Errorf("opened and measured: %+v", h)
	}
	file(t, dir, "disk", []byte("two!"))
	if err := h.Recheck(); err != nil {
		t.Error(err)
	}
	swap(t, dir, p)
	wantRefusal(t, h.Recheck(), proof.ImageChanged, "inode")
}

func swap(t *testing.T, dir, p string) {
	t.Helper()
	if err := os.Rename(file(t, dir, "other", []byte("one")), p); err != nil {
		t.Fatal(err)
	}
}

// breaks waits until somebody who would write has the lease broken: /proc/locks shows it as being broken (proc_locks(5)).
func breaks(t *testing.T, path string) {
	t.Helper()
	var st unix.Stat_t
	must(t, unix.Stat(path, &st))
	inode := fmt.Sprintf(":%d ", st.Ino)
	poll := time.NewTicker(time.Millisecond)
	defer poll.Stop()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); <-poll.C {
		locks, err := os.ReadFile("/proc/locks")
		must(t, err)
		for line := range strings.Lines(string(locks)) {
			if strings.Contains(line, inode) && strings.Contains(line, "BREAKING") {
				return
			}
		}
	}
	t.Fatal("nobody breaks the lease")
}

// ticked waits until a change of a file has another time than what was measured: until Linux 6.13 two changes within one tick (1 to 10 ms) have one.
func ticked(t *testing.T, h *Held) {
	t.Helper()
	for now := h.state.ctime; now == h.state.ctime || now == h.state.mtime; {
		var st unix.Stat_t
		must(t, unix.Stat(file(t, t.TempDir(), "other", nil), &st))
		now = st.Ctim
	}
}

// TestChownUnderLease: libvirt gives the image to QEMU's user, which changes ctime and nothing else.
func TestChownUnderLease(t *testing.T) {
	p := file(t, temp(t), "disk", []byte("one"))
	h := measure(t, p)
	ticked(t, h)
	if err := os.Chmod(p, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := h.Recheck(); err != nil {
		t.Errorf("under a lease: %v", err)
	}
	h.leased = false // as on a file system without leases
	wantRefusal(t, h.Recheck(), proof.ImageChanged, "ctime")
}

func TestAttack(t *testing.T) {
	t.Run("L-TOCTOU-DISK", testSwaps)
	t.Run("X-PATH", testPaths)
	t.Run("L-BACKING", testBacking)
}

func testSwaps(t *testing.T) {
	content := bytes.Repeat([]byte("honest "), 1000)
	evil := bytes.Repeat([]byte("hostile"), 1000)
	for _, a := range []struct {
		name string
		do   func(t *testing.T, dir, p string)
		word string
	}{
		{"rename over it", swap, "inode"},
		{"removed", func(t *testing.T, _, p string) { must(t, os.Remove(p)) }, "no such file"},
		{"symbolic link in its place", func(t *testing.T, dir, p string) {
			must(t, os.Remove(p))
			must(t, os.Symlink(file(t, dir, "evil", evil), p))
		}, "symbolic link"},
		{"symbolic link to itself", func(t *testing.T, dir, p string) {
			must(t, os.Rename(p, p+".moved"))
			must(t, os.Symlink(p+".moved", p))
		}, "symbolic link"},
		{"hard link of another file", func(t *testing.T, dir, p string) {
			must(t, os.Remove(p))
			must(t, os.Link(file(t, dir, "evil", evil), p))
		}, "inode"},
		{"its directory moved away", func(t *testing.T, dir, p string) {
			must(t, os.Rename(filepath.Dir(p), filepath.Join(dir, "gone")))
			must(t, os.Mkdir(filepath.Dir(p), 0o755))
			file(t, filepath.Dir(p), filepath.Base(p), content)
		}, "inode"},
		{"a writer waits", func(t *testing.T, _, p string) {
			fd, err := unix.Open(p, unix.O_WRONLY|unix.O_NONBLOCK, 0)
			if !errors.Is(err, unix.EWOULDBLOCK) {
				t.Errorf("a writer opened a leased file: %d, %v", fd, err)
			}
		}, "broken by a writer"},
		{"truncated", func(t *testing.T, _, p string) {
			// Blocks until the lease is given up or the kernel's lease-break-time is over: so from another process.
			cmd := exec.Command("truncate", "-s", "1", p)
			must(t, cmd.Start())
			t.Cleanup(func() {
				if err := cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
					t.Error(err)
				}
				if err := cmd.Wait(); err == nil {
					t.Error("the writer was not held back")
				}
			})
			breaks(t, p)
		}, "broken by a writer"},
	} {
		t.Run(a.name, func(t *testing.T) {
			dir := temp(t)
			sub := filepath.Join(dir, "images")
			must(t, os.Mkdir(sub, 0o755))
			p := file(t, sub, "disk", content)
			h := measure(t, p)
			want := h.Digest
			a.do(t, dir, p)
			wantRefusal(t, h.Recheck(), proof.ImageChanged, a.word)
			if h.Digest != want {
				t.Error("the digest changed")
			}
			// An honest image beside it is unharmed.
			if err := measure(t, file(t, dir, "beside", content)).Recheck(); err != nil {
				t.Error(err)
			}
		})
	}
	t.Run("written without a lease", func(t *testing.T) {
		dir := temp(t)
		p := file(t, dir, "disk", content)
		h := measure(t, p)
		if _, err := unix.FcntlInt(uintptr(h.fd()), unix.F_SETLEASE, unix.F_UNLCK); err != nil {
			t.Fatal(err)
		}
		wantRefusal(t, h.Recheck(), proof.ImageChanged, "broken")
		h.leased = false
		must(t, h.Recheck())
		ticked(t, h)
		file(t, dir, "disk", evil)
		wantRefusal(t, h.Recheck(), proof.ImageChanged, "mtime")
	})
	t.Run("open for writing beforehand", func(t *testing.T) {
		p := file(t, temp(t), "disk", content)
		f, err := os.OpenFile(p, os.O_WRONLY, 0)
		must(t, err)
		_, err = Measure(context.Background(), p, nil)
		wantRefusal(t, err, proof.ImageChanged, "open for writing")
		must(t, f.Close())
		measure(t, p)
	})
	t.Run("grows or shrinks while it is read", func(t *testing.T) {
		for _, size := range []int64{6999, 7001} {
			if _, err := hash(context.Background(), bytes.NewReader(content), size, nil); !errors.Is(err, errLength) {
				t.Errorf("size %d: %v", size, err)
			}
		}
	})
	t.Run("swapped while it is read", func(t *testing.T) {
		dir := temp(t)
		p := file(t, dir, "disk", content)
		_, err := Measure(context.Background(), p, func(done, _ int64) {
			if done == 0 {
				swap(t, dir, p)
			}
		})
		wantRefusal(t, err, proof.ImageChanged, "inode")
		fds(t, p+" (deleted)", 0)
	})
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func testPaths(t *testing.T) {
	dir := temp(t)
	p := file(t, dir, "disk", []byte("x"))
	must(t, os.Symlink(p, filepath.Join(dir, "link")))
	must(t, os.Mkdir(filepath.Join(dir, "sub"), 0o755))
	must(t, os.Symlink(filepath.Join(dir, "sub"), filepath.Join(dir, "dirlink")))
	file(t, filepath.Join(dir, "sub"), "disk", []byte("x"))
	must(t, unix.Mkfifo(filepath.Join(dir, "fifo"), 0o644))
	for _, a := range []struct{ name, path, word string }{
		{"empty", "", "empty"},
		{"relative", "disk", "absolute"},
		{"parent", dir + "/sub/../disk", "clean"},
		{"dot", dir + "/./disk", "clean"},
		{"double slash", dir + "//disk", "clean"},
		{"slash at the end", p + "/", "clean"},
		{"control byte", dir + "/a\nb", "control"},
		{"zero byte", dir + "/a\x00b", "control"},
		{"not UTF-8", dir + "/\xff", "control"},
		{"long", "/" + strings.Repeat("a/", 3000) + "b", "longer"},
		{"missing", dir + "/missing", "no such file"},
		{"symbolic link", dir + "/link", "symbolic link"},
		{"symbolic link on the way", dir + "/dirlink/disk", "symbolic link"},
		{"directory", dir, "neither"},
		{"root", "/", "neither"},
		{"pipe", dir + "/fifo", "neither"},
		{"character device", "/dev/zero", "neither"},
		{"proc", "/proc/version", "below /proc"},
		{"proc itself", "/proc", "below /proc"},
		{"own descriptors", "/proc/self/fd/0", "below /proc"},
		{"dev fd", "/dev/fd/0", "below /dev/fd"},
		{"stdin", "/dev/stdin", "below /dev/std"},
		{"sys", "/sys/kernel/notes", "below /sys"},
	} {
		t.Run(a.name, func(t *testing.T) {
			_, err := Measure(context.Background(), a.path, nil)
			wantRefusal(t, err, proof.ImageNotMeasured, a.word)
			_, err = Open(a.path)
			wantRefusal(t, err, proof.ImageNotMeasured, a.word)
			measure(t, p)
		})
	}
	t.Run("proc mounted elsewhere", func(t *testing.T) {
		// The text of the path is harmless; the file system tells.
		f, err := os.Open("/proc/version")
		must(t, err)
		defer func() { must(t, f.Close()) }()
		st, err := stateOf(int(f.Fd()))
		must(t, err)
		_, err = accept("/srv/version", f, st)
		wantRefusal(t, err, proof.ImageNotMeasured, "it is on /proc")
	})
	t.Run("component by component", func(t *testing.T) {
		// What is used where the kernel knows no openat2.
		for path, word := range map[string]string{p: "", dir + "/link": "symbolic", dir + "/dirlink/disk": "directory", dir + "/missing": "no such"} {
			for _, flags := range []int{unix.O_RDONLY, unix.O_PATH} {
				fd, err := walk(path, flags)
				if word == "" {
					must(t, err)
					must(t, unix.Close(fd))
				} else if err == nil || !strings.Contains(openReason(err), word) {
					t.Errorf("%s: %v", path, err)
				}
			}
		}
	})
}
