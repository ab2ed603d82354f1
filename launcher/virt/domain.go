package virt

import (
	"context"
	"errors"
	"fmt"

	"libvirt.org/go/libvirt"
)

// Domain is one line of List.
type Domain struct {
	UUID       string // lower-case, with hyphens
	Name       string // as its owner chose it: any bytes
	State      string // as of State
	Persistent bool   // has a definition that outlives the guest
}

// Version says who answered.
type Version struct {
	Libvirt    string // "9.0.0"
	Hypervisor string // "QEMU 7.2.22"
}

// on looks a domain up, lends it to f, and frees it.
func (v *Virt) on(ctx context.Context, op, uuid string, f func(*libvirt.Domain) error) error {
	return v.call(ctx, op, uuid, func(c *libvirt.Connect) error {
		d, err := c.LookupDomainByUUIDString(uuid)
		if err != nil {
			return err
		}
		return errors.Join(f(d), d.Free())
	})
}

// definition reads a persistent domain's XML. The result travels by a channel of the closure's own, so that a call
// that returns after its deadline writes nothing that a caller reads.
func (v *Virt) definition(ctx context.Context, op, uuid string, flags libvirt.DomainXMLFlags) ([]byte, error) {
	got := make(chan string, 1)
	err := v.on(ctx, op, uuid, func(d *libvirt.Domain) error {
		persistent, err := d.IsPersistent()
		if err != nil {
			return err
		}
		if !persistent {
			return state("domain has no persistent definition")
		}
		s, err := d.GetXMLDesc(flags)
		got <- s
		return err
	})
	if err != nil {
		return nil, err
	}
	return []byte(<-got), nil
}

// state is an error as libvirt itself makes it for what a domain's state does not allow.
func state(why string) error {
	return libvirt.Error{Code: libvirt.ERR_OPERATION_INVALID, Domain: libvirt.FROM_QEMU, Message: why}
}

// InactiveXML reads the persistent definition, without passwords. ErrNoDomain if there is no such domain; ErrState if
// a guest runs that has no definition: libvirt would answer with the guest's.
func (v *Virt) InactiveXML(ctx context.Context, uuid string) ([]byte, error) {
	return v.definition(ctx, "read definition of", uuid, libvirt.DOMAIN_XML_INACTIVE)
}

// Definition reads the persistent definition with its passwords, so that Define brings back exactly what was
// there. It is for that alone: never log it, never publish it.
func (v *Virt) Definition(ctx context.Context, uuid string) ([]byte, error) {
	return v.definition(ctx, "save definition of", uuid, libvirt.DOMAIN_XML_INACTIVE|libvirt.DOMAIN_XML_SECURE)
}

// LiveXML reads what runs, without passwords. ErrState if the domain is not active: libvirt would answer with the
// inactive definition.
func (v *Virt) LiveXML(ctx context.Context, uuid string) ([]byte, error) {
	got := make(chan string, 1)
	err := v.on(ctx, "read live XML of", uuid, func(d *libvirt.Domain) error {
		// Active both before and after: so what was read between is a running guest's.
		if err := mustBeActive(d); err != nil {
			return err
		}
		s, err := d.GetXMLDesc(0)
		if err != nil {
			return err
		}
		got <- s
		return mustBeActive(d)
	})
	if err != nil {
		return nil, err
	}
	return []byte(<-got), nil
}

func mustBeActive(d *libvirt.Domain) error {
	active, err := d.IsActive()
	if err == nil && !active {
		return state("domain is not running")
	}
	return err
}

// Define makes xml the persistent definition; a running guest goes on unchanged. Of definitions of one domain the later call is the later one,
// also if libvirt answers the earlier so late that its caller has given up: a definition that was put back is not covered by one that lands after it.
func (v *Virt) Define(ctx context.Context, xml []byte) error {
	uuid := uuidIn(xml)
	return v.call(ctx, "define", uuid, func(c *libvirt.Connect) error {
		free, err := v.turn(ctx, uuid)
		if err != nil {
			return err
		}
		defer free()
		d, err := c.DomainDefineXMLFlags(string(xml), 0)
		if err != nil {
			return err
		}
		return d.Free()
	})
}

// Undefine removes the persistent definition and keeps the firmware's variables. ErrState while a managed save
// image stands: that is somebody's guest.
func (v *Virt) Undefine(ctx context.Context, uuid string) error {
	return v.call(ctx, "undefine", uuid, func(c *libvirt.Connect) error {
		free, err := v.turn(ctx, uuid)
		if err != nil {
			return err
		}
		defer free()
		d, err := c.LookupDomainByUUIDString(uuid) // only now: an earlier definition may just have made it
		if err != nil {
			return err
		}
		return errors.Join(d.UndefineFlags(libvirt.DOMAIN_UNDEFINE_KEEP_NVRAM), d.Free())
	})
}

// CreatePaused starts a guest from xml with its CPUs stopped (virDomainCreateXML, VIR_DOMAIN_START_PAUSED). Over a
// domain that is defined already, xml becomes the live XML alone and the definition stays: so a launch id that only
// xml carries is seen by the hook and is gone with the guest. ErrDenied if the hook refused; ErrState if the domain
// runs already. After ErrNotReturned a guest may appear later: Destroy it.
func (v *Virt) CreatePaused(ctx context.Context, xml []byte) error {
	return v.call(ctx, "create", "", func(c *libvirt.Connect) error {
		d, err := c.DomainCreateXML(string(xml), libvirt.DOMAIN_START_PAUSED)
		if err != nil {
			return err
		}
		return d.Free()
	})
}

// Save writes a running domain's memory to a file and ends it. libvirt makes the file, readable by its owner alone.
func (v *Virt) Save(ctx context.Context, uuid, path string) error {
	return v.on(ctx, "save", uuid, func(d *libvirt.Domain) error { return d.SaveFlags(path, "", 0) })
}

// RestorePaused starts a domain from a save image with its CPUs stopped, as xml says instead of the image's own.
func (v *Virt) RestorePaused(ctx context.Context, path string, xml []byte) error {
	return v.call(ctx, "restore", "", func(c *libvirt.Connect) error {
		return c.DomainRestoreFlags(path, string(xml), libvirt.DOMAIN_SAVE_PAUSED)
	})
}

// Resume lets a paused guest run.
func (v *Virt) Resume(ctx context.Context, uuid string) error {
	return v.on(ctx, "resume", uuid, (*libvirt.Domain).Resume)
}

// Pause stops a guest's CPUs.
func (v *Virt) Pause(ctx context.Context, uuid string) error {
	return v.on(ctx, "pause", uuid, (*libvirt.Domain).Suspend)
}

// Destroy ends the guest at once. Nil if none runs; ErrNoDomain if libvirt knows no such domain.
func (v *Virt) Destroy(ctx context.Context, uuid string) error {
	return v.on(ctx, "destroy", uuid, func(d *libvirt.Domain) error {
		err := d.Destroy()
		var lv libvirt.Error
		if errors.As(err, &lv) && lv.Code == libvirt.ERR_OPERATION_INVALID {
			if active, activeErr := d.IsActive(); activeErr == nil && !active {
				return nil
			}
		}
		return err
	})
}

// Shutdown asks the guest to end; it may refuse or ignore that.
func (v *Virt) Shutdown(ctx context.Context, uuid string) error {
	return v.on(ctx, "shut down", uuid, (*libvirt.Domain).Shutdown)
}

// Autostart says whether libvirt starts the domain when the host boots. ErrNoDomain if libvirt knows no such domain.
func (v *Virt) Autostart(ctx context.Context, uuid string) (bool, error) {
	got := make(chan bool, 1)
	err := v.on(ctx, "read autostart of", uuid, func(d *libvirt.Domain) error {
		due, err := d.GetAutostart()
		got <- due
		return err
	})
	if err != nil {
		return false, err
	}
	return <-got, nil
}

// State is one of: "none", "running", "blocked", "paused", "shutdown" (ending), "shutoff", "crashed",
// "pmsuspended". ErrNoDomain if libvirt knows no such domain.
func (v *Virt) State(ctx context.Context, uuid string) (string, error) {
	got := make(chan libvirt.DomainState, 1)
	err := v.on(ctx, "read state of", uuid, func(d *libvirt.Domain) error {
		s, _, err := d.GetState()
		got <- s
		return err
	})
	if err != nil {
		return "", err
	}
	return stateName(<-got), nil
}

func stateName(s libvirt.DomainState) string {
	switch s {
	case libvirt.DOMAIN_NOSTATE:
		return "none"
	case libvirt.DOMAIN_RUNNING:
		return "running"
	case libvirt.DOMAIN_BLOCKED:
		return "blocked"
	case libvirt.DOMAIN_PAUSED:
		return "paused"
	case libvirt.DOMAIN_SHUTDOWN:
		return "shutdown"
	case libvirt.DOMAIN_SHUTOFF:
		return "shutoff"
	case libvirt.DOMAIN_CRASHED:
		return "crashed"
	case libvirt.DOMAIN_PMSUSPENDED:
		return "pmsuspended"
	}
	return fmt.Sprintf("unknown(%d)", s)
}

// List gives every domain that libvirt knows, in no order. A domain that vanishes while it is listed is left out.
func (v *Virt) List(ctx context.Context) ([]Domain, error) {
	got := make(chan []Domain, 1)
	err := v.call(ctx, "list", "", func(c *libvirt.Connect) error {
		all, err := c.ListAllDomains(0)
		if err != nil {
			return err
		}
		list := make([]Domain, 0, len(all))
		for i := range all {
			d, descErr := describe(&all[i])
			var lv libvirt.Error
			switch {
			case descErr == nil:
				list = append(list, d)
			case errors.As(descErr, &lv) && lv.Code == libvirt.ERR_NO_DOMAIN:
			default:
				err = errors.Join(err, descErr)
			}
			err = errors.Join(err, all[i].Free())
		}
		got <- list
		return err
	})
	if err != nil {
		return nil, err
	}
	return <-got, nil
}

func describe(d *libvirt.Domain) (Domain, error) {
	uuid, err := d.GetUUIDString()
	if err != nil {
		return Domain{}, err
	}
	name, err := d.GetName()
	if err != nil {
		return Domain{}, err
	}
	state, _, err := d.GetState()
	if err != nil {
		return Domain{}, err
	}
	persistent, err := d.IsPersistent()
	if err != nil {
		return Domain{}, err
	}
	return Domain{UUID: uuid, Name: name, State: stateName(state), Persistent: persistent}, nil
}

// Version asks the daemon and its hypervisor.
func (v *Virt) Version(ctx context.Context) (Version, error) {
	got := make(chan Version, 1)
	err := v.call(ctx, "read version", "", func(c *libvirt.Connect) error {
		lib, err := c.GetLibVersion()
		if err != nil {
			return err
		}
		hv, err := c.GetVersion()
		if err != nil {
			return err
		}
		kind, err := c.GetType()
		got <- Version{Libvirt: dotted(lib), Hypervisor: kind + " " + dotted(hv)}
		return err
	})
	if err != nil {
		return Version{}, err
	}
	return <-got, nil
}

// dotted writes libvirt's major*1,000,000 + minor*1,000 + release.
func dotted(n uint32) string { return fmt.Sprintf("%d.%d.%d", n/1_000_000, n/1_000%1_000, n%1_000) }
