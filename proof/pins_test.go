package proof

import (
	"errors"
	"slices"
	"strings"
	"testing"
)

// attackPins: a token with a secret boots nothing that the engine chose.
func attackPins(t *testing.T) {
	key := testTokenKey(t, "k")
	for name, spoil := range map[string]func(*Pins){
		"no initrd": func(p *Pins) { p.Initrd = nil }, "no kernel": func(p *Pins) { p.Kernel = nil }, "no command line": func(p *Pins) { p.CommandLine = nil },
		"interactive": func(p *Pins) { p.Interactive = "" },
		"firmware without a disk": func(p *Pins) {
			*p = Pins{Firmware: p.Kernel, Interactive: InteractiveNo}
		},
	} {
		tok := sceneToken()
		tok.Secret = NewSecret([]byte("disk key"))
		spoil(tok.Pins)
		if _, err := NewToken(tok, key.Public()); err == nil || !strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: a token with a secret was made: %v", name, err)
		}
		if tok.GuestAllowed() {
			t.Errorf("%s: the guest may get something", name)
		}
	}
	tok := sceneToken()
	tok.Pins, tok.Secret = nil, NewSecret([]byte("disk key"))
	if _, err := NewToken(tok, key.Public()); err == nil {
		t.Error("a token with a secret and no pins was made")
	}

	for name, c := range map[string]struct {
		spoil func(*Statement)
		code  Code
		fact  string
	}{
		"engine's initrd":   {func(s *Statement) { s.Measurements.Initrd = ptr(testDigest("engine's")) }, TokenConstraint, "initrd"},
		"engine's kernel":   {func(s *Statement) { s.Measurements.Kernel = ptr(testDigest("engine's")) }, TokenConstraint, "kernel"},
		"init=/bin/sh":      {func(s *Statement) { s.Measurements.CommandLine = ptr(testDigest("init=/bin/sh")) }, TokenConstraint, "command_line"},
		"engine's firmware": {func(s *Statement) { s.Measurements.Firmware = ptr(testDigest("engine's")) }, TokenConstraint, "firmware"},
		"engine's disk":     {func(s *Statement) { s.Disks[0].Digest = ptr(testDigest("engine's")) }, TokenConstraint, "disk vda"},
		"another disk": {func(s *Statement) {
			s.Disks = append(s.Disks, StatementDisk{"vdb", DiskUnpinned, false, nil, nil})
		}, TokenConstraint, "disk vdb"},
		"disk of another mode": {func(s *Statement) { s.Disks[0].Mode = DiskInitial }, TokenConstraint, "disk vda mode"},
		"no disk":              {func(s *Statement) { s.Disks = nil }, TokenConstraint, "disk vda"},
		"a console":            {func(s *Statement) { s.Interactive = InteractiveYes }, TokenConstraint, "interactive"},
		"no measured kernel":   {func(s *Statement) { s.Measurements.Kernel = nil }, ImageNotMeasured, "kernel"},
		"no measured disk":     {func(s *Statement) { s.Disks[0].Digest = nil }, ImageNotMeasured, "disk vda"},
		"no kernel, a console": {func(s *Statement) { s.Measurements.Kernel, s.Interactive = nil, InteractiveYes }, TokenConstraint, "kernel"},
	} {
		s := newScene(t)
		st := s.statement(t, "verdict")
		if r := scenePins().Judge(st); r != nil {
			t.Fatal(r)
		}
		c.spoil(st)
		r := scenePins().Judge(st)
		if r == nil || r.Code != c.code || !slices.ContainsFunc(r.Facts, func(f Fact) bool { return f.Name == c.fact }) {
			t.Errorf("%s: got %v, want %s about %s", name, r, c.code, c.fact)
		}
		s.onStatement = c.spoil // the same, found by the tenant in a genuine proof
		g := must[*Genuine](t)(Verify(s.make(t), s.trust(t), s.key()))
		var unwanted *Unwanted
		if err := Validate(g, WantOf(g.Key)); !errors.As(err, &unwanted) || unwanted.Name != "pins" {
			t.Errorf("%s: Validate says %v", name, err)
		}
	}
}
