package launcher

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"troth/launcher/domain"
	"troth/proof"
)

// featured is the guest's definition, as libvirt has it, with CPU feature nx by this policy; "": without it.
func featured(t *testing.T, policy string) []byte {
	t.Helper()
	c, err := domain.Read(guestXML(t), domain.Request)
	if err != nil {
		t.Fatal(err)
	}
	if policy != "" {
		c.CPU.Features = append(c.CPU.Features, domain.CPUFeature{Policy: policy, Name: "nx"})
	}
	return domain.Emit(c, domain.Additions{})
}

func digest(t *testing.T, xml []byte) proof.Digest {
	t.Helper()
	c, err := domain.Read(xml, domain.Inactive)
	if err != nil {
		t.Fatal(err)
	}
	return c.Digest()
}

// attackFeatures: another client takes CPU features from a definition, or gives it some. What is proved is what the tenant's own digest names, and an honest
// domain with features starts.
func attackFeatures(t *testing.T) {
	none, with, other := featured(t, ""), featured(t, "disable"), featured(t, "require")
	for name, c := range map[string]struct {
		armed, started []byte // armed nil: started carries its token
		pinned         []byte
		code           proof.Code
	}{
		"armed with, started":             {armed: with, started: with, pinned: with},
		"armed with, started without":     {armed: with, started: none, pinned: with, code: proof.ConfigurationChanged},
		"armed with, started with other":  {armed: with, started: other, pinned: with, code: proof.ConfigurationChanged},
		"armed without, started with":     {armed: none, started: with, pinned: none, code: proof.ConfigurationChanged},
		"pinned with, carried":            {started: with, pinned: with},
		"pinned with, carried without":    {started: none, pinned: with, code: proof.TokenConstraint},
		"pinned with, carried with other": {started: other, pinned: with, code: proof.TokenConstraint},
		"pinned without, carried with":    {started: with, pinned: none, code: proof.TokenConstraint},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			pinned := digest(t, c.pinned)
			token := w.token(func(t *proof.Token) { t.Pins.Configuration = &pinned })
			w.inactive[guestUUID] = bytes.Replace(c.started, []byte(`v1"/>`), []byte(`v1" token="`+token+`"/>`), 1)
			if c.armed != nil {
				if _, refusal := w.l.Arm(context.Background(), Request{ID: "arm", Token: token, Domain: c.armed, Action: proof.ActionStart, Arm: true}, quiet{}); refusal != nil {
					t.Fatal(refusal)
				}
				w.inactive[guestUUID] = c.started
			}
			err := w.startOther(guestUUID)
			d := w.l.Book.Domain(guestUUID)
			if c.code != "" {
				refusal, _ := err.(*proof.Refusal) //nolint:errorlint // Prepare's own answer, not one that went through libvirt
				expect(t, refusal, c.code)
				if d != nil && d.Proof != nil {
					t.Error("there is a proof")
				}
				return
			}
			if err != nil || d.State != StateProved {
				t.Fatalf("%v: %s", err, d.State)
			}
			p, err := proof.ParseProof(d.Proof)
			if err != nil {
				t.Fatal(err)
			}
			s, err := proof.ParseStatement(p.Statement)
			if err != nil || s.Configuration != pinned {
				t.Errorf("proved %v, and the tenant's digest is %v: %v", s.Configuration, pinned, err)
			}
		})
	}
}

// TestDefinition: what the real libvirt gives the hook at prepare is the definition, whatever CPU it asks for.
func TestDefinition(t *testing.T) {
	files, err := filepath.Glob("domain/testdata/captured/*.prepare")
	if err != nil || len(files) < 6 {
		t.Fatalf("cannot find what libvirt gave: %v, %v", files, err)
	}
	for _, file := range files {
		given, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		defined, err := os.ReadFile(strings.TrimSuffix(file, "prepare") + "inactive")
		if err != nil {
			t.Fatal(err)
		}
		if c, err := definition(given); err != nil || c.Ran || c.Digest() != digest(t, defined) {
			t.Errorf("%s: read as another domain than is defined: %v", file, err)
		}
	}
}
