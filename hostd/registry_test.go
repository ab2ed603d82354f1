package hostd

import (
	"log/slog"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"troth/hooks/ask"
	"troth/launcher"
	"troth/proof"
)

// armed is a registry whose book has one armed domain with these volumes, as their files are now.
func armed(t *testing.T, paths ...string) *Registry {
	t.Helper()
	book, err := launcher.NewBook(kept{}, Clock{}.Now, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	e := &launcher.Entry{What: launcher.WroteArmed, UUID: "6a0f0a5e-4c55-4a53-9d5c-0d8b6f1f2a11", Name: "vm", TokenText: "t", Token: &proof.Digest{1},
		Configuration: &proof.Digest{2}, Request: []byte("<domain/>")}
	for _, path := range paths {
		dev, ino := place(t, path)
		e.Volumes = append(e.Volumes, launcher.Volume{Path: path, Dev: dev, Ino: ino})
	}
	if err := book.Write(e); err != nil {
		t.Fatal(err)
	}
	return &Registry{Path: RegistryPath(t.TempDir()), Book: book, Log: slog.New(slog.DiscardHandler)}
}

func place(t *testing.T, path string) (dev, ino uint64) {
	t.Helper()
	var st syscall.Stat_t
	if err := syscall.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Dev, st.Ino
}

func disk(t *testing.T, path string) string {
	t.Helper()
	if err := os.WriteFile(path, []byte("disk"), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// look has the registry looked at again, and gives what hooks find then.
func look(t *testing.T, r *Registry) ask.Published {
	t.Helper()
	if _, err := r.Look(); err != nil || r.Failure() != "" {
		t.Fatal(err, r.Failure())
	}
	p, err := ask.OpenRegistry(r.Path)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// An image that was put back from a backup is another inode, and so is every file after a mount: both the hook and the scan know a volume that is
// named by a link only by these numbers.
func TestRegistryFollowsTheFiles(t *testing.T) {
	dir := t.TempDir()
	image, away := disk(t, filepath.Join(dir, "a.raw")), filepath.Join(dir, "away.raw")
	r := armed(t, image)
	oldDev, oldIno := place(t, image)
	if p := look(t, r); !p.HasFile(oldDev, oldIno) {
		t.Fatal("the volume as it was armed is not in the registry")
	}
	// Put back from a backup: the old one still there under another name.
	if err := os.Rename(image, away); err != nil {
		t.Fatal(err)
	}
	disk(t, image)
	dev, ino := place(t, image)
	p := look(t, r)
	if !p.HasFile(dev, ino) {
		t.Error("the file that the volume's path leads to now is not in the registry: a hard link to it passes the hook")
	}
	if !p.HasFile(oldDev, oldIno) || !p.HasPath(image) {
		t.Error("the file that the domain was armed with is not in the registry any more")
	}
	// Written only when there is something new.
	_, before := place(t, r.Path)
	look(t, r)
	if _, after := place(t, r.Path); after != before {
		t.Error("nothing was new, and the registry was published again")
	}
	// A path that leads nowhere: the second file's numbers may soon be another's.
	if err := os.Remove(image); err != nil {
		t.Fatal(err)
	}
	if p := look(t, r); p.HasFile(dev, ino) || !p.HasFile(oldDev, oldIno) {
		t.Error("the numbers of a removed file stay registered, or those of the armed one went with them")
	}
	// A path that leads to what is no image, through a link that anyone may have put there.
	if err := os.Symlink("/dev/null", image); err != nil {
		t.Fatal(err)
	}
	dev, ino = place(t, "/dev/null")
	if p := look(t, r); p.HasFile(dev, ino) {
		t.Error("/dev/null is a volume of the domain")
	}
}

// TestOwnPlacesArePublished: the hook knows the usual folders of hostd by itself; others, and what a link leads to, the registry tells it.
func TestOwnPlacesArePublished(t *testing.T) {
	dir := t.TempDir()
	key := disk(t, filepath.Join(dir, "real.key"))
	link := filepath.Join(dir, "hostd.key")
	if err := os.Symlink(key, link); err != nil {
		t.Fatal(err)
	}
	c := Default()
	c.Verifier.Key, c.API.Key = "/etc/troth/hostd.key", "/etc/troth/hostd.key"
	if own := c.own(); len(own) > 0 {
		t.Errorf("usual places are told: %q", own)
	}
	c.RunDir, c.Verifier.Key, c.API.Key = filepath.Join(dir, "run"), link, link
	r := armed(t)
	r.Own = c.own()
	if _, err := r.Look(); err != nil {
		t.Fatal(err)
	}
	out, err := ask.OpenRegistry(r.Path)
	dev, ino := place(t, key)
	if err != nil || !out.HasPath(c.RunDir) || !out.HasPath(link) || !out.HasPath(key) || !out.HasFile(dev, ino) {
		t.Errorf("%+v, %v", r.Own, err)
	}
}

// A registry that cannot be written keeps nobody from looking for strays by it.
func TestLookWithoutPublishing(t *testing.T) {
	r := armed(t, disk(t, filepath.Join(t.TempDir(), "a.raw")))
	r.Path = "/proc/nowhere/registry"
	out, err := r.Look()
	if err != nil || len(out.UUIDs) != 1 || len(out.Volumes) != 1 {
		t.Errorf("%+v, %v", out, err)
	}
	if r.Failure() == "" {
		t.Error("nobody is told that the registry was not published")
	}
}

// A file server that hangs holds up neither the look nor what is behind it in the list, and what its path led to before counts on.
func TestStuckPath(t *testing.T) {
	dir := t.TempDir()
	hung, other := disk(t, filepath.Join(dir, "hung.raw")), disk(t, filepath.Join(dir, "other.raw"))
	entered, release := make(chan struct{}), make(chan struct{})
	hang := false // written while no look is under way
	p := &places{stat: func(path string, st *syscall.Stat_t) error {
		if path == hung && hang {
			close(entered)
			<-release
		}
		return syscall.Stat(path, st)
	}}
	paths := []string{hung, other}
	p.look(paths, time.Minute)
	was, known := p.now(hung)
	if !known {
		t.Fatal("the path was not looked at")
	}
	hang = true
	done := make(chan struct{})
	go func() {
		defer close(done)
		p.look(paths, time.Hour)
	}()
	<-entered
	if err := os.Rename(disk(t, filepath.Join(dir, "new.raw")), other); err != nil {
		t.Fatal(err)
	}
	p.look(paths, time.Hour) // would enter a second time
	if now, known := p.now(hung); !known || now != was {
		t.Errorf("what the hung path led to is forgotten: %+v", now)
	}
	dev, ino := place(t, other)
	if now, _ := p.now(other); now != (ask.Volume{Path: other, Dev: dev, Ino: ino}) {
		t.Errorf("the path behind the hung one leads to %+v", now)
	}
	close(release)
	<-done
}

// A look gives up in time, and what is known then is what was known before.
func TestLookGivesUp(t *testing.T) {
	release := make(chan struct{})
	defer close(release)
	p := &places{stat: func(string, *syscall.Stat_t) error {
		<-release
		return nil
	}}
	p.look([]string{"/nowhere"}, time.Millisecond) // returns, or the test never ends
	if _, known := p.now("/nowhere"); known {
		t.Error("a path that was not looked at is known")
	}
}
