package domain

import (
	"fmt"
	"regexp"
)

var usbPort = regexp.MustCompile(`^[1-9][0-9]?(\.[1-9][0-9]?){0,3}$`)

// address reads a device's <address>. The zero Address means that there is none.
func (r *reader) address(device *node, kinds ...string) Address {
	n := r.one(device, "address")
	if n == nil {
		return Address{}
	}
	a := Address{Type: r.needOf(n, "type", kinds...)}
	switch a.Type {
	case "pci":
		a.Domain, a.Bus = r.number(n, "domain"), r.number(n, "bus")
		r.need(n, "slot")
		a.Slot, a.Function = r.number(n, "slot"), r.number(n, "function")
		if a.Multifunction = r.oneOf(n, "multifunction", "on", "off"); a.Multifunction == "off" {
			a.Multifunction = ""
		}
		if a.Domain != 0 || a.Bus > 255 || a.Slot > 31 || a.Function > 7 {
			r.malformed(n, "", "there is no such PCI address")
		}
		if a.Bus == 0 && a.Slot == 0 {
			r.malformed(n, "", "slot 0 of bus 0 is the machine's own: libvirt takes it for no address and chooses one")
		}
	case "drive":
		a.Controller, a.Bus = r.number(n, "controller"), r.number(n, "bus")
		a.Target, a.Unit = r.number(n, "target"), r.number(n, "unit")
	case "virtio-serial":
		a.Controller, a.Bus, a.Port = r.number(n, "controller"), r.number(n, "bus"), r.numeral(n, "port")
	case "usb":
		a.Bus = r.number(n, "bus")
		if a.Port = r.attr(n, "port"); !usbPort.MatchString(a.Port) {
			r.malformed(n, "@port", "%.32q is no USB port", a.Port)
		}
	}
	return a
}

// key names the place, so that two devices in one place are found. A place without number of its own has no key.
func (a Address) key() string {
	switch a.Type {
	case "":
		return ""
	case "pci":
		return fmt.Sprintf("PCI address %02x:%02x.%x", a.Bus, a.Slot, a.Function)
	case "drive":
		return "" // told apart by the disk's bus as well: see Disk.place
	case "virtio-serial":
		return fmt.Sprintf("virtio-serial port %d/%d/%s", a.Controller, a.Bus, a.Port)
	case "usb":
		return fmt.Sprintf("USB port %d/%s", a.Bus, a.Port)
	default:
		panic("domain: unknown kind of address " + a.Type)
	}
}

// place is key for a disk, whose drive address belongs to its bus.
func (d Disk) place() string {
	if d.Address.Type == "drive" {
		a := d.Address
		return fmt.Sprintf("%s drive %d/%d/%d/%d", d.Bus, a.Controller, a.Bus, a.Target, a.Unit)
	}
	return d.Address.key()
}

// otherAddresses are those of the devices that have no name of their own.
func (c *Config) otherAddresses() []Address {
	var all []Address
	for _, d := range c.Inputs {
		all = append(all, d.Address)
	}
	for _, d := range c.Videos {
		all = append(all, d.Address)
	}
	for _, d := range c.RNGs {
		all = append(all, d.Address)
	}
	for _, d := range c.Watchdogs {
		all = append(all, d.Address)
	}
	return all
}

// buses refuses a device on a bus that no controller of the domain makes: libvirt would add one, and others before it.
func (r *reader) buses(root *node, c *Config) {
	has := map[string]bool{}
	for _, k := range c.Controllers {
		has[fmt.Sprintf("%s %d", k.Type, k.Index)] = k.Model != "none"
	}
	on := func(kind string, a Address) {
		number := a.Bus
		switch a.Type {
		case "":
			return
		case "drive", "virtio-serial":
			number = a.Controller
		default:
			kind = a.Type
		}
		if bus := fmt.Sprintf("%s %d", kind, number); !has[bus] {
			r.malformed(root, "devices/controller", "an address names controller %s, and there is none", bus)
		}
	}
	for _, d := range c.Disks {
		on(d.Bus, d.Address)
	}
	for _, ch := range c.Channels {
		on("virtio-serial", ch.Address)
	}
	for _, k := range c.Controllers {
		on("", k.Address)
	}
	for _, n := range c.Interfaces {
		on("", n.Address)
	}
	for _, a := range c.otherAddresses() {
		on("", a)
	}
}

// functions refuses two devices in one slot if the first does not say that there are more: libvirt would say it.
func (r *reader) functions(root *node, c *Config) {
	type slot struct{ bus, slot uint64 }
	more := map[slot]bool{}
	all := c.pciDevices()
	for _, a := range all {
		if a.Type == "pci" && a.Function > 0 {
			more[slot{a.Bus, a.Slot}] = true
		}
	}
	for _, a := range all {
		if a.Type == "pci" && a.Function == 0 && more[slot{a.Bus, a.Slot}] && a.Multifunction != "on" {
			r.malformed(root, "devices", "PCI slot %02x:%02x has several devices: write multifunction='on' for function 0", a.Bus, a.Slot)
		}
	}
}
