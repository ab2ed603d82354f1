// Package domain reads libvirt domain XML into a closed struct, Config, and writes it again.
//
// Config is what decides what a virtual machine runs and what it can reach. There is no list of forbidden
// elements: what Config cannot hold is refused, and the refusal names the element. So nothing reaches libvirt
// that was not read, measured and written by this package.
//
//	request XML --Read(Request)--> Config --Emit--> the only XML that libvirt ever gets
//	                                 |                     |
//	                                 |              libvirt: define, start
//	                                 |                     |
//	                               Diff <--Read(Inactive|Hook|Live)-- what libvirt gives back
//
// Promises: Read never panics and is bounded in size, depth and attributes; Read(Emit(c)) equals c in every
// mode; two Configs with one digest are the same but for their name and UUID, which a statement carries on
// its own. Each mode accepts what libvirt adds there, and no more (docs/domain-xml.md lists it).
//
// Trusts: nothing of the input. Pure: no file, no socket, no clock.
package domain

import (
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
)

// Mode says where an XML text comes from, and so what it may leave out and what libvirt may have added.
type Mode int

const (
	// Request is what an engine or a tenant wrote: may leave out what has one safe value.
	Request Mode = iota + 1
	// Inactive is libvirt's persistent definition (virDomainGetXMLDesc with VIR_DOMAIN_XML_INACTIVE).
	Inactive
	// Hook is what libvirt gives the qemu hook on standard input at prepare and start.
	Hook
	// Live is the definition of a running domain.
	Live
)

// String gives the mode's name as documents print it.
func (m Mode) String() string {
	switch m {
	case Request:
		return "request"
	case Inactive:
		return "inactive"
	case Hook:
		return "hook"
	case Live:
		return "live"
	default:
		panic("domain: unknown mode")
	}
}

// UUID is a domain's identity in libvirt. The zero UUID means that the request named none.
type UUID [16]byte

// ParseUUID reads the form that libvirt prints, 8-4-4-4-12 hexadecimal digits, in either case.
func ParseUUID(s string) (UUID, error) {
	var u UUID
	if len(s) != 36 || s[8] != '-' || s[13] != '-' || s[18] != '-' || s[23] != '-' {
		return u, fmt.Errorf("cannot read UUID %q: not of the form 8-4-4-4-12", s)
	}
	raw := strings.ReplaceAll(s, "-", "")
	if len(raw) != 32 {
		return u, fmt.Errorf("cannot read UUID %q: not of the form 8-4-4-4-12", s)
	}
	if _, err := hex.Decode(u[:], []byte(raw)); err != nil {
		return UUID{}, fmt.Errorf("cannot read UUID %q: %w", s, err)
	}
	if u == (UUID{}) {
		return u, fmt.Errorf("cannot read UUID %q: it is zero", s)
	}
	return u, nil
}

// String prints the lower-case form of libvirt.
func (u UUID) String() string {
	h := hex.EncodeToString(u[:])
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}

// IsZero says that there is no UUID.
func (u UUID) IsZero() bool { return u == UUID{} }

// Config is everything of a domain that is measured, and beside it (fields marked `config:"-"`) what identifies
// this definition and what this launcher added. Field order is the order of the canonical form.
type Config struct {
	UUID UUID   `config:"-"` // identity: in the statement, not in the digest
	Name string `config:"-"` // identity: in the statement, not in the digest

	Added Additions `config:"-"` // what was found of this launcher's own additions; never in a request
	Mark  bool      `config:"-"` // the troth:launch mark was there
	Token string    `config:"-"` // the token that the mark carries, for hook mode; never measured, since it names what is
	Mode  Mode      `config:"-"` // the mode it was read in
	Ran   bool      `config:"-"` // set by Asked: the CPU is one that libvirt made for a guest that ran

	Type          string // "kvm" or "qemu"
	Memory        uint64 // KiB
	CurrentMemory uint64 // KiB
	VCPUs         uint64
	CPU           CPU
	Machine       string // always versioned, "pc-q35-7.2"
	Boot          Boot
	Features      Features
	Clock         Clock
	OnPowerOff    string
	OnReboot      string
	OnCrash       string
	Suspend       Suspend
	SMBIOS        SMBIOS
	Security      LaunchSecurity

	Controllers []Controller
	Disks       []Disk
	Interfaces  []Interface
	Serials     []Serial
	Channels    []Channel // without troth.guest.0, which is an addition
	Inputs      []Input
	Graphics    []Graphics
	Videos      []Video
	RNGs        []RNG
	Watchdogs   []Watchdog
	Panics      []Panic

	live liveCPU // what libvirt made of the CPU of a running domain
}

// Boot is what runs first. Either Kernel (with Initrd and CommandLine) or Firmware or neither (the machine's BIOS).
type Boot struct {
	Kernel        string   // absolute path
	Initrd        string   // absolute path
	CommandLine   string   // passed as it is
	Firmware      string   // absolute path of the read-only loader
	FirmwareType  string   // "pflash" or "rom"
	Secure        string   // loader secure: "yes", "no" or ""
	NVRAM         string   // absolute path of the variable store; the guest writes to it
	NVRAMTemplate string   // absolute path of what the store is made from when it is missing
	Devices       []string // "hd", "cdrom", "network": filled when no device has a boot order
}

// CPU is asked for, not what the host makes of it.
type CPU struct {
	Mode       string // "custom", "host-model", "host-passthrough", "maximum"
	Match      string // custom only: "exact", "minimum", "strict"
	Model      string // custom only
	Fallback   string // custom only: "allow" or "forbid"
	Migratable string // host-passthrough and maximum: "on" or "off"
	Sockets    uint64 // zero: no topology asked for
	Dies       uint64
	Cores      uint64
	Threads    uint64
	Features   []CPUFeature
}

// CPUFeature is one flag asked for, by policy.
type CPUFeature struct{ Policy, Name string }

// liveCPU is libvirt's expansion of the CPU of a running domain: compared by Diff, never measured.
type liveCPU struct {
	expanded bool
	full     bool // check='full': libvirt asked QEMU
	features []CPUFeature
}

// Features are the switches of <features> that this launcher knows.
type Features struct {
	ACPI, APIC, PAE bool
	SMM             string // "on", "off" or ""
	VMPort          string // "on", "off" or ""
}

// Clock is the guest's.
type Clock struct {
	Offset string // "utc" or "localtime"
	Timers []Timer
}

// Timer is one <timer>.
type Timer struct{ Name, Present, TickPolicy string }

// Suspend is <pm>: "yes", "no" or "" for what the machine does by itself.
type Suspend struct{ ToMem, ToDisk string }

// SMBIOS is <sysinfo type='smbios'>, shown to the guest when Mode is "sysinfo".
type SMBIOS struct {
	Mode    string // "", "emulate", "sysinfo"
	Entries []SMBIOSEntry
}

// SMBIOSEntry is one string of a table: "system", "bios", "baseBoard", "chassis", "oemStrings".
type SMBIOSEntry struct{ Table, Name, Value string }

// LaunchSecurity is recorded as it was asked for.
type LaunchSecurity struct {
	Type            string // "", "sev"
	Policy          string
	CBitPos         string
	ReducedPhysBits string
	DHCert          string
	Session         string
	KernelHashes    string
}

// Address is where a device sits. The zero Address means none.
type Address struct {
	Type          string // "pci", "drive", "virtio-serial", "usb", ""
	Domain        uint64 // pci
	Bus           uint64 // pci, drive, virtio-serial, usb
	Slot          uint64 // pci
	Function      uint64 // pci
	Multifunction string // pci: "on", "off" or ""
	Controller    uint64 // drive, virtio-serial
	Target        uint64 // drive
	Unit          uint64 // drive
	Port          string // virtio-serial, usb ("1.2")
}

// Controller is one bus.
type Controller struct {
	Type      string // "usb", "sata", "ide", "scsi", "virtio-serial", "pci"
	Index     uint64
	Model     string // "" where the type has one model
	Ports     string // virtio-serial, qemu-xhci
	Vectors   string // virtio-serial
	Name      string // pci: <model name=…>
	Chassis   string // pci: <target …>
	Port      string
	ChassisNr string
	BusNr     string
	Hotplug   string
	Queues    string // scsi
	PCIHole64 string // pci roots, KiB
	Address   Address
}

// Disk is one medium, by path. Its content is measured by launcher/image, not here.
type Disk struct {
	Type     string // "file", "block"
	Device   string // "disk", "cdrom"
	Source   string // absolute path; "" for an empty cdrom
	Format   string // "raw", "qcow2"; never probed
	Target   string // "vda"
	Bus      string // "virtio", "sata", "scsi", "ide", "usb"
	ReadOnly bool
	Serial   string
	Boot     uint64 // boot order, 0 none
	Cache    string
	IO       string
	Discard  string
	Zeroes   string // detect_zeroes
	Error    string // error_policy
	RError   string // rerror_policy
	Queues   string
	Logical  string // block size shown to the guest
	Physical string
	// Encryption is "luks" for a sealed disk: QEMU decrypts it, with a key that hostd hands to libvirt under KeyID; "": none.
	Encryption string
	Backing    []Backing // explicit chain, top to bottom; empty: there is none
	Address    Address
}

// Backing is one layer below a disk's source, named with its format.
type Backing struct {
	Type   string // "file", "block"
	Source string
	Format string
}

// Interface is one network card.
type Interface struct {
	Type      string // "network", "bridge", "user"
	MAC       string // lower case; never chosen by libvirt
	Source    string // name of the network or bridge
	PortGroup string // of a network
	Device    string // host side name asked for; libvirt's own vnetN is not recorded
	Model     string // "virtio", "e1000", "e1000e"
	Driver    string // "qemu", "vhost" or ""
	Queues    string
	Filter    string // nwfilter
	Boot      uint64 // boot order, 0: none
	MTU       string
	Link      string // "up", "down" or ""
	ROM       string // "no": no option ROM
	Address   Address
}

// Serial is one UART. libvirt's <console> of the first is implied.
type Serial struct {
	Type   string // "file" (output only) or "pty"
	Path   string // file: a *.log
	Append string // file: "on", "off" or ""
	Log    string // pty: a copy of the output, a *.log
	Keep   string // pty: append of Log
	Port   uint64
}

// Channel is one virtio-serial port that the request asked for; libvirt chooses the path of its socket.
type Channel struct {
	Type    string // "unix"
	Name    string
	Address Address
}

// Input is a keyboard, mouse or tablet beside the two of PS/2 that every x86 machine of libvirt 9 has.
type Input struct {
	Type    string // "tablet", "keyboard", "mouse"
	Bus     string // "usb", "virtio"
	Address Address
}

// Graphics is a way to see and touch the guest: it makes the domain interactive.
type Graphics struct {
	Type   string // "vnc"
	Listen string // address
	Port   string // number, or "auto"
	Keymap string
}

// Video is a display adapter.
type Video struct {
	Model   string // "virtio", "vga", "bochs", "cirrus", "qxl"
	RAM     string // KiB, of the models that have it
	VRAM    string
	VRAM64  string
	VGAMem  string
	Heads   string
	Primary string
	Address Address
}

// RNG is a virtio random number generator fed by the host's /dev/urandom or /dev/random.
type RNG struct {
	Model   string // "virtio"
	Source  string // "/dev/urandom" or "/dev/random"
	Bytes   string // rate: bytes in Period
	Period  string // milliseconds
	Address Address
}

// Watchdog is one watchdog device.
type Watchdog struct {
	Model   string // "i6300esb"
	Action  string // "reset", "poweroff", "shutdown", "pause", "none"
	Address Address
}

// Panic is one panic notifier.
type Panic struct{ Model string }

// Additions are what this launcher puts into a domain beside the Config: they carry the proof to the guest and
// the launch id to the hook, and are compared apart from it.
type Additions struct {
	LaunchID        [32]byte // one-time launch id, in the mark of live XML only; zero: none
	GuestSecretFile string   // file of the fw_cfg entry opt/io.systemd.credentials/troth.guest; "": none
	ChannelPath     string   // unix socket of the virtio channel troth.guest.0; "": none
}

// Asked takes the CPU of a definition that libvirt is about to start as what was asked for: in Hook mode, at prepare, when libvirt has made nothing of it yet.
// It has of a guest whose memory it is about to load, and Ran says so.
func (c *Config) Asked() { c.CPU.Features, c.Ran, c.live = c.live.features, c.live.full, liveCPU{} }

// SetUUID gives the domain its identity when the request named none.
func (c *Config) SetUUID(u UUID) { c.UUID = u }

// Interactive says that somebody on the host or the network can see or type into the guest other than over its
// own network: graphics, a display, a console or channel that is not a plain file.
// The channel troth.guest.0 is ours and does not count.
func (c *Config) Interactive() bool {
	if len(c.Graphics) > 0 || len(c.Videos) > 0 || len(c.Channels) > 0 || len(c.Inputs) > 0 {
		return true
	}
	for _, s := range c.Serials {
		if s.Type != "file" {
			return true
		}
	}
	return false
}

// Unmeasured names what the guest boots, or takes orders from as it boots, that no measurement covers: the network, where a firmware chooses, and OEM
// strings, from which systemd in the guest takes credentials (systemd.system-credentials(7)). Firmware tries nothing that the boot order does not name.
func (c *Config) Unmeasured() []string {
	var out []string
	network := slices.Contains(c.Boot.Devices, "network") || slices.ContainsFunc(c.Interfaces, func(i Interface) bool { return i.Boot > 0 })
	if network && c.Boot.Kernel == "" {
		out = append(out, "boot from the network")
	}
	if c.SMBIOS.Mode == "sysinfo" && slices.ContainsFunc(c.SMBIOS.Entries, func(e SMBIOSEntry) bool { return e.Table == "oemStrings" }) {
		out = append(out, "OEM strings")
	}
	return out
}
