package hooks

import (
	"fmt"
	"syscall"
)

// limit lowers what this process may use, since libvirt bounds a hook in nothing: no core (it would hold the XML,
// which may hold passwords), no file but a line of one, little of the rest. What goes beyond ends the process, and
// so vetoes.
func limit() error {
	for _, l := range []struct {
		what     string
		resource int
		max      uint64
	}{
		{"core", syscall.RLIMIT_CORE, 0},
		{"file size", syscall.RLIMIT_FSIZE, 4096},
		{"descriptors", syscall.RLIMIT_NOFILE, 32},
		{"CPU seconds", syscall.RLIMIT_CPU, 5},
		{"data", syscall.RLIMIT_DATA, 512 << 20},
	} {
		var now syscall.Rlimit
		if err := syscall.Getrlimit(l.resource, &now); err != nil {
			return fmt.Errorf("cannot read limit of %s: %w", l.what, err)
		}
		lower := min(l.max, now.Max) // a session daemon's user may not raise what is lower already
		if err := syscall.Setrlimit(l.resource, &syscall.Rlimit{Cur: lower, Max: lower}); err != nil {
			return fmt.Errorf("cannot limit %s: %w", l.what, err)
		}
	}
	return nil
}
