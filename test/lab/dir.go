package lab

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	markerFile = ".troth-lab" // its presence says that the directory may be removed by the lab
	lockFile   = "lock"       // flock: held by the owner while it lives
	initsFile  = "inits"      // "pid starttime" of every process 1, so that a later start can wait for their end
	tempPrefix = "troth-lab-"
)

// claim makes dir ours: locked, marked and empty. A directory that another lab left behind is emptied first, one that is
// in use or that never was a lab's is refused.
//
// The marker is written before anything else and removed last: at every moment of a crash the directory is either empty
// of ours or marked.
func claim(dir string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("cannot make the lab's directory: %w", err)
	}
	if err := checkOurs(dir); err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(dir, markerFile), []byte("made by test/lab; may be removed\n"), 0o644); err != nil {
		return nil, fmt.Errorf("cannot mark the lab's directory: %w", err)
	}
	lock, err := os.OpenFile(filepath.Join(dir, lockFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("cannot open the lab's lock: %w", err)
	}
	if err := take(lock, dir); err != nil {
		lock.Close()
		return nil, err
	}
	if err := empty(dir); err != nil {
		lock.Close()
		return nil, err
	}
	return lock, nil
}

// take locks the lock file and writes into it whose it is. The processes 1 hold the lock too, so when an owner has been
// killed it is free only a moment later.
func take(lock *os.File, dir string) error {
	for begun := time.Now(); ; time.Sleep(5 * time.Millisecond) {
		err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			break
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return fmt.Errorf("cannot lock %s: %w", dir, err)
		}
		if ownerAlive(lock) || time.Since(begun) > 30*time.Second {
			return fmt.Errorf("a lab runs in %s", dir)
		}
	}
	_, start, err := processStat(os.Getpid())
	if err != nil {
		return fmt.Errorf("cannot read our own start time: %w", err)
	}
	// Of fixed length, so that one write replaces all.
	if _, err := lock.WriteAt(fmt.Appendf(nil, "%10d %20d\n", os.Getpid(), start), 0); err != nil {
		return fmt.Errorf("cannot write the lab's lock: %w", err)
	}
	return nil
}

// ownerAlive says whether the process that a lock file names still runs.
func ownerAlive(lock *os.File) bool {
	var pid int
	var start uint64
	text := make([]byte, 32)
	if n, err := lock.ReadAt(text, 0); err != nil && !errors.Is(err, io.EOF) || n == 0 {
		return false
	}
	if _, err := fmt.Sscan(string(text), &pid, &start); err != nil {
		return false
	}
	return alive(pid, start)
}

// checkOurs refuses a directory that has content but no marker.
func checkOurs(dir string) error {
	if _, err := os.Lstat(filepath.Join(dir, markerFile)); err == nil {
		return nil
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("cannot read the lab's directory: %w", err)
	}
	if len(entries) > 0 {
		return fmt.Errorf("%s is not empty and no lab made it", dir)
	}
	return nil
}

// empty removes all but marker and lock, after the processes of the lab that was here have ended.
func empty(dir string) error {
	if err := awaitInits(dir); err != nil {
		return err
	}
	if err := refuseMounts(dir); err != nil {
		return err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("cannot read the lab's directory: %w", err)
	}
	for _, e := range entries {
		if e.Name() == markerFile || e.Name() == lockFile {
			continue
		}
		path := filepath.Join(dir, e.Name())
		err := os.RemoveAll(path)
		// A program of the lab that was killed while it wrote may end its write only now.
		for begun := time.Now(); errors.Is(err, unix.ENOTEMPTY) && time.Since(begun) < 30*time.Second; err = os.RemoveAll(path) {
		}
		if err != nil {
			return fmt.Errorf("cannot empty the lab's directory: %w", err)
		}
	}
	return nil
}

// makeTemporary makes a directory below parent and claims it, after those that earlier labs left there are removed.
func makeTemporary(parent string) (dir string, lock *os.File, err error) {
	err = alone(parent, func() error {
		if err := removeStale(parent); err != nil {
			return err
		}
		if dir, err = os.MkdirTemp(parent, tempPrefix); err != nil {
			return fmt.Errorf("cannot make the lab's directory: %w", err)
		}
		lock, err = claim(dir)
		return err
	})
	return dir, lock, err
}

// alone runs do while no other lab makes or removes a directory below parent. Without it a directory that is marked and
// not yet locked is, to a lab that starts at this moment, one that a killed lab has left.
func alone(parent string, do func() error) error {
	d, err := os.Open(parent)
	if err != nil {
		return fmt.Errorf("cannot open the directory above the lab's: %w", err)
	}
	defer d.Close()
	for begun := time.Now(); ; time.Sleep(5 * time.Millisecond) {
		err := unix.Flock(int(d.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return do()
		}
		if !errors.Is(err, unix.EWOULDBLOCK) || time.Since(begun) > time.Minute {
			return fmt.Errorf("cannot lock %s: %w", parent, err)
		}
	}
}

// dispose deletes a lab's directory whose owner has ended. Gone already is fine: a lab that starts may be faster.
func dispose(dir string) error {
	return alone(filepath.Dir(dir), func() error {
		if _, err := os.Lstat(dir); errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		lock, err := claim(dir)
		if err != nil {
			return err
		}
		defer lock.Close()
		return remove(dir)
	})
}

// remove deletes a lab's directory that we hold the lock of.
func remove(dir string) error {
	if err := empty(dir); err != nil {
		return err
	}
	for _, name := range []string{lockFile, markerFile} {
		if err := os.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("cannot remove the lab's directory: %w", err)
		}
	}
	if err := os.Remove(dir); err != nil {
		return fmt.Errorf("cannot remove the lab's directory: %w", err)
	}
	return nil
}

// refuseMounts protects against the one way in which removing files could do harm: a bind mount below dir, seen from
// here. The lab makes none outside its nodes, so whoever did must remove it.
func refuseMounts(dir string) error {
	info, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return fmt.Errorf("cannot read the mounts: %w", err)
	}
	for _, line := range strings.Split(string(info), "\n") {
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], dir+"/") {
			return fmt.Errorf("%s is mounted below the lab's directory: not removing anything", f[4])
		}
	}
	return nil
}

// awaitInits waits until every recorded process 1 of an earlier lab in dir has ended. The kernel ends them with their
// parent; one that is still there after the grace is killed.
func awaitInits(dir string) error {
	data, err := os.ReadFile(filepath.Join(dir, initsFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("cannot read the processes of the last lab: %w", err)
	}
	for _, line := range strings.Split(strings.TrimSpace(string(data)), "\n") {
		var pid int
		var start uint64
		if _, err := fmt.Sscan(line, &pid, &start); err != nil {
			continue // torn by a crash: that process 1 never learned its name
		}
		begun := time.Now()
		for alive(pid, start) {
			switch since := time.Since(begun); {
			case since > 30*time.Second:
				return fmt.Errorf("process %d of the last lab in %s does not end", pid, dir)
			case since > 2*time.Second:
				if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
					return fmt.Errorf("cannot end process %d of the last lab: %w", pid, err)
				}
			}
			time.Sleep(5 * time.Millisecond)
		}
	}
	return nil
}

// alive says whether the process pid that began at start (clock ticks since boot) still runs. A zombie does not.
func alive(pid int, start uint64) bool {
	state, began, err := processStat(pid)
	return err == nil && began == start && state != "Z" && state != "X"
}

// processStat reads state and start time of a process: fields 3 and 22 of /proc/PID/stat (proc(5)).
func processStat(pid int) (state string, start uint64, err error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "", 0, err
	}
	// The command name is in parentheses and may hold anything.
	i := strings.LastIndexByte(string(data), ')')
	f := strings.Fields(string(data[i+1:]))
	if i < 0 || len(f) < 20 {
		return "", 0, fmt.Errorf("cannot read /proc/%d/stat", pid)
	}
	start, err = strconv.ParseUint(f[19], 10, 64)
	return f[0], start, err
}

// recordInit appends one process 1 to the record that awaitInits reads.
func recordInit(dir string, pid int) error {
	_, start, err := processStat(pid)
	if err != nil {
		return fmt.Errorf("cannot read the start time of process %d: %w", pid, err)
	}
	f, err := os.OpenFile(filepath.Join(dir, initsFile), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("cannot record process %d: %w", pid, err)
	}
	_, err = fmt.Fprintf(f, "%d %d\n", pid, start)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("cannot record process %d: %w", pid, err)
	}
	return nil
}

// keep takes a directory from those that removeStale removes: from now on it is nobody's but a person's.
func keep(dir string) error {
	if err := os.Remove(filepath.Join(dir, markerFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("cannot keep the lab's directory: %w", err)
	}
	return nil
}

// removeStale removes the directories that earlier labs left in the directory for temporary files. Those in use are
// passed by. The caller is alone there.
func removeStale(parent string) error {
	found, err := filepath.Glob(filepath.Join(parent, tempPrefix+"*"))
	if err != nil {
		return err
	}
	for _, dir := range found {
		if _, err := os.Lstat(filepath.Join(dir, markerFile)); err != nil {
			continue
		}
		lock, err := claim(dir)
		if err != nil {
			continue
		}
		err = remove(dir)
		lock.Close()
		if err != nil {
			return err
		}
	}
	return nil
}
