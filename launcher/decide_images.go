package launcher

import (
	"fmt"

	"troth/proof"
)

// everythingMeasured: whatever the configuration boots or reads has a digest.
func everythingMeasured(f *Facts) *proof.Refusal {
	if f.Config == nil || f.Measured == nil {
		return nil
	}
	b, m := f.Config.Boot, f.Measured
	if b.Firmware != "" && m.Firmware == nil {
		return unmeasured(b.Firmware)
	}
	if b.Kernel != "" && (m.Kernel == nil || m.CommandLine == nil) {
		return unmeasured(b.Kernel)
	}
	if b.Initrd != "" && m.Initrd == nil {
		return unmeasured(b.Initrd)
	}
	found := map[string]proof.StatementDisk{}
	for _, d := range m.Disks {
		found[d.Target] = d
	}
	if b.NVRAM != "" && found[proof.VariableStore].Digest == nil {
		return unmeasured(b.NVRAM)
	}
	for _, d := range f.Config.Disks {
		if d.Source != "" && (d.ReadOnly || d.Encryption != "") && found[d.Target].Digest == nil {
			return unmeasured(d.Source)
		}
		if len(d.Backing) > 0 && !d.ReadOnly && found[d.Target].Backing == nil {
			return unmeasured(d.Backing[0].Source)
		}
	}
	return nil
}

// imagesSame: the statement says what was measured, and no image changed since.
func imagesSame(f *Facts) *proof.Refusal {
	if len(f.Recheck) > 0 {
		return proof.First(f.Recheck)
	}
	if f.Measured == nil || f.Statement == nil {
		return nil
	}
	m, s := f.Measured, f.Statement.Measurements
	for _, p := range []struct {
		name      string
		want, got *proof.Digest
	}{{"firmware", m.Firmware, s.Firmware}, {"kernel", m.Kernel, s.Kernel}, {"initrd", m.Initrd, s.Initrd}, {"command line", m.CommandLine, s.CommandLine}} {
		if want, got := text(p.want), text(p.got); want != got {
			return proof.Refuse(proof.ImageChanged, "the statement says another digest than was measured", proof.Fact{Name: p.name, Want: want, Got: got})
		}
	}
	if want, got := disks(m.Disks), disks(f.Statement.Disks); want != got {
		return proof.Refuse(proof.ImageChanged, "the statement says other disks than were measured", proof.Fact{Name: "disks", Want: want, Got: got})
	}
	return nil
}

// ofNobodyElse: nothing that the domain boots, reads or writes belongs to another registered domain, whose guest would find it changed, or told.
func ofNobodyElse(f *Facts) *proof.Refusal {
	if f.Ownership == nil {
		return nil // complete refuses it
	}
	return taken(f.Ownership.Files, f.Ownership.Others)
}

// taken refuses a file that belongs to another domain, by its path or by what it is.
func taken(files []Volume, others []Owned) *proof.Refusal {
	for _, o := range others {
		for _, f := range files {
			if f.is(o.Volume) {
				r := proof.Refuse(proof.ConfigurationNotAllowed, "a file of this domain belongs to another registered domain alone",
					proof.Fact{Name: "path", Value: f.Path}, proof.Fact{Name: "belongs to", Value: o.UUID},
					proof.Fact{Name: "as", Value: fmt.Sprintf("%s (device %d inode %d)", o.Path, o.Dev, o.Ino)})
				r.Remedy = "Give the domain a file of its own, or delete the other domain with `troth domain delete`."
				return r
			}
		}
	}
	return nil
}

// openNowhereElse: what becomes the domain's alone is open in no other guest, which would be a stray from then on, and ended for it.
func openNowhereElse(f *Facts) *proof.Refusal {
	if f.Ownership == nil || len(f.Ownership.Holders) == 0 {
		return nil
	}
	r := proof.Refuse(proof.ConfigurationNotAllowed, "a file that would become this domain's alone is open in another guest")
	for _, h := range f.Ownership.Holders[:min(len(f.Ownership.Holders), maxTold)] {
		r.Facts = append(r.Facts, proof.Fact{Name: "path", Value: h.Path}, proof.Fact{Name: "open in", Value: h.String()})
	}
	r.Remedy = "Stop that guest, or give the domain a file of its own: only what it does not write to can be shared."
	return r
}
