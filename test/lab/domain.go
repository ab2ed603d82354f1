package lab

import (
	"bytes"
	"context"
	"encoding/xml"
	"fmt"
	"os"
	"strings"
	"time"
)

// Domain describes a domain for the lab's guest.
type Domain struct {
	Name, UUID   string
	Kernel       string // a path inside hosts; the guest's own if empty, as for the next two
	Initrd       string
	CommandLine  string
	MemoryMiB    int    // 256 if zero
	Disks        []Disk // virtio, vda upwards
	Extra        string // XML put before </devices>
	Sysinfo      string // file inside the host for fw_cfg opt/io.systemd.credentials/troth.guest; hostd writes its own
	ChannelPath  string // unix socket of the channel troth.guest.0; hostd writes its own
	Configured   string // XML put before </domain>, for tests of what is refused
	MetadataText string // XML inside <metadata>
}

// Disk is a disk of a Domain.
type Disk struct {
	Source   string // inside hosts
	Format   string // raw or qcow2
	ReadOnly bool
}

// XML is the domain's definition, as a tenant and an engine would write it: complete, versioned, without graphics and
// console input.
func (g *Guest) XML(d Domain) string {
	pick := func(s, other string) string {
		if s == "" {
			s = other
		}
		var b bytes.Buffer
		if err := xml.EscapeText(&b, []byte(s)); err != nil {
			panic(err) // a bytes.Buffer takes everything
		}
		return b.String()
	}
	var b strings.Builder
	p := func(format string, a ...any) { fmt.Fprintf(&b, format+"\n", a...) }
	if d.MemoryMiB == 0 {
		d.MemoryMiB = 256
	}
	p("<domain type='%s'>", g.Type)
	p("  <name>%s</name>", pick(d.Name, ""))
	p("  <uuid>%s</uuid>", pick(d.UUID, ""))
	if d.MetadataText != "" {
		p("  <metadata>%s</metadata>", d.MetadataText)
	}
	p("  <memory unit='KiB'>%d</memory>", d.MemoryMiB*1024)
	p("  <currentMemory unit='KiB'>%d</currentMemory>", d.MemoryMiB*1024)
	p("  <vcpu placement='static'>1</vcpu>")
	if d.Sysinfo != "" {
		p("  <sysinfo type='fwcfg'>\n    <entry name='opt/io.systemd.credentials/troth.guest' file='%s'/>\n  </sysinfo>", pick(d.Sysinfo, ""))
	}
	p("  <os>")
	p("    <type arch='x86_64' machine='pc-q35-7.2'>hvm</type>")
	p("    <kernel>%s</kernel>", pick(d.Kernel, g.Kernel))
	p("    <initrd>%s</initrd>", pick(d.Initrd, g.Initrd))
	p("    <cmdline>%s</cmdline>", pick(d.CommandLine, g.CommandLine))
	p("  </os>")
	p("  <features>\n    <acpi/>\n  </features>")
	p("  <cpu mode='custom' match='exact' check='none'>\n    <model fallback='forbid'>qemu64</model>\n  </cpu>")
	p("  <clock offset='utc'/>")
	p("  <on_poweroff>destroy</on_poweroff>\n  <on_reboot>restart</on_reboot>\n  <on_crash>destroy</on_crash>")
	p("  <devices>")
	p("    <emulator>/usr/bin/qemu-system-x86_64</emulator>")
	for i, disk := range d.Disks {
		p("    <disk type='file' device='disk'>")
		p("      <driver name='qemu' type='%s'/>", disk.Format)
		p("      <source file='%s'/>", pick(disk.Source, ""))
		p("      <target dev='vd%c' bus='virtio'/>", 'a'+i)
		if disk.ReadOnly {
			p("      <readonly/>")
		}
		p("    </disk>")
	}
	p("    <serial type='file'>\n      <source path='%s'/>\n      <target type='isa-serial' port='0'>\n        <model name='isa-serial'/>\n      </target>\n    </serial>", pick(ConsolePath(d.Name), ""))
	p("    <console type='file'>\n      <source path='%s'/>\n      <target type='serial' port='0'/>\n    </console>", pick(ConsolePath(d.Name), ""))
	if d.ChannelPath != "" {
		p("    <channel type='unix'>\n      <source mode='bind' path='%s'/>\n      <target type='virtio' name='troth.guest.0'/>\n    </channel>", pick(d.ChannelPath, ""))
	}
	b.WriteString(d.Extra)
	p("    <memballoon model='none'/>")
	p("  </devices>")
	b.WriteString(d.Configured)
	p("</domain>")
	return b.String()
}

// ConsolePath is where the console output of a domain goes, inside its host.
func ConsolePath(name string) string { return "/var/log/libvirt/qemu/" + name + "-console.log" }

// AwaitConsole waits until the console of a domain has shown a text.
func (h *Host) AwaitConsole(ctx context.Context, domain, text string) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	file := h.Path(ConsolePath(domain))
	for {
		data, err := os.ReadFile(file)
		if err == nil && bytes.Contains(data, []byte(text)) {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the console of %s on %s has not shown %q: %w: %q", domain, h.Name, text, ctx.Err(), data[max(0, len(data)-1000):])
		case <-tick.C:
		}
	}
}
