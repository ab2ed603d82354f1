package matrix

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// emulators are the processes of a node that run QEMU, as /proc has them.
type emulators struct {
	init int // process 1 of the node, as the machine sees it

	mu   sync.Mutex
	seen time.Time
	last []string
}

// all are their command lines, not older than 50 ms: many wait for one to be gone.
func (e *emulators) all() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	if time.Since(e.seen) < 50*time.Millisecond {
		return e.last
	}
	e.last = nil
	home, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", e.init))
	if err != nil {
		return []string{"the node is gone: " + err.Error()}
	}
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return []string{err.Error()}
	}
	for _, dir := range dirs {
		ns, err := os.Readlink(dir + "/ns/pid")
		if err != nil || ns != home {
			continue
		}
		line, err := os.ReadFile(dir + "/cmdline")
		words := strings.Split(string(line), "\x00")
		if err == nil && strings.Contains(filepath.Base(words[0]), "qemu-system-") {
			e.last = append(e.last, strings.Join(words, " "))
		}
	}
	e.seen = time.Now()
	return e.last
}

// named are those that run under one of the names.
func (e *emulators) named(names ...string) (out []string) {
	for _, line := range e.all() {
		for _, n := range names {
			if strings.Contains(line, "guest="+n+",") || strings.Contains(line, "-name "+n+" ") {
				out = append(out, line)
			}
		}
	}
	return out
}
