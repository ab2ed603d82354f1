package ask_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"troth/hooks/ask"
)

func sample(n int) ask.Registry {
	var r ask.Registry
	for i := range n {
		r.UUIDs = append(r.UUIDs, [16]byte{byte(i), byte(i >> 8), 7})
		r.Volumes = append(r.Volumes, ask.Volume{Path: fmt.Sprintf("/srv/images/%d.qcow2", i), Dev: 3, Ino: uint64(i)})
	}
	return r
}

func encode(t testing.TB, r ask.Registry) []byte {
	t.Helper()
	b, err := r.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestRegistryFormat pins the file's text.
func TestRegistryFormat(t *testing.T) {
	r := ask.Registry{
		All:     true,
		UUIDs:   [][16]byte{{0xff}, {1}, {0xff}},
		Volumes: []ask.Volume{{Path: "/b \n\"ü", Dev: 1, Ino: 2}, {Path: "/a"}},
	}
	want := "troth registry 1\nall\nuuid 01000000000000000000000000000000\nuuid ff000000000000000000000000000000\n" +
		"volume 0 0 \"/a\"\nvolume 1 2 \"/b \\n\\\"\\u00fc\"\nsha256 "
	if got := string(encode(t, r)); !strings.HasPrefix(got, want) {
		t.Errorf("got %q, want %q…", got, want)
	}
}

// TestRegistryEveryBit: no registry with one bit changed, cut or repeated can be read.
func TestRegistryEveryBit(t *testing.T) {
	b := encode(t, sample(2))
	if _, err := ask.ParseRegistry(b); err != nil {
		t.Fatal(err)
	}
	for i := range b {
		for bit := range 8 {
			c := bytes.Clone(b)
			c[i] ^= 1 << bit
			if _, err := ask.ParseRegistry(c); !errors.Is(err, ask.ErrDamaged) {
				t.Fatalf("byte %d bit %d: %v", i, bit, err)
			}
		}
		if _, err := ask.ParseRegistry(b[:i]); !errors.Is(err, ask.ErrDamaged) {
			t.Fatalf("first %d bytes: %v", i, err)
		}
	}
	if _, err := ask.ParseRegistry(append(bytes.Clone(b), b...)); !errors.Is(err, ask.ErrDamaged) {
		t.Fatal(err)
	}
}

func TestRegistryRefusesPaths(t *testing.T) {
	for _, p := range []string{"", "a", "./a", "/a/../b", "/a/", "//a", "/" + strings.Repeat("a", 5000)} {
		if _, err := (ask.Registry{Volumes: []ask.Volume{{Path: p}}}).Encode(); err == nil {
			t.Errorf("path %q was taken", p)
		}
	}
}

// TestRegistryWrite: readable by all whatever the umask, over an old one and over what a crash left behind; and when
// it cannot be written the old one stays.
func TestRegistryWrite(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "registry")
	if _, err := ask.ReadRegistry(path); !errors.Is(err, fs.ErrNotExist) || errors.Is(err, ask.ErrDamaged) {
		t.Fatalf("missing: %v", err)
	}
	if err := os.WriteFile(path+".new", []byte("half of a regi"), 0o600); err != nil {
		t.Fatal(err)
	}
	for n := range 3 {
		if err := ask.WriteRegistry(path, sample(n)); err != nil {
			t.Fatal(err)
		}
		r, err := ask.ReadRegistry(path)
		if err != nil || len(r.UUIDs) != n || len(r.Volumes) != n {
			t.Fatalf("%+v, %v", r, err)
		}
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o644 {
		t.Fatalf("mode %v, %v", st.Mode(), err)
	}
	if err := ask.WriteRegistry(path, ask.Registry{Volumes: []ask.Volume{{Path: "relative"}}}); err == nil {
		t.Fatal("a relative path was written")
	}
	if err := os.Mkdir(path+".new", 0o755); err != nil { // nothing can be written beside it
		t.Fatal(err)
	}
	if err := os.WriteFile(path+".new/x", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := ask.WriteRegistry(path, sample(9)); err == nil {
		t.Fatal("written through a directory")
	}
	if r, err := ask.ReadRegistry(path); err != nil || len(r.UUIDs) != 2 {
		t.Fatalf("the old registry is gone: %+v, %v", r, err)
	}
}

// agree: what a hook looks up is what the whole registry says.
func agree(t *testing.T, b []byte, r ask.Registry) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "registry")
	if err := os.WriteFile(path, b, 0o644); err != nil {
		t.Fatal(err)
	}
	p, err := ask.OpenRegistry(path)
	if err != nil {
		t.Fatalf("%q: %v", b, err)
	}
	if p.All() != r.All || p.HasVolumes() != (len(r.Volumes) > 0) || p.Has([16]byte{0x99, 1}) {
		t.Errorf("%q: all %v, volumes %v", b, p.All(), p.HasVolumes())
	}
	for _, u := range r.UUIDs {
		if !p.Has(u) {
			t.Errorf("%q: %x was not found", b, u)
		}
	}
	var paths []string
	for path := range p.Paths {
		paths = append(paths, string(path))
	}
	for i, v := range r.Volumes {
		if len(paths) != len(r.Volumes) || paths[i] != v.Path {
			t.Fatalf("%q: paths %q", b, paths)
		}
		if !p.HasPath(v.Path) || !p.HasFile(v.Dev, v.Ino) || v.Path != "/" && !p.HasBase(filepath.Base(v.Path)) {
			t.Errorf("%q: %+v was not found", b, v)
		}
		for _, other := range []string{v.Path + "x", "/x" + v.Path, v.Path[:len(v.Path)-1], strings.Trim(v.Path, "/")} {
			if p.HasPath(other) != slices.Contains(paths, other) {
				t.Errorf("%q: %q was found", b, other)
			}
		}
		for dir := filepath.Dir(v.Path); ; dir = filepath.Dir(dir) {
			if !p.HasBelow(dir) || p.HasBelow(dir+"x") || v.Path != "/" && p.HasBelow(v.Path) && !slices.ContainsFunc(paths, func(o string) bool { return strings.HasPrefix(o, v.Path+"/") }) {
				t.Errorf("%q: below %q", b, dir)
			}
			if dir == "/" {
				break
			}
		}
		if p.HasFile(v.Ino, v.Dev+1) != slices.ContainsFunc(r.Volumes, func(o ask.Volume) bool { return o.Dev == v.Ino && o.Ino == v.Dev+1 }) {
			t.Errorf("%q: another file was found", b)
		}
	}
}

// TestPublished: a path that looks like entries is one path, and a line of an unknown kind damages the whole.
func TestPublished(t *testing.T) {
	for _, r := range []ask.Registry{{}, {All: true}, sample(20), {Volumes: []ask.Volume{
		{Path: "/a b \"c\"\nall\nuuid 99010000000000000000000000000000\nvolume 7 8 \"/x\"\n", Dev: 1, Ino: 2}, {Path: "/\xff/ü", Dev: 11, Ino: 22}, {Path: "/ü", Dev: 1, Ino: 23},
	}}} {
		b := encode(t, r)
		parsed, err := ask.ParseRegistry(b)
		if err != nil {
			t.Fatal(err)
		}
		agree(t, b, parsed)
	}
	path := filepath.Join(t.TempDir(), "registry")
	for _, bad := range []string{"other 1\n", "all", "\n", "all\nall \n", "uuid\n", lineOne + "all\n", "volume 0 0 \"/a\"\n" + lineOne, "uuid 01\n",
		lineTwo + lineOne, lineOne + lineOne, "volume 0 0 \"/b\"\nvolume 0 0 \"/a\"\n", "volume 0 0 \"\\u0062\"\nvolume 0 0 \"/a\"\n", "volume 0 0 /a\n", "volume 0 0 \"\n",
		"volume 0 0 \"/\\x\"\n", "volume 0 0 \"/a\" \n"} {
		if err := os.WriteFile(path, summed(bad), 0o644); err != nil {
			t.Fatal(err)
		}
		if p, err := ask.OpenRegistry(path); !errors.Is(err, ask.ErrDamaged) || p.All() {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func FuzzRegistry(f *testing.F) {
	f.Add(encode(f, sample(1)))
	f.Add(encode(f, ask.Registry{All: true}))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := ask.ParseRegistry(b)
		if err != nil {
			return
		}
		if !bytes.Equal(encode(t, r), b) {
			t.Errorf("%q is a second encoding", b)
		}
		agree(t, b, r)
	})
}

// summed puts a body between the header and its right checksum.
func summed(body string) []byte {
	text := "troth registry 1\n" + body
	return fmt.Appendf(nil, "%ssha256 %x\n", text, sha256.Sum256([]byte(text)))
}

const lineOne, lineTwo = "uuid 01000000000000000000000000000000\n", "uuid 02000000000000000000000000000000\n"

// TestRegistryOneText: what says the same in another way is no registry, also with the right checksum.
func TestRegistryOneText(t *testing.T) {
	for _, good := range []string{"", "all\n", lineOne + lineTwo, "all\n" + lineOne + "volume 0 0 \"/a\"\nvolume 1 20 \"/b\\n\\u00fc\"\n"} {
		if _, err := ask.ParseRegistry(summed(good)); err != nil {
			t.Errorf("%q: %v", good, err)
		}
	}
	for _, bad := range []string{"all", "all\nall\n", "all \n", "\n", lineTwo + lineOne, lineOne + lineOne, lineOne + "all\n", "uuid 0100\n", "other 1\n",
		"uuid 0A000000000000000000000000000000\n", "volume 0 0 \"/a\"\n" + lineOne, "volume 0 0 \"/a\"\nvolume 0 0 \"/a\"\n", "volume 0 0 \"/b\"\nvolume 0 0 \"/a\"\n",
		"volume 00 0 \"/a\"\n", "volume +1 0 \"/a\"\n", "volume  0 \"/a\"\n", "volume 0 0 /a\n", "volume 0 0 `/a`\n", "volume 0 0 \"/\\x61\"\n", "volume 0 0 \"/ü\"\n",
		"volume 0 0 \"/a/\"\n", "volume 0 0 \"a\"\n", "volume 0 0 \"/a\" \n", "volume 0 0 '/a'\n", "volume 0 99999999999999999999 \"/a\"\n", "volume 0 0 \"\n"} {
		if r, err := ask.ParseRegistry(summed(bad)); !errors.Is(err, ask.ErrDamaged) {
			t.Errorf("%q: %+v, %v", bad, r, err)
		}
	}
}

// FuzzRegistryBody: nothing between header and right checksum has two encodings.
func FuzzRegistryBody(f *testing.F) {
	f.Add("all\n" + lineOne + lineTwo + "volume 0 0 \"/a\"\nvolume 1 20 \"/b\\n\\u00fc\"\n")
	f.Fuzz(func(t *testing.T, body string) {
		b := summed(body)
		r, err := ask.ParseRegistry(b)
		if err != nil {
			return
		}
		if !bytes.Equal(encode(t, r), b) {
			t.Errorf("%q is a second encoding", b)
		}
		agree(t, b, r)
	})
}

// BenchmarkOpenRegistry is what a hook pays on a host with a thousand trusted domains of one disk each.
func BenchmarkOpenRegistry(b *testing.B) {
	path := filepath.Join(b.TempDir(), "registry")
	if err := ask.WriteRegistry(path, sample(1000)); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		p, err := ask.OpenRegistry(path)
		if err != nil || p.Has([16]byte{1}) || p.HasPath("/srv/untrusted.qcow2") || p.HasFile(4, 4) {
			b.Fatal("found, or ", err)
		}
	}
}
