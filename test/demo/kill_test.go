package main

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"troth/test/standstill"
)

// TestDemoKilled kills the demo at random points, and looks for what is left each time. The last run ends well and removes
// even the directories that the killed ones left.
func TestDemoKilled(t *testing.T) {
	build := theBuild(t)
	w := watch(t)
	times, last := 3, []string{"-only", "proof"}
	if os.Getenv("TROTH_SOAK") != "" {
		times, last = 20, nil
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	for range times {
		after := 200*time.Millisecond + time.Duration(random.Int64N(int64(11800*time.Millisecond)))
		d := w.start(build)
		time.Sleep(after) // the point at which it is killed is what is random
		d.kill(t)
		took := w.gone(d)
		t.Logf("killed after %v, with %d processes in %d namespaces: gone in %v", after.Round(time.Millisecond), len(d.started), len(d.spaces), took.Round(time.Millisecond))
	}
	d := w.start(build, last...)
	if err := d.cmd.Wait(); err != nil {
		t.Fatalf("the demo after those that were killed: %v\n%s", err, d.said())
	}
	w.gone(d)
	w.empty()
	said := strings.Split(strings.TrimSpace(d.said()), "\n")
	t.Log(strings.Join(said[max(0, len(said)-3):], "\n"))
}

// kill kills a demo under way.
func (d *demo) kill(t *testing.T) {
	t.Helper()
	d.started = descendants(d.cmd.Process.Pid)
	d.spaces = make(map[string]bool)
	own := namespaces(os.Getpid())
	for pid := range d.started {
		for ns := range namespaces(pid) {
			if !own[ns] {
				d.spaces[ns] = true
			}
		}
	}
	if err := d.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	d.ended = now(t)
	err := d.cmd.Wait()
	if s, ok := d.cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || s.Signal() != syscall.SIGKILL {
		t.Fatalf("the demo ended before it was killed: %v\n%s", err, d.said())
	}
}

// goneIn is how long what a killed demo leaves may take to go.
const goneIn = 10 * time.Second

// watcher knows what the machine was like before.
type watcher struct {
	t             *testing.T
	dir           string // for temporary files of the demos
	logs          string
	runs          int
	links, mounts map[string]bool
}

// watch remembers what there is. Orphans of the demo become children of the test, so that each is seen, however short the
// time was between its start and the death of its parent; they are not confused with what others do on this machine.
func watch(t *testing.T) *watcher {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("the lab needs root: make test")
	}
	if err := standstill.Watch(); err != nil {
		t.Fatal(err)
	}
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0); err != nil {
			t.Error(err)
		}
	})
	return &watcher{t: t, dir: t.TempDir(), logs: t.TempDir(), links: links(t), mounts: mounts(t)}
}

// gone waits until nothing is left of a demo that has ended: no process, namespace, mount or interface. It returns how long that took.
func (w *watcher) gone(d *demo) time.Duration {
	w.t.Helper()
	begun := time.Now()
	for {
		err := w.left(d)
		if err == nil {
			return time.Since(begun)
		}
		if standstill.Since(begun) > goneIn {
			w.t.Fatalf("%v after the end: %v\n%s", goneIn, err, d.said())
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// left says what there still is. The kernel gives the number of a process or namespace that has gone to another, so start times
// are compared too: what began after the demo was killed is none of its.
func (w *watcher) left(d *demo) error {
	// Orphans come here when they are killed. No command of the test runs now, so every child is one.
	for {
		pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || pid == 0 {
			break
		}
	}
	for pid := range descendants(os.Getpid()) {
		return fmt.Errorf("process %d is left: %s", pid, commandLine(pid))
	}
	for _, pid := range processes() {
		_, start, err := stat(pid)
		if err != nil {
			continue // it has ended
		}
		if began, ok := d.started[pid]; ok && began == start {
			return fmt.Errorf("process %d is left: %s", pid, commandLine(pid))
		}
		if start <= d.ended {
			for ns := range namespaces(pid) {
				if d.spaces[ns] {
					return fmt.Errorf("namespace %s is left, held by process %d: %s", ns, pid, commandLine(pid))
				}
			}
		}
		if info, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", pid)); err == nil && bytes.Contains(info, []byte(w.dir)) {
			return fmt.Errorf("process %d has mounts of the lab: %s", pid, commandLine(pid))
		}
		if strings.Contains(commandLine(pid), w.dir) {
			return fmt.Errorf("process %d is left: %s", pid, commandLine(pid))
		}
	}
	if err := same("interface", w.links, links(w.t)); err != nil {
		return err
	}
	return same("mount", w.mounts, mounts(w.t))
}

// empty expects that no temporary file is left.
func (w *watcher) empty() {
	w.t.Helper()
	for _, e := range must[[]os.DirEntry](w.t)(os.ReadDir(w.dir)) {
		w.t.Errorf("%s is left", filepath.Join(w.dir, e.Name()))
	}
}

func same(what string, before, after map[string]bool) error {
	for name := range after {
		if !before[name] {
			return fmt.Errorf("the machine has a new %s: %s", what, name)
		}
	}
	for name := range before {
		if !after[name] {
			return fmt.Errorf("the machine has lost a %s: %s", what, name)
		}
	}
	return nil
}

// links are the interfaces of the test's own network namespace.
func links(t *testing.T) map[string]bool {
	t.Helper()
	found := make(map[string]bool)
	for _, e := range must[[]os.DirEntry](t)(os.ReadDir("/sys/class/net")) {
		found[e.Name()] = true
	}
	return found
}

// mounts are the mounts of the test's own mount namespace.
func mounts(t *testing.T) map[string]bool {
	t.Helper()
	found := make(map[string]bool)
	for line := range strings.Lines(string(must[[]byte](t)(os.ReadFile("/proc/self/mountinfo")))) {
		found[strings.TrimSpace(line)] = true
	}
	return found
}

// namespaces are those of one process.
func namespaces(pid int) map[string]bool {
	found := make(map[string]bool)
	for _, kind := range []string{"mnt", "uts", "ipc", "net", "pid", "user", "cgroup", "time"} {
		if ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, kind)); err == nil {
			found[ns] = true
		}
	}
	return found
}

// now is the time in the unit of start times: clock ticks since boot, of which Linux has 100 a second.
func now(t *testing.T) uint64 {
	t.Helper()
	f := strings.Fields(string(must[[]byte](t)(os.ReadFile("/proc/uptime"))))
	return uint64(100*must[float64](t)(strconv.ParseFloat(f[0], 64))) + 1
}

// processes lists all processes.
func processes() []int {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		panic(err) // no test can go on without
	}
	var all []int
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil {
			all = append(all, pid)
		}
	}
	return all
}

// stat reads a process's parent and start time: fields 4 and 22 of /proc/PID/stat (proc(5)).
func stat(pid int) (parent int, start uint64, err error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, 0, err
	}
	// The command name is in parentheses and may hold anything.
	f := bytes.Fields(data[bytes.LastIndexByte(data, ')')+1:])
	if len(f) < 20 {
		return 0, 0, fmt.Errorf("cannot read /proc/%d/stat", pid)
	}
	if parent, err = strconv.Atoi(string(f[1])); err != nil {
		return 0, 0, err
	}
	start, err = strconv.ParseUint(string(f[19]), 10, 64)
	return parent, start, err
}

// descendants finds the processes below one, with their start times.
func descendants(top int) map[int]uint64 {
	parents, starts := make(map[int]int), make(map[int]uint64)
	for _, pid := range processes() {
		if parent, start, err := stat(pid); err == nil {
			parents[pid], starts[pid] = parent, start
		}
	}
	found := make(map[int]uint64)
	for pid := range parents {
		for p := parents[pid]; p > 1; p = parents[p] {
			if p == top {
				found[pid] = starts[pid]
				break
			}
		}
	}
	return found
}

func commandLine(pid int) string {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return err.Error()
	}
	return strings.ReplaceAll(string(data), "\x00", " ")
}
