package domain

import (
	"bytes"
	"context"
	"encoding/binary"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "rewrite testdata/captured from the real libvirtd")

// captures are what libvirt gives back of one domain, by the file's ending.
var captures = []struct {
	ending string
	mode   Mode
}{{"inactive", Inactive}, {"prepare", Hook}, {"start", Hook}, {"live", Live}}

// added is what the captured domains were given besides.
var added = Additions{GuestSecretFile: "/run/troth/secret", ChannelPath: "/run/troth/guest.sock"}

func addedLive() Additions {
	a := added
	for i := range a.LaunchID {
		a.LaunchID[i] = byte(i + 1)
	}
	return a
}

func requests(t testing.TB) []string {
	t.Helper()
	files, err := filepath.Glob("testdata/requests/*.xml")
	if err != nil || len(files) < 6 {
		t.Fatalf("cannot find the requests: %v, %v", files, err)
	}
	var names []string
	for _, f := range files {
		names = append(names, strings.TrimSuffix(filepath.Base(f), ".xml"))
	}
	sort.Strings(names)
	return names
}

func readFile(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func request(t testing.TB, name string) *Config {
	t.Helper()
	c, err := Read(readFile(t, "testdata/requests/"+name+".xml"), Request)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return c
}

// checkCapture holds what libvirt gave back against the Config that it was given.
func checkCapture(t *testing.T, want *Config, ending string, mode Mode, text []byte) {
	t.Helper()
	got, err := Read(text, mode)
	if err != nil {
		t.Errorf("%s: %v", ending, err)
		return
	}
	if err := Compare(want, got); err != nil {
		t.Errorf("%s: %v", ending, err)
	}
	if !got.Mark {
		t.Errorf("%s: the mark is gone", ending)
	}
	wantAdded := added
	if mode != Inactive {
		wantAdded = addedLive()
	}
	if got.Added != wantAdded {
		t.Errorf("%s: additions are %+v, want %+v", ending, got.Added, wantAdded)
	}
	if !got.live.expanded || (want.CPU.Mode == "custom" && len(want.CPU.Features) == 0) {
		if got.Digest() != want.Digest() {
			t.Errorf("%s: digest %s, want %s", ending, got.Digest(), want.Digest())
		}
	}
	if ending == "prepare" {
		if got.Asked(); got.Digest() != want.Digest() {
			t.Errorf("%s: what was asked for has digest %s, want %s", ending, got.Digest(), want.Digest())
		}
	}
	if ending == "inactive" {
		if emitted := Emit(want, added); !bytes.Equal(bytes.TrimSpace(text), bytes.TrimSpace(emitted)) {
			t.Errorf("libvirt gives other bytes back:\n%s", lineDiff(string(emitted), string(text)))
		}
	}
}

// lineDiff prints the lines that only one of two texts has.
func lineDiff(a, b string) string {
	var out strings.Builder
	count := map[string]int{}
	for l := range strings.Lines(b) {
		count[strings.TrimSpace(l)]++
	}
	for l := range strings.Lines(a) {
		if count[strings.TrimSpace(l)]--; count[strings.TrimSpace(l)] < 0 {
			out.WriteString("- " + l)
		}
	}
	for l := range strings.Lines(b) {
		if count[strings.TrimSpace(l)] > 0 {
			count[strings.TrimSpace(l)]--
			out.WriteString("+ " + l)
		}
	}
	if out.Len() == 0 {
		return "(the same lines in another order)\n" + a + "\n---\n" + b
	}
	return out.String()
}

// TestCaptured: what real libvirt 9.0 gave back, in every mode, reads as the Config that it was given.
func TestCaptured(t *testing.T) {
	for _, name := range requests(t) {
		t.Run(name, func(t *testing.T) {
			want := request(t, name)
			for _, c := range captures {
				checkCapture(t, want, c.ending, c.mode, readFile(t, "testdata/captured/"+name+"."+c.ending))
			}
		})
	}
}

// TestRealLibvirt captures anew from the real libvirtd and QEMU of this machine.
func TestRealLibvirt(t *testing.T) {
	if testing.Short() {
		t.Log("short: the captured answers were tested instead (TestCaptured)")
		return
	}
	dir := t.TempDir()
	for _, name := range requests(t) {
		c := request(t, name)
		write(t, filepath.Join(dir, name+".xml"), Emit(c, added))
		write(t, filepath.Join(dir, name+".live.xml"), Emit(c, addedLive()))
	}
	runLibvirtd(t, dir)
	for _, name := range requests(t) {
		t.Run(name, func(t *testing.T) {
			want := request(t, name)
			for _, c := range captures {
				text := readFile(t, filepath.Join(dir, name+"."+c.ending))
				checkCapture(t, want, c.ending, c.mode, text)
				if *update {
					write(t, "testdata/captured/"+name+"."+c.ending, text)
				}
			}
		})
	}
}

func write(t testing.TB, path string, b []byte) {
	t.Helper()
	if err := os.WriteFile(path, b, 0o644); err != nil {
		t.Fatal(err)
	}
}

// runLibvirtd runs testdata/libvirtd.sh, which needs root, libvirtd, QEMU and unshare.
func runLibvirtd(t *testing.T, dir string) {
	t.Helper()
	write(t, filepath.Join(dir, "kernel"), fakeKernel())
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, "bash", "testdata/libvirtd.sh", dir).CombinedOutput()
	log, lerr := os.ReadFile(filepath.Join(dir, "log"))
	if _, derr := os.Stat(filepath.Join(dir, "done")); err != nil || lerr != nil || derr != nil {
		t.Fatalf("cannot run the real libvirtd (root, libvirt and QEMU are needed): %v, %v, %v\n%s\n%s", err, lerr, derr, out, log)
	}
	for l := range strings.Lines(string(log)) {
		if strings.HasPrefix(l, "error:") || strings.HasPrefix(l, "cannot") {
			t.Errorf("libvirtd: %s", l)
		}
	}
}

// fakeKernel has the header of a bzImage and nothing in it (Linux, Documentation/arch/x86/boot.rst): enough for QEMU
// to load it for a guest that never runs.
func fakeKernel() []byte {
	b := make([]byte, 64<<10)
	b[0x1f1] = 4
	binary.LittleEndian.PutUint16(b[0x1fe:], 0xaa55)
	copy(b[0x202:], "HdrS")
	binary.LittleEndian.PutUint16(b[0x206:], 0x020c)
	b[0x211] = 1
	binary.LittleEndian.PutUint32(b[0x22c:], 0x7fffffff)
	return b
}
