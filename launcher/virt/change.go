package virt

import (
	"context"
	"slices"

	"libvirt.org/go/libvirt"
)

// hearChanges registers for what may make a running guest another one than it was: devices, block jobs, media, metadata, memory, a
// finished dump or snapshot job. libvirt sends no event for a monitor command or an external snapshot: those are found by looking (Taints, LiveXML).
// A driver that knows one of them not is left without it.
func (v *Virt) hearChanges(conn *libvirt.Connect) (ids []int) {
	heard := func(kind string) func(d *libvirt.Domain) { return func(d *libvirt.Domain) { v.told(d, kind, 0) } }
	add := func(kind string, register func(f func(*libvirt.Domain)) (int, error)) {
		id, err := register(heard(kind))
		if err != nil {
			v.log.Debug("no event of this kind", "kind", kind, "uri", v.uri, "error", err)
			return
		}
		ids = append(ids, id)
	}
	add("device-added", func(f func(*libvirt.Domain)) (int, error) {
		return conn.DomainEventDeviceAddedRegister(nil, func(_ *libvirt.Connect, d *libvirt.Domain, _ *libvirt.DomainEventDeviceAdded) { f(d) })
	})
	add("device-removed", func(f func(*libvirt.Domain)) (int, error) {
		return conn.DomainEventDeviceRemovedRegister(nil, func(_ *libvirt.Connect, d *libvirt.Domain, _ *libvirt.DomainEventDeviceRemoved) { f(d) })
	})
	add("block-job", func(f func(*libvirt.Domain)) (int, error) {
		return conn.DomainEventBlockJob2Register(nil, func(_ *libvirt.Connect, d *libvirt.Domain, _ *libvirt.DomainEventBlockJob) { f(d) })
	})
	add("disk-changed", func(f func(*libvirt.Domain)) (int, error) {
		return conn.DomainEventDiskChangeRegister(nil, func(_ *libvirt.Connect, d *libvirt.Domain, _ *libvirt.DomainEventDiskChange) { f(d) })
	})
	add("tray-changed", func(f func(*libvirt.Domain)) (int, error) {
		return conn.DomainEventTrayChangeRegister(nil, func(_ *libvirt.Connect, d *libvirt.Domain, _ *libvirt.DomainEventTrayChange) { f(d) })
	})
	add("metadata-changed", func(f func(*libvirt.Domain)) (int, error) {
		return conn.DomainEventMetadataChangeRegister(nil, func(_ *libvirt.Connect, d *libvirt.Domain, _ *libvirt.DomainEventMetadataChange) { f(d) })
	})
	add("memory-changed", func(f func(*libvirt.Domain)) (int, error) {
		return conn.DomainEventMemoryDeviceSizeChangeRegister(nil, func(_ *libvirt.Connect, d *libvirt.Domain, _ *libvirt.DomainEventMemoryDeviceSizeChange) { f(d) })
	})
	add("job-completed", func(f func(*libvirt.Domain)) (int, error) {
		return conn.DomainEventJobCompletedRegister(nil, func(_ *libvirt.Connect, d *libvirt.Domain, _ *libvirt.DomainEventJobCompleted) { f(d) })
	})
	add("rebooted", func(f func(*libvirt.Domain)) (int, error) {
		return conn.DomainEventRebootRegister(nil, func(_ *libvirt.Connect, d *libvirt.Domain) { f(d) })
	})
	return ids
}

// Taints gives libvirt's words on what was done to a running guest that libvirt cannot vouch for, such as a monitor command
// (virDomainGetMessages, VIR_DOMAIN_MESSAGE_TAINTING), sorted. They outlive a restart of libvirtd, and end with the guest.
func (v *Virt) Taints(ctx context.Context, uuid string) ([]string, error) {
	got := make(chan []string, 1)
	err := v.on(ctx, "read taints of", uuid, func(d *libvirt.Domain) error {
		if err := mustBeActive(d); err != nil {
			return err
		}
		all, err := d.GetMessages(libvirt.DOMAIN_MESSAGE_TAINTING)
		got <- all
		return err
	})
	if err != nil {
		return nil, err
	}
	all := <-got
	slices.Sort(all)
	return all, nil
}
