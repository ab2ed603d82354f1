package launcher

import (
	"context"
	"fmt"

	"troth/launcher/domain"
	"troth/proof"
)

// The key of a sealed disk is with libvirt only while a start needs it: put just before, removed just after, by whoever starts the domain. QEMU has
// opened the volume by the time the start returns. Each of the functions may be repeated.

// putKeys hands libvirt the keys of the domain's sealed disks. A crash behind it leaves keys in libvirt's memory: recovery removes them, since
// the launch has no end in the journal.
func (l *Launcher) putKeys(ctx context.Context, c *domain.Config, secret proof.Secret) error {
	for _, target := range c.Sealed() {
		key := proof.DiskKey(secret, target)
		err := l.Keys.PutKey(ctx, c.UUID, target, key)
		key.Forget()
		if err != nil {
			return fmt.Errorf("cannot hand over the key of disk %s: %w", target, err)
		}
	}
	return nil
}

// removeKeys takes them back, whatever became of ctx.
func (l *Launcher) removeKeys(ctx context.Context, c *domain.Config) error {
	if len(c.Sealed()) == 0 {
		return nil
	}
	ctx, cancel := l.undoing(ctx)
	defer cancel()
	if err := l.Keys.RemoveKeys(ctx, c.UUID); err != nil {
		return fmt.Errorf("cannot take the keys of sealed disks back: %w", err)
	}
	return nil
}

// removeKeysOf is removeKeys for a launch of which only the request is left. One that cannot be read any more may have had sealed disks.
func (l *Launcher) removeKeysOf(ctx context.Context, id domain.UUID, request []byte) error {
	c, err := domain.Read(request, domain.Inactive)
	if err == nil && len(c.Sealed()) == 0 {
		return nil
	}
	return l.Keys.RemoveKeys(ctx, id)
}

// SweepKeys removes what a launch of another time has left with libvirt: one that a crash ended, or one whose key libvirt took after everybody had
// given up waiting, and removed what was there then. A domain is claimed while its key goes, so that none is taken from under a launch that begins.
func (l *Launcher) SweepKeys(ctx context.Context) error {
	return l.Keys.SweepKeys(ctx, func(id domain.UUID) func() {
		release, refusal := l.claim(id)
		if refusal != nil {
			return nil
		}
		return release
	})
}

// unsealable: a key is handed over while nobody waits in a hook, so only to a launch of our own (PROTOCOL.md §6, hook mode).
func unsealable(c *domain.Config) *proof.Refusal {
	if sealed := c.Sealed(); len(sealed) > 0 {
		return proof.Refuse(proof.ConfigurationNotAllowed, "a domain with a sealed disk is launched through hostd alone: its key cannot be handed over while libvirt waits for the hook",
			proof.Fact{Name: "disk", Value: sealed[0]})
	}
	return nil
}

// keysReleased: a sealed disk opens only with what the token's own secret gives.
func keysReleased(f *Facts) *proof.Refusal {
	if f.Released == nil || f.Config == nil {
		return nil
	}
	sealed := f.Config.Sealed()
	if len(sealed) > 0 && (f.Released.Secret.IsZero() || !f.Released.GuestAllowed) {
		return proof.Refuse(proof.TokenConstraint, "the domain has a sealed disk, and the token has no secret that opens it",
			proof.Fact{Name: "disk", Value: sealed[0]})
	}
	return nil
}
