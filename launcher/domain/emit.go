package domain

import (
	"encoding/hex"
	"fmt"
	"strings"
)

// writer writes XML as libvirt formats it: two spaces, single quotes.
type writer struct {
	b     strings.Builder
	depth int
}

// at is one attribute; an empty value leaves it out.
type at struct{ name, value string }

func num(name string, v uint64) at { return at{name, fmt.Sprint(v)} }

func (w *writer) open(name string, attrs ...at)  { w.tag(name, attrs, ">\n"); w.depth++ }
func (w *writer) empty(name string, attrs ...at) { w.tag(name, attrs, "/>\n") }

func (w *writer) tag(name string, attrs []at, end string) {
	w.b.WriteString(strings.Repeat("  ", w.depth) + "<" + name)
	for _, a := range attrs {
		if a.value != "" {
			w.b.WriteString(" " + a.name + "='" + escape(a.value) + "'")
		}
	}
	w.b.WriteString(end)
}

func (w *writer) close(name string) {
	w.depth--
	w.b.WriteString(strings.Repeat("  ", w.depth) + "</" + name + ">\n")
}

// text writes a leaf; without a text it writes nothing.
func (w *writer) text(name, text string, attrs ...at) {
	if text == "" {
		return
	}
	w.tag(name, attrs, ">"+escape(text)+"</"+name+">\n")
}

// group writes an element with what inside writes, or the empty element when that is nothing.
func (w *writer) group(name string, attrs []at, inside func()) {
	before := w.b.Len()
	w.open(name, attrs...)
	start := w.b.Len()
	if inside(); w.b.Len() == start {
		kept := w.b.String()[:before]
		w.b.Reset()
		w.b.WriteString(kept)
		w.depth--
		w.empty(name, attrs...)
		return
	}
	w.close(name)
}

var escaper = strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;", "'", "&apos;", `"`, "&quot;")

func escape(s string) string { return escaper.Replace(s) }

// Emit writes the domain in full explicit form: nothing is left for libvirt to choose, and real libvirt gives the
// same bytes back. The mark is always written; of the additions, what is set. A Config without UUID is written
// without, for requests only: give it one before libvirt sees it.
func Emit(c *Config, a Additions) []byte {
	w := &writer{}
	w.open("domain", at{"type", c.Type})
	w.text("name", c.Name)
	if !c.UUID.IsZero() {
		w.text("uuid", c.UUID.String())
	}
	w.mark(a)
	w.text("memory", fmt.Sprint(c.Memory), at{"unit", "KiB"})
	w.text("currentMemory", fmt.Sprint(c.CurrentMemory), at{"unit", "KiB"})
	w.text("vcpu", fmt.Sprint(c.VCPUs), at{"placement", "static"})
	w.sysinfo(c, a)
	w.os(c)
	w.features(c.Features)
	w.cpu(c)
	w.clock(c.Clock)
	w.text("on_poweroff", c.OnPowerOff)
	w.text("on_reboot", c.OnReboot)
	w.text("on_crash", c.OnCrash)
	if c.Suspend != (Suspend{}) {
		w.open("pm")
		w.switchOf("suspend-to-mem", "enabled", c.Suspend.ToMem)
		w.switchOf("suspend-to-disk", "enabled", c.Suspend.ToDisk)
		w.close("pm")
	}
	w.devices(c, a)
	w.security(c.Security)
	w.close("domain")
	return []byte(w.b.String())
}

func (w *writer) switchOf(name, attr, value string) {
	if value != "" {
		w.empty(name, at{attr, value})
	}
}

// mark is written with double quotes: libvirt keeps metadata as libxml2 prints it.
func (w *writer) mark(a Additions) {
	id := ""
	if a.LaunchID != [32]byte{} {
		id = ` id="` + hex.EncodeToString(a.LaunchID[:]) + `"`
	}
	w.open("metadata")
	w.b.WriteString(`    <troth:launch xmlns:troth="` + markSpace + `"` + id + "/>\n")
	w.close("metadata")
}

func (w *writer) sysinfo(c *Config, a Additions) {
	if len(c.SMBIOS.Entries) > 0 {
		w.open("sysinfo", at{"type", "smbios"})
		last := ""
		for _, e := range c.SMBIOS.Entries {
			if e.Table != last {
				if last != "" {
					w.close(last)
				}
				w.open(e.Table)
				last = e.Table
			}
			w.text("entry", e.Value, at{"name", e.Name})
		}
		w.close(last)
		w.close("sysinfo")
	}
	if a.GuestSecretFile != "" {
		w.open("sysinfo", at{"type", "fwcfg"})
		w.empty("entry", at{"name", guestSecretEntry}, at{"file", a.GuestSecretFile})
		w.close("sysinfo")
	}
}

func (w *writer) os(c *Config) {
	b := c.Boot
	w.open("os")
	w.text("type", "hvm", at{"arch", "x86_64"}, at{"machine", c.Machine})
	readonly := ""
	if b.FirmwareType == "pflash" {
		readonly = "yes"
	}
	w.text("loader", b.Firmware, at{"readonly", readonly}, at{"secure", b.Secure}, at{"type", b.FirmwareType})
	w.text("nvram", b.NVRAM, at{"template", b.NVRAMTemplate})
	w.text("kernel", b.Kernel)
	w.text("initrd", b.Initrd)
	w.text("cmdline", b.CommandLine)
	for _, d := range b.Devices {
		w.empty("boot", at{"dev", d})
	}
	w.switchOf("smbios", "mode", c.SMBIOS.Mode)
	w.close("os")
}

func (w *writer) features(f Features) {
	if f == (Features{}) {
		return
	}
	w.open("features")
	for _, s := range []struct {
		name string
		on   bool
	}{{"acpi", f.ACPI}, {"apic", f.APIC}, {"pae", f.PAE}} {
		if s.on {
			w.empty(s.name)
		}
	}
	w.switchOf("vmport", "state", f.VMPort)
	w.switchOf("smm", "state", f.SMM)
	w.close("features")
}

// cpu asks libvirt for no check of a custom CPU beforehand, as it does itself for the default one: a check refuses
// qemu64 under KVM on hosts without nested virtualisation. What QEMU made of it is compared by Diff.
func (w *writer) cpu(c *Config) {
	p := c.CPU
	check := "none"
	if p.Mode == "host-model" {
		check = "partial"
	}
	w.group("cpu", []at{{"mode", p.Mode}, {"match", p.Match}, {"check", check}, {"migratable", p.Migratable}}, func() {
		w.text("model", p.Model, at{"fallback", p.Fallback})
		if p.Sockets > 0 {
			w.empty("topology", num("sockets", p.Sockets), num("dies", p.Dies), num("cores", p.Cores), num("threads", p.Threads))
		}
		for _, f := range p.Features {
			w.empty("feature", at{"policy", f.Policy}, at{"name", f.Name})
		}
	})
}

func (w *writer) clock(c Clock) {
	w.group("clock", []at{{"offset", c.Offset}}, func() {
		for _, t := range c.Timers {
			w.empty("timer", at{"name", t.Name}, at{"present", t.Present}, at{"tickpolicy", t.TickPolicy})
		}
	})
}

func (w *writer) security(s LaunchSecurity) {
	if s.Type == "" {
		return
	}
	w.open("launchSecurity", at{"type", s.Type}, at{"kernelHashes", s.KernelHashes})
	w.text("cbitpos", s.CBitPos)
	w.text("reducedPhysBits", s.ReducedPhysBits)
	w.text("policy", s.Policy)
	w.text("dhCert", s.DHCert)
	w.text("session", s.Session)
	w.close("launchSecurity")
}
