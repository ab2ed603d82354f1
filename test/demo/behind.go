package main

import (
	"context"
	"os"
	"path/filepath"
	"regexp"

	"troth/proof"
	"troth/test/cast"
	"troth/test/lab"
)

// virsh runs virsh on the good host, as any client of libvirt could.
func (s *story) virsh(ctx context.Context, args ...string) (string, error) {
	s.say("%s  $ virsh %s", s.good.Name, cast.Quoted(args))
	return s.good.Virsh(ctx, args...)
}

// vetoed finds what the hook says to libvirt's client.
var vetoed = regexp.MustCompile(`troth: refused: ([a-z-]+)`)

// expectVeto expects that the hook refused a start with exactly this code.
func (s *story) expectVeto(out string, err error, code proof.Code) {
	said := oneLine(out, err)
	got := vetoed.FindStringSubmatch(said)
	s.expect(err != nil && got != nil && got[1] == string(code), "libvirt is told %s: %s", code, said)
}

// registered launches and stops a domain: it stays defined, and hostd's registry knows that it is trusted.
func (s *story) registered(ctx context.Context) (d lab.Domain, err error) {
	s.quiet = true
	defer func() { s.quiet = false }()
	a, d, err := s.attempt(ctx, s.good)
	if err != nil {
		return d, err
	}
	if err := a.Err(); err != nil {
		return d, err
	}
	return d, s.stop(ctx, s.good, d.UUID)
}

// untrusted is a domain that is nobody's business.
func (s *story) untrusted(ctx context.Context) error {
	d := lab.Domain{Name: "plain", UUID: uuid(904)}
	// The lab's own directory has the same path on hosts.
	file := filepath.Join(s.lab.Guest.Outside, "plain.xml")
	if err := os.WriteFile(file, []byte(s.lab.Guest.XML(d)), 0o644); err != nil {
		return err
	}
	out, err := s.good.Virsh(ctx, "create", "--paused", file)
	s.expect(err == nil, "an untrusted domain starts as ever %s", oneLine(out, err))
	if err != nil {
		return nil
	}
	_, err = s.good.Virsh(ctx, "destroy", d.Name)
	return err
}

// behindBack starts a trusted domain with virsh.
func (s *story) behindBack(ctx context.Context) error {
	d, err := s.registered(ctx)
	if err != nil {
		return err
	}
	out, err := s.virsh(ctx, "start", d.Name)
	s.expectVeto(out, err, proof.GrantMissing)
	if err := s.untrusted(ctx); err != nil {
		return err
	}
	return s.honest(ctx, s.good)
}

// hostdDown stops hostd first.
func (s *story) hostdDown(ctx context.Context) error {
	d, err := s.registered(ctx)
	if err != nil {
		return err
	}
	if err := s.good.StopHostd(ctx); err != nil {
		return err
	}
	s.say("%s  $ systemctl stop troth-hostd", s.good.Name)
	out, err := s.virsh(ctx, "start", d.Name)
	s.expectVeto(out, err, proof.HostdUnreachable)
	if err := s.untrusted(ctx); err != nil {
		return err
	}
	if err := s.good.StartHostd(ctx); err != nil {
		return err
	}
	return s.honest(ctx, s.good)
}
