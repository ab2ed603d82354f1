package lab

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// listen is a unix stream socket that process 1 makes and hands to a service, as systemd does with a .socket unit.
type listen struct {
	Name  string // of the unit, by which the service knows it
	Path  string
	Mode  uint32
	Group string // by name
}

// activate makes the sockets of a request and changes its command to one that is told of them: sd_listen_fds(3) wants LISTEN_PID to be the
// daemon's own process number, which only that process knows. What it returns is the caller's to close, with an error too. Unlike systemd
// process 1 does not keep them: when the daemon ends nobody answers.
func (r *request) activate() ([]int, error) {
	if len(r.Listen) == 0 {
		return nil, nil
	}
	var made []int
	var names []string
	for _, l := range r.Listen {
		fd, err := l.open()
		if err != nil {
			return made, fmt.Errorf("cannot listen on %s: %w", l.Path, err)
		}
		made, names = append(made, fd), append(names, l.Name)
	}
	r.Env = append(r.Env, "LISTEN_FDS="+strconv.Itoa(len(made)), "LISTEN_FDNAMES="+strings.Join(names, ":"))
	r.Argv = append([]string{"sh", "-c", `export LISTEN_PID=$$; exec "$@"`, "sh"}, r.Argv...)
	return made, nil
}

func (l *listen) open() (fd int, err error) {
	group, err := user.LookupGroup(l.Group)
	if err != nil {
		return -1, err
	}
	gid, err := strconv.Atoi(group.Gid)
	if err != nil {
		return -1, err
	}
	if err := os.MkdirAll(filepath.Dir(l.Path), 0o755); err != nil {
		return -1, err
	}
	if err := os.Remove(l.Path); err != nil && !errors.Is(err, fs.ErrNotExist) { // of an earlier daemon
		return -1, err
	}
	if fd, err = unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
		return -1, err
	}
	for _, step := range []func() error{
		func() error { return unix.Bind(fd, &unix.SockaddrUnix{Name: l.Path}) },
		func() error { return os.Chown(l.Path, 0, gid) },
		func() error { return os.Chmod(l.Path, os.FileMode(l.Mode)) },
		func() error { return unix.Listen(fd, unix.SOMAXCONN) }, // last: nobody connects who may not
	} {
		if err := step(); err != nil {
			return -1, errors.Join(err, unix.Close(fd))
		}
	}
	return fd, nil
}
