package domain

import (
	"encoding/hex"
	"fmt"
	"strings"
)

// Bounds of what Read looks at.
const (
	MaxXML   = 1 << 20 // bytes
	maxDepth = 32
	maxNodes = 20000
	maxAttrs = 64 // of one element
)

// Read reads domain XML of the given mode. Its error is always a *proof.Refusal: request-invalid when the text is not
// a readable domain, configuration-not-allowed when it asks for what a trusted domain may not have; the fact "element"
// names where.
func Read(xml []byte, m Mode) (*Config, error) {
	switch m {
	case Request, Inactive, Hook, Live:
	default:
		panic("domain: unknown mode")
	}
	root, err := parse(xml)
	if err != nil {
		return nil, err
	}
	r := &reader{mode: m}
	c := &Config{Mode: m}
	r.domain(root, c)
	if r.err == nil {
		r.leftover(root)
	}
	if r.err == nil {
		r.cross(root, c)
	}
	if r.err != nil {
		return nil, r.failure(root)
	}
	return c, nil
}

// emulator is the only program that runs trusted guests.
const emulator = "/usr/bin/qemu-system-x86_64"

func (r *reader) domain(root *node, c *Config) {
	if root.name != "domain" || root.prefix != "" {
		r.malformed(root, "", "the root element is not <domain>")
		return
	}
	root.used = true
	c.Type = r.needOf(root, "type", "kvm", "qemu")
	if r.running() {
		r.number(root, "id") // given by libvirt to what runs
	}
	r.identity(root, c)
	r.metadata(r.one(root, "metadata"), root, c)
	r.memory(root, c)
	r.cpu(root, c)
	r.os(root, c)
	r.sysinfo(root, c)
	r.features(r.one(root, "features"), c)
	r.clock(r.one(root, "clock"), c)
	r.lifecycle(root, c)
	r.security(r.one(root, "launchSecurity"), c)
	r.labels(root)
	if r.running() {
		r.ignore(r.one(root, "resource")) // the cgroup that libvirt chose
	}
	r.devices(r.must(root, "devices"), c)
	if r.request() {
		r.fill(root, c)
	}
	order(c)
}

// identity reads name and UUID. Titles and descriptions are for people and are not written again.
func (r *reader) identity(root *node, c *Config) {
	n := r.must(root, "name")
	if c.Name = r.word(n); c.Name != "" {
		switch {
		case len(c.Name) > 200:
			r.malformed(n, "", "the name is longer than 200 bytes")
		case c.Name == "." || c.Name == ".." || strings.Contains(c.Name, "/"):
			r.notAllowed(n, "", "the name %q is a path", c.Name)
		}
	}
	if u := r.one(root, "uuid"); u != nil {
		id, err := ParseUUID(r.word(u))
		if err != nil && r.err == nil {
			r.malformed(u, "", "%v", err)
		}
		c.UUID = id
	} else if !r.request() {
		r.malformed(root, "uuid", "the element is missing")
	}
	r.ignore(r.one(root, "title"))
	r.ignore(r.one(root, "description"))
}

// metadata looks for this launcher's mark. Whatever else engines keep there decides nothing of the guest: it is not
// measured and not written again.
func (r *reader) metadata(meta, root *node, c *Config) {
	if meta == nil {
		return
	}
	for _, n := range meta.children {
		space, ok := lookup(n.prefix, n, meta, root)
		if !ok && n.prefix != "" {
			r.malformed(n, "", "the prefix %q is not declared", n.prefix)
			return
		}
		if space != markSpace {
			continue
		}
		if n.name != "launch" || len(n.children) > 0 || strings.TrimSpace(n.text) != "" {
			r.malformed(n, "", "only <troth:launch/> is known in name space %s", markSpace)
			return
		}
		if c.Mark {
			r.malformed(n, "", "the mark is there twice")
			return
		}
		c.Mark = true
		if id := r.attr(n, "id"); id != "" {
			r.launchID(n, id, c)
		}
		c.Token = r.attr(n, "token")
		for _, a := range n.attrs {
			if !a.used {
				r.malformed(n, "@"+a.name, "the mark has no such attribute")
				return
			}
		}
	}
	r.ignore(meta)
}

func (r *reader) launchID(n *node, id string, c *Config) {
	if !r.running() {
		r.notAllowed(n, "@id", "a launch id is given by hostd, to live XML only")
		return
	}
	if len(id) != 64 || strings.ToLower(id) != id {
		r.malformed(n, "@id", "a launch id has 64 lower-case hex digits")
		return
	}
	if _, err := hex.Decode(c.Added.LaunchID[:], []byte(id)); err != nil {
		r.malformed(n, "@id", "a launch id has 64 lower-case hex digits")
	}
}

// lookup finds the name space of a prefix from the inside out.
func lookup(prefix string, scopes ...*node) (string, bool) {
	for _, n := range scopes {
		if s, ok := n.spaces[prefix]; ok {
			return s, true
		}
	}
	return "", false
}

// labels accepts libvirt's own dynamic labels. In what runs it wrote them out; elsewhere they may be asked for as
// they are by default.
func (r *reader) labels(root *node) {
	for _, n := range r.all(root, "seclabel") {
		if r.need(n, "type") != "dynamic" || r.oneOf(n, "relabel", "yes", "no") == "no" {
			r.notAllowed(n, "", "%s", refusedWhy["seclabel"])
		}
		r.needOf(n, "model", "dac", "apparmor", "selinux") // without one, and without a driver, libvirt makes it type none
		if r.running() {
			r.ignore(r.one(n, "label"))
			r.ignore(r.one(n, "imagelabel"))
		}
	}
}

// cross checks what no single element can: no two things may share a name, a path or an address.
func (r *reader) cross(root *node, c *Config) {
	taken := map[string]string{}
	claim := func(what, key string) {
		if key == "" || r.err != nil {
			return
		}
		if other, ok := taken[key]; ok {
			r.malformed(root, "devices", "%s: %s is already that of %s", what, key, other)
		}
		taken[key] = what
	}
	for i, d := range c.Disks {
		what := fmt.Sprintf("disk %s", d.Target)
		claim(what, "target "+d.Target)
		if d.Boot > 0 {
			claim(what, fmt.Sprintf("boot order %d", d.Boot))
		}
		claim(what, d.place())
		r.shared(root, c, i)
	}
	for _, n := range c.Interfaces {
		what := "interface " + n.MAC
		claim(what, "MAC address "+n.MAC)
		if n.Boot > 0 {
			claim(what, fmt.Sprintf("boot order %d", n.Boot))
		}
		claim(what, n.Address.key())
	}
	for _, k := range c.Controllers {
		what := fmt.Sprintf("controller %s %d", k.Type, k.Index)
		claim(what, fmt.Sprintf("%s controller %d", k.Type, k.Index))
		claim(what, k.Address.key())
	}
	for _, ch := range c.Channels {
		claim("channel "+ch.Name, "channel name "+ch.Name)
		claim("channel "+ch.Name, ch.Address.key())
	}
	for _, s := range c.Serials {
		claim(fmt.Sprintf("serial %d", s.Port), fmt.Sprintf("serial port %d", s.Port))
	}
	for _, a := range c.otherAddresses() {
		claim("a device", a.key())
	}
	if len(c.Graphics) > 0 && len(c.Videos) == 0 {
		r.malformed(root, "devices/video", "the element is missing: for graphics libvirt would choose a display")
	}
	r.buses(root, c)
	r.functions(root, c)
	r.files(root, c)
	r.keys(root, c)
}

// files refuses a file that is written in one role and used in another.
func (r *reader) files(root *node, c *Config) {
	seen := map[string]string{}
	use := func(role, p string) {
		if p == "" || r.err != nil {
			return
		}
		if other, ok := seen[p]; ok {
			r.notAllowed(root, "", "%.256q is both %s and %s, and one of them writes to it", p, other, role)
		}
		seen[p] = role
	}
	for _, s := range c.Serials {
		use("a serial port's log", s.Path)
		use("a serial port's log", s.Log)
	}
	use("the NVRAM", c.Boot.NVRAM)
	for _, d := range c.Disks {
		if !d.ReadOnly {
			use("disk "+d.Target, d.Source)
		}
	}
	fixed := map[string]bool{}
	read := func(role, p string) {
		if p != "" && !fixed[p] {
			fixed[p] = true
			use(role, p)
		}
	}
	read("the kernel", c.Boot.Kernel)
	read("the initrd", c.Boot.Initrd)
	read("the firmware", c.Boot.Firmware)
	read("the NVRAM's template", c.Boot.NVRAMTemplate)
	for _, d := range c.Disks {
		if d.ReadOnly {
			read("disk "+d.Target, d.Source)
		}
		for _, b := range d.Backing {
			read("a backing file of "+d.Target, b.Source)
		}
	}
}

// shared refuses a disk whose layers name one file twice.
func (r *reader) shared(root *node, c *Config, i int) {
	seen := map[string]bool{c.Disks[i].Source: true}
	for _, b := range c.Disks[i].Backing {
		if seen[b.Source] {
			r.notAllowed(root, "devices", "disk %s: its backing chain names %.256q twice", c.Disks[i].Target, b.Source)
		}
		seen[b.Source] = true
	}
}
