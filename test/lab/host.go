package lab

import (
	"context"
	"fmt"
)

// Host is one machine that could be trusted: a TPM, libvirtd, the hook and troth-hostd.
//
// Its files, as seen inside; Path says where they lie outside:
//
//	/etc/troth/hostd.toml      configuration, with hostd.pem, hostd.key, ca.pem beside it
//	/var/lib/troth             state      /run/troth/hostd.sock, hook.sock
//	/etc/libvirt/hooks/qemu    the hook   /srv/troth  the same directory on every host
type Host struct {
	Node
	lab *Lab
}

// Boot starts the host: swtpm, a dynamic launch, then libvirtd with the hook in its place.
func (h *Host) Boot(ctx context.Context) error {
	if err := h.StartTPM(ctx); err != nil {
		return err
	}
	if _, err := h.TXTBoot(); err != nil {
		return err
	}
	if err := h.configureLibvirt(); err != nil {
		return err
	}
	return h.StartLibvirtd(ctx)
}

// HostdSocket is hostd's API socket, as a path outside.
func (h *Host) HostdSocket() string { return h.Path("/run/troth/hostd.sock") }

// HookSocket is where the hook asks, as a path outside.
func (h *Host) HookSocket() string { return h.Path("/run/troth/hook.sock") }

// URL is hostd's API on the lab's network.
func (h *Host) URL() string { return fmt.Sprintf("https://%s:8444", h.Name) }
