package domain

import "fmt"

func (w *writer) devices(c *Config, a Additions) {
	w.open("devices")
	w.text("emulator", emulator)
	for _, d := range c.Disks {
		w.disk(c.UUID, d)
	}
	for _, k := range c.Controllers {
		w.controller(k)
	}
	for _, n := range c.Interfaces {
		w.iface(n)
	}
	for _, s := range c.Serials {
		w.serial(s)
	}
	if len(c.Serials) > 0 {
		w.console(c.Serials[0])
	}
	for _, ch := range c.Channels {
		w.channel(ch.Name, "", ch.Address)
	}
	if a.ChannelPath != "" {
		w.channel(guestChannel, a.ChannelPath, Address{Type: "virtio-serial", Port: guestPort})
	}
	for _, i := range c.Inputs {
		w.group("input", []at{{"type", i.Type}, {"bus", i.Bus}}, func() { w.address(i.Address) })
	}
	w.empty("input", at{"type", "mouse"}, at{"bus", "ps2"})
	w.empty("input", at{"type", "keyboard"}, at{"bus", "ps2"})
	for _, g := range c.Graphics {
		w.graphics(g)
	}
	w.empty("audio", at{"id", "1"}, at{"type", "none"})
	for _, v := range c.Videos {
		w.open("video")
		w.empty("model", at{"type", v.Model}, at{"ram", v.RAM}, at{"vram", v.VRAM}, at{"vram64", v.VRAM64},
			at{"vgamem", v.VGAMem}, at{"heads", v.Heads}, at{"primary", v.Primary})
		w.address(v.Address)
		w.close("video")
	}
	for _, d := range c.Watchdogs {
		w.group("watchdog", []at{{"model", d.Model}, {"action", d.Action}}, func() { w.address(d.Address) })
	}
	w.empty("memballoon", at{"model", "none"})
	for _, g := range c.RNGs {
		w.open("rng", at{"model", g.Model})
		if g.Bytes != "" {
			w.empty("rate", at{"bytes", g.Bytes}, at{"period", g.Period})
		}
		w.text("backend", g.Source, at{"model", "random"})
		w.address(g.Address)
		w.close("rng")
	}
	for _, p := range c.Panics {
		w.empty("panic", at{"model", p.Model})
	}
	w.close("devices")
}

func hex16(name string, v uint64, width int) at { return at{name, fmt.Sprintf("0x%0*x", width, v)} }

func (w *writer) address(a Address) {
	switch a.Type {
	case "":
	case "pci":
		w.empty("address", at{"type", "pci"}, hex16("domain", a.Domain, 4), hex16("bus", a.Bus, 2),
			hex16("slot", a.Slot, 2), hex16("function", a.Function, 1), at{"multifunction", a.Multifunction})
	case "drive":
		w.empty("address", at{"type", "drive"}, num("controller", a.Controller), num("bus", a.Bus),
			num("target", a.Target), num("unit", a.Unit))
	case "virtio-serial":
		w.empty("address", at{"type", "virtio-serial"}, num("controller", a.Controller), num("bus", a.Bus), at{"port", a.Port})
	case "usb":
		w.empty("address", at{"type", "usb"}, num("bus", a.Bus), at{"port", a.Port})
	default:
		panic("domain: unknown kind of address " + a.Type)
	}
}

// sourceAttr is the attribute that names a disk's source.
func sourceAttr(kind string) string {
	if kind == "block" {
		return "dev"
	}
	return "file"
}

func (w *writer) disk(domain UUID, d Disk) {
	w.open("disk", at{"type", d.Type}, at{"device", d.Device})
	w.empty("driver", at{"name", "qemu"}, at{"type", d.Format}, at{"cache", d.Cache}, at{"error_policy", d.Error},
		at{"rerror_policy", d.RError}, at{"io", d.IO}, at{"discard", d.Discard}, at{"queues", d.Queues},
		at{"detect_zeroes", d.Zeroes})
	if d.Source != "" {
		w.group("source", []at{{sourceAttr(d.Type), d.Source}}, func() {
			if d.Encryption != "" {
				w.encryption(domain, d)
			}
		})
	}
	if d.Source != "" && d.Format == "qcow2" {
		w.chain(d.Backing)
	}
	if d.Logical != "" || d.Physical != "" {
		w.empty("blockio", at{"logical_block_size", d.Logical}, at{"physical_block_size", d.Physical})
	}
	w.empty("target", at{"dev", d.Target}, at{"bus", d.Bus})
	if d.ReadOnly {
		w.empty("readonly")
	}
	w.text("serial", d.Serial)
	w.bootOrder(d.Boot)
	w.address(d.Address)
	w.close("disk")
}

// chain writes the layers, and that there are no more.
func (w *writer) chain(layers []Backing) {
	if len(layers) == 0 {
		w.empty("backingStore")
		return
	}
	w.open("backingStore", at{"type", layers[0].Type})
	w.empty("format", at{"type", layers[0].Format})
	w.empty("source", at{sourceAttr(layers[0].Type), layers[0].Source})
	w.chain(layers[1:])
	w.close("backingStore")
}

func (w *writer) bootOrder(n uint64) {
	if n > 0 {
		w.empty("boot", num("order", n))
	}
}

func (w *writer) controller(k Controller) {
	w.group("controller", []at{{"type", k.Type}, num("index", k.Index), {"model", k.Model}, {"ports", k.Ports}, {"vectors", k.Vectors}}, func() {
		w.switchOf("driver", "queues", k.Queues)
		w.switchOf("model", "name", k.Name)
		target := []at{{"chassisNr", k.ChassisNr}, {"chassis", k.Chassis}, {"port", hexText(k.Port)}, {"busNr", k.BusNr}, {"hotplug", k.Hotplug}}
		for _, t := range target {
			if t.value != "" {
				w.empty("target", target...)
				break
			}
		}
		w.text("pcihole64", k.PCIHole64, at{"unit", "KiB"})
		w.address(k.Address)
	})
}

// hexText writes a decimal numeral as libvirt prints ports of PCI.
func hexText(decimal string) string {
	if decimal == "" {
		return ""
	}
	var v uint64
	if _, err := fmt.Sscan(decimal, &v); err != nil {
		panic("domain: not a numeral: " + decimal)
	}
	return fmt.Sprintf("0x%x", v)
}

func (w *writer) iface(n Interface) {
	w.open("interface", at{"type", n.Type})
	w.empty("mac", at{"address", n.MAC})
	switch n.Type {
	case "network":
		w.empty("source", at{"network", n.Source}, at{"portgroup", n.PortGroup})
	case "bridge":
		w.empty("source", at{"bridge", n.Source})
	}
	w.switchOf("target", "dev", n.Device)
	w.switchOf("model", "type", n.Model)
	if n.Driver != "" || n.Queues != "" {
		w.empty("driver", at{"name", n.Driver}, at{"queues", n.Queues})
	}
	w.switchOf("filterref", "filter", n.Filter)
	w.switchOf("link", "state", n.Link)
	w.switchOf("mtu", "size", n.MTU)
	w.bootOrder(n.Boot)
	w.switchOf("rom", "enabled", n.ROM)
	w.address(n.Address)
	w.close("interface")
}

func (w *writer) backend(s Serial) {
	if s.Type == "file" {
		w.empty("source", at{"path", s.Path}, at{"append", s.Append})
	}
	if s.Log != "" {
		w.empty("log", at{"file", s.Log}, at{"append", s.Keep})
	}
}

func (w *writer) serial(s Serial) {
	w.open("serial", at{"type", s.Type})
	w.backend(s)
	w.open("target", at{"type", "isa-serial"}, num("port", s.Port))
	w.empty("model", at{"name", "isa-serial"})
	w.close("target")
	w.close("serial")
}

func (w *writer) console(s Serial) {
	w.open("console", at{"type", s.Type})
	w.backend(s)
	w.empty("target", at{"type", "serial"}, num("port", s.Port))
	w.close("console")
}

func (w *writer) channel(name, path string, a Address) {
	w.open("channel", at{"type", "unix"})
	if path != "" {
		w.empty("source", at{"mode", "bind"}, at{"path", path})
	}
	w.empty("target", at{"type", "virtio"}, at{"name", name})
	w.address(a)
	w.close("channel")
}

func (w *writer) graphics(g Graphics) {
	port, auto := g.Port, "no"
	if g.Port == "auto" {
		port, auto = "-1", "yes"
	}
	w.open("graphics", at{"type", g.Type}, at{"port", port}, at{"autoport", auto}, at{"listen", g.Listen}, at{"keymap", g.Keymap})
	w.empty("listen", at{"type", "address"}, at{"address", g.Listen})
	w.close("graphics")
}
