package hostd

import (
	"sync"
	"syscall"
	"time"

	"troth/hooks/ask"
)

// maxStuck bounds the looks that may hang at once, each of which holds a thread.
const maxStuck = 16

// places is where the paths of volumes lead now. The numbers that a domain was armed with hold no longer than the mount they were read
// from: another st_dev comes with a boot or a mount (btrfs, NFS, overlay, device mapper), another inode with an image that was put back from a backup.
// A file server that does not answer holds up nobody: what its paths led to before still counts, and it is asked again when it has answered.
type places struct {
	stat func(path string, st *syscall.Stat_t) error // nil: stat(2)

	mu    sync.Mutex
	known map[string]ask.Volume
	stuck map[string]bool // a look at them has not come back
}

// look asks where the paths lead, for no longer than within, and forgets paths that nobody asks for any more.
func (p *places) look(paths []string, within time.Duration) {
	p.mu.Lock()
	if p.known == nil {
		p.known, p.stuck = map[string]ask.Volume{}, map[string]bool{}
	}
	wanted := make(map[string]bool, len(paths))
	var due []string
	for _, path := range paths {
		if !wanted[path] && !p.stuck[path] {
			due = append(due, path)
		}
		wanted[path] = true
	}
	for path := range p.known {
		if !wanted[path] {
			delete(p.known, path)
		}
	}
	full := len(p.stuck) >= maxStuck
	p.mu.Unlock()
	if full || len(due) == 0 {
		return
	}
	late, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for _, path := range due {
			select {
			case <-late: // another look asks the rest, without the path that held up this one
				return
			default:
			}
			p.one(path)
		}
	}()
	timer := time.NewTimer(within)
	defer timer.Stop()
	select {
	case <-done:
	case <-timer.C:
		close(late)
	}
}

func (p *places) one(path string) {
	stat := p.stat
	if stat == nil {
		stat = syscall.Stat
	}
	p.mu.Lock()
	p.stuck[path] = true
	p.mu.Unlock()
	var st syscall.Stat_t
	err := stat(path, &st)
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.stuck, path)
	kind := st.Mode & syscall.S_IFMT
	if err != nil || kind != syscall.S_IFREG && kind != syscall.S_IFBLK {
		delete(p.known, path) // a number that nobody has any more may soon be another file's
		return
	}
	p.known[path] = ask.Volume{Path: path, Dev: st.Dev, Ino: st.Ino}
}

// now is where the path led when it was last asked.
func (p *places) now(path string) (ask.Volume, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	v, known := p.known[path]
	return v, known
}
