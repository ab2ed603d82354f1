package main

import (
	"context"
	"strings"

	"troth/launcher/domain"
	"troth/proof"
)

// keyUsage begins the usage of every secret that holds the key of a sealed disk: troth/UUID/TARGET.
const keyUsage = "troth/"

// PutKey implements launcher.Keys.
func (l *libvirtd) PutKey(ctx context.Context, id domain.UUID, target string, key proof.Secret) error {
	c, err := l.connect(ctx)
	if err != nil {
		return err
	}
	return c.PutKey(ctx, domain.KeyID(id, target).String(), keyUsage+id.String()+"/"+target, key.Reveal())
}

// RemoveKeys implements launcher.Keys.
func (l *libvirtd) RemoveKeys(ctx context.Context, id domain.UUID) error {
	c, err := l.connect(ctx)
	if err != nil {
		return err
	}
	return c.RemoveKeys(ctx, keyUsage+id.String()+"/", func(string) func() { return func() {} })
}

// SweepKeys implements launcher.Keys.
func (l *libvirtd) SweepKeys(ctx context.Context, take func(domain.UUID) (release func())) error {
	c, err := l.connect(ctx)
	if err != nil {
		return err
	}
	return c.RemoveKeys(ctx, keyUsage, func(usage string) func() {
		text, _, _ := strings.Cut(strings.TrimPrefix(usage, keyUsage), "/")
		id, err := domain.ParseUUID(text)
		if err != nil {
			return func() {} // of no domain
		}
		return take(id)
	})
}
