package domain

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// q35 says which of the two machines of x86_64 it is.
func (c *Config) q35() bool { return strings.HasPrefix(c.Machine, "pc-q35-") }

// fill gives one explicit value to whatever a request leaves out and libvirt would choose, so that nothing is left
// for libvirt to add. The same request always gets the same values: engine and tenant compute one digest.
func (r *reader) fill(root *node, c *Config) {
	if r.err != nil {
		return
	}
	r.fillBoot(root, c)
	r.fillControllers(root, c)
	order(c)
	for i := range c.Videos {
		fillVideo(&c.Videos[i], i == 0)
	}
	r.fillPCI(root, c)
	r.fillDrives(root, c)
	fillPorts(c)
}

func (r *reader) fillBoot(root *node, c *Config) {
	ordered := slices.ContainsFunc(c.Disks, func(d Disk) bool { return d.Boot > 0 }) ||
		slices.ContainsFunc(c.Interfaces, func(n Interface) bool { return n.Boot > 0 })
	switch {
	case ordered && len(c.Boot.Devices) > 0:
		r.malformed(root, "os/boot", "boot devices and boot orders of devices exclude each other")
	case !ordered && len(c.Boot.Devices) == 0:
		c.Boot.Devices = []string{"hd"}
	}
}

// fillControllers adds the buses that the machine has anyway or that a device needs.
func (r *reader) fillControllers(root *node, c *Config) {
	has := func(kind string) bool {
		return slices.ContainsFunc(c.Controllers, func(k Controller) bool { return k.Type == kind })
	}
	add := func(k Controller) {
		if !slices.ContainsFunc(c.Controllers, func(o Controller) bool { return o.Type == k.Type && o.Index == k.Index }) {
			c.Controllers = append(c.Controllers, k)
		}
	}
	needs := func(bus string) bool {
		return slices.ContainsFunc(c.Disks, func(d Disk) bool { return d.Bus == bus })
	}
	usb := needs("usb") || slices.ContainsFunc(c.Inputs, func(i Input) bool { return i.Bus == "usb" })
	if c.q35() {
		add(Controller{Type: "pci", Model: "pcie-root"})
		add(Controller{Type: "sata", Address: Address{Type: "pci", Slot: 0x1f, Function: 2}})
	} else {
		add(Controller{Type: "pci", Model: "pci-root"})
	}
	switch {
	case usb && !has("usb"):
		add(Controller{Type: "usb", Model: "qemu-xhci"})
	case !usb:
		add(Controller{Type: "usb", Model: "none"})
	}
	if needs("ide") && c.q35() {
		r.malformed(root, "devices/disk", "machine %s has no IDE bus: use sata or virtio", c.Machine)
	} else if needs("ide") {
		add(Controller{Type: "ide", Address: Address{Type: "pci", Slot: 1, Function: 1}})
	}
	if needs("sata") {
		add(Controller{Type: "sata"})
	}
	if needs("scsi") {
		add(Controller{Type: "scsi", Model: "virtio-scsi"})
	}
	add(Controller{Type: "virtio-serial"}) // hostd's channel is always there
	for i := range c.Controllers {
		r.pciModel(root, c, &c.Controllers[i])
	}
}

// pciModel refuses bridges that leave something for libvirt to choose.
func (r *reader) pciModel(root *node, c *Config, k *Controller) {
	if k.Type != "pci" {
		return
	}
	where := fmt.Sprintf("devices/controller (pci %d)", k.Index)
	rootModel := map[bool]string{true: "pcie-root", false: "pci-root"}[c.q35()]
	switch {
	case (k.Index == 0) != (k.Model == rootModel):
		r.malformed(root, where, "the root of machine %s is controller 0 of model %s", c.Machine, rootModel)
	case k.Index == 0:
	case k.Address.Type == "" || k.Name == "":
		r.malformed(root, where, "a bridge is given with <model name=…> and <address>, or left out%s", r.libvirtWrites())
	case k.Model == "pcie-root-port" && (k.Chassis == "" || k.Port == ""):
		r.malformed(root, where, "a root port is given with <target chassis=… port=…>%s", r.libvirtWrites())
	case k.Model == "pci-bridge" && k.ChassisNr == "":
		r.malformed(root, where, "a bridge is given with <target chassisNr=…>")
	}
}

// fillVideo gives the sizes that libvirt would give.
func fillVideo(v *Video, first bool) {
	if first {
		v.Primary = "yes"
	}
	set := func(field *string, value string) {
		if *field == "" {
			*field = value
		}
	}
	switch v.Model {
	case "vga", "bochs", "cirrus":
		set(&v.VRAM, "16384")
	case "qxl":
		set(&v.RAM, "65536")
		set(&v.VRAM, "65536")
		set(&v.VGAMem, "16384")
	}
}

// firstSlot of the root bus that is given away: below are the machine's own devices and the primary display.
// lastSlot is before those of the ICH9.
const (
	firstSlot = 3
	lastSlot  = 0x1e
)

// fillPCI gives every PCI device without address its own slot of the root bus, in the order of the Config.
func (r *reader) fillPCI(root *node, c *Config) {
	used := map[uint64]bool{}
	all := c.pciDevices()
	for _, a := range all {
		if a.Type == "pci" && a.Bus == 0 {
			used[a.Slot] = true
		}
	}
	if len(c.Videos) > 0 && c.Videos[0].Address.Type == "" {
		slot := map[bool]uint64{true: 1, false: 2}[c.q35()] // where libvirt wants the primary display
		if used[slot] {
			r.malformed(root, "devices/video", "PCI slot %d, the place of the primary display, is taken", slot)
		}
		used[slot], c.Videos[0].Address = true, Address{Type: "pci", Slot: slot}
	}
	next := uint64(firstSlot)
	for _, a := range all {
		if a.Type != "" {
			continue
		}
		for used[next] {
			next++
		}
		if next > lastSlot {
			r.malformed(root, "devices", "there is no free PCI slot: give addresses")
			return
		}
		used[next], *a = true, Address{Type: "pci", Slot: next}
	}
}

// pciDevices are the places of all devices that sit on a PCI bus.
func (c *Config) pciDevices() []*Address {
	var all []*Address
	for i := range c.Controllers {
		k := &c.Controllers[i]
		if !(k.Type == "pci" && k.Index == 0) && k.Model != "none" {
			all = append(all, &k.Address)
		}
	}
	for i := range c.Disks {
		if c.Disks[i].Bus == "virtio" {
			all = append(all, &c.Disks[i].Address)
		}
	}
	for i := range c.Interfaces {
		all = append(all, &c.Interfaces[i].Address)
	}
	for i := range c.Inputs {
		if c.Inputs[i].Bus == "virtio" {
			all = append(all, &c.Inputs[i].Address)
		}
	}
	for i := range c.Videos {
		all = append(all, &c.Videos[i].Address)
	}
	for i := range c.Watchdogs {
		all = append(all, &c.Watchdogs[i].Address)
	}
	for i := range c.RNGs {
		all = append(all, &c.RNGs[i].Address)
	}
	return all
}

// fillDrives places disks on their controllers by the number in their name, as libvirt does.
func (r *reader) fillDrives(root *node, c *Config) {
	for i := range c.Disks {
		d := &c.Disks[i]
		if d.Address.Type != "" {
			continue
		}
		n := targetIndex(d.Target)
		switch d.Bus {
		case "sata":
			d.Address = Address{Type: "drive", Controller: n / 6, Unit: n % 6}
		case "ide":
			d.Address = Address{Type: "drive", Controller: n / 4, Bus: n / 2 % 2, Unit: n % 2}
		case "scsi":
			d.Address = Address{Type: "drive", Unit: n}
		}
		if d.Address.Type == "drive" && d.Bus != "scsi" && d.Address.Controller > 0 {
			r.malformed(root, "devices/disk", "disk %s is beyond the first %s controller: give its address", d.Target, d.Bus)
		}
	}
}

// fillPorts gives USB and virtio-serial devices the lowest free port.
func fillPorts(c *Config) {
	usb, serial := map[string]bool{}, map[string]bool{guestPort: true}
	var usbDevices []*Address
	for i := range c.Disks {
		if c.Disks[i].Bus == "usb" {
			usbDevices = append(usbDevices, &c.Disks[i].Address)
		}
	}
	for i := range c.Inputs {
		if c.Inputs[i].Bus == "usb" {
			usbDevices = append(usbDevices, &c.Inputs[i].Address)
		}
	}
	for _, a := range usbDevices {
		usb[a.Port] = true
	}
	for _, ch := range c.Channels {
		serial[ch.Address.Port] = true
	}
	free := func(taken map[string]bool) string {
		for p := 1; ; p++ {
			if port := strconv.Itoa(p); !taken[port] {
				taken[port] = true
				return port
			}
		}
	}
	for _, a := range usbDevices {
		if a.Type == "" {
			*a = Address{Type: "usb", Port: free(usb)}
		}
	}
	for i := range c.Channels {
		if a := &c.Channels[i].Address; a.Type == "" {
			*a = Address{Type: "virtio-serial", Port: free(serial)}
		}
	}
}

// Orders of disks and controllers in the canonical form. libvirt keeps its own order of both, by bus and by index,
// and these are fixed points of it.
var (
	busOrder        = []string{"virtio", "sata", "scsi", "ide", "usb"}
	controllerOrder = []string{"usb", "sata", "ide", "scsi", "virtio-serial", "pci"}
)

func order(c *Config) {
	slices.SortStableFunc(c.Disks, func(a, b Disk) int {
		return cmp.Or(cmp.Compare(slices.Index(busOrder, a.Bus), slices.Index(busOrder, b.Bus)),
			cmp.Compare(targetIndex(a.Target), targetIndex(b.Target)))
	})
	slices.SortStableFunc(c.Controllers, func(a, b Controller) int {
		return cmp.Or(cmp.Compare(slices.Index(controllerOrder, a.Type), slices.Index(controllerOrder, b.Type)),
			cmp.Compare(a.Index, b.Index))
	})
}

// targetIndex is 0 for vda, 26 for vdaa.
func targetIndex(target string) uint64 {
	n := uint64(0)
	if len(target) < 3 {
		return n
	}
	for _, l := range target[2:] {
		n = n*26 + uint64(l-'a') + 1
	}
	return n - 1
}
