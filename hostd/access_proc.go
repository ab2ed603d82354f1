package hostd

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"troth/launcher/emulator"
)

// libvirtDaemon is a daemon of libvirt's: one whose objects Troth's rule guards, or virtproxyd.
type libvirtDaemon struct {
	name    string
	pid     int       // 0: it does not run now
	config  string    // the file with its access_drivers; empty for virtproxyd, which only carries
	started time.Time // zero: it does not run now
}

// daemons finds them by name in /proc. Whoever takes such a name can make doctor complain, and can hide nothing.
func (a Access) daemons() ([]libvirtDaemon, error) {
	entries, err := os.ReadDir(a.Root + "/proc")
	if err != nil {
		return nil, fmt.Errorf("cannot list processes: %w", err)
	}
	boot, err := a.booted()
	if err != nil {
		return nil, err
	}
	var all []libvirtDaemon
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		d, err := a.daemon(pid, boot)
		if err != nil && !emulator.Gone(err) {
			return nil, fmt.Errorf("cannot look at process %d: %w", pid, err)
		}
		if err == nil && d.name != "" {
			all = append(all, d)
		}
	}
	return all, nil
}

func (a Access) daemon(pid int, boot time.Time) (libvirtDaemon, error) {
	dir := filepath.Join(a.Root, "/proc", strconv.Itoa(pid))
	comm, err := os.ReadFile(filepath.Join(dir, "comm"))
	if err != nil {
		return libvirtDaemon{}, err
	}
	d := libvirtDaemon{name: strings.TrimSpace(string(comm)), pid: pid}
	switch {
	case guards(d.name):
		d.config = configPath(d.name)
	case d.name == "virtproxyd":
	default:
		return libvirtDaemon{}, nil
	}
	cmdline, err := os.ReadFile(filepath.Join(dir, "cmdline"))
	if err != nil {
		return libvirtDaemon{}, err
	}
	args := strings.Split(strings.TrimSuffix(string(cmdline), "\x00"), "\x00")
	for i, arg := range args {
		if (arg == "--config" || arg == "-f") && i+1 < len(args) && d.config != "" {
			d.config = args[i+1]
		}
		if file, ok := strings.CutPrefix(arg, "--config="); ok && d.config != "" {
			d.config = file
		}
	}
	d.started, err = startedAt(dir, boot)
	return d, err
}

// clockTicks is USER_HZ, which every Linux shows to programs as 100 (proc(5), sysconf(3)).
const clockTicks = 100

// startedAt is when the process of a directory of /proc was started.
func startedAt(dir string, boot time.Time) (time.Time, error) {
	ticks, err := emulator.StartTime(dir)
	return boot.Add(time.Duration(ticks) * (time.Second / clockTicks)), err
}

// booted is btime of /proc/stat.
func (a Access) booted() (time.Time, error) {
	f, err := os.Open(a.Root + "/proc/stat")
	if err != nil {
		return time.Time{}, fmt.Errorf("cannot read when the host booted: %w", err)
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20) // the line of interrupts is long
	for lines.Scan() {
		if rest, ok := strings.CutPrefix(lines.Text(), "btime "); ok {
			seconds, err := strconv.ParseInt(rest, 10, 64)
			if err != nil {
				return time.Time{}, fmt.Errorf("cannot read when the host booted: %w", err)
			}
			return time.Unix(seconds, 0), nil
		}
	}
	return time.Time{}, fmt.Errorf("cannot read when the host booted: %w", errors.Join(lines.Err(), fs.ErrNotExist))
}

// network looks for listeners: of a daemon, at any port, and of whoever starts one on call, at libvirt's two ports.
func (a Access) network(daemons []libvirtDaemon) Finding {
	const remedy = "Mask libvirtd-tcp.socket and libvirtd-tls.socket (virtproxyd's too), start no daemon with --listen, and migrate through troth-hostd."
	listening, err := a.listening()
	if err != nil {
		return unknown(nameNetwork, "Run doctor as root.", "%v", err)
	}
	for _, port := range []uint64{16509, 16514} { // IANA: libvirt over TCP, over TLS
		for _, at := range listening {
			if at == port {
				return bad(nameNetwork, remedy, "port %d is listened on: polkit cannot tell who calls from there", port)
			}
		}
	}
	for _, d := range daemons {
		fds, err := filepath.Glob(filepath.Join(a.Root, "/proc", strconv.Itoa(d.pid), "fd/*"))
		if err == nil && len(fds) == 0 {
			err = fs.ErrPermission // a daemon has standard files at least
		}
		if err != nil {
			return unknown(nameNetwork, "Run doctor as root.", "cannot look at the sockets of %s (process %d): %v", d.name, d.pid, err)
		}
		for _, fd := range fds {
			link, err := os.Readlink(fd)
			if err != nil {
				continue // closed meanwhile
			}
			inode, ok := strings.CutPrefix(strings.TrimSuffix(link, "]"), "socket:[")
			if port, is := listening[inode]; ok && is {
				return bad(nameNetwork, remedy, "%s listens on port %d: polkit cannot tell who calls from there", d.name, port)
			}
		}
	}
	return good(nameNetwork, "no daemon of libvirt listens on the network")
}

// listening maps the inode of every listening TCP socket to its port (/proc/net/tcp, proc(5): state 0A).
func (a Access) listening() (map[string]uint64, error) {
	all := map[string]uint64{}
	for _, file := range []string{"tcp", "tcp6"} {
		text, err := os.ReadFile(filepath.Join(a.Root, "/proc/net", file))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("cannot list listeners: %w", err)
		}
		for line := range strings.Lines(string(text)) {
			f := strings.Fields(line)
			if len(f) < 10 || f[3] != "0A" {
				continue
			}
			_, hex, ok := strings.Cut(f[1], ":")
			port, err := strconv.ParseUint(hex, 16, 16)
			if !ok || err != nil {
				return nil, fmt.Errorf("cannot read listeners: %q", line)
			}
			all[f[9]] = port
		}
	}
	return all, nil
}

// owner is the user who owns a file; -1 where the system does not say.
func owner(info fs.FileInfo) int {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return int(st.Uid)
	}
	return -1
}
