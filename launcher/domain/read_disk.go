package domain

import (
	"regexp"
	"strings"
)

// maxChain bounds the layers below a disk; maxDisks the disks.
const (
	maxChain = 16
	maxDisks = 64
)

var (
	targetName = regexp.MustCompile(`^(vd|sd|hd)[a-z]{1,2}$`)
	diskSerial = regexp.MustCompile(`^[A-Za-z0-9_.+-][A-Za-z0-9_.+ -]{0,63}$`)
)

// busPrefix is what a target's name begins with; libvirt 9 takes others too, and means nothing by them.
var busPrefix = map[string]string{"virtio": "vd", "sata": "sd", "scsi": "sd", "usb": "sd", "ide": "hd"}

func (r *reader) disk(n *node) Disk {
	d := Disk{
		Type:   r.needOf(n, "type", "file", "block"),
		Device: r.oneOf(n, "device", "disk", "cdrom"),
	}
	if d.Device == "" {
		d.Device = "disk"
	}
	r.oneOf(n, "snapshot", "no", "internal", "external", "manual") // how libvirt would snapshot: decides nothing of the guest
	src := r.one(n, "source")
	empty := d.Device == "cdrom" && (src == nil || r.running() && !r.has(src, sourceAttr(d.Type)))
	if empty && !r.running() && d.Type != "file" {
		r.malformed(n, "@type", "a drive without a medium is of type file: libvirt makes it so")
	}
	r.diskDriver(r.must(n, "driver"), &d, empty)
	switch {
	case empty && src != nil:
		r.numeral(src, "index")
	case src != nil:
		d.Source = r.source(src, d.Type)
	case !empty:
		r.malformed(n, "source", "the element is missing")
	}
	r.diskTarget(r.must(n, "target"), &d)
	d.Backing = r.chain(n, d)
	d.ReadOnly = r.one(n, "readonly") != nil || d.Device == "cdrom"
	if d.Source != "" {
		r.encryption(src, &d)
	}
	if s := r.one(n, "serial"); s != nil {
		if d.Serial = r.word(s); !diskSerial.MatchString(d.Serial) {
			r.malformed(s, "", "%.64q is no serial number", d.Serial)
		}
	}
	d.Boot = r.bootOrder(n)
	if b := r.one(n, "blockio"); b != nil {
		d.Logical, d.Physical = r.positive(b, "logical_block_size"), r.positive(b, "physical_block_size")
	}
	r.alias(n)
	d.Address = r.address(n, "pci", "drive", "usb")
	return d
}

// diskDriver reads how the image is read. An empty drive has no format; libvirt writes raw, or nothing once it runs.
func (r *reader) diskDriver(n *node, d *Disk, empty bool) {
	r.oneOf(n, "name", "qemu")
	if n != nil && !r.has(n, "type") && !(empty && r.running()) {
		r.malformed(n, "@type", "the attribute is missing: the format of an image is never guessed")
	}
	if d.Format = r.oneOf(n, "type", "raw", "qcow2"); empty {
		d.Format = "raw"
	}
	d.Cache = r.oneOf(n, "cache", "none", "writeback", "writethrough", "directsync", "unsafe")
	d.IO = r.oneOf(n, "io", "threads", "native", "io_uring")
	d.Discard = r.oneOf(n, "discard", "unmap", "ignore")
	d.Zeroes = r.oneOf(n, "detect_zeroes", "on", "off", "unmap")
	d.Error = r.oneOf(n, "error_policy", "stop", "report", "ignore", "enospace")
	d.RError = r.oneOf(n, "rerror_policy", "stop", "report", "ignore")
	d.Queues = r.positive(n, "queues")
}

// source reads the path of a disk or of a layer below it.
func (r *reader) source(n *node, kind string) string {
	name := sourceAttr(kind)
	r.need(n, name)
	if r.running() {
		r.numeral(n, "index") // libvirt's number of the node in QEMU
	}
	return r.pathAttr(n, name)
}

func (r *reader) diskTarget(n *node, d *Disk) {
	if n == nil {
		return
	}
	if d.Target = r.need(n, "dev"); !targetName.MatchString(d.Target) {
		r.malformed(n, "@dev", "%.32q is no name of a disk", d.Target)
		return
	}
	d.Bus = r.oneOf(n, "bus", "virtio", "sata", "scsi", "ide", "usb")
	if d.Bus == "" && r.request() {
		d.Bus = map[string]string{"vd": "virtio", "sd": "scsi", "hd": "ide"}[d.Target[:2]]
	}
	if want := busPrefix[d.Bus]; r.err == nil && !strings.HasPrefix(d.Target, want) {
		r.malformed(n, "@dev", "a disk on bus %q is named %sa to %szz", d.Bus, want, want)
	}
}

// chain reads the layers below the source. What is named is what QEMU opens: libvirt then asks no image for its
// backing file. A qcow2 image without <backingStore> would be asked; so a definition that libvirt has must have it,
// and in a request it means that there is none.
func (r *reader) chain(disk *node, d Disk) []Backing {
	n := r.one(disk, "backingStore")
	if n == nil && d.Format == "qcow2" && d.Source != "" && !r.request() {
		r.malformed(disk, "backingStore", "the element is missing: libvirt would take the chain from the image")
	}
	var out []Backing
	for ; n != nil; n = r.one(n, "backingStore") {
		if r.running() {
			r.numeral(n, "index")
		}
		if !r.has(n, "type") && len(n.children) == 0 {
			return out // <backingStore/>: the end, said explicitly
		}
		if d.Format != "qcow2" {
			r.notAllowed(n, "", "a raw image has no backing file")
			return out
		}
		if len(out) == maxChain {
			r.notAllowed(n, "", "the chain has more than %d layers", maxChain)
			return out
		}
		b := Backing{Type: r.needOf(n, "type", "file", "block")}
		f := r.must(n, "format")
		b.Format = r.needOf(f, "type", "raw", "qcow2")
		s := r.must(n, "source")
		if s != nil {
			b.Source = r.source(s, b.Type)
		}
		out = append(out, b)
		d.Format = b.Format
		if !hasChild(n, "backingStore") {
			r.malformed(n, "backingStore", "the element is missing: end the chain with <backingStore/>")
			return out
		}
	}
	return out
}

func hasChild(n *node, name string) bool {
	for _, c := range n.children {
		if c.name == name {
			return true
		}
	}
	return false
}

// bootOrder reads <boot order=…>; 0 means none.
func (r *reader) bootOrder(n *node) uint64 {
	b := r.one(n, "boot")
	if b == nil {
		return 0
	}
	r.need(b, "order")
	order := r.number(b, "order")
	if order == 0 && r.err == nil {
		r.malformed(b, "@order", "the order begins with 1")
	}
	return order
}

// alias drops the name that libvirt, or an engine for its own use, gave to a device.
func (r *reader) alias(n *node) {
	a := r.one(n, "alias")
	if a == nil {
		return
	}
	if name := r.need(a, "name"); !r.running() && !strings.HasPrefix(name, "ua-") {
		r.malformed(a, "@name", "%.64q is libvirt's to give; an alias of one's own begins with ua-", name)
	}
}
