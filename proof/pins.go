package proof

import (
	"fmt"
	"slices"
)

// Modes of a disk: in a pin, what the tenant asks; in a statement, what was done.
const (
	DiskImmutable = "immutable" // the content's digest, at every link
	DiskInitial   = "initial"   // the content's digest at the first link only
	DiskSealed    = "sealed"    // the LUKS header's digest; the guest's secret opens it
	DiskUnpinned  = "unpinned"  // statement only: the token says nothing about this disk
)

// InteractiveNo: no graphics and no console input. InteractiveYes stands in statements only.
const (
	InteractiveNo  = "no"
	InteractiveYes = "yes"
)

// Disk pins one disk by its target (vda, sda).
type Disk struct {
	Target  string  `json:"target"`
	Mode    string  `json:"mode"` // immutable | initial | sealed
	Digest  Digest  `json:"digest"`
	Backing *Digest `json:"backing,omitempty"` // initial only: of the layers below, at every link
}

// Pins say what may run with a token's nonce; an absent pin says nothing.
type Pins struct {
	Domain        string  `json:"domain,omitempty"` // UUID
	Configuration *Digest `json:"configuration,omitempty"`
	Firmware      *Digest `json:"firmware,omitempty"`
	Kernel        *Digest `json:"kernel,omitempty"`
	Initrd        *Digest `json:"initrd,omitempty"`
	CommandLine   *Digest `json:"command_line,omitempty"`
	Disks         []Disk  `json:"disks,omitempty"`
	Interactive   string  `json:"interactive,omitempty"` // "no" or absent
}

// Complete reports whether the pins leave nothing of what the guest boots open:
// kernel, initrd and command line, or firmware with at least one disk beside the variable store; and no
// interactive device. That every disk is pinned is judged against the statement.
func (p *Pins) Complete() bool { return len(p.Lacks()) == 0 }

// Lacks names the pins that Complete misses.
func (p *Pins) Lacks() []string {
	var lacks []string
	need := func(name string, there bool) {
		if !there {
			lacks = append(lacks, "pins."+name)
		}
	}
	if p.Firmware != nil && p.Kernel == nil && p.Initrd == nil && p.CommandLine == nil {
		need("disks", p.Disk())
	} else {
		need("kernel", p.Kernel != nil)
		need("initrd", p.Initrd != nil)
		need("command_line", p.CommandLine != nil)
	}
	need("interactive", p.Interactive == InteractiveNo)
	return lacks
}

// Disk reports whether a disk is pinned that a guest can boot from. The variable store is none: a firmware that finds no disk boots from the network.
func (p *Pins) Disk() bool {
	return slices.ContainsFunc(p.Disks, func(d Disk) bool { return d.Target != VariableStore })
}

func (p *Pins) check() error {
	if p.Domain != "" {
		if err := checkUUID("pins.domain", p.Domain); err != nil {
			return err
		}
	}
	if p.Interactive != "" {
		if err := checkOneOf("pins.interactive", p.Interactive, InteractiveNo); err != nil {
			return err
		}
	}
	if len(p.Disks) > MaxDisks {
		return fmt.Errorf("pins.disks: more than %d", MaxDisks)
	}
	seen := map[string]bool{}
	for i, d := range p.Disks {
		field := fmt.Sprintf("pins.disks[%d]", i)
		if err := firstError(checkID(field+".target", d.Target), checkOneOf(field+".mode", d.Mode, DiskImmutable, DiskInitial, DiskSealed)); err != nil {
			return err
		}
		if d.Backing != nil && d.Mode != DiskInitial {
			return fmt.Errorf("%s.backing: only a disk of mode %s has one", field, DiskInitial)
		}
		if seen[d.Target] {
			return fmt.Errorf("%s.target: %q stands twice", field, d.Target)
		}
		seen[d.Target] = true
	}
	return nil
}

// Judge compares a statement with the pins. It returns nil, or the refusal
// token-constraint or image-not-measured with one fact for each difference.
func (p *Pins) Judge(s *Statement) *Refusal {
	var j judge
	if p.Domain != "" {
		j.equal("domain", p.Domain, s.UUID)
	}
	if p.Configuration != nil {
		j.equal("configuration", p.Configuration.String(), s.Configuration.String())
	}
	complete := p.Complete()
	m := s.Measurements
	j.image("firmware", p.Firmware, m.Firmware, complete)
	j.image("kernel", p.Kernel, m.Kernel, complete)
	j.image("initrd", p.Initrd, m.Initrd, complete)
	j.image("command_line", p.CommandLine, m.CommandLine, complete)
	if p.Interactive != "" {
		j.equal("interactive", p.Interactive, s.Interactive)
	}
	j.disks(p.Disks, s, complete)
	if len(j.facts) == 0 {
		return nil
	}
	if j.missing == len(j.facts) {
		return Refuse(ImageNotMeasured, "what the token pins was not measured", j.facts...)
	}
	return Refuse(TokenConstraint, "what is to run differs from what the token pins", j.facts...)
}

type judge struct {
	facts   []Fact
	missing int // facts that say: pinned, and not measured
}

func (j *judge) equal(name, want, got string) {
	if want != got {
		j.facts = append(j.facts, Fact{Name: name, Want: want, Got: got})
	}
}

// image compares one measurement. Complete pins refuse what is there and not
// pinned; a pinned image that has no measurement is told by its own code.
func (j *judge) image(name string, want, got *Digest, complete bool) {
	switch {
	case want == nil && got == nil:
	case want == nil:
		if complete {
			j.equal(name, "", got.String())
		}
	case got == nil:
		j.missing++
		j.equal(name, want.String(), "")
	default:
		j.equal(name, want.String(), got.String())
	}
}

// disks compares the pinned disks with those of the statement, in both
// directions if anything is pinned about them or the pins are complete.
func (j *judge) disks(pins []Disk, s *Statement, complete bool) {
	pinned := map[string]Disk{}
	for _, d := range pins {
		pinned[d.Target] = d
	}
	for _, d := range s.Disks {
		p, ok := pinned[d.Target]
		delete(pinned, d.Target)
		name := "disk " + d.Target
		switch {
		case !ok && (complete || len(pins) > 0):
			j.equal(name, "", "a disk that the token does not pin")
		case !ok:
		case p.Mode != d.Mode:
			j.equal(name+" mode", p.Mode, d.Mode)
		case p.Mode == DiskInitial && s.Previous != nil:
			// The guest has written to it since the first link; what it was then is in that link. It never wrote to what lies below.
			j.image(name+" backing", p.Backing, d.Backing, true)
		default:
			j.image(name, &p.Digest, d.Digest, true)
			j.image(name+" backing", p.Backing, d.Backing, true)
		}
	}
	for _, p := range pins {
		if _, left := pinned[p.Target]; left {
			j.equal("disk "+p.Target, p.Digest.String(), "no such disk")
		}
	}
}
