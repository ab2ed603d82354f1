package main

import (
	"troth/launcher/domain"
	"troth/proof"
)

// agrees refuses pins that this very domain could never meet: better now than by
// a refused launch. cmdline is the text that the pin of the command line is of.
func agrees(c *domain.Config, p *proof.Pins, cmdline string) error {
	var d disagreement
	if p.CommandLine != nil {
		d.differ("command line", cmdline, c.Boot.CommandLine)
	}
	if p.Interactive != "" {
		d.differ("interactive", p.Interactive, yesNo(c.Interactive()))
	}
	if p.Domain != "" && !c.UUID.IsZero() {
		d.differ("uuid", p.Domain, c.UUID.String())
	}
	d.image("firmware", p.Firmware, c.Boot.Firmware, p.Complete())
	d.image("kernel", p.Kernel, c.Boot.Kernel, p.Complete())
	d.image("initrd", p.Initrd, c.Boot.Initrd, p.Complete())
	d.disks(c, p)
	if len(d.facts) == 0 {
		return nil
	}
	return proof.Refuse(proof.TokenConstraint, "the domain's XML is not what the other flags pin", d.facts...)
}

type disagreement struct{ facts []proof.Fact }

func (d *disagreement) differ(name, want, got string) {
	if want != got {
		d.facts = append(d.facts, proof.Fact{Name: name, Want: want, Got: got})
	}
}

// image compares only whether there is one: its content is the host's to measure.
func (d *disagreement) image(name string, pin *proof.Digest, path string, complete bool) {
	switch {
	case pin != nil && path == "":
		d.differ(name, pin.String(), "no such image")
	case pin == nil && path != "" && complete:
		d.differ(name, "", path+" (not pinned)")
	}
}

// disks compares targets and modes: hosts state a read-only disk as immutable and
// a writable one, the firmware's variable store among them, as initial.
func (d *disagreement) disks(c *domain.Config, p *proof.Pins) {
	pins, layered := map[string]string{}, map[string]bool{}
	for _, pin := range p.Disks {
		pins[pin.Target], layered[pin.Target] = pin.Mode, pin.Backing != nil
	}
	for _, disk := range c.Disks {
		if disk.Source == "" {
			continue // an empty drive has no content
		}
		mode, pinned := pins[disk.Target]
		delete(pins, disk.Target)
		name := "disk " + disk.Target
		switch {
		case !pinned && (len(p.Disks) > 0 || p.Complete()):
			d.differ(name, "", disk.Source+" (not pinned)")
		case pinned && (mode == proof.DiskSealed) != (disk.Encryption != ""):
			d.differ(name+" sealed", yesNo(mode == proof.DiskSealed), yesNo(disk.Encryption != ""))
		case mode == proof.DiskImmutable && !disk.ReadOnly:
			d.differ(name, mode, "writable")
		case mode == proof.DiskInitial && disk.ReadOnly:
			d.differ(name, mode, "read-only")
		case mode == proof.DiskInitial && layered[disk.Target] != (len(disk.Backing) > 0):
			d.differ(name+" layers below", yesNo(layered[disk.Target]), yesNo(len(disk.Backing) > 0))
		}
	}
	if store := c.Boot.NVRAM; store != "" {
		mode, pinned := pins[proof.VariableStore]
		delete(pins, proof.VariableStore)
		name := "disk " + proof.VariableStore
		switch {
		case !pinned && (len(p.Disks) > 0 || p.Complete()):
			d.differ(name, "", store+" (not pinned)")
		case pinned && (mode != proof.DiskInitial || layered[proof.VariableStore]):
			d.differ(name, mode, "the firmware's variable store: writable, without layers below it")
		}
	}
	for _, pin := range p.Disks {
		if mode, left := pins[pin.Target]; left {
			d.differ("disk "+pin.Target, mode, "no such disk")
		}
	}
}
