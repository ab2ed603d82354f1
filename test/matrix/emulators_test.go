package matrix

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"
)

// emulators are the processes of a node that run QEMU, as /proc has them.
type emulators struct {
	init int // process 1 of the node, as the machine sees it

	mu   sync.Mutex
	seen time.Time
	last []process
}

// process is one that runs QEMU.
type process struct {
	line  string
	begun time.Time
}

// all are those that run, as of 50 ms ago or later: many wait for one to be gone.
func (e *emulators) all() []process {
	e.mu.Lock()
	defer e.mu.Unlock()
	if time.Since(e.seen) < 50*time.Millisecond {
		return e.last
	}
	e.last = nil
	home, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", e.init))
	if err != nil {
		return []process{{line: "the node is gone: " + err.Error()}}
	}
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return []process{{line: err.Error()}}
	}
	for _, dir := range dirs {
		ns, err := os.Readlink(dir + "/ns/pid")
		if err != nil || ns != home {
			continue
		}
		line, err := os.ReadFile(dir + "/cmdline")
		words := strings.Split(string(line), "\x00")
		if err == nil && strings.Contains(filepath.Base(words[0]), "qemu-system-") {
			e.last = append(e.last, process{strings.Join(words, " "), begun(dir)})
		}
	}
	e.seen = time.Now()
	return e.last
}

// named are those that run under one of the names.
func (e *emulators) named(names ...string) (out []process) {
	for _, p := range e.all() {
		for _, n := range names {
			if strings.Contains(p.line, "guest="+n+",") || strings.Contains(p.line, "-name "+n+" ") {
				out = append(out, p)
			}
		}
	}
	return out
}

// begun is when a process started, by field 22 of /proc/PID/stat (proc(5)): ticks of 10 ms after boot. It is now if that cannot be read.
func begun(dir string) time.Time {
	now := time.Now()
	stat, err := os.ReadFile(dir + "/stat")
	up, err2 := os.ReadFile("/proc/uptime")
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:])) // the command's name may hold anything
	if err != nil || err2 != nil || len(fields) < 20 {
		return now
	}
	ticks, err := strconv.ParseInt(fields[19], 10, 64)
	uptime, err2 := strconv.ParseFloat(strings.Fields(string(up))[0], 64)
	if err != nil || err2 != nil {
		return now
	}
	return now.Add(time.Duration(ticks)*10*time.Millisecond - time.Duration(uptime*float64(time.Second)))
}
