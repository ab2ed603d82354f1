package launcher

import (
	"context"
	"fmt"
	"slices"

	"troth/proof"
)

// A volume is a file that a registered domain writes to: its writable disks and its variable store. It belongs to that domain alone, which nobody else is let near
// by the hook, polkit's rule and the scan for strays, and no other trusted domain by what is here. What domains only read, they share.

// Owned is a volume and the domain that it belongs to.
type Owned struct {
	Volume
	UUID string
}

// is says that both are one file: by the path, or by device and inode where these are known.
func (v Volume) is(other Volume) bool {
	return v.Path == other.Path || v.Ino != 0 && v.Dev == other.Dev && v.Ino == other.Ino
}

// Ownership is whose the files are that a domain would open.
type Ownership struct {
	Files  []Volume // of the domain: what it boots, reads and writes
	Others []Owned  // what belongs to other registered domains
	// Holders are other guests that have open what becomes this domain's alone and was not before.
	Holders []Holder
}

// maxTold bounds how many holders a refusal tells of.
const maxTold = 4

func (h Holder) String() string {
	return fmt.Sprintf("pid %d, domain %v, %s", h.PID, h.UUIDs, h.Exe)
}

// Leads says where a volume's path led when it was last asked; false: that is not known.
type Leads func(path string) (Volume, bool)

// whose finds out whose the files of the launch are, as of now.
func (a *attempt) whose(ctx context.Context) error {
	holders, err := a.holders(ctx)
	a.facts.Ownership = &Ownership{Files: a.files(), Others: a.Book.others(a.config.UUID.String(), a.Leads), Holders: holders}
	return err
}

// holders looks for other guests that have open what is about to become this domain's alone: once it is published the scan for strays ends them, whoever
// asked for it. It looks at all processes, so only when a volume is new to the registry. A guest that opens one after this look and before the registry is
// published is a stray all the same.
func (a *attempt) holders(ctx context.Context) ([]Holder, error) {
	d := a.Book.Domain(a.config.UUID.String())
	fresh := slices.DeleteFunc(a.images.volumes(), func(v Volume) bool { return d != nil && d.Registered && slices.Contains(d.Volumes, v) })
	if len(fresh) == 0 {
		return nil, nil
	}
	all, err := a.Emulators.Holding(ctx, fresh)
	return slices.DeleteFunc(all, func(h Holder) bool { return d.Live().Holds(h.PID, h.Start) }), err
}

// files are all that the domain opens. Where its serial ports are written to counts by the path alone: that file may not be there yet.
func (a *attempt) files() []Volume {
	all := a.images.list(func(*heldImage) bool { return true })
	for _, s := range a.config.Serials {
		for _, path := range []string{s.Path, s.Log} {
			if path != "" {
				all = append(all, Volume{Path: path})
			}
		}
	}
	return all
}

// volumes lists the files that belong to this domain alone: what it writes to.
func (h *held) volumes() []Volume { return h.list(func(i *heldImage) bool { return i.writes }) }

func (h *held) list(which func(*heldImage) bool) []Volume {
	var all []Volume
	for _, i := range h.images {
		if which(i) {
			f, _ := i.File()
			all = append(all, Volume{Path: i.path, Dev: f.Dev, Ino: f.Ino})
		}
	}
	return all
}

// publish writes an entry by which the volumes of the launch become its domain's alone. Decide has seen to whose they are; of two launches that were both
// permitted at once the second is refused here, while the first is still being written.
func (a *attempt) publish(e *Entry) error {
	e.Volumes = a.images.volumes()
	release, refusal := a.Book.take(e.UUID, a.files(), e.Volumes, a.Leads)
	if refusal != nil {
		return refusal
	}
	defer release()
	return a.Book.Write(e)
}

// take holds volumes for a domain until release is called, unless one of its files belongs to another.
func (b *Book) take(uuid string, files, volumes []Volume, leads Leads) (release func(), refusal *proof.Refusal) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if refusal := taken(files, b.owned(uuid, leads)); refusal != nil {
		return nil, refusal
	}
	if b.taking == nil {
		b.taking = map[string][]Volume{}
	}
	b.taking[uuid] = volumes
	return func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		delete(b.taking, uuid)
	}, nil
}

// others lists what belongs to registered domains but for this one.
func (b *Book) others(uuid string, leads Leads) []Owned {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.owned(uuid, leads)
}

// owned is others. The caller holds mu. As in the registry, a volume is the file that it was when it was written down, and also the one that its path leads to
// by now.
func (b *Book) owned(but string, leads Leads) []Owned {
	var all []Owned
	for uuid, d := range b.domains {
		if uuid == but || !d.Registered {
			continue
		}
		for _, v := range d.Volumes {
			all = append(all, Owned{v, uuid})
			if leads == nil {
				continue
			}
			if now, known := leads(v.Path); known && now != v {
				all = append(all, Owned{now, uuid})
			}
		}
	}
	for uuid, volumes := range b.taking {
		if uuid == but {
			continue
		}
		for _, v := range volumes {
			all = append(all, Owned{v, uuid})
		}
	}
	return all
}
