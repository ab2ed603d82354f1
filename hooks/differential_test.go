package hooks

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"troth/launcher/virt"
	"troth/test/differential"
)

// readBacks is how many documents TestDifferential offers to libvirt.
const readBacks = 5000

// TestDifferential: of whatever libvirt takes and gives back, the scan finds libvirt's UUID, the mark exactly if libvirt
// kept it, and the files of all disks.
func TestDifferential(t *testing.T) {
	if testing.Short() {
		t.Skip("needs root and libvirtd")
	}
	schema, err := differential.Load(differential.SchemaDir)
	if err != nil {
		t.Fatal(err)
	}
	seeds, err := differential.Seeds("..")
	if err != nil {
		t.Fatal(err)
	}
	stream, err := differential.NewStream(schema, seeds, 2)
	if err != nil {
		t.Fatal(err)
	}
	l := &libvirt{t: t}
	l.start()
	taken, marked, files := 0, 0, 0
	for i := range uint64(readBacks) {
		doc, _ := stream.Document(i)
		mine := i%2 == 0 && len(doc.All("metadata")) == 0
		if mine {
			mark := &differential.Node{Name: "t:launch", Attrs: []differential.Attr{{Name: "xmlns:t", Value: markNamespace}}}
			doc.Children = append(doc.Children, &differential.Node{Name: "metadata", Children: []*differential.Node{mark}})
		}
		uuid, back := l.define(doc.String())
		if uuid == "" {
			continue
		}
		taken++
		s, err := scan(back)
		if err != nil {
			t.Errorf("document %d: %v\n%s\n%s", i, err, doc, back)
			continue
		}
		if hex.EncodeToString(s.uuid[:]) != strings.ReplaceAll(uuid, "-", "") {
			t.Errorf("document %d: UUID %x, of libvirt %s\n%s", i, s.uuid, uuid, doc)
		}
		if _, kept := second(t, back); kept != s.marked || mine && !s.marked {
			t.Errorf("document %d: marked %v, libvirt kept it: %v, we set it: %v\n%s", i, s.marked, kept, mine, doc)
		}
		if s.marked {
			marked++
		}
		for _, f := range diskFiles(t, back) {
			files++
			if !slices.Contains(s.paths, f) && !slices.Contains(s.mentions, f) && strings.Contains(f, "/") {
				t.Errorf("document %d: the disk's file %q is not found\n%s", i, f, back)
			}
		}
	}
	l.stop()
	t.Logf("hook differential: %d documents, %d taken by libvirt, %d marked, %d files of disks; libvirtd died of %d", readBacks, taken, marked, files, l.died)
}

// diskFiles gives all that names a file in the disks of a definition.
func diskFiles(t *testing.T, back []byte) []string {
	t.Helper()
	// libvirt writes a carriage return as it is.
	root, err := differential.Parse(bytes.ReplaceAll(back, []byte("\r"), []byte("&#13;")))
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	var walk func(n *differential.Node)
	walk = func(n *differential.Node) {
		for _, a := range n.Attrs {
			if n.Name == "source" && slices.Contains([]string{"file", "dev", "dir", "path", "name"}, a.Name) {
				all = append(all, a.Value)
			}
		}
		for _, c := range n.Children {
			walk(c)
		}
	}
	for _, d := range root.All("devices/disk") {
		walk(d)
	}
	return all
}

// libvirt is a private libvirtd that is started again when it dies of a document.
type libvirt struct {
	t      *testing.T
	daemon *differential.Libvirtd
	virt   *virt.Virt
	died   int
}

func (l *libvirt) start() {
	l.t.Helper()
	var err error
	if l.daemon, err = differential.Start(l.t.TempDir()); err != nil {
		l.t.Fatal(err)
	}
	if l.virt, err = virt.Connect(l.t.Context(), l.daemon.URI(), nil); err != nil {
		l.t.Fatal(err)
	}
}

func (l *libvirt) stop() {
	l.t.Helper()
	if err := errors.Join(l.virt.Close(), l.daemon.Stop()); err != nil {
		l.t.Error(err)
	}
}

// define gives libvirt's UUID and its reading of what it takes, and removes it again.
func (l *libvirt) define(text string) (uuid string, back []byte) {
	l.t.Helper()
	ctx, cancel := context.WithTimeout(l.t.Context(), 30*time.Second)
	defer cancel()
	err := l.virt.Define(ctx, []byte(text))
	if errors.Is(err, virt.ErrUnreachable) {
		if err := errors.Join(l.virt.Close(), l.daemon.Stop()); err == nil {
			l.t.Fatal("libvirtd is lost, and did not die")
		}
		l.died++
		l.start()
		return "", nil
	}
	if err != nil {
		return "", nil
	}
	all, err := l.virt.List(ctx)
	if err != nil || len(all) != 1 {
		l.t.Fatalf("libvirt has %d domains instead of one: %v", len(all), err)
	}
	if back, err = l.virt.InactiveXML(ctx, all[0].UUID); err != nil {
		l.t.Fatal(err)
	}
	if err := l.virt.Undefine(ctx, all[0].UUID); err != nil {
		l.t.Fatal(err)
	}
	return all[0].UUID, back
}
