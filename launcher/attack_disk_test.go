package launcher

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"troth/proof"
)

// swaps are the ways to put other bytes where honest ones were measured: at one instant, but for the one that writes in place, which writes as
// many bytes as there were and sets the time back.
var swaps = map[string]func(r *realFiles, name string, evil []byte){
	"rename over it": func(r *realFiles, name string, evil []byte) {
		r.write("evil", evil)
		r.must(os.Rename(r.path("evil"), r.path(name)))
	},
	"write in place": func(r *realFiles, name string, evil []byte) {
		info, err := os.Stat(r.path(name))
		r.must(err)
		f, err := os.OpenFile(r.path(name), os.O_WRONLY, 0)
		r.must(err)
		_, err = f.Write(evil)
		r.must(err)
		r.must(f.Close())
		r.must(os.Chtimes(r.path(name), time.Time{}, info.ModTime()))
	},
	"symbolic link": func(r *realFiles, name string, evil []byte) {
		r.write("evil", evil)
		r.must(os.Symlink(r.path("evil"), r.path("link")))
		r.must(os.Rename(r.path("link"), r.path(name)))
	},
	"hard link": func(r *realFiles, name string, evil []byte) {
		r.write("evil", evil)
		r.must(os.Link(r.path("evil"), r.path("link")))
		r.must(os.Rename(r.path("link"), r.path(name)))
	},
}

// evil is other content of the same length that still is an image of the same form.
func evil(honest []byte) []byte {
	b := bytes.Clone(honest)
	b[len(b)-1] ^= 0xff
	return b
}

// testSwapAtEveryStep swaps every file of a launch, in every way, at every call that the launch makes to the world: between any two steps. Either
// the launch is refused and nothing ran, or QEMU had the honest bytes.
func testSwapAtEveryStep(t *testing.T) {
	w, token := realWorld(t)
	if _, refusal := w.launchReal(token); refusal != nil {
		t.Fatal(refusal)
	}
	w.running(token)
	calls := w.calls
	if len(calls) < 30 {
		t.Fatalf("only %d calls: %v", len(calls), calls)
	}
	refused := 0
	for _, name := range []string{"vmlinuz", "initrd", "top", "middle", "base.raw", "data"} {
		for how, swap := range swaps {
			for _, call := range calls {
				w, token := realWorld(t)
				honest := map[string][]byte{}
				for _, n := range []string{"vmlinuz", "initrd", "top", "middle", "base.raw", "data"} {
					honest[n] = w.real.content(n)
				}
				w.failAt(call, false, false)
				w.strike = func() { swap(w.real, name, evil(honest[name])) }
				_, refusal := w.launchReal(token)
				if !w.struck {
					t.Fatalf("%s was not called", call)
				}
				w.heal()
				what := fmt.Sprintf("%s: %s at %s", name, how, call)
				if refusal != nil {
					switch refusal.Code {
					case proof.ImageChanged, proof.ImageNotMeasured, proof.TokenConstraint:
					default:
						t.Errorf("%s: %v", what, refusal)
					}
					w.gone(nil)
					refused++
					continue
				}
				w.running(token)
				for n, b := range honest {
					if !bytes.Equal(w.real.read[n], b) {
						t.Errorf("%s: QEMU has other bytes of %s, and there is a proof", what, n)
					}
				}
			}
		}
	}
	if refused < 200 {
		t.Errorf("only %d swaps were refused", refused)
	}
}

// testHeaderOfSecondLink: the header of the writable disk names another file than the domain does, from some step on, at the second link, when its
// content is not hashed any more.
func testHeaderOfSecondLink(t *testing.T) {
	for _, at := range []string{"open#0", "release#0", "create#0", "process#0"} {
		w, token := realWorld(t)
		if _, refusal := w.launchReal(token); refusal != nil {
			t.Fatal(refusal)
		}
		if refusal := w.l.Stop(t.Context(), guestUUID); refusal != nil {
			t.Fatal(refusal)
		}
		for _, f := range w.real.qemu {
			w.real.must(f.Close())
		}
		w.real.qemu = nil
		delete(w.ran, guestUUID)
		w.real.write("host-secret", make([]byte, 65536))
		w.failAt(at, false, false)
		w.strike = func() {
			b := w.real.content("data")
			i := bytes.Index(b, []byte("base.raw"))
			copy(b[i:], "evil.raw")
			f, err := os.OpenFile(w.real.path("data"), os.O_WRONLY, 0)
			w.real.must(err)
			_, err = f.Write(b)
			w.real.must(err)
			w.real.must(f.Close())
		}
		_, refusal := w.launchReal(token)
		expect(t, refusal, proof.ImageNotMeasured)
		if w.ran[guestUUID] {
			t.Errorf("%s: it ran", at)
		}
	}
}

// testBackingFiles: what lies below a disk is measured layer by layer, and no layer means more than the domain says.
func testBackingFiles(t *testing.T) {
	refused := func(name string, code proof.Code, word string, do func(r *realFiles)) {
		t.Run(name, func(t *testing.T) {
			w, token := realWorld(t)
			do(w.real)
			_, refusal := w.launchReal(token)
			expect(t, refusal, code)
			if !strings.Contains(fmt.Sprint(refusal, refusal.Facts), word) {
				t.Errorf("%v %v says nothing of %q", refusal, refusal.Facts, word)
			}
			w.gone(nil)
		})
	}
	refused("base with other bytes", proof.TokenConstraint, "disk vda", func(r *realFiles) { r.write("base.raw", evil(r.content("base.raw"))) })
	refused("middle that stands on another file", proof.ImageNotMeasured, "another file", func(r *realFiles) {
		r.write("evil.raw", r.content("base.raw"))
		r.layer("middle", "evil.raw", "raw")
	})
	refused("middle that calls its base qcow2", proof.ImageNotMeasured, "another file", func(r *realFiles) {
		r.layer("scratch", "base.raw", "raw")
		r.write("middle", bytes.Replace(r.content("middle"), []byte("\x00\x00\x00\x03raw"), []byte("\x00\x00\x00\x03vdi"), 1))
	})
	refused("middle that stands alone", proof.ImageNotMeasured, "another file", func(r *realFiles) {
		r.must(os.Remove(r.path("middle")))
		r.layer("middle2", "base.raw", "raw")
		b := r.content("middle2")
		clear(b[8:20])
		r.write("middle", b)
	})
	refused("loop by a hard link", proof.ImageNotMeasured, "two places", func(r *realFiles) {
		// Its header is right about what the domain says below it; only, that is itself.
		r.must(os.Remove(r.path("base.raw")))
		r.must(os.Link(r.path("middle"), r.path("base.raw")))
	})
	refused("base that is the disk written to", proof.ImageNotMeasured, "two places", func(r *realFiles) {
		r.must(os.Remove(r.path("base.raw")))
		r.must(os.Link(r.path("data"), r.path("base.raw")))
	})
	t.Run("QEMU follows a header behind our back", func(t *testing.T) {
		w, token := realWorld(t)
		w.real.write("host-secret", []byte("secret"))
		w.strikeAt("process", func() {
			f, err := os.Open(w.real.path("host-secret"))
			w.real.must(err)
			w.real.qemu = append(w.real.qemu, f)
		})
		_, refusal := w.launchReal(token)
		expect(t, refusal, proof.ConfigurationChanged)
		w.gone(nil)
	})
	t.Run("depth 300", func(t *testing.T) {
		w, token := realWorld(t)
		xml := w.real.xml()
		deep := strings.Repeat("<backingStore type='file'><format type='qcow2'/><source file='/x'/>", 300) + "<backingStore/>" + strings.Repeat("</backingStore>", 300)
		xml = bytes.Replace(xml, []byte("<backingStore/>"), []byte(deep), 1)
		_, refusal := w.l.Launch(t.Context(), Request{ID: "deep", Token: token, Domain: xml, Action: proof.ActionStart}, quiet{})
		if refusal == nil {
			t.Fatal("300 layers were accepted")
		}
		w.gone(nil)
	})
}
