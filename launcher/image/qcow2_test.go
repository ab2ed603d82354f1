package image

import (
	"bytes"
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"troth/proof"
)

// qcow2 makes a real image.
func qcow2(t testing.TB, dir, name string, args ...string) string {
	t.Helper()
	p := filepath.Join(dir, name)
	out, err := exec.Command("qemu-img", append(append([]string{"create", "-q", "-f", "qcow2"}, args...), p, "1M")...).CombinedOutput()
	if err != nil {
		t.Fatalf("cannot make an image with qemu-img: %v: %s", err, out)
	}
	return p
}

func testBacking(t *testing.T) {
	dir := temp(t)
	plain := qcow2(t, dir, "plain.qcow2")
	base := file(t, dir, "base.raw", make([]byte, 1<<20))
	header := func(name string, change func(b []byte)) string {
		b, err := os.ReadFile(plain)
		must(t, err)
		change(b)
		return file(t, dir, name, b)
	}
	loop := filepath.Join(dir, "loop")
	must(t, os.Rename(qcow2(t, dir, "unlooped", "-u", "-b", loop, "-F", "qcow2"), loop))
	put := binary.BigEndian.PutUint32
	put64 := binary.BigEndian.PutUint64
	for _, a := range []struct{ name, path, backing, word, format string }{
		{"a backing file", qcow2(t, dir, "top", "-b", base, "-F", "raw"), "", "stands on another file", "raw"},
		{"a relative backing file", qcow2(t, dir, "rel", "-b", "base.raw", "-F", "raw"), "", "stands on another file", "raw"},
		{"another backing file", qcow2(t, dir, "top2", "-b", base, "-F", "raw"), plain, "than the domain says", "raw"},
		{"a missing backing file", plain, base, "than the domain says", "raw"},
		{"the network", qcow2(t, dir, "nbd", "-u", "-b", "nbd://127.0.0.1:1/x", "-F", "raw"), "", "nbd://", "raw"},
		{"json", qcow2(t, dir, "json", "-u", "-b", `json:{"driver":"nbd","host":"127.0.0.1"}`, "-F", "raw"), "", "json:", "raw"},
		{"http", qcow2(t, dir, "http", "-u", "-b", "http://127.0.0.1/x", "-F", "raw"), "", "http://", "raw"},
		{"itself", loop, "", "stands on another file", "raw"},
		{"a data file", qcow2(t, dir, "data", "-o", "data_file="+filepath.Join(dir, "content")), "", "data-file", "raw"},
		{"encryption", header("crypt", func(b []byte) { put(b[32:], 2) }), "", "encrypted", "raw"},
		{"unknown encryption", header("crypt3", func(b []byte) { put(b[32:], 3) }), "", "encryption method", "raw"},
		{"corrupt", header("corrupt", func(b []byte) { put64(b[72:], 2) }), "", "corrupt", "raw"},
		{"unknown features", header("features", func(b []byte) { put64(b[72:], 1<<40) }), "", "unknown incompatible", "raw"},
		{"a name beyond the cluster", header("name", func(b []byte) { put64(b[8:], 1<<63); put(b[16:], 9) }), "", "backing file name", "raw"},
		{"a name that wraps", header("wrap", func(b []byte) { put64(b[8:], 1<<64-4); put(b[16:], 9) }), "", "backing file name", "raw"},
		{"a name over the header", header("over", func(b []byte) { put64(b[8:], 4); put(b[16:], 9) }), "", "backing file name", "raw"},
		{"a long name", header("long", func(b []byte) { put64(b[8:], 512); put(b[16:], 1024) }), "", "backing file name", "raw"},
		{"an extension that overflows", header("ext", func(b []byte) { put(b[binary.BigEndian.Uint32(b[100:])+4:], 1<<32-1) }), "", "header extension", "raw"},
		{"a header that overflows", header("head", func(b []byte) { put(b[100:], 1<<31) }), "", "a header of", "raw"},
		{"a short header", header("short", func(b []byte) { put(b[100:], 8) }), "", "a header of", "raw"},
		{"huge clusters", header("bits", func(b []byte) { put(b[20:], 63) }), "", "clusters", "raw"},
		{"huge table", header("l1", func(b []byte) { put(b[36:], 1<<31) }), "", "L1", "raw"},
		{"version 1", header("v1", func(b []byte) { put(b[4:], 1) }), "", "version 1", "raw"},
		{"a raw image", base, "", "magic", "raw"},
		{"an empty file", file(t, dir, "empty", nil), "", "0 bytes", "raw"},
		{"another format", qcow2(t, dir, "topfmt", "-b", base, "-F", "raw"), base, "than the domain says", "qcow2"},
		{"no format", header2(t, dir, "nofmt", base), base, "than the domain says", "raw"},
		{"file: in front", qcow2(t, dir, "proto", "-u", "-b", "file:"+base, "-F", "raw"), base, "a protocol of QEMU's", "raw"},
		{"json: with the file in it", qcow2(t, dir, "json2", "-u", "-b", `json:{"driver":"file","filename":"`+base+`"}`, "-F", "raw"), base, "a protocol", "raw"},
		{"through a folder that may be a link", qcow2(t, dir, "dots", "-u", "-b", "sub/../base.raw", "-F", "raw"), base, "not clean", "raw"},
		{"a byte zero in the name", header("nul", func(b []byte) { put64(b[8:], 512); put(b[16:], uint32(copy(b[512:], base+"\x00evil"))) }), base, "than the domain says", "raw"},
		{"a raw image with a layer below", base, base, "magic", "raw"},
	} {
		t.Run(a.name, func(t *testing.T) {
			wantRefusal(t, measure(t, a.path).CheckFormat("qcow2", a.backing, a.format), proof.ImageNotMeasured, a.word)
			must(t, measure(t, plain).CheckFormat("qcow2", "", ""))
		})
	}
	must(t, measure(t, filepath.Join(dir, "top")).CheckFormat("qcow2", base, "raw"))
	must(t, measure(t, filepath.Join(dir, "rel")).CheckFormat("qcow2", base, "raw"))
	must(t, measure(t, qcow2(t, dir, "v2", "-o", "compat=0.10")).CheckFormat("qcow2", "", ""))
	must(t, measure(t, base).CheckFormat("raw", "", ""))
	wantRefusal(t, measure(t, base).CheckFormat("vmdk", "", ""), proof.ImageNotMeasured, "vmdk")
}

// header2 is an image without the extension that names the format of its backing file.
func header2(t testing.TB, dir, name, base string) string {
	t.Helper()
	p := qcow2(t, dir, name, "-b", base, "-F", "raw")
	b, err := os.ReadFile(p)
	must(t, err)
	at := binary.BigEndian.Uint32(b[100:])
	if binary.BigEndian.Uint32(b[at:]) != extensionBackingFormat {
		t.Fatal("the first header extension is not the backing format")
	}
	binary.BigEndian.PutUint32(b[at:], 0x12345678)
	must(t, os.WriteFile(p, b, 0o644))
	return p
}

func FuzzParseQCOW2(f *testing.F) {
	dir := temp(f)
	base := file(f, dir, "base.raw", make([]byte, 1<<20))
	for _, p := range []string{qcow2(f, dir, "plain"), qcow2(f, dir, "top", "-b", base, "-F", "raw"), qcow2(f, dir, "v2", "-o", "compat=0.10")} {
		b, err := os.ReadFile(p)
		must(f, err)
		f.Add(b[:min(len(b), 4096)])
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := ParseQCOW2(bytes.NewReader(b), int64(len(b)))
		if (h == nil) == (err == nil) {
			t.Fatalf("%v, %v", h, err)
		}
		if h != nil && (len(h.Backing) > qcow2MaxBacking || h.Version < 2 || h.Version > 3) {
			t.Errorf("%+v", h)
		}
	})
}
