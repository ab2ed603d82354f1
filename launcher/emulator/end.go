package emulator

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// ErrNotIt says that the process is not, or not any more, what it was said to be.
var ErrNotIt = errors.New("this is not that process")

// Action is what is done to a process.
type Action string

// The actions.
const (
	Kill Action = "kill" // it is gone
	Stop Action = "stop" // it computes nothing, until somebody continues it
)

func (a Action) signal() (unix.Signal, error) {
	switch a {
	case Kill:
		return unix.SIGKILL, nil
	case Stop:
		return unix.SIGSTOP, nil
	}
	return 0, fmt.Errorf("%w: unknown action %q", ErrNotIt, string(a))
}

// End ends or stops the process with this number and start time if judge, told what it is, says so. The process is held by a pidfd before it
// is looked at, so that what is signalled is what was looked at: a number that was used again in between names another process, and
// the pidfd does not. os.ErrPermission: we may not signal it.
func End(pid int, start uint64, action Action, judge func(*Process) error) error {
	sig, err := action.signal()
	if err != nil {
		return err
	}
	if pid <= 1 || pid == os.Getpid() {
		return fmt.Errorf("%w: process %d", ErrNotIt, pid)
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("%w: process %d has ended", ErrNotIt, pid)
	}
	if err != nil {
		return fmt.Errorf("cannot hold process %d: %w", pid, err)
	}
	held := os.NewFile(uintptr(fd), "pidfd")
	defer held.Close()
	p, err := At("/proc", pid)
	switch {
	case Gone(err):
		return fmt.Errorf("%w: process %d has ended", ErrNotIt, pid)
	case err != nil && (p.Start == 0 || !p.Emulator()):
		return err // nobody knows
	case p.Start != start:
		return fmt.Errorf("%w: process %d was started at another time", ErrNotIt, pid)
	case !p.Emulator():
		return fmt.Errorf("%w: process %d is no emulator", ErrNotIt, pid)
	}
	// What could not be seen of it may be a reason too, and is none against the reason that was seen.
	if no := judge(p); no != nil {
		if err != nil {
			return err
		}
		return no
	}
	err = unix.PidfdSendSignal(fd, sig, nil, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil // it ended by itself
	}
	if err != nil {
		return fmt.Errorf("cannot signal process %d: %w", pid, err)
	}
	return nil
}
