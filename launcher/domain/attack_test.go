package domain

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
	"testing"

	"troth/proof"
)

// attack changes a real text in one place.
type attack struct {
	name     string
	old, new string
	code     proof.Code
	element  string // where the refusal says it is
	cause    string // part of why
}

const (
	invalid = proof.RequestInvalid
	denied  = proof.ConfigurationNotAllowed
)

// run makes the change in a text that reads without it, and wants the named refusal at the named place.
func run(t *testing.T, text string, m Mode, attacks []attack) {
	t.Helper()
	if _, err := Read([]byte(text), m); err != nil {
		t.Fatalf("the text is refused before any change: %v", err)
	}
	for _, a := range attacks {
		t.Run(a.name, func(t *testing.T) {
			if !strings.Contains(text, a.old) {
				t.Fatalf("there is no %q to change", a.old)
			}
			refused(t, strings.Replace(text, a.old, a.new, 1), m, a)
			if _, err := Read([]byte(text), m); err != nil {
				t.Errorf("the honest text is refused afterwards: %v", err)
			}
		})
	}
}

func refused(t *testing.T, text string, m Mode, a attack) {
	t.Helper()
	c, err := Read([]byte(text), m)
	var r *proof.Refusal
	switch {
	case err == nil:
		t.Fatalf("accepted: %s", lineDiff("", string(c.Canonical())))
	case !errors.As(err, &r):
		t.Fatalf("refused without a refusal: %v", err)
	case r.Code != a.code:
		t.Errorf("code %s, want %s: %v", r.Code, a.code, err)
	}
	facts := map[string]string{}
	for _, f := range r.Facts {
		facts[f.Name] = f.Value
	}
	if !samePlace(a.element, facts["element"]) {
		t.Errorf("at %s, want %s: %v", facts["element"], a.element, err)
	}
	if !strings.Contains(facts["cause"], a.cause) {
		t.Errorf("cause is %q, want one with %q", facts["cause"], a.cause)
	}
	if r.Sentence == "" || r.Remedy == "" {
		t.Errorf("no sentence or remedy: %+v", r)
	}
}

// device puts an element before the end of <devices>.
func device(name, xml, path, cause string) attack {
	return attack{name, "</devices>", xml + "</devices>", denied, "/domain/devices/" + path, cause}
}

// top puts an element before <devices>.
func top(name, xml, path, cause string) attack {
	return attack{name, "<devices>", xml + "<devices>", denied, "/domain/" + path, cause}
}

func TestAttack(t *testing.T) {
	direct := string(readFile(t, "testdata/requests/direct.xml"))
	inactive := string(readFile(t, "testdata/captured/direct.inactive"))
	start := string(readFile(t, "testdata/captured/direct.start"))
	live := string(readFile(t, "testdata/captured/direct.live"))
	everything := string(readFile(t, "testdata/captured/everything.live"))

	t.Run("X-XML", func(t *testing.T) { run(t, direct, Request, append(xmlAttacks(), readOtherwise()...)) })
	t.Run("X-DTD", func(t *testing.T) {
		run(t, direct, Request, []attack{
			{"doctype", "<domain", "<!DOCTYPE domain><domain", invalid, "/", "document type"},
			{"entity", "<domain", `<!DOCTYPE d [<!ENTITY k "/etc/shadow">]><domain`, invalid, "/", "document type"},
			{"external", "<domain", `<!DOCTYPE d SYSTEM "file:///etc/passwd"><domain`, invalid, "/", "document type"},
			{"inside", "<devices>", `<!ELEMENT x ANY><devices>`, invalid, "/domain", "document type"},
			{"undeclared entity", "<name>direct", "<name>&k;direct", invalid, "/domain/name", "entity"},
		})
	})
	t.Run("X-DEPTH", func(t *testing.T) { testDepth(t, direct) })
	t.Run("L-CMDLINE", func(t *testing.T) {
		t.Run("request", func(t *testing.T) { run(t, direct, Request, commandLineAttacks()) })
		t.Run("inactive", func(t *testing.T) { run(t, inactive, Inactive, commandLineAttacks()) })
		t.Run("hook", func(t *testing.T) { run(t, start, Hook, commandLineAttacks()) })
		t.Run("live", func(t *testing.T) { run(t, live, Live, commandLineAttacks()) })
		t.Run("values", func(t *testing.T) { run(t, direct, Request, valueAttacks()) })
	})
	t.Run("L-NAME", func(t *testing.T) { testNames(t, direct) })
	t.Run("L-BACKING", func(t *testing.T) { testBacking(t, direct, everything) })
	t.Run("L-MARK", func(t *testing.T) { testMark(t, direct, inactive, live) })
	t.Run("L-TOCTOU-XML", func(t *testing.T) { testChanged(t, inactive, start, live) })
}

func xmlAttacks() []attack {
	return []attack{
		{"two names", "<uuid>", "<name>other</name><uuid>", invalid, "/domain/name[2]", "twice"},
		{"two kernels", "</os>", "<kernel>/evil</kernel></os>", invalid, "/domain/os/kernel[2]", "twice"},
		{"two os", "<devices>", "<os/><devices>", invalid, "/domain/os[2]", "twice"},
		{"two sources", "<readonly/>", "<source file='/evil'/><readonly/>", invalid, "/domain/devices/disk/source[2]", "twice"},
		{"two devices", "</domain>", "<devices/></domain>", invalid, "/domain/devices[2]", "twice"},
		{"two attributes", "type='qemu'", "type='qemu' type='kvm'", invalid, "/domain", "twice"},
		{"prefixed name", "<name>direct</name>", "<x:name>direct</x:name>", denied, "/domain/x:name", "name space"},
		{"prefixed and declared", "<uuid>", "<x:name xmlns:x='urn:x'>a</x:name><uuid>", denied, "/domain/x:name", "name space"},
		{"prefixed attribute", "type='qemu'", "x:type='qemu'", denied, "/domain/@x:type", "name space"},
		{"default name space", "type='qemu'", "type='qemu' xmlns='urn:x'", denied, "/domain/@xmlns", "default name space"},
		{"default name space inside", "<devices>", "<devices xmlns=''>", denied, "/domain/devices/@xmlns", "default name space"},
		{"declared inside", "<devices>", "<devices xmlns:x='urn:x'>", denied, "/domain/devices/@xmlns:x", "declared on the root"},
		{"processing instruction", "<devices>", "<?php evil?><devices>", invalid, "/domain", "processing instruction"},
		{"late declaration", "<devices>", "<?xml version='1.0'?><devices>", invalid, "/domain", "processing instruction"},
		{"stylesheet", "<domain", "<?xml-stylesheet href='x'?><domain", invalid, "/", "processing instruction"},
		{"CDATA", "<name>direct</name>", "<name><![CDATA[direct]]></name>", invalid, "/domain/name", "CDATA"},
		{"CDATA in part", "<name>direct</name>", "<name>di<![CDATA[rect]]></name>", invalid, "/domain/name", "CDATA"},
		{"CDATA between", "<devices>", "<![CDATA[ ]]><devices>", invalid, "/domain", "CDATA"},
		{"comment in text", "<name>direct</name>", "<name>di<!-- x -->rect</name>", invalid, "/domain/name", "comment"},
		{"encoding", "<domain", "<?xml version='1.0' encoding='UTF-7'?><domain", invalid, "/", "encoding"},
		{"encoding with spaces", "<domain", "<?xml version='1.0' encoding = 'UTF-16'?><domain", invalid, "/", "declaration"},
		{"version 1.1", "<domain", "<?xml version='1.1'?><domain", invalid, "/", "version"},
		{"bytes that are no UTF-8", "<name>direct", "<name>di\xffrect", invalid, "/domain/name", "UTF-8"},
		{"zero byte", "<name>direct", "<name>\x00direct", invalid, "/", "zero byte"},
		{"byte order mark", "<domain", "\uFEFF<domain", invalid, "/", "outside"},
		{"text outside", "</domain>", "</domain>x", invalid, "/", "outside"},
		{"second root", "</domain>", "</domain><domain/>", invalid, "/", "second root"},
		{"not closed", "</domain>", "", invalid, "/domain", "not closed"},
		{"closed by another", "</vcpu>", "</cpu>", invalid, "/domain/vcpu", "end tag"},
		{"closed under another prefix", "</vcpu>", "</x:vcpu>", invalid, "/domain/vcpu", "end tag"},
		{"text between", "<devices>", "x<devices>", invalid, "/domain", "text where none"},
		{"element in a text", "<name>direct</name>", "<name>direct<b/></name>", denied, "/domain/name/b", "not known"},
		{"unknown element", "<devices>", "<unknown/><devices>", denied, "/domain/unknown", "not known"},
		{"unknown attribute", "<devices>", "<devices x='y'>", denied, "/domain/devices/@x", "not known"},
		{"other case", "<vcpu>1</vcpu>", "<VCPU>1</VCPU>", invalid, "/domain/vcpu", "missing"},
		{"attribute in other case", "type='qemu'", "Type='qemu'", invalid, "/domain/@type", "missing"},
		{"odd name", "<devices>", "<a:b:c/><devices>", invalid, "/domain", "element name"},
		{"another root", "</domain>", "</network>", invalid, "/domain", "end tag"},
	}
}

// commandLineAttacks ask for what reaches QEMU's command line or the guest's memory in ways that are not measured.
func commandLineAttacks() []attack {
	const qemu = "http://libvirt.org/schemas/domain/qemu/1.0"
	return []attack{
		{"qemu name space", "<domain type='qemu'", "<domain xmlns:qemu='" + qemu + "' type='qemu'", denied, "/domain/@xmlns:qemu", "QEMU"},
		{"qemu name space by another prefix", "<domain type='qemu'", "<domain xmlns:q='" + qemu + "' type='qemu'", denied, "/domain/@xmlns:q", "QEMU"},
		{"qemu commandline", "</devices>", "</devices><qemu:commandline><qemu:arg value='-s'/></qemu:commandline>", denied, "/domain/qemu:commandline", "name space"},
		{"qemu override", "</devices>", "</devices><qemu:override/>", denied, "/domain/qemu:override", "name space"},
		{"bare override", "</devices>", "</devices><override/>", denied, "/domain/override", "QEMU"},
		device("hostdev pci", "<hostdev mode='subsystem' type='pci' managed='yes'><source><address domain='0x0000' bus='0x06' slot='0x02' function='0x0'/></source></hostdev>", "hostdev", "host device"),
		device("hostdev usb", "<hostdev mode='subsystem' type='usb'/>", "hostdev", "host device"),
		device("shmem", "<shmem name='x'><model type='ivshmem-plain'/><size unit='M'>4</size></shmem>", "shmem", "share"),
		device("vhost-user network", "<interface type='vhostuser'><mac address='52:54:00:00:00:77'/><source type='unix' path='/tmp/v' mode='client'/></interface>", "interface[2]/@type", "vhostuser"),
		device("vdpa network", "<interface type='vdpa'><mac address='52:54:00:00:00:77'/></interface>", "interface[2]/@type", "vdpa"),
		device("host device network", "<interface type='hostdev'><mac address='52:54:00:00:00:77'/></interface>", "interface[2]/@type", "hostdev"),
		device("network over udp", "<interface type='udp'><mac address='52:54:00:00:00:77'/></interface>", "interface[2]/@type", "udp"),
		device("vhost-user disk", "<disk type='vhostuser' device='disk'><driver name='qemu' type='raw'/><source type='unix' path='/tmp/b'/><target dev='vdz' bus='virtio'/></disk>", "disk[2]/@type", "vhostuser"),
		device("network disk", "<disk type='network' device='disk'><driver name='qemu' type='raw'/><source protocol='nbd' name='x'/><target dev='vdz' bus='virtio'/></disk>", "disk[2]/@type", "network"),
		device("filesystem", "<filesystem type='mount' accessmode='passthrough'><source dir='/'/><target dir='x'/></filesystem>", "filesystem", "shared directory"),
		device("virtiofs", "<filesystem type='mount'><driver type='virtiofs'/><source dir='/'/><target dir='x'/></filesystem>", "filesystem", "shared directory"),
		device("serial over tcp", "<serial type='tcp'><source mode='bind' host='0.0.0.0' service='4555'/><protocol type='telnet'/><target port='1'/></serial>", "serial[#]/@type", "output"),
		device("serial over udp", "<serial type='udp'><target port='1'/></serial>", "serial[#]/@type", "output"),
		device("serial over a unix socket", "<serial type='unix'><source mode='bind' path='/tmp/s'/><target port='1'/></serial>", "serial[#]/@type", "output"),
		device("serial from a device", "<serial type='dev'><source path='/dev/mem'/><target port='1'/></serial>", "serial[#]/@type", "output"),
		device("serial from a pipe", "<serial type='pipe'><source path='/tmp/p'/><target port='1'/></serial>", "serial[#]/@type", "output"),
		device("serial to the system's files", "<serial type='file'><source path='/etc/cron.d/x.log'/><target port='1'/></serial>", "serial[#]/source/@path", "*.log"),
		device("serial to any file", "<serial type='file'><source path='/root/.ssh/authorized_keys'/><target port='1'/></serial>", "serial[#]/source/@path", "*.log"),
		device("external tpm", "<tpm model='tpm-crb'><backend type='external'><source type='unix' mode='connect' path='/tmp/t'/></backend></tpm>", "tpm", "TPM"),
		device("tpm passthrough", "<tpm><backend type='passthrough'><device path='/dev/tpm0'/></backend></tpm>", "tpm", "TPM"),
		device("entropy from the network", "<rng model='virtio'><backend model='egd' type='tcp'/></rng>", "rng[2]/backend/@model", "egd"),
		device("entropy from a file", "<rng model='virtio'><backend model='random'>/tmp/zero</backend></rng>", "rng[2]/backend", "urandom"),
		device("usb redirection", "<redirdev bus='usb' type='tcp'/>", "redirdev", "network"),
		device("smartcard", "<smartcard mode='host'/>", "smartcard", "secrets"),
		device("vsock", "<vsock model='virtio'><cid auto='yes'/></vsock>", "vsock", "socket"),
		device("memory device", "<memory model='nvdimm'><source><path>/tmp/n</path></source></memory>", "memory", "not known"),
		device("channel of hostd", "<channel type='unix'><source mode='bind' path='/tmp/x'/><target type='virtio' name='troth.guest.1'/><address type='virtio-serial' controller='0' bus='0' port='9'/></channel>", "channel[#]", "hostd"),
		device("channel to a chosen socket", "<channel type='unix'><source mode='bind' path='/tmp/x'/><target type='virtio' name='org.a'/><address type='virtio-serial' controller='0' bus='0' port='9'/></channel>", "channel[#]/source/@path", "libvirt's to choose"),
		device("channel over tcp", "<channel type='tcp'><target type='virtio' name='org.a'/></channel>", "channel[#]/@type", "tcp"),
		top("seclabel none", "<seclabel type='none'/>", "seclabel[#]", "dynamic"),
		top("seclabel static", "<seclabel type='static' model='dac' relabel='no'><label>0:0</label></seclabel>", "seclabel[#]", "dynamic"),
		top("seclabel without relabelling", "<seclabel type='dynamic' model='dac' relabel='no'/>", "seclabel[#]", "dynamic"),
		top("shared memory", "<memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>", "memoryBacking", "shared"),
		top("boot loader", "<bootloader>/usr/bin/evil</bootloader>", "bootloader", "boot loader"),
		top("fw_cfg", "<sysinfo type='fwcfg'><entry name='opt/com.example/x' file='/etc/shadow'/></sysinfo>", "sysinfo[#]", "firmware configuration"),
		{"acpi table", "</os>", "<acpi><table type='slic'>/tmp/t</table></acpi></os>", denied, "/domain/os/acpi", "ACPI"},
		{"kernel with an alias of the machine", "pc-q35-7.2", "q35", denied, "/domain/os/type/@machine", "pc-q35-7.2"},
		{"machine of another kind", "pc-q35-7.2", "microvm", denied, "/domain/os/type/@machine", "versioned"},
		{"another architecture", "arch='x86_64'", "arch='aarch64'", denied, "/domain/os/type/@arch", "x86_64"},
		{"container", "hvm", "exe", denied, "/domain/os/type", "hvm"},
		{"another hypervisor", "<domain type='qemu'", "<domain type='xen'", denied, "/domain/@type", "kvm, qemu"},
		{"chosen firmware", "<os>", "<os firmware='efi'>", denied, "/domain/os/@firmware", "loader"},
	}
}

// valueAttacks ask for too much by the value of a known field, in a request.
func valueAttacks() []attack {
	return []attack{
		{"emulator", "<devices>", "<devices><emulator>/tmp/qemu</emulator>", denied, "/domain/devices/emulator", "another emulator"},
		{"loader as a memory image", "</os>", "<loader type='pflash'>/tmp/l</loader><nvram>/tmp/n</nvram></os>", invalid, "/domain/os/loader/@readonly", "readonly"},
		{"loader that is written", "</os>", "<loader readonly='no' type='pflash'>/tmp/l</loader></os>", denied, "/domain/os/loader/@readonly", "yes"},
		{"loader without NVRAM", "</os>", "<loader readonly='yes' type='pflash'>/tmp/l</loader></os>", invalid, "/domain/os/nvram", "variable store"},
		{"NVRAM over the kernel", "</os>", "<loader readonly='yes' type='pflash'>/tmp/l</loader><nvram>/var/lib/libvirt/images/kernel</nvram></os>", denied, "/domain", "both"},
		{"disk over the kernel", "/images/raw1'/>\n      <target dev='vda' bus='virtio'/>\n      <readonly/>", "/images/kernel'/><target dev='vda'/>", denied, "/domain", "both"},
		{"relative kernel", "/var/lib/libvirt/images/kernel", "images/kernel", denied, "/domain/os/kernel", "absolute"},
		{"kernel by a way round", "/var/lib/libvirt/images/kernel", "/var/lib/../kernel", denied, "/domain/os/kernel", "clean"},
		{"kernel from proc", "/var/lib/libvirt/images/kernel", "/proc/self/fd/3", denied, "/domain/os/kernel", "no file of its own"},
		{"initrd from sys", "/var/lib/libvirt/images/initrd", "/sys/x", denied, "/domain/os/initrd", "no file of its own"},
		{"line break in the command line", "console=ttyS0", "console=ttyS0&#10;x", invalid, "/domain/os/cmdline", "control"},
		{"format that is guessed", "type='raw'", "", invalid, "/domain/devices/disk/driver/@type", "guessed"},
		{"format that is not known", "type='raw'", "type='vmdk'", denied, "/domain/devices/disk/driver/@type", "vmdk"},
		{"disk by proc", "/var/lib/libvirt/images/raw1", "/proc/1/root/x", denied, "/domain/devices/disk/source/@file", "no file of its own"},
		{"disk by json", "/var/lib/libvirt/images/raw1", "json:{}", denied, "/domain/devices/disk/source/@file", "absolute"},
		{"shareable disk", "<readonly/>", "<shareable/>", denied, "/domain/devices/disk/shareable", "others write"},
		{"transient disk", "<readonly/>", "<transient/>", denied, "/domain/devices/disk/transient", "overlay"},
		{"encrypted disk", "<readonly/>", "<encryption format='luks'/>", denied, "/domain/devices/disk/encryption", "from hostd alone"},
		{"label on a disk's source", "raw1'/>", "raw1'><seclabel relabel='no'/></source>", denied, "/domain/devices/disk/source/seclabel", "dynamic"},
		{"no MAC address", "<mac address='52:54:00:00:00:01'/>", "", invalid, "/domain/devices/interface/mac", "random"},
		{"multicast MAC address", "52:54:00:00:00:01", "53:54:00:00:00:01", invalid, "/domain/devices/interface/mac/@address", "unicast"},
		{"script", "<model type='virtio'/>", "<script path='/tmp/s'/>", denied, "/domain/devices/interface/script", "script"},
		{"rom file", "<model type='virtio'/>", "<rom file='/tmp/r'/>", invalid, "/domain/devices/interface/rom/@enabled", "missing"},
		{"no memory", "<memory unit='MiB'>128</memory>", "", invalid, "/domain/memory", "missing"},
		{"memory that wraps", ">128<", ">18446744073709551617<", invalid, "/domain/memory", "amount"},
		{"memory that libvirt would round", "unit='MiB'>128", "unit='KiB'>131073", invalid, "/domain/memory", "whole MiB"},
		{"CPUs by a signed number", "<vcpu>1", "<vcpu>+1", invalid, "/domain/vcpu", "number"},
		{"CPUs in octal", "<vcpu>1", "<vcpu>01", invalid, "/domain/vcpu", "number"},
		{"no CPU", "<vcpu>1", "<vcpu>0", invalid, "/domain/vcpu", "between"},
		{"space around a number", "<vcpu>1", "<vcpu> 1", invalid, "/domain/vcpu", "space"},
		{"another balloon size", "<vcpu>", "<currentMemory unit='MiB'>64</currentMemory><vcpu>", denied, "/domain/currentMemory", "balloon"},
		{"crash dump of the memory", "<devices>", "<on_crash>coredump-restart</on_crash><devices>", denied, "/domain/on_crash", "coredump"},
		{"boot menu", "</os>", "<bootmenu enable='yes'/></os>", denied, "/domain/os/bootmenu", "console"},
		{"password on a display", "</devices>", "<graphics type='vnc' passwd='x'/></devices>", denied, "/domain/devices/graphics/@passwd", "not known"},
		{"display over a socket", "</devices>", "<graphics type='vnc' socket='/tmp/x'/></devices>", denied, "/domain/devices/graphics/@socket", "not known"},
		{"two disks of one name", "</devices>", "<disk type='file'><driver type='raw'/><source file='/x'/><target dev='vda'/></disk></devices>", invalid, "/domain/devices", "target vda"},
		{"two devices in one place", "</devices>", "<watchdog model='i6300esb'><address type='pci' slot='9'/></watchdog><rng model='virtio'><backend model='random'>/dev/random</backend><address type='pci' slot='9'/></rng></devices>", invalid, "/domain/devices", "already"},
		{"own channel of hostd", "</devices>", "<channel type='unix'><target type='virtio' name='troth.guest.0'/></channel></devices>", denied, "/domain/devices/channel", "hostd"},
		{"own fw_cfg entry of hostd", "<devices>", "<sysinfo type='fwcfg'><entry name='" + guestSecretEntry + "' file='/x'/></sysinfo><devices>", denied, "/domain/sysinfo", "firmware configuration"},
		{"SMBIOS of another domain", "<devices>", "<sysinfo type='smbios'><system><entry name='uuid'>bbbbbbbb-0000-4000-8000-000000000001</entry></system></sysinfo><devices>", invalid, "/domain/sysinfo/system/entry", "UUID"},
		{"alias of libvirt's", "<readonly/>", "<alias name='virtio-disk0'/>", invalid, "/domain/devices/disk/alias/@name", "ua-"},
		{"balloon", "</devices>", "<memballoon model='virtio'/></devices>", denied, "/domain/devices/memballoon", "memballoon model='none'"},
		{"live id", "type='qemu'", "type='qemu' id='7'", denied, "/domain/@id", "request XML"},
	}
}

// samePlace compares places; "[#]" in the wanted one stands for whatever number the text's own elements make of it.
func samePlace(want, got string) bool {
	parts := strings.Split(want, "[#]")
	for i := range parts {
		parts[i] = regexp.QuoteMeta(parts[i])
	}
	return regexp.MustCompile("^" + strings.Join(parts, `(\[\d+\])?`) + "$").MatchString(got)
}

func testDepth(t *testing.T, direct string) {
	deep := func(n int) string { return strings.Repeat("<a>", n) + strings.Repeat("</a>", n) }
	run(t, direct, Request, []attack{
		{"33 deep", "<devices>", deep(32) + "<devices>", invalid, "/domain" + strings.Repeat("/a", 31), "deeper than 32"},
		{"33 deep in metadata", "<devices>", "<metadata>" + deep(31) + "</metadata><devices>", invalid, "/domain/metadata" + strings.Repeat("/a", 30), "deeper than 32"},
		{"a million deep", "<devices>", strings.Repeat("<a>", 300000) + "<devices>", invalid, "/domain" + strings.Repeat("/a", 31), "deeper than 32"},
		{"more than 1 MiB", "<devices>", strings.Repeat(" ", MaxXML) + "<devices>", invalid, "/", "bytes"},
		{"many attributes", "<devices>", "<devices " + manyAttributes(50000) + ">", invalid, "/domain", "attributes"},
		{"a million attributes", "<devices>", "<devices " + manyAttributes(1000000) + ">", invalid, "/", "bytes"},
		{"many elements", "<devices>", "<metadata>" + strings.Repeat("<a/>", 30000) + "</metadata><devices>", invalid, "/domain/metadata", "elements"},
		{"many disks", "</devices>", manyDisks(65) + "</devices>", invalid, "/domain/devices/disk", "more than"},
	})
}

func manyAttributes(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "a%d='' ", i)
	}
	return b.String()
}

func manyDisks(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "<disk type='file'><driver type='raw'/><source file='/x/%d'/><target dev='vd%c%c'/></disk>", i, 'a'+i/26, 'a'+i%26)
	}
	return b.String()
}

func testNames(t *testing.T, direct string) {
	name := func(what, n, element, cause string, code proof.Code) attack {
		return attack{what, "<name>direct</name>", "<name>" + n + "</name>", code, element, cause}
	}
	run(t, direct, Request, []attack{
		name("parent", "..", "/domain/name", "path", denied),
		name("dot", ".", "/domain/name", "path", denied),
		name("slash", "a/../../b", "/domain/name", "path", denied),
		name("newline", "a&#10;b", "/domain/name", "control", invalid),
		name("literal newline", "a\nb", "/domain/name", "control", invalid),
		name("escape", "a\u009b31mb", "/domain/name", "control", invalid),
		name("delete", "a\u007fb", "/domain/name", "control", invalid),
		name("tab", "a&#9;b", "/domain/name", "control", invalid),
		name("right-to-left", "a\u202eb", "/domain/name", "invisible", invalid),
		name("zero width", "a\u200bb", "/domain/name", "invisible", invalid),
		name("space in front", " a", "/domain/name", "space", invalid),
		name("empty", "", "/domain/name", "empty", invalid),
		name("long", strings.Repeat("x", 201), "/domain/name", "longer", invalid),
		{"no UUID that can be read", "AAAAAAAA-0000-4000-8000-000000000001", "{AAAAAAAA-0000-4000-8000-00000000001}", invalid, "/domain/uuid", "UUID"},
		{"zero UUID", "AAAAAAAA-0000-4000-8000-000000000001", "00000000-0000-0000-0000-000000000000", invalid, "/domain/uuid", "zero"},
	})
	// Names that only look odd are kept as they are: the UUID is the key (libvirt gave this one back, TestCaptured).
	for _, odd := range []string{"-rf --x $(id) ..", "a b", "...", "%s%n", "'\"&amp;&lt;"} {
		c, err := Read([]byte(strings.Replace(direct, "<name>direct<", "<name>"+odd+"<", 1)), Request)
		if err != nil {
			t.Errorf("name %q: %v", odd, err)
			continue
		}
		again, err := Read(Emit(c, Additions{}), Request)
		if err != nil || again.Name != c.Name {
			t.Errorf("name %q comes back as %+v, %v", odd, again, err)
		}
	}
}

func testBacking(t *testing.T, direct, live string) {
	const raw = "<driver name='qemu' type='raw'/>"
	layer := func(format, file, below string) string {
		return "<backingStore type='file'><format type='" + format + "'/><source file='" + file + "'/>" + below + "</backingStore>"
	}
	chain := func(n int) string {
		s := "<backingStore/>"
		for i := range n {
			s = layer("qcow2", fmt.Sprintf("/b/%d", i), s)
		}
		return "<driver name='qemu' type='qcow2'/>" + s
	}
	below := func(depth int, last string) string {
		return "/domain/devices/disk" + strings.Repeat("/backingStore", depth) + last
	}
	q := "<driver name='qemu' type='qcow2'/>"
	run(t, direct, Request, []attack{
		{"below a raw image", raw, raw + layer("raw", "/b", "<backingStore/>"), denied, below(1, ""), "raw image"},
		{"below a raw layer", raw, q + layer("raw", "/b", layer("raw", "/c", "<backingStore/>")), denied, below(2, ""), "raw image"},
		{"open end", raw, q + layer("qcow2", "/b", ""), invalid, below(1, "/backingStore"), "end the chain"},
		{"guessed format", raw, q + "<backingStore type='file'><source file='/b'/><backingStore/></backingStore>", invalid, below(1, "/format"), "missing"},
		{"17 layers", raw, chain(17), denied, below(17, ""), "more than 16"},
		{"300 layers", raw, chain(300), invalid, "/domain/devices/disk" + strings.Repeat("/backingStore", 29), "deeper than 32"},
		{"a loop", raw, q + layer("qcow2", "/var/lib/libvirt/images/raw1", "<backingStore/>"), denied, "/domain/devices", "twice"},
		{"a loop below", raw, q + layer("qcow2", "/b", layer("qcow2", "/b", "<backingStore/>")), denied, "/domain/devices", "twice"},
		{"over the network", raw, q + "<backingStore type='network'><format type='raw'/><source protocol='nbd'/><backingStore/></backingStore>", denied, below(1, "/@type"), "network"},
		{"by json", raw, q + layer("qcow2", "json:{&quot;driver&quot;:&quot;nbd&quot;}", "<backingStore/>"), denied, below(1, "/source/@file"), "absolute"},
		{"by nbd", raw, q + layer("qcow2", "nbd:localhost:1", "<backingStore/>"), denied, below(1, "/source/@file"), "absolute"},
		{"by http", raw, q + layer("qcow2", "http://x/y", "<backingStore/>"), denied, below(1, "/source/@file"), "absolute"},
		{"a data file", raw, q + "<source file='/x'><dataStore/></source>", invalid, "/domain/devices/disk/source[2]", "twice"},
	})
	run(t, live, Live, []attack{
		{"a chain that libvirt took from the image", "<backingStore/>\n      <target dev='vda'", "<target dev='vda'", invalid, "/domain/devices/disk/backingStore", "from the image"},
		{"a block job", "<target dev='vda'", "<mirror type='file' file='/copy' format='raw' job='copy'/><target dev='vda'", denied, "/domain/devices/disk/mirror", "copies the disk"},
	})
	// A chain that grew is another Config.
	want := request(t, "everything")
	got, err := Read([]byte(strings.Replace(live, "<backingStore/>", layer("qcow2", "/b", "<backingStore/>"), 1)), Live)
	if err != nil {
		t.Fatal(err)
	}
	changed(t, want, got, "disks[0].backing.count")
}
