package virt

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"

	"libvirt.org/go/libvirt"
)

// A key is an ephemeral, private secret: libvirtd keeps it in memory, never on a disk, and gives it to QEMU and to no client. QEMU's arguments
// carry it encrypted under a key of that QEMU's own (libvirt: docs/formatsecret, "private"; docs/kbase/secureusage).

// PutKey makes or replaces a secret. usage is its one name in libvirt ("troth/…"), uuid the one that a domain's XML says. Both are put into XML as
// they are. The caller may wipe key when the call has returned. After an error no key of this call is left, or a late answer of libvirt's takes it
// away: whoever gave up waiting has removed keys before it came, and would leave it for good.
func (v *Virt) PutKey(ctx context.Context, uuid, usage string, key []byte) error {
	own := bytes.Clone(key) // the call may outlive its context
	return v.call(ctx, "put key", uuid, func(c *libvirt.Connect) error {
		defer clear(own)
		if err := ctx.Err(); err != nil {
			return err
		}
		// Whatever stands there is a leftover, or somebody's who wants to read what we put.
		if err := undefineSecret(c, uuid); err != nil {
			return err
		}
		s, err := c.SecretDefineXML(fmt.Sprintf("<secret ephemeral='yes' private='yes'><uuid>%s</uuid><usage type='volume'><volume>%s</volume></usage></secret>", uuid, usage), 0)
		if err != nil {
			return err
		}
		err = s.SetValue(own, 0)
		if err == nil {
			err = ctx.Err() // nobody waits any more
		}
		if err != nil {
			err = errors.Join(err, s.Undefine())
		}
		return errors.Join(err, s.Free())
	})
}

func undefineSecret(c *libvirt.Connect, uuid string) error {
	s, err := c.LookupSecretByUUIDString(uuid)
	if noSecret(err) {
		return nil
	}
	if err != nil {
		return err
	}
	err = s.Undefine()
	if noSecret(err) {
		err = nil
	}
	return errors.Join(err, s.Free())
}

func noSecret(err error) bool {
	var lv libvirt.Error
	return errors.As(err, &lv) && lv.Code == libvirt.ERR_NO_SECRET
}

// RemoveKeys removes every secret whose usage begins with prefix and that take does not answer nil to. What it answers is called when the secret is
// gone, so that nobody need put another one there in between.
func (v *Virt) RemoveKeys(ctx context.Context, prefix string, take func(usage string) (release func())) error {
	return v.call(ctx, "remove keys", "", func(c *libvirt.Connect) error {
		all, err := c.ListAllSecrets(0)
		if err != nil {
			return err
		}
		for i := range all {
			usage, uerr := all[i].GetUsageID()
			if uerr == nil && strings.HasPrefix(usage, prefix) {
				if release := take(usage); release != nil {
					if uerr = all[i].Undefine(); noSecret(uerr) {
						uerr = nil
					}
					release()
				}
			}
			err = errors.Join(err, uerr, all[i].Free())
		}
		return err
	})
}
