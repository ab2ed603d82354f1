package domain

import "troth/proof"

// KeyID is the UUID of the libvirt secret that holds the key of a sealed disk. It is made of the domain's UUID and the disk's target, so that no
// request can point QEMU at a secret of somebody else.
func KeyID(domain UUID, target string) UUID {
	h := proof.Hash(proof.LabelDiskSecret, domain[:], []byte(target))
	var id UUID
	copy(id[:], h[:])
	id[6], id[8] = id[6]&0x0f|0x80, id[8]&0x3f|0x80 // RFC 9562, version 8
	return id
}

// Sealed lists the targets of the sealed disks.
func (c *Config) Sealed() []string {
	var all []string
	for _, d := range c.Disks {
		if d.Encryption != "" {
			all = append(all, d.Target)
		}
	}
	return all
}

// encryption reads <encryption> of a disk's source. A request leaves the secret out; one that is named is ours (keys).
func (r *reader) encryption(source *node, d *Disk) {
	n := r.one(source, "encryption")
	if n == nil {
		return
	}
	d.Encryption = r.needOf(n, "format", "luks")
	r.oneOf(n, "engine", "qemu")
	if d.Format != "raw" || d.Device != "disk" || d.ReadOnly {
		r.notAllowed(n, "", "a sealed disk is a raw disk that the guest may write to")
	}
	if r.request() && !hasChild(n, "secret") {
		return
	}
	s := r.must(n, "secret")
	r.needOf(s, "type", "passphrase")
	id, err := ParseUUID(r.need(s, "uuid"))
	if err != nil && r.err == nil {
		r.malformed(s, "@uuid", "%v", err)
	}
	if r.secrets == nil {
		r.secrets = map[string]UUID{}
	}
	r.secrets[d.Target] = id
}

// keys holds a definition to the secrets that are ours.
func (r *reader) keys(root *node, c *Config) {
	for _, d := range c.Disks {
		if id, ok := r.secrets[d.Target]; ok && id != KeyID(c.UUID, d.Target) && r.err == nil {
			r.notAllowed(root, "devices", "disk %s takes its key from a secret that is not hostd's: leave the secret out", d.Target)
		}
	}
}

// encryption writes where the key of a sealed disk is, as libvirt writes it.
func (w *writer) encryption(domain UUID, d Disk) {
	w.open("encryption", at{"format", d.Encryption}, at{"engine", "qemu"})
	w.empty("secret", at{"type", "passphrase"}, at{"uuid", KeyID(domain, d.Target).String()})
	w.close("encryption")
}
