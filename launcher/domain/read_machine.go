package domain

import (
	"regexp"
	"strconv"
	"strings"
)

// units of <memory unit=…>, in bytes (libvirt, "Format domain: Memory Allocation").
var units = map[string]uint64{
	"b": 1, "bytes": 1,
	"KB": 1000, "k": 1 << 10, "KiB": 1 << 10,
	"MB": 1000 * 1000, "M": 1 << 20, "MiB": 1 << 20,
	"GB": 1000 * 1000 * 1000, "G": 1 << 30, "GiB": 1 << 30,
	"T": 1 << 40, "TiB": 1 << 40,
}

// maxMemory is 16 TiB in KiB; maxVCPUs is above what any machine type of QEMU 7.2 takes.
const (
	maxMemory = 16 << 30
	maxVCPUs  = 1024
)

func (r *reader) memory(root *node, c *Config) {
	c.Memory = r.kib(r.must(root, "memory"))
	if n := r.one(root, "currentMemory"); n != nil {
		if c.CurrentMemory = r.kib(n); c.CurrentMemory != c.Memory {
			r.notAllowed(n, "", "it differs from memory, and there is no balloon")
		}
	} else if r.request() {
		c.CurrentMemory = c.Memory
	}
	n := r.must(root, "vcpu")
	r.oneOf(n, "placement", "static")
	if n != nil {
		c.VCPUs = r.parse(n, "", r.word(n))
		if c.VCPUs == 0 || c.VCPUs > maxVCPUs {
			r.malformed(n, "", "%d is not between 1 and %d", c.VCPUs, maxVCPUs)
		}
	}
}

func (r *reader) kib(n *node) uint64 {
	if n == nil {
		return 0
	}
	unit := r.attr(n, "unit")
	if unit == "" {
		unit = "KiB"
	}
	scale, ok := units[unit]
	if !ok {
		r.malformed(n, "@unit", "%.64q is no unit of memory", unit)
		return 0
	}
	v, err := strconv.ParseUint(r.word(n), 10, 63)
	if err != nil || v == 0 || v > (maxMemory<<10)/scale {
		r.malformed(n, "", "%.64q is no amount of memory", n.text)
		return 0
	}
	// libvirt rounds up to whole MiB by itself; we do not let it change what was asked for.
	if v*scale%(1<<20) != 0 {
		r.malformed(n, "", "memory is given in whole MiB")
		return 0
	}
	return v * scale >> 10
}

func (r *reader) cpu(root *node, c *Config) {
	n := r.one(root, "cpu")
	if n == nil {
		if r.request() {
			c.CPU = CPU{Mode: "custom", Match: "exact", Model: "qemu64", Fallback: "forbid"}
		}
		return
	}
	c.CPU.Mode = r.needOf(n, "mode", "custom", "host-model", "host-passthrough", "maximum")
	checks := []string{"none", "partial"}
	if r.running() {
		checks = append(checks, "full") // libvirt writes so what QEMU made of the CPU
	}
	full := r.oneOf(n, "check", checks...) == "full"
	switch c.CPU.Mode {
	case "custom":
		r.customCPU(n, c)
	case "host-passthrough", "maximum":
		if c.CPU.Migratable = r.oneOf(n, "migratable", "on", "off"); c.CPU.Migratable == "" && r.request() {
			c.CPU.Migratable = "on"
		}
	}
	if t := r.one(n, "topology"); t != nil {
		r.topology(t, c)
	}
	var features []CPUFeature
	seen := map[string]bool{}
	for _, f := range r.all(n, "feature") {
		policy := r.oneOf(f, "policy", "force", "require", "optional", "disable", "forbid")
		if policy == "" {
			policy = "require"
		}
		name := r.need(f, "name")
		if seen[name] {
			r.malformed(f, "", "feature %.64q is there twice", name)
		}
		if !featureName.MatchString(name) {
			r.malformed(f, "@name", "%.64q is no name of a CPU feature", name)
		}
		seen[name] = true
		features = append(features, CPUFeature{Policy: policy, Name: name})
	}
	if r.running() {
		c.live = liveCPU{expanded: true, full: full, features: features}
	} else {
		c.CPU.Features = features
	}
}

var (
	featureName = regexp.MustCompile(`^[A-Za-z0-9_.-]{1,64}$`)
	modelName   = regexp.MustCompile(`^[A-Za-z0-9_.+-]{1,64}$`)
)

func (r *reader) customCPU(n *node, c *Config) {
	if c.CPU.Match = r.oneOf(n, "match", "minimum", "exact", "strict"); c.CPU.Match == "" {
		c.CPU.Match = "exact"
	}
	if r.running() {
		r.ignore(r.one(n, "vendor")) // of the model that host-model became
	}
	m := r.must(n, "model")
	c.CPU.Model = r.word(m)
	if m != nil && !modelName.MatchString(c.CPU.Model) {
		r.malformed(m, "", "%.64q is no name of a CPU model", c.CPU.Model)
	}
	c.CPU.Fallback = r.oneOf(m, "fallback", "allow", "forbid")
	if c.CPU.Fallback == "" && r.request() {
		c.CPU.Fallback = "forbid"
	}
}

func (r *reader) topology(t *node, c *Config) {
	dies := uint64(1)
	if r.has(t, "dies") {
		dies = r.number(t, "dies")
	}
	c.CPU.Sockets, c.CPU.Dies = r.number(t, "sockets"), dies
	c.CPU.Cores, c.CPU.Threads = r.number(t, "cores"), r.number(t, "threads")
	for _, v := range []uint64{c.CPU.Sockets, c.CPU.Dies, c.CPU.Cores, c.CPU.Threads} {
		if v == 0 || v > maxVCPUs {
			r.malformed(t, "", "sockets, cores and threads are numbers between 1 and %d", maxVCPUs)
			return
		}
	}
	if c.CPU.Sockets*c.CPU.Dies*c.CPU.Cores*c.CPU.Threads != c.VCPUs {
		r.malformed(t, "", "the topology is not one of %d CPUs", c.VCPUs)
	}
}

// versioned is the name of a machine type that stays the same machine for ever: of Debian's QEMU, of RHEL's, of Ubuntu's.
var versioned = regexp.MustCompile(`^pc-(q35|i440fx)-(rhel|[a-z]+-)?[0-9]+(\.[0-9]+){1,2}(-[a-z]+)?$`)

func (r *reader) os(root *node, c *Config) {
	n := r.must(root, "os")
	if n == nil {
		return
	}
	r.machine(r.must(n, "type"), c)
	if r.has(n, "firmware") {
		r.notAllowed(n, "@firmware", "libvirt would choose the firmware: name it by <loader> and <nvram>")
	}
	c.Boot.Kernel = r.path(r.one(n, "kernel"))
	c.Boot.Initrd = r.path(r.one(n, "initrd"))
	if cmd := r.one(n, "cmdline"); cmd != nil {
		c.Boot.CommandLine = r.text(cmd)
		if len(c.Boot.CommandLine) > 4096 {
			r.malformed(cmd, "", "the command line is longer than 4096 bytes")
		}
	}
	if c.Boot.Kernel == "" && (c.Boot.Initrd != "" || c.Boot.CommandLine != "") {
		r.malformed(n, "kernel", "there is an initrd or a command line without a kernel")
	}
	r.loader(n, c)
	seen := map[string]bool{}
	for _, b := range r.all(n, "boot") {
		dev := r.needOf(b, "dev", "hd", "cdrom", "network")
		if seen[dev] {
			r.malformed(b, "", "boot device %q is there twice", dev)
		}
		seen[dev] = true
		c.Boot.Devices = append(c.Boot.Devices, dev)
	}
	if m := r.one(n, "bootmenu"); m != nil && r.oneOf(m, "enable", "yes", "no") != "no" {
		r.notAllowed(m, "", "%s", refusedWhy["boot-menu"])
	}
	if m := r.one(n, "smbios"); m != nil {
		c.SMBIOS.Mode = r.needOf(m, "mode", "emulate", "sysinfo")
	}
}

func (r *reader) machine(n *node, c *Config) {
	if r.word(n) != "hvm" && n != nil {
		r.notAllowed(n, "", "only full virtualisation (hvm) is known")
	}
	arch := r.oneOf(n, "arch", "x86_64")
	if arch == "" && !r.request() && n != nil {
		r.malformed(n, "@arch", "the attribute is missing")
	}
	c.Machine = r.need(n, "machine")
	switch {
	case n == nil || versioned.MatchString(c.Machine):
	case c.Machine == "pc" || c.Machine == "q35":
		example := map[string]string{"pc": "pc-i440fx-7.2", "q35": "pc-q35-7.2"}[c.Machine]
		r.notAllowed(n, "@machine", "%q is an alias: %s, such as %s (virsh domcapabilities --machine %s names it)",
			c.Machine, refusedWhy["machine"], example, c.Machine)
	default:
		r.notAllowed(n, "@machine", "%.64q is no versioned machine type of x86_64 such as pc-q35-7.2", c.Machine)
	}
}

func (r *reader) loader(n *node, c *Config) {
	l := r.one(n, "loader")
	v := r.one(n, "nvram")
	if l == nil {
		if v != nil {
			r.malformed(v, "", "there is NVRAM without a loader")
		}
		return
	}
	c.Boot.FirmwareType = r.needOf(l, "type", "pflash", "rom")
	if r.oneOf(l, "readonly", "yes") == "" && c.Boot.FirmwareType == "pflash" {
		r.malformed(l, "@readonly", "a pflash loader is readonly='yes'")
	}
	c.Boot.Secure = r.oneOf(l, "secure", "yes", "no")
	c.Boot.Firmware = r.path(l)
	switch {
	case v != nil && c.Boot.FirmwareType == "rom":
		r.malformed(v, "", "a rom loader has no NVRAM")
	case v == nil && c.Boot.FirmwareType == "pflash":
		r.malformed(n, "nvram", "the path of the variable store is missing, and libvirt would choose one")
	case v != nil:
		c.Boot.NVRAM = r.path(v)
		c.Boot.NVRAMTemplate = r.pathAttr(v, "template")
	}
}

func (r *reader) features(n *node, c *Config) {
	f := &c.Features
	f.ACPI, f.APIC, f.PAE = r.one(n, "acpi") != nil, r.one(n, "apic") != nil, r.one(n, "pae") != nil
	if s := r.one(n, "smm"); s != nil {
		f.SMM = r.needOf(s, "state", "on", "off")
	}
	if s := r.one(n, "vmport"); s != nil {
		f.VMPort = r.needOf(s, "state", "on", "off")
	}
}

func (r *reader) clock(n *node, c *Config) {
	if n == nil {
		if r.request() {
			c.Clock.Offset = "utc"
		}
		return
	}
	c.Clock.Offset = r.needOf(n, "offset", "utc", "localtime")
	seen := map[string]bool{}
	for _, t := range r.all(n, "timer") {
		timer := Timer{
			Name:       r.needOf(t, "name", "rtc", "pit", "hpet", "kvmclock", "tsc", "hypervclock"),
			Present:    r.oneOf(t, "present", "yes", "no"),
			TickPolicy: r.oneOf(t, "tickpolicy", "delay", "catchup", "merge", "discard"),
		}
		if seen[timer.Name] {
			r.malformed(t, "", "timer %q is there twice", timer.Name)
		}
		seen[timer.Name] = true
		c.Clock.Timers = append(c.Clock.Timers, timer)
	}
}

func (r *reader) lifecycle(root *node, c *Config) {
	action := func(name, def string, allowed ...string) string {
		n := r.one(root, name)
		if n == nil {
			if r.request() {
				return def
			}
			return ""
		}
		v := r.word(n)
		for _, a := range allowed {
			if v == a {
				return v
			}
		}
		r.notAllowed(n, "", "%.64q is not one of %s", v, strings.Join(allowed, ", "))
		return v
	}
	c.OnPowerOff = action("on_poweroff", "destroy", "destroy", "restart")
	c.OnReboot = action("on_reboot", "restart", "restart", "destroy")
	c.OnCrash = action("on_crash", "destroy", "destroy", "restart", "preserve")
	if pm := r.one(root, "pm"); pm != nil {
		if s := r.one(pm, "suspend-to-mem"); s != nil {
			c.Suspend.ToMem = r.needOf(s, "enabled", "yes", "no")
		}
		if s := r.one(pm, "suspend-to-disk"); s != nil {
			c.Suspend.ToDisk = r.needOf(s, "enabled", "yes", "no")
		}
	}
}

// guestSecretEntry is the firmware configuration entry that systemd in the guest takes as credential troth.guest
// (systemd.exec(5), ImportCredential and systemd-stub: opt/io.systemd.credentials/NAME).
const guestSecretEntry = "opt/io.systemd.credentials/troth.guest"

// tables of SMBIOS in the order in which libvirt writes them, with the names of their entries.
var tables = []struct{ name, entries string }{
	{"bios", "vendor version date release"},
	{"system", "manufacturer product version serial uuid sku family"},
	{"baseBoard", "manufacturer product version serial asset location"},
	{"chassis", "manufacturer version serial asset sku"},
	{"oemStrings", ""},
}

func (r *reader) sysinfo(root *node, c *Config) {
	smbios := false
	for _, n := range r.all(root, "sysinfo") {
		switch kind := r.needOf(n, "type", "smbios", "fwcfg"); {
		case kind == "fwcfg":
			r.fwcfg(n, c)
		case smbios:
			r.malformed(n, "", "the SMBIOS tables are there twice")
		default:
			smbios = true
			r.smbios(n, c)
		}
	}
}

// smbios takes each table once: of a second one libvirt reads nothing, or (baseBoard) makes a second board. Entries have
// libvirt's order, since it keeps no other; those of oemStrings keep their own.
func (r *reader) smbios(n *node, c *Config) {
	for _, table := range tables {
		names, found, seen := strings.Fields(table.entries), map[string]SMBIOSEntry{}, map[string]bool{}
		for _, e := range r.all(r.one(n, table.name), "entry") {
			entry := SMBIOSEntry{Table: table.name, Value: r.word(e)}
			if table.entries == "" {
				c.SMBIOS.Entries = append(c.SMBIOS.Entries, entry)
				continue
			}
			entry.Name = r.needOf(e, "name", names...)
			if seen[entry.Name] {
				r.malformed(e, "", "entry %q is there twice", entry.Name)
			}
			if seen[entry.Name] = true; table.name == "system" && entry.Name == "uuid" {
				// The guest sees the domain's UUID here anyway; libvirt takes no other.
				if id, err := ParseUUID(entry.Value); (err != nil || id != c.UUID) && r.err == nil {
					r.malformed(e, "", "it is not the domain's UUID")
				}
				continue
			}
			found[entry.Name] = entry
		}
		for _, name := range names {
			if e, ok := found[name]; ok {
				c.SMBIOS.Entries = append(c.SMBIOS.Entries, e)
			}
		}
	}
}

// fwcfg takes the one entry that hostd adds.
func (r *reader) fwcfg(n *node, c *Config) {
	e := r.must(n, "entry")
	if r.request() || r.need(e, "name") != guestSecretEntry || c.Added.GuestSecretFile != "" {
		r.notAllowed(n, "", "%s", refusedWhy["fwcfg"])
		return
	}
	r.need(e, "file")
	c.Added.GuestSecretFile = r.pathAttr(e, "file")
}

func (r *reader) security(n *node, c *Config) {
	if n == nil {
		return
	}
	s := &c.Security
	s.Type = r.needOf(n, "type", "sev")
	s.KernelHashes = r.oneOf(n, "kernelHashes", "yes", "no")
	leaf := func(name string) string { return r.word(r.one(n, name)) }
	s.CBitPos, s.ReducedPhysBits, s.Policy = leaf("cbitpos"), leaf("reducedPhysBits"), leaf("policy")
	s.DHCert, s.Session = leaf("dhCert"), leaf("session")
}
