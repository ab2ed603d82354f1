package emulator

import (
	"encoding/hex"
	"fmt"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"troth/hooks/ask"
	"troth/launcher/stall"
)

// Reason is why a process runs a trusted guest.
type Reason string

// The reasons, the surest first.
const (
	ByUUID   Reason = "uuid"   // of a registered domain
	ByVolume Reason = "volume" // of a registered domain, open
	ByMark   Reason = "mark"   // it gives its guest Troth's channel
	ByHost   Reason = "all"    // the host says that everything is trusted
)

// Index is a registry to ask about processes.
type Index struct {
	all    bool
	uuids  map[[16]byte]bool
	files  map[[2]uint64]string
	blocks map[uint64]string
	paths  map[string]bool
}

// NewIndex reads the registry. A volume that is a block device counts by its device number, since QEMU may have a node of its own for it.
func NewIndex(r ask.Registry) *Index {
	x := &Index{all: r.All, uuids: map[[16]byte]bool{}, files: map[[2]uint64]string{}, blocks: map[uint64]string{}, paths: map[string]bool{}}
	for _, u := range r.UUIDs {
		x.uuids[u] = true
	}
	for _, v := range r.Volumes {
		x.paths[v.Path] = true
		if v.Dev != 0 || v.Ino != 0 {
			x.files[[2]uint64{v.Dev, v.Ino}] = v.Path
		}
		if block := blockAt(v.Path); block != 0 {
			x.blocks[block] = v.Path
		}
	}
	return x
}

// naming is of block devices by their paths, which may lead over a file server that does not answer.
var naming = &stall.Guard{Within: 250 * time.Millisecond, Most: 16}

// blockAt gives the number of the block device that has this path, not that of one that it leads to; zero: there is none, or nobody knows.
func blockAt(path string) uint64 {
	ask := func() (node, error) { return nodeAt(path, unix.AT_SYMLINK_NOFOLLOW) }
	var n node
	var err error
	if strings.HasPrefix(path, "/dev/") { // in memory; 65536 volumes are asked for at each scan
		n, err = ask()
	} else {
		n, err = stall.Ask(naming, "", path, ask)
	}
	if err != nil {
		return 0
	}
	return n.Block
}

// Volume says which registered volume the file is.
func (x *Index) Volume(f File) (path string, is bool) {
	if f.Block != 0 {
		if path, is = x.blocks[f.Block]; is {
			return path, true
		}
	}
	path, is = x.files[[2]uint64{f.Dev, f.Ino}]
	return path, is
}

// Wants is for Look: the files that are registered volumes, or nil when there is none.
func (x *Index) Wants() func(File) bool {
	if len(x.files) == 0 && len(x.blocks) == 0 {
		return nil
	}
	return func(f File) bool { _, is := x.Volume(f); return is }
}

// Why says why the process runs a trusted guest, with what shows it; "": it does not, as far as anyone can tell.
func (x *Index) Why(p *Process) (why Reason, shows string) {
	if !p.Emulator() {
		return "", ""
	}
	for _, u := range p.UUIDs {
		if x.uuids[u] {
			h := hex.EncodeToString(u[:])
			return ByUUID, fmt.Sprintf("%s-%s-%s-%s-%s", h[:8], h[8:12], h[12:16], h[16:20], h[20:])
		}
	}
	for _, f := range p.Open {
		if path, is := x.Volume(f); is {
			return ByVolume, path
		}
		// A path alone says something to those alone who have the same root: a container has a /var/lib/libvirt of its own. It finds what the numbers
		// do not, a file server mounted twice above all.
		if p.SameRoot && f.Block == 0 && x.paths[f.Path] {
			return ByVolume, f.Path
		}
	}
	switch {
	case p.Guest:
		return ByMark, channelName
	case x.all:
		return ByHost, p.Exe
	}
	return "", ""
}
