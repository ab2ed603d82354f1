package launcher

import (
	"context"
	"slices"

	"troth/launcher/domain"
	"troth/proof"
)

// Grant is what a running guest was when its launch was compared: the process, what it held open, what libvirt said of it, and what the tenant
// wants when that changes. It is in the journal beside the proof, so that drift is found by a daemon that was started after the guest.
// It is alive while the book says proved.
type Grant struct {
	PID      int          `json:"pid"`
	Start    uint64       `json:"start"`
	Open     []File       `json:"open,omitempty"`   // regular files and block devices behind its descriptors
	Taints   []string     `json:"taints,omitempty"` // libvirt's, as they were
	LaunchID proof.Digest `json:"launch_id,omitzero"`
	Secret   string       `json:"secret,omitempty"`  // file of the guest's secret; empty: it was given none
	Channel  string       `json:"channel,omitempty"` // socket of its channel
	Policy   proof.Policy `json:"policy"`
}

// ofStart are libvirt's words for what the definition and qemu.conf alone make of a guest at its start. Whatever else libvirt says was done by somebody: a
// guest that stands paused answers every client's monitor command, and what that did would run on under the proof.
var ofStart = []string{
	"tainted: running with undesirable elevated privileges",
	"tainted: potentially unsafe use of host CPU passthrough",
	"tainted: use of host cdrom passthrough",
	"tainted: hypervisor feature autodetection override", // capability_filters in qemu.conf
	"tainted: use of deprecated configuration settings",
}

// reached says whether somebody reached into a guest that is only being launched.
func reached(taints []string) *proof.Refusal {
	for _, t := range taints {
		if !slices.Contains(ofStart, t) {
			return proof.Refuse(proof.ConfigurationChanged, "somebody reached into the guest behind libvirt's back while it was launched", proof.Fact{Name: "taint", Value: t})
		}
	}
	return nil
}

// newGrant keeps what was just compared, and asks last what was done to the guest meanwhile. A crash before the journal has it loses it with the proof.
func (l *Launcher) newGrant(ctx context.Context, id domain.UUID, added domain.Additions, p *Process, policy proof.Policy) (*Grant, error) {
	taints, err := l.Virt.Taints(ctx, id)
	if err != nil {
		return nil, err
	}
	if refusal := reached(taints); refusal != nil {
		return nil, refusal
	}
	return &Grant{PID: p.PID, Start: p.Start, Open: p.Open, Taints: taints, LaunchID: added.LaunchID, Secret: added.GuestSecretFile, Channel: added.ChannelPath,
		Policy: policy}, nil
}

func (g *Grant) added() domain.Additions {
	return domain.Additions{LaunchID: g.LaunchID, GuestSecretFile: g.Secret, ChannelPath: g.Channel}
}

// Holds says whether the process is the one that was granted.
func (g *Grant) Holds(pid int, start uint64) bool {
	return g != nil && g.PID == pid && g.Start == start
}

// Holds says whether a live grant is of this very process.
func (b *Book) Holds(pid int, start uint64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, d := range b.domains {
		if d.Live().Holds(pid, start) {
			return true
		}
	}
	return false
}

// Live returns the grant under which a guest of this domain runs, or nil. A broken one counts: what becomes of its guest is the tenant's
// choice, which was carried out, and no stray's.
func (d *Domain) Live() *Grant {
	if d == nil || (d.State != StateProved && d.State != StateBroken) {
		return nil
	}
	if d.Grant == nil {
		return &Grant{} // proved before grants were kept: nothing is known but that it was
	}
	return d.Grant
}
