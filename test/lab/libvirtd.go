package lab

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// libvirtdConf: no socket but the two local ones, no authentication, as root is the only user of a host.
const libvirtdConf = `host_uuid = "%s"
unix_sock_group = "root"
unix_sock_ro_perms = "0700"
unix_sock_rw_perms = "0700"
auth_unix_ro = "none"
auth_unix_rw = "none"
log_outputs = "2:stderr"
`

// qemuConf: what a namespace has not (control groups, a /dev of its own for each guest, virtlogd) is turned off.
const qemuConf = `user = "` + qemuUser + `"
group = "` + qemuUser + `"
security_driver = "none"
cgroup_controllers = []
namespaces = []
stdio_handler = "file"
max_core = 0
`

// configureLibvirt writes the configuration of libvirt's daemon and installs the hook, which it looks for only when it starts.
func (h *Host) configureLibvirt() error {
	etc := h.Path("/etc/libvirt")
	conf := libvirtdConf
	if h.lab.options.Polkit {
		conf = libvirtdPolkitConf
	}
	conf = fmt.Sprintf(conf, nodeUUID(h.Name))
	files := map[string]string{h.daemon() + ".conf": conf, "qemu.conf": qemuConf}
	if h.lab.options.Modular {
		files[secrets+".conf"] = conf
	}
	for file, text := range files {
		if err := writeFile(filepath.Join(etc, file), text, 0o644); err != nil {
			return err
		}
	}
	if err := h.takeCapabilities(); err != nil {
		return err
	}
	if h.lab.options.Binaries == "" {
		return nil
	}
	if _, err := os.Stat(h.hook()); os.IsNotExist(err) && h.lab.options.Until == Libvirt {
		return nil
	}
	return h.InstallHook()
}

func (h *Host) hook() string { return filepath.Join(h.lab.options.Binaries, "troth-hook") }

// InstallHook puts Troth's hook in its place, over whatever is there, which libvirt may be running at this moment.
func (h *Host) InstallHook() error {
	at := h.Path("/etc/libvirt/hooks/qemu")
	if err := copyFile(h.hook(), at+".new", 0o755); err != nil {
		return err
	}
	return os.Rename(at+".new", at)
}

// StartLibvirtd starts the host's libvirtd and waits until it serves the QEMU driver.
func (h *Host) StartLibvirtd(ctx context.Context) error { return h.StartLibvirtdWith(ctx) }

// StartLibvirtdWith starts it with further arguments.
func (h *Host) StartLibvirtdWith(ctx context.Context, args ...string) error {
	if h.lab.options.Polkit {
		if err := h.startPolkit(ctx); err != nil {
			return err
		}
	}
	autostarted := h.Path("/run/libvirt/qemu/autostarted") // there: libvirt has done so since the host was booted
	_, begun := os.Stat(autostarted)
	for try := 1; ; try++ {
		hung, err := h.startOnce(ctx, args)
		if !hung || err != nil || try == 3 {
			return err
		}
		h.lab.say("%s: libvirtd hangs in a fork of its own; it is started again", h.Name)
		if err := h.KillLibvirtd(ctx); err != nil {
			return err
		}
		if os.IsNotExist(begun) { // what is started again is the first, as if it had not hung
			if err := os.RemoveAll(autostarted); err != nil {
				return err
			}
		}
	}
}

// versionWithin is how long a libvirtd that works may take to say its version.
const versionWithin = 5 * time.Second

// startOnce starts libvirtd and waits until it serves the QEMU driver, or can be seen to hang: libvirt 9.0 forks to act in a guest's mount namespace, and when another
// of its threads held a lock at that moment, the child waits for ever, and what started it too. Nothing but a restart helps; it was seen once in some hundred starts after a kill.
func (h *Host) startOnce(ctx context.Context, args []string) (hung bool, err error) {
	if err := h.startDaemon(ctx, args); err != nil {
		return false, err
	}
	forks := ""
	err = h.await(ctx, "libvirtd", func() error {
		if _, err := os.Stat(h.Path(h.LibvirtSocket())); err != nil {
			return err
		}
		soon, cancel := context.WithTimeout(ctx, versionWithin)
		defer cancel()
		_, err := h.Virsh(soon, "version")
		if soon.Err() == nil {
			return err
		}
		before := forks
		if forks, err = h.forks(ctx); err != nil {
			return err
		}
		if hung = forks != "" && forks == before; hung {
			return nil
		}
		return fmt.Errorf("libvirtd does not answer within %v, and has forked %q", versionWithin, forks)
	})
	return hung, err
}

// forks are the processes that libvirtd forked and that did not become another program: they live for milliseconds.
func (h *Host) forks(ctx context.Context) (string, error) {
	return h.Exec(ctx, "sh", "-c", `d=$(cat /run/libvirtd.pid) && exe=$(readlink /proc/$d/exe) || exit 0
for s in /proc/[0-9]*/stat; do
	read -r pid _ _ parent _ < $s || continue
	if [ "$parent" = "$d" ] && [ "$(readlink /proc/$pid/exe)" = "$exe" ]; then echo $pid; fi
done 2>/dev/null; true`)
}

// StopLibvirtd ends libvirtd as systemd would. Its guests run on.
func (h *Host) StopLibvirtd(ctx context.Context) error {
	return h.stop(ctx, "libvirtd", syscall.SIGTERM)
}

// KillLibvirtd ends libvirtd as the kernel would. Its guests run on.
func (h *Host) KillLibvirtd(ctx context.Context) error {
	return h.stop(ctx, "libvirtd", syscall.SIGKILL)
}

// ReloadLibvirtd tells libvirtd to read its configuration and look for hooks again.
func (h *Host) ReloadLibvirtd(ctx context.Context) error {
	return h.signal(ctx, "libvirtd", syscall.SIGHUP)
}

// Virsh runs virsh on the host's libvirtd.
func (h *Host) Virsh(ctx context.Context, args ...string) (string, error) {
	return h.Exec(ctx, append([]string{"virsh", "-q", "-c", "qemu:///system"}, args...)...)
}

// await tries until a service that was started answers. It gives up when the service has ended or the context has.
func (n *Node) await(ctx context.Context, service string, try func() error) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := try()
		if err == nil {
			return nil
		}
		s, serr := n.Service(ctx, service)
		if serr == nil && !s.Running {
			return fmt.Errorf("%s on %s ended with status %d: %s", service, n.Name, s.Status, n.tail(service))
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s on %s is not ready: %w (last: %w): %s", service, n.Name, ctx.Err(), err, n.tail(service))
		case <-tick.C:
		}
	}
}

// tail is the end of a service's log, for the error that says that it failed.
func (n *Node) tail(service string) string {
	data, err := os.ReadFile(n.Log(service))
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(data)), "\n")
	return strings.Join(lines[max(0, len(lines)-8):], "\n")
}
