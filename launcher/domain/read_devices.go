package domain

import (
	"net"
	"regexp"
	"slices"
	"strings"
)

func (r *reader) devices(n *node, c *Config) {
	if n == nil {
		return
	}
	if e := r.one(n, "emulator"); e != nil {
		if p := r.path(e); p != emulator && r.err == nil {
			r.notAllowed(e, "", "%.256q: %s; leave it out or write %s", p, refusedWhy["emulator"], emulator)
		}
	} else if !r.request() {
		r.malformed(n, "emulator", "the element is missing")
	}
	for _, d := range r.all(n, "disk") {
		c.Disks = append(c.Disks, r.disk(d))
	}
	if len(c.Disks) > maxDisks {
		r.malformed(n, "disk", "there are more than %d disks", maxDisks)
	}
	for _, d := range r.all(n, "controller") {
		c.Controllers = append(c.Controllers, r.controller(d))
	}
	for _, d := range r.all(n, "interface") {
		c.Interfaces = append(c.Interfaces, r.iface(d))
	}
	r.serials(n, c)
	for _, d := range r.all(n, "channel") {
		r.channel(d, c)
	}
	for _, d := range r.all(n, "input") {
		r.input(d, c)
	}
	for _, d := range r.all(n, "graphics") {
		c.Graphics = append(c.Graphics, r.graphics(d))
	}
	for _, d := range r.all(n, "video") {
		c.Videos = append(c.Videos, r.video(d))
	}
	r.audio(n)
	for _, d := range r.all(n, "watchdog") {
		c.Watchdogs = append(c.Watchdogs, Watchdog{
			Model:   r.needOf(d, "model", "i6300esb"),
			Action:  r.defaulted(d, "action", "reset", "reset", "poweroff", "shutdown", "pause", "none"),
			Address: r.placed(d, "pci")})
	}
	r.balloon(n)
	for _, d := range r.all(n, "rng") {
		c.RNGs = append(c.RNGs, r.rng(d))
	}
	for _, d := range r.all(n, "panic") {
		r.alias(d)
		c.Panics = append(c.Panics, Panic{Model: r.needOf(d, "model", "isa")})
	}
}

// placed reads the alias and the address that any device may have.
func (r *reader) placed(n *node, kinds ...string) Address {
	r.alias(n)
	return r.address(n, kinds...)
}

// defaulted is oneOf with the value that a request leaves out.
func (r *reader) defaulted(n *node, name, def string, allowed ...string) string {
	v := r.oneOf(n, name, allowed...)
	if v == "" && r.request() {
		return def
	}
	return v
}

// libvirtWrites tells who wrote a short form how to get the long one.
func (r *reader) libvirtWrites() string {
	if !r.request() {
		return ""
	}
	return "; libvirt writes what is left out: define the domain once and take what 'virsh dumpxml --inactive' shows"
}

func (r *reader) controller(n *node) Controller {
	k := Controller{Type: r.needOf(n, "type", "usb", "sata", "ide", "scsi", "virtio-serial", "pci"), Index: r.number(n, "index")}
	if !r.has(n, "index") {
		r.malformed(n, "@index", "the attribute is missing%s", r.libvirtWrites())
	}
	switch k.Type {
	case "usb":
		k.Model = r.needOf(n, "model", "none", "qemu-xhci", "piix3-uhci")
		k.Ports = r.numeral(n, "ports")
	case "scsi":
		k.Model = r.needOf(n, "model", "virtio-scsi")
		if d := r.one(n, "driver"); d != nil {
			k.Queues = r.positive(d, "queues")
		}
	case "virtio-serial":
		k.Ports, k.Vectors = r.numeral(n, "ports"), r.numeral(n, "vectors")
	case "pci":
		r.pci(n, &k)
	}
	k.Address = r.placed(n, "pci")
	return k
}

func (r *reader) pci(n *node, k *Controller) {
	k.Model = r.needOf(n, "model", "pcie-root", "pci-root", "pcie-root-port", "pcie-to-pci-bridge", "pci-bridge")
	if m := r.one(n, "model"); m != nil {
		k.Name = r.needOf(m, "name", "pcie-root-port", "ioh3420", "pcie-pci-bridge", "pci-bridge")
	}
	if t := r.one(n, "target"); t != nil {
		k.Chassis, k.Port = r.numeral(t, "chassis"), r.numeral(t, "port")
		k.ChassisNr, k.BusNr = r.numeral(t, "chassisNr"), r.numeral(t, "busNr")
		k.Hotplug = r.oneOf(t, "hotplug", "on", "off")
	}
	if h := r.one(n, "pcihole64"); h != nil {
		if k.Model != "pcie-root" && k.Model != "pci-root" {
			r.malformed(h, "", "only a root has it; elsewhere libvirt forgets it")
		}
		if u := r.oneOf(h, "unit", "KiB"); u == "" && !r.request() {
			r.malformed(h, "@unit", "the attribute is missing")
		}
		k.PCIHole64 = r.word(h)
		r.parse(h, "", k.PCIHole64)
	}
}

var hostName = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.:-]{0,62}$`)

func (r *reader) hostName(n *node, name string) string {
	v := r.attr(n, name)
	if v != "" && !hostName.MatchString(v) {
		r.malformed(n, "@"+name, "%.64q is no name of a network, bridge or device", v)
	}
	return v
}

func (r *reader) iface(n *node) Interface {
	kinds := []string{"network", "bridge", "user"}
	i := Interface{Type: r.needOf(n, "type", kinds...)}
	i.MAC = r.mac(r.one(n, "mac"), n)
	if s := r.one(n, "source"); s != nil {
		switch {
		case i.Type == "network", i.Type == "bridge" && r.running() && r.has(s, "network"):
			// A running interface of a network that bridges is shown as type bridge with the network it came from.
			i.Type = "network"
			r.need(s, "network")
			i.Source, i.PortGroup = r.hostName(s, "network"), r.hostName(s, "portgroup")
			if r.running() {
				r.attr(s, "bridge")
				r.attr(s, "portid")
			}
		case i.Type == "bridge":
			r.need(s, "bridge")
			i.Source = r.hostName(s, "bridge")
		}
	} else if i.Type == "network" || i.Type == "bridge" {
		r.malformed(n, "source", "the element is missing")
	}
	if t := r.one(n, "target"); t != nil {
		r.need(t, "dev")
		if i.Device = r.hostName(t, "dev"); strings.HasPrefix(i.Device, "vnet") {
			i.Device = "" // libvirt's own names: it takes them back when the domain stops
		}
	}
	if m := r.one(n, "model"); m != nil {
		i.Model = r.needOf(m, "type", "virtio", "e1000", "e1000e")
	} else if r.request() {
		i.Model = "virtio"
	}
	if d := r.one(n, "driver"); d != nil {
		i.Driver, i.Queues = r.oneOf(d, "name", "qemu", "vhost"), r.positive(d, "queues")
		if i.Queues == "1" {
			i.Queues = "" // libvirt takes one queue for what is the default
		}
	}
	if f := r.one(n, "filterref"); f != nil {
		r.need(f, "filter")
		i.Filter = r.hostName(f, "filter")
	}
	i.Boot = r.bootOrder(n)
	if m := r.one(n, "mtu"); m != nil {
		i.MTU = r.positive(m, "size")
	}
	if l := r.one(n, "link"); l != nil {
		i.Link = r.needOf(l, "state", "up", "down")
	}
	if o := r.one(n, "rom"); o != nil {
		i.ROM = r.needOf(o, "enabled", "no")
	}
	i.Address = r.placed(n, "pci")
	return i
}

// mac reads a unicast address. libvirt would choose a random one, and read-back and request would differ.
func (r *reader) mac(n, iface *node) string {
	if n == nil {
		r.malformed(iface, "mac", "the element is missing: libvirt would choose a random address")
		return ""
	}
	v := strings.ToLower(r.need(n, "address"))
	hw, err := net.ParseMAC(v)
	if (err != nil || len(hw) != 6 || hw.String() != v || hw[0]&1 != 0) && r.err == nil {
		r.malformed(n, "@address", "%.64q is no unicast MAC address", v)
	}
	return v
}

func (r *reader) input(n *node, c *Config) {
	i := Input{Type: r.needOf(n, "type", "tablet", "keyboard", "mouse"), Bus: r.needOf(n, "bus", "ps2", "usb", "virtio")}
	i.Address = r.placed(n, "usb", "pci")
	if i.Bus == "ps2" {
		if i.Type == "tablet" || i.Address != (Address{}) {
			r.malformed(n, "", "a machine has one PS/2 keyboard and one PS/2 mouse")
		}
		return // every x86 machine has them
	}
	c.Inputs = append(c.Inputs, i)
}

func (r *reader) graphics(n *node) Graphics {
	g := Graphics{Type: r.needOf(n, "type", "vnc"), Keymap: r.hostName(n, "keymap")}
	if auto := r.oneOf(n, "autoport", "yes", "no"); auto == "yes" {
		r.attr(n, "port") // -1, or the one that libvirt took
		g.Port = "auto"
	} else if p := r.attr(n, "port"); p == "" || p == "-1" {
		g.Port = "auto"
		if !r.request() {
			r.malformed(n, "@autoport", "the attribute is missing")
		}
		if auto == "no" {
			r.malformed(n, "@port", "the port is neither given nor libvirt's to choose")
		}
	} else {
		if port := r.parse(n, "@port", p); port == 0 || port > 65535 {
			r.malformed(n, "@port", "%.32q is no port", p)
		}
		g.Port = p
	}
	g.Listen = r.attr(n, "listen")
	if l := r.one(n, "listen"); l != nil {
		r.needOf(l, "type", "address")
		if a := r.attr(l, "address"); g.Listen != "" && a != "" && a != g.Listen {
			r.malformed(l, "@address", "it differs from the listen attribute")
		} else if a != "" {
			g.Listen = a
		}
	}
	if g.Listen == "" && r.request() {
		g.Listen = "127.0.0.1"
	}
	if net.ParseIP(g.Listen) == nil && r.err == nil {
		r.malformed(n, "listen", "%.64q is no address", g.Listen)
	}
	return g
}

func (r *reader) video(n *node) Video {
	m := r.must(n, "model")
	v := Video{
		Model: r.needOf(m, "type", "virtio", "vga", "bochs", "cirrus", "qxl"),
		RAM:   r.positive(m, "ram"), VRAM: r.positive(m, "vram"), VRAM64: r.positive(m, "vram64"), VGAMem: r.positive(m, "vgamem"),
		Heads:   r.positive(m, "heads"),
		Primary: r.oneOf(m, "primary", "yes"), // libvirt forgets a no
	}
	if v.Heads == "" && r.request() {
		v.Heads = "1"
	}
	if v.Model == "qxl" {
		r.powers(m, "ram", "vram", "vram64", "vgamem")
	}
	v.Address = r.placed(n, "pci")
	return v
}

// powers refuses sizes that libvirt would round up.
func (r *reader) powers(n *node, names ...string) {
	for _, name := range names {
		if v := r.number(n, name); v&(v-1) != 0 {
			r.malformed(n, "@"+name, "%d is no power of two: libvirt would round it up", v)
		}
	}
}

// audio takes the backend that libvirt gives to every domain: none.
func (r *reader) audio(n *node) {
	if a := r.one(n, "audio"); a != nil {
		r.needOf(a, "type", "none")
		r.needOf(a, "id", "1")
	} else if !r.request() {
		r.malformed(n, "audio", "the element is missing")
	}
}

func (r *reader) balloon(n *node) {
	b := r.one(n, "memballoon")
	if b == nil {
		if !r.request() {
			r.malformed(n, "memballoon", "the element is missing")
		}
		return
	}
	if r.need(b, "model") != "none" {
		r.notAllowed(b, "", "%s", refusedWhy["memballoon"])
	}
	r.alias(b)
}

func (r *reader) rng(n *node) RNG {
	g := RNG{Model: r.needOf(n, "model", "virtio")}
	if b := r.must(n, "backend"); b != nil {
		r.needOf(b, "model", "random")
		g.Source = r.path(b)
		if !slices.Contains([]string{"/dev/urandom", "/dev/random"}, g.Source) && r.err == nil {
			r.notAllowed(b, "", "%.64q is neither /dev/urandom nor /dev/random", g.Source)
		}
	}
	if t := r.one(n, "rate"); t != nil {
		r.need(t, "bytes") // a period alone libvirt forgets
		g.Bytes, g.Period = r.positive(t, "bytes"), r.positive(t, "period")
	}
	g.Address = r.placed(n, "pci")
	return g
}
