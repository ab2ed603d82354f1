package lab

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"troth/test/standstill"
)

// ownerEnv makes TestLabOwner build a lab in the directory that it names, instead of passing.
const ownerEnv = "TROTH_LAB_TEST_OWNER"

// TestLabOwner is no test: it is the lab's owner that TestLabKilled kills.
func TestLabOwner(t *testing.T) {
	dir := os.Getenv(ownerEnv)
	if dir == "" {
		return
	}
	l := newLab(t, Options{Dir: dir, Hosts: 2, Until: Verifying})
	h := l.Host(1)
	domain := l.Guest.XML(Domain{Name: "guest", UUID: nodeUUID("guest")})
	if err := writeFile(h.Path("/tmp/guest.xml"), domain, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Virsh(t.Context(), "create", "/tmp/guest.xml"); err != nil {
		t.Fatal(err)
	}
	fmt.Println("up")
	select {}
}

// TestLabKilled kills a lab's owner at random points of its life and looks for what is left: the next start must find
// nothing in its way, and after it there must be no process, namespace, mount, interface or file.
func TestLabKilled(t *testing.T) {
	needRoot(t)
	if err := standstill.Watch(); err != nil {
		t.Fatal(err)
	}
	links := rootLinks(t)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	// The first one is killed when all is up, a guest included; the others before.
	full := killOwner(t, filepath.Join(t.TempDir(), "lab"), 0)
	for range 4 {
		killOwner(t, filepath.Join(t.TempDir(), "lab"), time.Duration(random.Int64N(int64(full))))
	}
	for name := range rootLinks(t) {
		if !links[name] {
			t.Errorf("the machine's network namespace has a new interface %s", name)
		}
	}
}

// leftFor is how long what is left of a killed lab may take to go.
const leftFor = 15 * time.Second

// killOwner starts a lab's owner and kills it after a time, or as soon as it is up. It returns when that was.
func killOwner(t *testing.T, dir string, after time.Duration) time.Duration {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestLabOwner$", "-test.v")
	cmd.Env = append(os.Environ(), ownerEnv+"="+dir)
	var out io.Reader
	if after == 0 {
		var err error
		if out, err = cmd.StdoutPipe(); err != nil {
			t.Fatal(err)
		}
	}
	begun := time.Now()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if after > 0 {
		time.Sleep(after) // the point at which it is killed is what is random
	} else if err := awaitLine(out, "up"); err != nil {
		t.Fatal(err)
	}
	took := time.Since(begun)
	started := descendants(cmd.Process.Pid)
	namespaces := namespacesOf(started)
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil {
		t.Fatal("the owner ended by itself")
	}
	killed := now(t)
	t.Logf("killed after %v: %d processes in %d namespaces", took.Round(time.Millisecond), len(started), len(namespaces))
	if after == 0 && (len(started) < 10 || len(namespaces) < 4*5) {
		t.Fatalf("a whole lab has not only %d processes and %d namespaces", len(started), len(namespaces))
	}

	l, err := New(testContext(t), Options{Dir: dir, Until: Namespaces})
	if err != nil {
		t.Fatalf("the next start: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	// The processes 1 are the machine's process 1's to reap now, which may take its time.
	closed := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), 3*leftFor)
	defer cancel()
	if err := until(ctx, "after the next start", func() error { return left(dir, killed, started, namespaces) }); err != nil {
		t.Error(err)
	}
	if gone := standstill.Since(closed); gone > leftFor {
		t.Errorf("what was left took %v to go, more than %v", gone, leftFor)
	}
	if _, err := os.Lstat(dir); !os.IsNotExist(err) {
		t.Errorf("the lab's directory is left: %v", err)
	}
	return took
}

// now is the time in the unit of processes' start times: clock ticks since boot, of which Linux has 100 a second.
func now(t *testing.T) uint64 {
	t.Helper()
	data, err := os.ReadFile("/proc/uptime")
	if err != nil {
		t.Fatal(err)
	}
	seconds, err := strconv.ParseFloat(strings.Fields(string(data))[0], 64)
	if err != nil {
		t.Fatal(err)
	}
	return uint64(seconds*100) + 1
}

// left says what there still is of a lab: a process, a namespace, a mount. The kernel gives the number of a namespace that
// has gone to another, so a process that began after the lab was killed says nothing about the lab's namespaces.
func left(dir string, killed uint64, started map[int]uint64, namespaces map[string]int) error {
	for pid, start := range started {
		if _, began, err := processStat(pid); err == nil && began == start {
			return fmt.Errorf("process %d is left: %s", pid, commandLine(pid))
		}
	}
	for ns, pid := range allNamespaces() {
		if _, start, err := processStat(pid); namespaces[ns] != 0 && err == nil && start <= killed {
			return fmt.Errorf("namespace %s is left, held by process %d: %s", ns, pid, commandLine(pid))
		}
	}
	for _, pid := range processes() {
		mounts, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", pid))
		if err == nil && strings.Contains(string(mounts), dir) {
			return fmt.Errorf("process %d has mounts of the lab: %s", pid, commandLine(pid))
		}
		if strings.Contains(commandLine(pid), dir) {
			return fmt.Errorf("process %d is left: %s", pid, commandLine(pid))
		}
	}
	return nil
}

func awaitLine(r io.Reader, want string) error {
	s := bufio.NewScanner(r)
	var seen []string
	for s.Scan() {
		if s.Text() == want {
			return nil
		}
		seen = append(seen, s.Text())
	}
	return fmt.Errorf("the owner ended: %s", strings.Join(seen, "\n"))
}

// processes lists all processes.
func processes() []int {
	var all []int
	entries, err := os.ReadDir("/proc")
	if err != nil {
		panic(err) // no test can go on without
	}
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil {
			all = append(all, pid)
		}
	}
	return all
}

// descendants finds the processes below one, with their start times.
func descendants(top int) map[int]uint64 {
	parent := make(map[int]int)
	for _, pid := range processes() {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			continue // it has ended
		}
		f := strings.Fields(string(data[strings.LastIndexByte(string(data), ')')+1:]))
		parent[pid], _ = strconv.Atoi(f[1])
	}
	found := make(map[int]uint64)
	for pid := range parent {
		for p := pid; p > 1; p = parent[p] {
			if p == top && pid != top {
				if _, start, err := processStat(pid); err == nil {
					found[pid] = start
				}
				break
			}
		}
	}
	return found
}

// namespacesOf finds the namespaces of processes that are not ours.
func namespacesOf(pids map[int]uint64) map[string]int {
	own := make(map[string]int)
	addNamespaces(own, os.Getpid())
	found := make(map[string]int)
	for pid := range pids {
		addNamespaces(found, pid)
	}
	maps.DeleteFunc(found, func(ns string, _ int) bool { return own[ns] != 0 })
	return found
}

func allNamespaces() map[string]int {
	found := make(map[string]int)
	for _, pid := range processes() {
		addNamespaces(found, pid)
	}
	return found
}

func addNamespaces(found map[string]int, pid int) {
	for _, kind := range []string{"mnt", "uts", "ipc", "net", "pid"} {
		if ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, kind)); err == nil {
			found[ns] = pid
		}
	}
}

func commandLine(pid int) string {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return err.Error()
	}
	return strings.ReplaceAll(string(data), "\x00", " ")
}

// rootLinks are the interfaces that the test's own network namespace has.
func rootLinks(t *testing.T) map[string]bool {
	t.Helper()
	entries, err := os.ReadDir("/sys/class/net")
	if err != nil {
		t.Fatal(err)
	}
	found := make(map[string]bool)
	for _, e := range entries {
		found[e.Name()] = true
	}
	return found
}

// TestLabDirectory refuses a directory that no lab made and one that is in use, and clears what a killed lab left.
func TestLabDirectory(t *testing.T) {
	dir := t.TempDir()
	precious := filepath.Join(dir, "precious")
	if err := os.WriteFile(precious, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := claim(dir); err == nil {
		t.Error("a directory with somebody's file was claimed")
	}
	if _, err := os.Stat(precious); err != nil {
		t.Error(err)
	}
	own := filepath.Join(t.TempDir(), "lab")
	lock, err := claim(own)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := claim(own); err == nil {
		t.Error("a directory in use was claimed")
	}
	if err := writeFile(filepath.Join(own, "host1/tree/left"), "", 0o644); err != nil {
		t.Fatal(err)
	}
	lock.Close()
	lock, err = claim(own)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if _, err := os.Stat(filepath.Join(own, "host1")); !os.IsNotExist(err) {
		t.Errorf("what a lab left is there: %v", err)
	}
	if err := remove(own); err != nil {
		t.Error(err)
	}
}

// TestKeptDirectory: what a failed test leaves to be read outlives the labs that come after it, and what a killed one leaves does not.
func TestKeptDirectory(t *testing.T) {
	parent := t.TempDir()
	left := map[string]string{}
	for _, name := range []string{"kept", "killed"} {
		dir := filepath.Join(parent, tempPrefix+name)
		lock, err := claim(dir)
		if err != nil {
			t.Fatal(err)
		}
		left[name] = filepath.Join(dir, "log/hostd")
		if err := writeFile(left[name], "why", 0o644); err != nil {
			t.Fatal(err)
		}
		lock.Close()
	}
	if err := keep(filepath.Join(parent, tempPrefix+"kept")); err != nil {
		t.Fatal(err)
	}
	if err := removeStale(parent); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(left["kept"]); err != nil {
		t.Errorf("the next lab removed what was kept: %v", err)
	}
	if _, err := os.Stat(left["killed"]); !os.IsNotExist(err) {
		t.Errorf("the next lab left what a killed one left: %v", err)
	}
}

// TestTemporaryTogether: labs that begin and end side by side do not take each other's directories for what a killed one left.
func TestTemporaryTogether(t *testing.T) {
	parent := t.TempDir()
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 25 {
				dir, lock, err := makeTemporary(parent)
				if err != nil {
					t.Error(err)
					return
				}
				if _, err := os.Lstat(filepath.Join(dir, markerFile)); err != nil {
					t.Error(err)
				}
				lock.Close()
				if err := dispose(dir); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	if left, err := os.ReadDir(parent); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// TestLabCommand checks that a command in a node is as good as one outside: files, status, signals, end by context.
func TestLabCommand(t *testing.T) {
	l := newLab(t, Options{Until: Namespaces})
	h := l.Host(1)
	ctx := testContext(t)
	cmd := h.Command(ctx, "sh", "-c", "cat; hostname; echo error >&2; exit 7")
	var out, errs strings.Builder
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader("input\n"), &out, &errs
	if err := cmd.Run(); err == nil || cmd.ProcessState.ExitCode() != 7 {
		t.Errorf("exit status: %v", err)
	}
	if out.String() != "input\nhost1\n" || errs.String() != "error\n" {
		t.Errorf("output %q, errors %q", out.String(), errs.String())
	}
	if _, err := h.Exec(ctx, "no-such-program"); err == nil || !strings.Contains(err.Error(), "not found") {
		t.Errorf("a program that is not there: %v", err)
	}
	// SIGTERM reaches the command, which says so; a killed stand-in takes its command with it.
	cmd = h.Command(ctx, "sh", "-c", "trap 'echo told; exit 5' TERM; echo begun; while :; do sleep 0.05; done")
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if err := awaitLine(pipe, "begun"); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := awaitLine(pipe, "told"); err != nil {
		t.Error(err)
	}
	if err := cmd.Wait(); err == nil || cmd.ProcessState.ExitCode() != 5 {
		t.Errorf("a command that was told to end: %v", err)
	}
	cmd = h.Command(ctx, "sleep", "4242")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	running := func() bool {
		out, err := h.Exec(ctx, "sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '")
		return err == nil && strings.Contains(out, "sleep 4242")
	}
	await := func(want bool) {
		t.Helper()
		if err := until(ctx, "the command", func() error {
			if running() != want {
				return fmt.Errorf("running is not %v", want)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	await(true)
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil {
		t.Error("a killed command ended well")
	}
	await(false)
}
