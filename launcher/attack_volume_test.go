package launcher

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"

	"troth/launcher/domain"
	"troth/proof"
)

// dataDisk is the disk that the first guest writes to.
const dataDisk = "<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='/images/data.img'/><target dev='vda' bus='virtio'/></disk>"

// withDisk is the guest with one more device.
func withDisk(t *testing.T, device string) []byte {
	return bytes.Replace(guestXML(t), []byte("<serial type"), []byte(device+"<serial type"), 1)
}

// unpinned is a token that anybody may have.
func (w *world) unpinned() string { return w.token(func(t *proof.Token) { t.Pins = nil }) }

func (w *world) ask(xml []byte, arm bool) *proof.Refusal {
	launchNumber++
	do := w.l.Launch
	if arm {
		do = w.l.Arm
	}
	_, refusal := do(context.Background(), Request{ID: fmt.Sprint("volume", launchNumber), Token: w.unpinned(), Domain: xml, Action: proof.ActionStart, Arm: arm}, quiet{})
	return refusal
}

// second makes another domain of a guest.
func second(xml []byte) []byte {
	return []byte(strings.NewReplacer(guestUUID, secondUUID, "<name>g1<", "<name>g2<").Replace(string(xml)))
}

// defineOther defines the domain for another client, with a token of its own.
func (w *world) defineOther(xml []byte) {
	w.t.Helper()
	c, err := domain.Read(xml, domain.Request)
	if err != nil {
		w.t.Fatal(err)
	}
	w.inactive[c.UUID.String()] = bytes.Replace(domain.Emit(c, domain.Additions{}), []byte(`v1"/>`), []byte(`v1" token="`+w.unpinned()+`"/>`), 1)
}

// owner is a world with a stopped domain that has a disk of its own.
func owner(t *testing.T) *world {
	t.Helper()
	w := newWorld(t)
	w.files["/images/data.img"], w.files["/images/base.img"] = []byte("the tenant's data"), []byte("what all have")
	if refusal := w.ask(withDisk(t, dataDisk), false); refusal != nil {
		t.Fatal(refusal)
	}
	if refusal := w.l.Stop(context.Background(), guestUUID); refusal != nil {
		t.Fatal(refusal)
	}
	return w
}

// thefts are the ways in which a second domain names the first one's disk.
func thefts(t *testing.T) map[string][]byte {
	layer := "<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/images/top.img'/><backingStore type='file'><format type='raw'/>" +
		"<source file='/images/data.img'/><backingStore/></backingStore><target dev='vda' bus='virtio'/></disk>"
	return map[string][]byte{
		"written":        withDisk(t, dataDisk),
		"read":           withDisk(t, strings.Replace(dataDisk, "</disk>", "<readonly/></disk>", 1)),
		"below a disk":   withDisk(t, layer),
		"initrd":         bytes.ReplaceAll(guestXML(t), []byte("/images/initrd"), []byte("/images/data.img")),
		"variable store": bytes.ReplaceAll(uefiXML(t), []byte("/images/g1.fd"), []byte("/images/data.img")),
		"another path":   withDisk(t, strings.ReplaceAll(dataDisk, "data.img", "hard.img")),
	}
}

// testVolumeOfAnother: a trusted domain with any token at all names the disk of another, which is stopped.
func testVolumeOfAnother(t *testing.T) {
	for name, xml := range thefts(t) {
		for _, by := range []string{"launch", "arm", "start"} {
			t.Run(name+"/"+by, func(t *testing.T) {
				w := owner(t)
				w.uefi()
				w.files["/images/top.img"], w.files["/images/hard.img"] = []byte("top"), w.files["/images/data.img"]
				w.links = map[string]string{"/images/hard.img": "/images/data.img"}
				released := w.released.Load()
				var refusal *proof.Refusal
				if by == "start" {
					w.defineOther(second(xml))
					refusal = Refusal(StepRead, w.startOther(secondUUID))
				} else {
					refusal = w.ask(second(xml), by == "arm")
				}
				expect(t, refusal, proof.ConfigurationNotAllowed)
				if said := refusal.Error(); !strings.Contains(said, "/images/data.img") || !strings.Contains(said, guestUUID) {
					t.Errorf("%s: names no file or no domain", said)
				}
				if w.released.Load() != released || w.ran[secondUUID] || w.live[secondUUID] != nil || w.l.Book.Domain(secondUUID).Registered {
					t.Error("something came of it")
				}
				if refusal := w.ask(withDisk(t, dataDisk), false); refusal != nil {
					t.Errorf("its own: %v", refusal)
				}
			})
		}
	}
	t.Run("moved", func(t *testing.T) {
		// The first one's image was put back from a backup, and the second has another path to that.
		w := owner(t)
		w.files["/images/hard.img"], w.files["/images/backup.img"] = w.files["/images/data.img"], w.files["/images/data.img"]
		w.links = map[string]string{"/images/hard.img": "/images/backup.img"}
		w.l.Leads = func(path string) (Volume, bool) {
			return Volume{Path: path, Dev: 1, Ino: inode("/images/backup.img")}, true
		}
		expect(t, w.ask(second(thefts(t)["another path"]), false), proof.ConfigurationNotAllowed)
	})
	t.Run("shared", func(t *testing.T) {
		// What both only read is nobody's own, and what the first gave up belongs to whoever takes it.
		w := owner(t)
		base := withDisk(t, strings.NewReplacer("data.img", "base.img", "</disk>", "<readonly/></disk>").Replace(dataDisk))
		for _, xml := range [][]byte{base, second(base)} {
			if refusal := w.ask(xml, false); refusal != nil {
				t.Fatal(refusal)
			}
		}
		if refusal := w.l.Delete(context.Background(), guestUUID); refusal != nil {
			t.Fatal(refusal)
		}
		if refusal := w.l.Stop(context.Background(), secondUUID); refusal != nil {
			t.Fatal(refusal)
		}
		if refusal := w.ask(second(withDisk(t, dataDisk)), false); refusal != nil {
			t.Fatal(refusal)
		}
	})
	t.Run("at once", testVolumeTakenTwice)
	t.Run("open elsewhere", testVolumeOpenElsewhere)
}

// testVolumeOpenElsewhere: somebody with a token that no verifier knows asks for the image that untrusted guests run from, as a disk to write to. Published as
// one domain's own it would have them ended.
func testVolumeOpenElsewhere(t *testing.T) {
	refused := func(w *world, refusal *proof.Refusal) {
		t.Helper()
		expect(t, refusal, proof.ConfigurationNotAllowed)
		if said := refusal.Error(); !strings.Contains(said, "/images/data.img") || !strings.Contains(said, "pid 4711") {
			t.Errorf("%s: names no file or no process", said)
		}
		if d := w.l.Book.Domain(guestUUID); d.Registered || len(d.Volumes) > 0 {
			t.Errorf("it was published: %+v", d.Volumes)
		}
	}
	fresh := func() *world {
		w := newWorld(t)
		w.files["/images/data.img"], w.links = []byte("what fifty guests run from"), map[string]string{"/images/open.img": "/images/data.img"}
		return w
	}
	stranger := []Holder{{PID: 4711, Start: 1, Exe: "/usr/bin/qemu-system-x86_64", UUIDs: []domain.UUID{{1}}, Path: "/images/open.img"}}
	for _, arm := range []bool{false, true} {
		w := fresh()
		w.strangers = stranger
		refused(w, w.ask(withDisk(t, dataDisk), arm))
		if w.released.Load() > 0 {
			t.Error("a nonce was released")
		}
		// Nothing else of that guest's counts, and what it lets go is free.
		w.strangers = []Holder{{PID: 4711, Path: "/images/vmlinuz"}}
		if refusal := w.ask(withDisk(t, dataDisk), arm); refusal != nil {
			t.Fatal(refusal)
		}
	}
	// It was opened while the verifier was asked.
	w := fresh()
	w.strikeAt("release", func() { w.strangers = stranger })
	refused(w, w.ask(withDisk(t, dataDisk), false))
	w = fresh()
	w.defineOther(withDisk(t, dataDisk))
	w.strikeAt("release", func() { w.strangers = stranger })
	refused(w, Refusal(StepRead, w.startOther(guestUUID)))
	// Nobody could look.
	w = fresh()
	w.failAt("holding#0", false, false)
	expect(t, w.ask(withDisk(t, dataDisk), true), proof.Internal)
	// Whose it is already starts it whoever has it open, and asks nobody: that one is a stray.
	w = owner(t)
	w.strangers = stranger
	w.heal()
	if refusal := w.ask(withDisk(t, dataDisk), false); refusal != nil {
		t.Fatal(refusal)
	}
	if w.count["holding"] > 0 {
		t.Error("all processes were looked at for nothing")
	}
	// Its own guest is no other.
	w = fresh()
	if refusal := w.ask(withDisk(t, dataDisk), false); refusal != nil {
		t.Fatal(refusal)
	}
	c, err := domain.Read(withDisk(t, dataDisk), domain.Request)
	if err != nil {
		t.Fatal(err)
	}
	w.l.Book.domains[guestUUID].Volumes = nil
	a := &attempt{Launcher: w.l, config: c, images: &held{images: []*heldImage{{Image: &fakeImage{w: w, path: "/images/data.img"}, path: "/images/data.img", writes: true}}}}
	if all, err := a.holders(context.Background()); err != nil || len(all) > 0 || w.count["holding"] != 3 {
		t.Errorf("%v, %v after %d looks", all, err, w.count["holding"])
	}
	// Another trusted guest is another guest, for a second domain that reads the same.
	w = fresh()
	if refusal := w.ask(withDisk(t, strings.Replace(dataDisk, "</disk>", "<readonly/></disk>", 1)), false); refusal != nil {
		t.Fatal(refusal)
	}
	expect(t, w.ask(second(withDisk(t, dataDisk)), true), proof.ConfigurationNotAllowed)
}

// testVolumeTakenTwice: two domains name one disk that is nobody's yet, and both are judged before either is written down.
func testVolumeTakenTwice(t *testing.T) {
	for _, arm := range []bool{false, true} {
		w := newWorld(t)
		w.files["/images/data.img"] = []byte("new")
		what := map[bool]string{false: "journal " + WroteGranted, true: "journal " + WroteArmed}[arm]
		var came atomic.Bool
		var other *proof.Refusal
		w.around = func(name string, do func() error) error {
			if name == what && came.CompareAndSwap(false, true) {
				other = w.ask(second(withDisk(t, dataDisk)), arm)
			}
			return do()
		}
		if refusal := w.ask(withDisk(t, dataDisk), arm); refusal != nil {
			t.Error(refusal)
		}
		expect(t, other, proof.ConfigurationNotAllowed)
	}
	// Decide saw nothing, and by now it is the other's.
	for _, arm := range []bool{false, true} {
		w := newWorld(t)
		w.files["/images/data.img"] = []byte("new")
		w.strikeAt("inactive", func() {
			w.l.Book.mu.Lock()
			defer w.l.Book.mu.Unlock()
			w.l.Book.domains[secondUUID] = &Domain{UUID: secondUUID, Registered: true, State: StateStopped, Volumes: []Volume{{Path: "/images/data.img"}}}
		})
		expect(t, w.ask(withDisk(t, dataDisk), arm), proof.ConfigurationNotAllowed)
		if w.live[guestUUID] != nil || w.inactive[guestUUID] != nil || w.l.Book.Domain(guestUUID).Registered {
			t.Error("something came of it")
		}
	}
}
