package domain

import (
	"strings"
	"testing"
)

// readOtherwise are places where libvirt reads something else than it is told; test/differential found them, and they
// are here as small as it made them.
func readOtherwise() []attack {
	smbios := func(inside string) string { return "<sysinfo type='smbios'>" + inside + "</sysinfo><devices>" }
	disk := func(attrs, inside string) string {
		return "<disk " + attrs + "><driver type='raw'/>" + inside + "<target dev='sda' bus='sata'/></disk></devices>"
	}
	return []attack{
		// libvirt reads the first table, here nothing.
		{"two tables", "<devices>", smbios("<oemStrings/><oemStrings><entry>two</entry></oemStrings>"), invalid, "/domain/sysinfo/oemStrings[2]", "twice"},
		// libvirt makes two boards.
		{"two boards", "<devices>", smbios("<baseBoard><entry name='product'>a</entry></baseBoard><baseBoard><entry name='serial'>b</entry></baseBoard>"), invalid, "/domain/sysinfo/baseBoard[2]", "twice"},
		// libvirt chooses another address, and adds root ports.
		{"address of zeros", "</devices>", "<controller type='scsi' index='0' model='virtio-scsi'><address type='pci' slot='0'/></controller></devices>", invalid, "/domain/devices/controller/address", "chooses one"},
		{"address of a function of zeros", "</devices>", "<controller type='sata' index='0'><address type='pci' slot='0' function='0x2'/></controller></devices>", invalid, "/domain/devices/controller/address", "chooses one"},
		// libvirt adds controllers 1 to 3.
		{"bus that is not there", "</devices>", "<watchdog model='i6300esb'><address type='pci' bus='0x03' slot='0x01'/></watchdog></devices>", invalid, "/domain/devices/controller", "pci 3"},
		{"drive of a controller that is not there", "</devices>", "<disk type='file'><driver type='raw'/><source file='/x'/><target dev='sda' bus='sata'/><address type='drive' controller='1' unit='0'/></disk></devices>", invalid, "/domain/devices/controller", "sata 1"},
		{"port of a controller that is not there", "</devices>", "<channel type='unix'><target type='virtio' name='a'/><address type='virtio-serial' controller='1' bus='0' port='2'/></channel></devices>", invalid, "/domain/devices/controller", "virtio-serial 1"},
		// libvirt sets multifunction of the first.
		{"two devices in one slot", "</devices>", "<watchdog model='i6300esb'><address type='pci' slot='9'/></watchdog><rng model='virtio'><backend model='random'>/dev/random</backend><address type='pci' slot='9' function='1'/></rng></devices>", invalid, "/domain/devices", "multifunction='on'"},
		{"display that is not the first", "</devices>", "<video><model type='virtio' primary='no'/></video></devices>", denied, "/domain/devices/video/model/@primary", "one of yes"},
		{"display memory of zero", "</devices>", "<video><model type='qxl' vram='0'/></video></devices>", invalid, "/domain/devices/video/model/@vram", "zero"},
		// libvirt without a security driver makes it type none.
		{"label of no model", "<devices>", "<seclabel type='dynamic'/><devices>", invalid, "/domain/seclabel/@model", "missing"},
		{"hole of a port", "</devices>", "<controller type='pci' index='1' model='pcie-root-port'><model name='pcie-root-port'/><target chassis='2' port='0x9'/><address type='pci' slot='0x03'/><pcihole64>576</pcihole64></controller></devices>", invalid, "/domain/devices/controller/pcihole64", "only a root"},
		{"no queues", "<model type='virtio'/>", "<driver queues='0'/>", invalid, "/domain/devices/interface/driver/@queues", "zero"},
		{"rate without bytes", "<backend model='random'>/dev/urandom", "<rate period='1000'/><backend model='random'>/dev/urandom", invalid, "/domain/devices/rng/rate/@bytes", "missing"},
		{"port zero", "</devices>", "<graphics type='vnc' port='0'/><video><model type='vga'/></video></devices>", invalid, "/domain/devices/graphics/@port", "no port"},
		{"block size of zero", "</devices>", disk("type='file'", "<source file='/x'/><blockio physical_block_size='0'/>"), invalid, "/domain/devices/disk[2]/blockio/@physical_block_size", "zero"},
		// libvirt makes it type file.
		{"empty drive of a device", "</devices>", disk("type='block' device='cdrom'", ""), invalid, "/domain/devices/disk[2]/@type", "type file"},
		// libvirt adds a cirrus.
		{"graphics without display", "</devices>", "<graphics type='vnc'/></devices>", invalid, "/domain/devices/video", "choose a display"},
		// libvirt writes neither port nor autoport.
		{"no port at all", "</devices>", "<graphics type='vnc' autoport='no'/><video><model type='vga'/></video></devices>", invalid, "/domain/devices/graphics/@port", "neither given"},
		{"display memory that is rounded", "</devices>", "<video><model type='qxl' ram='95'/></video></devices>", invalid, "/domain/devices/video/model/@ram", "power of two"},
	}
}

// TestEntriesHaveLibvirtsOrder: libvirt keeps no order of SMBIOS entries, so there is one for us too.
func TestEntriesHaveLibvirtsOrder(t *testing.T) {
	direct := string(readFile(t, "testdata/requests/direct.xml"))
	a, b := "<entry name='location'>yes</entry>", "<entry name='manufacturer'>M</entry>"
	var digests []string
	for _, entries := range []string{a + b, b + a} {
		c, err := Read([]byte(strings.Replace(direct, "<devices>", "<sysinfo type='smbios'><baseBoard>"+entries+"</baseBoard></sysinfo><devices>", 1)), Request)
		if err != nil {
			t.Fatal(err)
		}
		digests = append(digests, c.Digest().String())
		if c.SMBIOS.Entries[0].Name != "manufacturer" {
			t.Errorf("the entries are %v", c.SMBIOS.Entries)
		}
	}
	if digests[0] != digests[1] {
		t.Errorf("the order of entries decides the digest: %v", digests)
	}
}
