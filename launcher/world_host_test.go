package launcher

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"troth/launcher/domain"
	"troth/proof"
)

func (w *world) Inactive(_ context.Context, id domain.UUID) (xml []byte, err error) {
	err = w.call("inactive", func() error {
		w.mu.Lock()
		defer w.mu.Unlock()
		xml = w.inactive[id.String()]
		return nil
	})
	return xml, err
}

func (w *world) Live(_ context.Context, id domain.UUID) (xml []byte, err error) {
	err = w.call("live", func() error {
		w.mu.Lock()
		defer w.mu.Unlock()
		xml = w.live[id.String()]
		if xml != nil && w.rewrite != nil {
			xml = w.rewrite(xml)
		}
		return nil
	})
	return xml, err
}

func (w *world) Named(_ context.Context, name string) (id domain.UUID, err error) {
	err = w.call("named", func() error {
		w.mu.Lock()
		defer w.mu.Unlock()
		for _, all := range []map[string][]byte{w.inactive, w.live} {
			for key, xml := range all {
				if strings.Contains(string(xml), "<name>"+name+"</name>") {
					id, err = domain.ParseUUID(key)
					return err
				}
			}
		}
		return nil
	})
	return id, err
}

func uuidOf(xml []byte) string {
	_, rest, _ := strings.Cut(string(xml), "<uuid>")
	id, _, _ := strings.Cut(rest, "</uuid>")
	return id
}

func (w *world) Define(_ context.Context, xml []byte) error {
	return w.call("define", func() error {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.inactive[uuidOf(xml)] = xml
		return nil
	})
}

func (w *world) Undefine(_ context.Context, id domain.UUID) error {
	return w.call("undefine", func() error {
		w.mu.Lock()
		defer w.mu.Unlock()
		delete(w.inactive, id.String())
		return nil
	})
}

func (w *world) CreatePaused(_ context.Context, xml []byte) error {
	return w.call("create", func() error {
		c, err := domain.Read(xml, domain.Live)
		if err != nil {
			return err
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		delete(w.loaded, c.UUID.String())
		if !w.noHook {
			if !w.expected[c.Added.LaunchID] {
				return errors.New("denied by the hook")
			}
			w.asked[c.Added.LaunchID] = true
		}
		if w.real != nil {
			if err := w.real.start(c); err != nil {
				return err
			}
		}
		w.live[c.UUID.String()], w.paused[c.UUID.String()] = xml, true
		return nil
	})
}

// Save is libvirt that writes a file and ends the guest.
func (w *world) Save(_ context.Context, id domain.UUID, path string) error {
	return w.call("save", func() error {
		w.mu.Lock()
		defer w.mu.Unlock()
		xml := w.live[id.String()]
		if xml == nil {
			return errors.New("does not run")
		}
		w.memory++
		w.files[path] = fmt.Appendf(nil, "memory %d of %s", w.memory, id)
		delete(w.live, id.String())
		delete(w.paused, id.String())
		return nil
	})
}

// RestorePaused loads a file's memory, once that it is: the simulation counts every guest that goes on from one.
func (w *world) RestorePaused(_ context.Context, path string, xml []byte) error {
	return w.call("restore", func() error {
		c, err := domain.Read(xml, domain.Live)
		if err != nil {
			return err
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.files[path] == nil {
			return errors.New("no such save image")
		}
		if !w.expected[c.Added.LaunchID] {
			return errors.New("denied by the hook")
		}
		w.asked[c.Added.LaunchID] = true
		w.live[c.UUID.String()], w.paused[c.UUID.String()] = xml, true
		w.loaded[c.UUID.String()] = string(w.files[path])
		return nil
	})
}

func (w *world) Path(uuid string) string { return "/saved/" + uuid }

func (w *world) Remove(uuid string) error {
	return w.call("remove image", func() error {
		w.mu.Lock()
		defer w.mu.Unlock()
		delete(w.files, w.Path(uuid))
		return nil
	})
}

func (w *world) List() (all []string, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for path := range w.files {
		if uuid, ok := strings.CutPrefix(path, "/saved/"); ok {
			all = append(all, uuid)
		}
	}
	return all, nil
}

func (w *world) Resume(_ context.Context, id domain.UUID) error {
	return w.call("resume", func() error {
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.live[id.String()] == nil {
			return errors.New("does not run")
		}
		if memory := w.loaded[id.String()]; memory != "" && w.paused[id.String()] {
			w.wentOn[memory]++
		}
		w.paused[id.String()] = false
		w.ran[id.String()] = true
		return nil
	})
}

func (w *world) Destroy(_ context.Context, id domain.UUID) error {
	return w.call("destroy", func() error {
		w.mu.Lock()
		defer w.mu.Unlock()
		delete(w.live, id.String())
		delete(w.paused, id.String())
		delete(w.loaded, id.String())
		return nil
	})
}

// inode is what a path leads to.
func (w *world) inode(path string) uint64 {
	if to := w.links[path]; to != "" {
		path = to
	}
	return inode(path)
}

func inode(path string) uint64 {
	sum := sha256.Sum256([]byte(path))
	return uint64(sum[0])<<8 | uint64(sum[1])
}

func (w *world) Process(_ context.Context, id domain.UUID, user *uint32) (p *Process, err error) {
	err = w.call("process", func() error {
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.twin && user == nil {
			return errors.New("more than one process")
		}
		c, err := domain.Read(w.live[id.String()], domain.Live)
		if err != nil {
			return err
		}
		p = &Process{PID: numberOf(id.String()), Exe: "/usr/bin/qemu-system-x86_64"}
		if w.loaded[id.String()] != "" {
			p.Loads = "-incoming"
		}
		if w.real != nil {
			return w.real.process(p, c)
		}
		name := func(path, option string) {
			if path != "" {
				p.Named = append(p.Named, File{Path: path, Dev: 1, Ino: w.inode(path), Option: option})
			}
		}
		name(c.Boot.Kernel, "-kernel")
		name(c.Boot.Initrd, "-initrd")
		name(c.Boot.Firmware, "-blockdev")
		if name(c.Boot.NVRAM, "-blockdev"); c.Boot.NVRAM != "" {
			p.Open = append(p.Open, File{Path: c.Boot.NVRAM, Dev: 1, Ino: w.inode(c.Boot.NVRAM), Writable: true})
		}
		for _, d := range c.Disks {
			name(d.Source, "-blockdev")
			p.Open = append(p.Open, File{Path: d.Source, Dev: 1, Ino: w.inode(d.Source), Writable: !d.ReadOnly})
		}
		if w.process != nil {
			w.process(p)
		}
		return nil
	})
	return p, err
}

// Holding is the machine's processes: libvirt's guests, and strangers.
func (w *world) Holding(_ context.Context, files []Volume) (all []Holder, err error) {
	err = w.call("holding", func() error {
		w.mu.Lock()
		defer w.mu.Unlock()
		found := slices.Clone(w.strangers)
		for uuid, xml := range w.live {
			c, err := domain.Read(xml, domain.Live)
			if err != nil {
				return err
			}
			for _, d := range c.Disks {
				found = append(found, Holder{PID: numberOf(uuid), Exe: "/usr/bin/qemu-system-x86_64", UUIDs: []domain.UUID{c.UUID}, Path: d.Source})
			}
		}
		for _, h := range found {
			for _, f := range files {
				if f.is(Volume{Path: h.Path, Dev: 1, Ino: w.inode(h.Path)}) {
					h.Path = f.Path
					all = append(all, h)
				}
			}
		}
		return nil
	})
	return all, err
}

func (w *world) Runs(_ context.Context, id domain.UUID, user *uint32) (runs bool, err error) {
	err = w.call("runs", func() error {
		w.mu.Lock()
		defer w.mu.Unlock()
		runs = w.live[id.String()] != nil || w.twin && user == nil
		return nil
	})
	return runs, err
}

func (w *world) ProcessAt(ctx context.Context, pid int, start uint64) (*Process, error) {
	if w.unseen > 0 {
		w.unseen--
		return nil, nil
	}
	w.mu.Lock()
	all := slices.Collect(maps.Keys(w.live))
	w.mu.Unlock()
	for _, uuid := range all {
		if numberOf(uuid) != pid {
			continue
		}
		p, err := w.Process(ctx, mustUUID(uuid), w.l.QEMU)
		if err != nil || p.PID != pid || p.Start != start {
			return nil, err
		}
		return p, nil
	}
	return nil, nil
}

// numberOf is the number of a guest's process.
func numberOf(uuid string) int {
	if uuid == guestUUID {
		return 42
	}
	return 100 + int(inode(uuid))
}

func (w *world) Taints(_ context.Context, id domain.UUID) (all []string, err error) {
	err = w.call("taints", func() error {
		w.mu.Lock()
		defer w.mu.Unlock()
		all = w.taints
		return nil
	})
	return all, err
}

func (w *world) Pause(_ context.Context, id domain.UUID) error {
	return w.call("pause", func() error {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.paused[id.String()] = w.live[id.String()] != nil
		return nil
	})
}

type fakeImage struct {
	w      *world
	path   string
	digest proof.Digest
	full   bool
}

func (w *world) Measure(_ context.Context, path string, progress func(done, total int64)) (i Image, err error) {
	err = w.call("measure", func() error {
		if w.real != nil {
			i, err = w.real.measure(w, path)
			return err
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		content, ok := w.files[path]
		if !ok {
			return proof.Refuse(proof.ImageNotMeasured, "no such file", proof.Fact{Name: "path", Value: path})
		}
		progress(0, int64(len(content)))
		progress(int64(len(content)), int64(len(content)))
		w.opened++
		delete(w.changed, path)
		i = &fakeImage{w, path, sha256.Sum256(content), true}
		return nil
	})
	if err != nil && i != nil {
		return nil, errors.Join(err, i.Close())
	}
	return i, err
}

func (w *world) Open(path string) (i Image, err error) {
	err = w.call("open", func() error {
		if w.real != nil {
			i, err = w.real.open(w, path)
			return err
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		w.opened++
		i = &fakeImage{w: w, path: path}
		return nil
	})
	if err != nil && i != nil {
		return nil, errors.Join(err, i.Close())
	}
	return i, err
}

func (i *fakeImage) Hash(context.Context) (d proof.Digest, err error) {
	err = i.w.call("hash", func() error {
		i.w.mu.Lock()
		defer i.w.mu.Unlock()
		d = sha256.Sum256(i.w.files[i.path])
		return nil
	})
	return d, err
}

func (i *fakeImage) HashSealed(ctx context.Context) (proof.Digest, error) { return i.Hash(ctx) }
func (i *fakeImage) Digest() proof.Digest                                 { return i.digest }
func (i *fakeImage) File() (File, bool) {
	return File{Path: i.path, Dev: 1, Ino: i.w.inode(i.path)}, false
}
func (i *fakeImage) CheckFormat(string, string, string) error { return nil }

func (i *fakeImage) Recheck() error {
	i.w.mu.Lock()
	defer i.w.mu.Unlock()
	if i.full && i.w.changed[i.path] {
		return proof.Refuse(proof.ImageChanged, "changed", proof.Fact{Name: "path", Value: i.path})
	}
	return nil
}

func (i *fakeImage) Close() error {
	i.w.mu.Lock()
	defer i.w.mu.Unlock()
	i.w.opened--
	return nil
}

type fakeHook struct{ w *world }

func (h fakeHook) Ready() error {
	return h.w.call("hook ready", func() error { return nil })
}

func (h fakeHook) Expect(_ domain.UUID, id [32]byte, _ bool) Expected {
	h.w.mu.Lock()
	defer h.w.mu.Unlock()
	h.w.expected[id] = true
	return fakeExpected{h.w, id}
}

type fakeExpected struct {
	w  *world
	id [32]byte
}

func (e fakeExpected) Called() bool {
	e.w.mu.Lock()
	defer e.w.mu.Unlock()
	return e.w.asked[e.id]
}

func (e fakeExpected) Done() {
	e.w.mu.Lock()
	defer e.w.mu.Unlock()
	delete(e.w.expected, e.id)
}

type fakeSecrets struct{ w *world }

func (s fakeSecrets) Channel(id string) (string, error) {
	return s.ChannelPath(id), s.w.call("channel", func() error { return nil })
}

func (s fakeSecrets) ChannelPath(id string) string { return "/run/guest/" + id + "/channel.sock" }

func (s fakeSecrets) File(id string) string { return "/run/guest/" + id + ".secret" }

func (s fakeSecrets) Put(id string, content proof.Secret) error {
	return s.w.call("put secret", func() error {
		s.w.mu.Lock()
		defer s.w.mu.Unlock()
		s.w.secrets[id] = bytes.Clone(content.Reveal())
		return nil
	})
}

func (s fakeSecrets) Remove(id string) error {
	return s.w.call("remove secret", func() error {
		s.w.mu.Lock()
		defer s.w.mu.Unlock()
		delete(s.w.secrets, id)
		return nil
	})
}

func (s fakeSecrets) Forget(id string) error { return s.Remove(id) }

type fakeKeys struct{ w *world }

func (k fakeKeys) PutKey(_ context.Context, id domain.UUID, target string, key proof.Secret) error {
	return k.w.call("put key", func() error {
		k.w.mu.Lock()
		defer k.w.mu.Unlock()
		k.w.diskKeys[id.String()+"/"+target] = string(key.Reveal())
		return nil
	})
}

func (k fakeKeys) RemoveKeys(_ context.Context, id domain.UUID) error {
	return k.w.call("remove keys", func() error {
		return k.sweep(func(of domain.UUID) func() {
			if of != id {
				return nil
			}
			return func() {}
		})
	})
}

func (k fakeKeys) SweepKeys(_ context.Context, take func(domain.UUID) func()) error {
	return k.w.call("sweep keys", func() error { return k.sweep(take) })
}

func (k fakeKeys) sweep(take func(domain.UUID) func()) error {
	k.w.mu.Lock()
	defer k.w.mu.Unlock()
	for name := range k.w.diskKeys {
		id, err := domain.ParseUUID(name[:36])
		if err != nil {
			return err
		}
		if release := take(id); release != nil {
			delete(k.w.diskKeys, name)
			release()
		}
	}
	return nil
}

type fakeClock struct{ w *world }

func (c fakeClock) Now() time.Time      { return time.Unix(1_800_000_100, 0) }
func (c fakeClock) Boot() time.Duration { return c.w.boot }
