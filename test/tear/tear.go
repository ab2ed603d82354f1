// Package tear is a file system in memory that loses power. What was written and not synced may be lost, cut at any byte, or kept out of order;
// a name is not in its folder for good before the folder is synced; a sync that failed never writes those bytes, as on Linux, where a later sync
// says that all is well. It serves the journal's interface, and every call of it goes through Call, where a test makes it fail.
//
// It promises the worst that POSIX allows and nothing that hardware cannot do. It knows nothing of what is written.
package tear

import (
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"sync"

	"troth/hostd/journal"
)

// FS is the file system. Its zero value is not ready: use New.
type FS struct {
	// Call is every effect: do makes it, and half, unless it is nil, makes a part of it. Nil: do.
	Call func(op string, data []byte, do, half func() error) error

	mu      sync.Mutex
	names   map[string]*node // as processes see them
	durable map[string]*node // as the disk has them
}

// node is one file: what processes see, what the disk has, and the writes in between.
type node struct {
	now, disk []byte
	pending   []write
}

// write puts data at off, or cuts the file there when data is nil.
type write struct {
	off  int
	data []byte
}

// New makes an empty file system.
func New() *FS { return &FS{names: map[string]*node{}, durable: map[string]*node{}} }

// Clone copies everything but Call.
func (f *FS) Clone() *FS {
	f.mu.Lock()
	defer f.mu.Unlock()
	seen := map[*node]*node{}
	copied := func(from map[string]*node) map[string]*node {
		to := map[string]*node{}
		for name, n := range from {
			if seen[n] == nil {
				seen[n] = &node{bytes.Clone(n.now), bytes.Clone(n.disk), append([]write(nil), n.pending...)}
			}
			to[name] = seen[n]
		}
		return to
	}
	return &FS{names: copied(f.names), durable: copied(f.durable)}
}

// Loss says what power loss leaves of what was not synced.
type Loss int

// Ways to lose power.
const (
	Lost      Loss = iota // nothing of it is there
	Torn                  // the writes are there up to some byte
	Reordered             // any of their sectors are there, and zeros where one is missing
)

const sector = 512

// PowerLoss makes what the disk has all there is.
func (f *FS) PowerLoss(how Loss, random *rand.Rand) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if how != Lost && random.IntN(2) == 0 {
		f.durable = maps.Clone(f.names) // the folder was written although nobody asked for it
	}
	for _, n := range f.durable {
		switch how {
		case Lost:
		case Torn:
			n.torn(random)
		case Reordered:
			n.reordered(random)
		default:
			panic("unknown loss")
		}
		n.now, n.pending = bytes.Clone(n.disk), nil
	}
	f.names = maps.Clone(f.durable)
}

func (n *node) torn(random *rand.Rand) {
	total := 0
	for _, w := range n.pending {
		total += len(w.data)
	}
	left := random.IntN(total + 1)
	for _, w := range n.pending {
		if w.data == nil {
			n.disk = apply(n.disk, w)
			continue
		}
		k := min(left, len(w.data))
		left -= k
		if k > 0 {
			n.disk = apply(n.disk, write{w.off, w.data[:k]})
		}
	}
}

func (n *node) reordered(random *rand.Rand) {
	for _, w := range n.pending {
		if w.data == nil {
			if random.IntN(2) == 0 {
				n.disk = apply(n.disk, w)
			}
			continue
		}
		for from := 0; from < len(w.data); {
			to := min(len(w.data), from+sector-(w.off+from)%sector)
			if random.IntN(2) == 0 {
				n.disk = apply(n.disk, write{w.off + from, w.data[from:to]})
			}
			from = to
		}
	}
}

func apply(to []byte, w write) []byte {
	if w.data == nil {
		if w.off < len(to) {
			to = to[:w.off]
		}
		return to
	}
	if end := w.off + len(w.data); end > len(to) {
		to = append(to, make([]byte, end-len(to))...)
	}
	copy(to[w.off:], w.data)
	return to
}

// Durable is what power loss would surely leave of a file.
func (f *FS) Durable(path string) []byte {
	f.mu.Lock()
	defer f.mu.Unlock()
	if n := f.durable[path]; n != nil {
		return bytes.Clone(n.disk)
	}
	return nil
}

// Now is a file as processes see it.
func (f *FS) Now(path string) []byte {
	f.mu.Lock()
	defer f.mu.Unlock()
	if n := f.names[path]; n != nil {
		return bytes.Clone(n.now)
	}
	return nil
}

// Set puts a file there, synced.
func (f *FS) Set(path string, content []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := &node{now: bytes.Clone(content), disk: bytes.Clone(content)}
	f.names[path], f.durable[path] = n, n
}

func (f *FS) call(op string, data []byte, do, half func() error) error {
	locked := func(g func() error) func() error {
		if g == nil {
			return nil
		}
		return func() error {
			f.mu.Lock()
			defer f.mu.Unlock()
			return g()
		}
	}
	if f.Call == nil {
		return locked(do)()
	}
	return f.Call(op, data, locked(do), locked(half))
}

// Open implements journal.FS.
func (f *FS) Open(path string) (journal.File, error) {
	var n *node
	err := f.call("fs open", nil, func() error {
		if f.names[path] == nil {
			f.names[path] = &node{}
		}
		n = f.names[path]
		return nil
	}, nil)
	if err == nil {
		err = f.syncDir()
	}
	if err != nil {
		return nil, err
	}
	return &file{fs: f, node: n}, nil
}

// Create implements journal.FS.
func (f *FS) Create(path string) (journal.File, error) {
	var n *node
	err := f.call("fs create", nil, func() error {
		n = &node{}
		f.names[path] = n
		return nil
	}, nil)
	if err != nil {
		return nil, err
	}
	return &file{fs: f, node: n}, nil
}

// Rename implements journal.FS.
func (f *FS) Rename(from, to string) error {
	err := f.call("fs rename", nil, func() error {
		n := f.names[from]
		if n == nil {
			return fmt.Errorf("rename %s: %w", from, fs.ErrNotExist)
		}
		f.names[to] = n
		delete(f.names, from)
		return nil
	}, nil)
	if err != nil {
		return err
	}
	return f.syncDir()
}

func (f *FS) syncDir() error {
	return f.call("fs sync folder", nil, func() error {
		f.durable = maps.Clone(f.names)
		return nil
	}, nil)
}

// file is one open file.
type file struct {
	fs   *FS
	node *node
	at   int
}

// Read implements io.Reader.
func (o *file) Read(p []byte) (n int, err error) {
	get := func() error {
		if n = copy(p, o.node.now[o.at:]); n == 0 {
			return io.EOF
		}
		o.at += n
		return nil
	}
	if o.at == 0 { // one call for a file, however many pieces it is read in
		err = o.fs.call("fs read", nil, get, nil)
		return n, err
	}
	o.fs.mu.Lock()
	defer o.fs.mu.Unlock()
	err = get()
	return n, err
}

// Write implements io.Writer.
func (o *file) Write(p []byte) (n int, err error) {
	put := func(k int) func() error {
		return func() error {
			w := write{o.at, bytes.Clone(p[:k])}
			if k > 0 {
				o.node.now = apply(o.node.now, w)
				o.node.pending = append(o.node.pending, w)
			}
			o.at += k
			n = k
			return nil
		}
	}
	err = o.fs.call("fs write", p, put(len(p)), put(len(p)/2))
	return n, err
}

// Sync implements journal.File. One that fails before it took effect never writes what was pending.
func (o *file) Sync() error {
	took := false
	err := o.fs.call("fs sync", nil, func() error {
		took = true
		for _, w := range o.node.pending {
			o.node.disk = apply(o.node.disk, w)
		}
		o.node.pending = nil
		return nil
	}, nil)
	if err != nil && !took {
		o.fs.mu.Lock()
		defer o.fs.mu.Unlock()
		o.node.pending = nil
	}
	return err
}

// Truncate implements journal.File.
func (o *file) Truncate(size int64) error {
	return o.fs.call("fs truncate", nil, func() error {
		w := write{off: int(size)}
		o.node.now = apply(o.node.now, w)
		o.node.pending = append(o.node.pending, w)
		o.at = int(size)
		return nil
	}, nil)
}

// Close implements io.Closer.
func (o *file) Close() error { return nil }
