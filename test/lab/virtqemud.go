package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
)

// A host with Options.Modular has virtqemud's sockets, and none of libvirtd's. Where the machine has virtqemud (and virtsecretd, which keeps
// secrets for it), they serve. Debian 12 has neither; there the real libvirtd serves under virtqemud's process name, with virtqemud's
// configuration file, and at virtqemud's sockets, which process 1 hands to it as systemd would (libvirtd(8), system socket activation).
const (
	monolithic = "libvirtd"
	modular    = "virtqemud"
	secrets    = "virtsecretd"

	standIn = "/run/libvirt-stand-in/" + modular // a link to libvirtd: a process is named as the path that was executed
)

// daemon is the name of what serves QEMU on the host: of its process, and of its configuration.
func (h *Host) daemon() string {
	if h.lab.options.Modular {
		return modular
	}
	return monolithic
}

// LibvirtSocket is where libvirt's clients find it, as a path inside.
func (h *Host) LibvirtSocket() string {
	if h.lab.options.Modular {
		return "/run/libvirt/" + modular + "-sock"
	}
	return "/run/libvirt/libvirt-sock"
}

// LibvirtConfig is the daemon's configuration, as a path inside.
func (h *Host) LibvirtConfig() string { return "/etc/libvirt/" + h.daemon() + ".conf" }

// hasModular says whether the machine has modular daemons.
func hasModular() bool {
	_, err := os.Stat("/usr/sbin/" + modular)
	return err == nil
}

// startDaemon starts what serves QEMU. The lab knows it as the service libvirtd, whatever it is.
func (h *Host) startDaemon(ctx context.Context, args []string) error {
	argv := func(program string) []string {
		return append([]string{program, "--config", h.LibvirtConfig()}, args...)
	}
	switch {
	case !h.lab.options.Modular:
		return h.start(ctx, monolithic, argv(monolithic)...)
	case hasModular():
		s, err := h.Service(ctx, secrets)
		if err == nil && !s.Running {
			err = h.start(ctx, secrets, secrets, "--config", "/etc/libvirt/"+secrets+".conf")
		}
		if err != nil {
			return err
		}
		return h.start(ctx, monolithic, argv(modular)...)
	}
	if err := os.MkdirAll(h.Path("/run/libvirt-stand-in"), 0o755); err != nil {
		return fmt.Errorf("cannot make room for the stand-in of virtqemud: %w", err)
	}
	if err := os.Symlink("/usr/sbin/"+monolithic, h.Path(standIn)); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("cannot link the stand-in of virtqemud: %w", err)
	}
	group, rw, ro := "root", uint32(0o700), uint32(0o700)
	if h.lab.options.Polkit {
		group, rw, ro = "libvirt", 0o770, 0o777
	}
	socket := h.LibvirtSocket()
	return h.startHanded(ctx, monolithic, []listen{
		{Name: monolithic + ".socket", Path: socket, Mode: rw, Group: group},
		{Name: monolithic + "-ro.socket", Path: socket + "-ro", Mode: ro, Group: group},
		{Name: monolithic + "-admin.socket", Path: "/run/libvirt/" + modular + "-admin-sock", Mode: 0o700, Group: "root"},
	}, argv(standIn)...)
}
