package launcher

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"testing"

	"troth/launcher/domain"
	"troth/proof"
)

// realFiles are files of a real file system, and what QEMU has of them.
type realFiles struct {
	t      *testing.T
	dir    string
	images Files
	opened atomic.Int64
	read   map[string][]byte // by QEMU when it started
	qemu   []*os.File        // open in QEMU
}

// realWorld is a world whose guest has kernel, initrd, a disk that it only reads and one that it writes to, both on qcow2 layers.
func realWorld(t *testing.T) (w *world, token string) {
	t.Helper()
	w = newWorld(t)
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	w.real = &realFiles{t: t, dir: dir, read: map[string][]byte{}}
	t.Cleanup(w.real.end)
	for name, content := range template(t) {
		w.real.write(name, content)
	}
	return w, w.token(func(tok *proof.Token) {
		sum := func(name string) proof.Digest { return w.real.sum(name) }
		c := w.real.config()
		d := c.Digest()
		kernel, initrd := sum("vmlinuz"), sum("initrd")
		tok.Pins.Configuration, tok.Pins.Kernel, tok.Pins.Initrd = &d, &kernel, &initrd
		tok.Pins.Disks = []proof.Disk{
			{Target: "vda", Mode: proof.DiskImmutable, Digest: *proof.ChainDigest(sum("top"), sum("middle"), sum("base.raw"))},
			{Target: "vdb", Mode: proof.DiskInitial, Digest: *proof.ChainDigest(sum("data"), sum("base.raw")), Backing: proof.ChainDigest(sum("base.raw"))}}
	})
}

var templates map[string][]byte

// template is the content of the guest's files, made once by the real qemu-img. Layers name those below them relative to their own folder.
func template(t *testing.T) map[string][]byte {
	t.Helper()
	if templates != nil {
		return templates
	}
	r := &realFiles{t: t, dir: t.TempDir()}
	all := map[string][]byte{"vmlinuz": []byte("kernel"), "initrd": []byte("initrd"), "base.raw": bytes.Repeat([]byte("base "), 13107)}
	r.write("base.raw", all["base.raw"])
	for _, l := range [][3]string{{"middle", "base.raw", "raw"}, {"top", "middle", "qcow2"}, {"data", "base.raw", "raw"}} {
		r.layer(l[0], l[1], l[2])
		all[l[0]] = r.content(l[0])
	}
	templates = all
	return all
}

func (r *realFiles) must(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

func (r *realFiles) path(name string) string { return filepath.Join(r.dir, name) }

func (r *realFiles) write(name string, content []byte) {
	r.t.Helper()
	r.must(os.WriteFile(r.path(name), content, 0o644))
}

func (r *realFiles) content(name string) []byte {
	r.t.Helper()
	b, err := os.ReadFile(r.path(name))
	r.must(err)
	return b
}

func (r *realFiles) sum(name string) proof.Digest {
	i, err := Files{}.Measure(context.Background(), r.path(name), func(int64, int64) {})
	r.must(err)
	defer func() { r.must(i.Close()) }()
	return i.Digest()
}

// layer makes a real qcow2 image.
func (r *realFiles) layer(name, below, format string) {
	r.t.Helper()
	out, err := exec.Command("qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", "-b", below, "-F", format, r.path(name)).CombinedOutput()
	if err != nil {
		r.t.Fatalf("cannot make an image: %v: %s", err, out)
	}
}

// xml is the request.
func (r *realFiles) xml() []byte {
	b, err := os.ReadFile("testdata/guest.xml")
	r.must(err)
	layer := func(name, format, more string) string {
		return "<backingStore type='file'><format type='" + format + "'/><source file='" + r.path(name) + "'/>" + more + "</backingStore>"
	}
	base := layer("base.raw", "raw", "<backingStore/>")
	b = bytes.Replace(b, []byte("<serial "), []byte("<disk type='file'><driver type='qcow2'/><source file='"+r.path("top")+"'/>"+layer("middle", "qcow2", base)+
		"<target dev='vda'/><readonly/></disk><disk type='file'><driver type='qcow2'/><source file='"+r.path("data")+"'/>"+base+"<target dev='vdb'/></disk><serial "), 1)
	return bytes.ReplaceAll(b, []byte("@DIR@"), []byte(r.dir))
}

func (r *realFiles) config() *domain.Config {
	c, err := domain.Read(r.xml(), domain.Request)
	r.must(err)
	return c
}

// paths are all files of the domain; those with true stay open in QEMU.
func paths(c *domain.Config) map[string]bool {
	all := map[string]bool{c.Boot.Kernel: false, c.Boot.Initrd: false}
	for _, d := range c.Disks {
		all[d.Source] = true
		for _, b := range d.Backing {
			all[b.Source] = true
		}
	}
	return all
}

// start is QEMU: it reads what it boots, and opens disks, following links as QEMU does.
func (r *realFiles) start(c *domain.Config) error {
	written := map[string]bool{}
	for _, d := range c.Disks {
		written[d.Source] = !d.ReadOnly
	}
	for path, stays := range paths(c) {
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		r.read[filepath.Base(path)] = content
		if !stays {
			continue
		}
		how := os.O_RDONLY
		if written[path] {
			how = os.O_RDWR
		}
		f, err := os.OpenFile(path, how, 0)
		if err != nil {
			return err
		}
		r.qemu = append(r.qemu, f)
	}
	return nil
}

// process is what /proc tells of that QEMU.
func (r *realFiles) process(p *Process, c *domain.Config) error {
	for path, stays := range paths(c) {
		f := File{Path: path, Option: "-kernel"}
		if stays {
			f.Option = "-blockdev"
		}
		var st syscall.Stat_t
		if err := syscall.Stat(path, &st); err == nil {
			f.Dev, f.Ino = st.Dev, st.Ino
		}
		p.Named = append(p.Named, f)
	}
	for _, q := range r.qemu {
		var st syscall.Stat_t
		if err := syscall.Fstat(int(q.Fd()), &st); err != nil {
			return err
		}
		flags, _, errno := syscall.Syscall(syscall.SYS_FCNTL, q.Fd(), syscall.F_GETFL, 0)
		if errno != 0 {
			return errno
		}
		p.Open = append(p.Open, File{Path: q.Name(), Dev: st.Dev, Ino: st.Ino, Writable: int(flags)&syscall.O_ACCMODE != syscall.O_RDONLY})
	}
	return nil
}

// end is QEMU gone; nothing of ours may be left open.
func (r *realFiles) end() {
	for _, f := range r.qemu {
		r.must(f.Close())
	}
	r.qemu = nil
	if n := r.opened.Load(); n != 0 {
		r.t.Errorf("%d images are left open", n)
	}
}

type countedImage struct {
	Image
	w *world
}

func (i *countedImage) Hash(ctx context.Context) (d proof.Digest, err error) {
	err = i.w.call("hash", func() error {
		d, err = i.Image.Hash(ctx)
		return err
	})
	return d, err
}

func (i *countedImage) Close() error {
	i.w.real.opened.Add(-1)
	return i.Image.Close()
}

func (w *world) counted(i Image, err error) (Image, error) {
	if err != nil {
		return nil, err
	}
	w.real.opened.Add(1)
	return &countedImage{i, w}, nil
}

func (r *realFiles) measure(w *world, path string) (Image, error) {
	return w.counted(r.images.Measure(context.Background(), path, func(int64, int64) {}))
}

func (r *realFiles) open(w *world, path string) (Image, error) { return w.counted(r.images.Open(path)) }

func (w *world) launchReal(token string) (*Outcome, *proof.Refusal) {
	launchNumber++
	return w.l.Launch(context.Background(), Request{ID: "real" + string(rune('a'+launchNumber%26)), Token: token, Domain: w.real.xml(), Action: proof.ActionStart}, quiet{})
}
