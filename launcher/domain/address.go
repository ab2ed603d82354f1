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
