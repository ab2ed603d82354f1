package launcher

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"testing"

	"troth/launcher/domain"
	"troth/proof"
)

// uefiXML is the guest with a firmware that keeps variables.
func uefiXML(t *testing.T) []byte {
	return bytes.Replace(guestXML(t), []byte("<kernel>"),
		[]byte("<loader readonly='yes' type='pflash'>/images/CODE.fd</loader><nvram template='/images/VARS.fd'>/images/g1.fd</nvram><kernel>"), 1)
}

// uefi puts the firmware's files where they belong, and gives a token that pins all of them.
func (w *world) uefi(change ...func(*proof.Token)) (token string) {
	w.files["/images/CODE.fd"], w.files["/images/VARS.fd"], w.files["/images/g1.fd"] = []byte("code"), []byte("variables"), []byte("variables")
	return w.token(append([]func(*proof.Token){func(t *proof.Token) {
		c, err := domain.Read(uefiXML(w.t), domain.Request)
		if err != nil {
			w.t.Fatal(err)
		}
		d, firmware := c.Digest(), proof.Digest(sha256.Sum256([]byte("code")))
		t.Pins.Configuration, t.Pins.Firmware = &d, &firmware
		t.Pins.Disks = []proof.Disk{{Target: proof.VariableStore, Mode: proof.DiskInitial, Digest: sha256.Sum256([]byte("variables"))}}
	}}, change...)...)
}

func (w *world) launchUEFI(token string) (*Outcome, *proof.Refusal) {
	launchNumber++
	return w.l.Launch(context.Background(), Request{ID: fmt.Sprint("uefi", launchNumber), Token: token, Domain: uefiXML(w.t), Action: proof.ActionStart}, quiet{})
}

// TestVariableStore: what the firmware's variables were is in the statement, of every link, and the token pins what they were at the first.
func TestVariableStore(t *testing.T) {
	w := newWorld(t)
	token := w.uefi()
	stated := func(out *Outcome, refusal *proof.Refusal) proof.StatementDisk {
		t.Helper()
		if refusal != nil {
			t.Fatal(refusal)
		}
		p, err := proof.ParseProof(out.Proof)
		if err != nil {
			t.Fatal(err)
		}
		s, err := proof.ParseStatement(p.Statement)
		if err != nil {
			t.Fatal(err)
		}
		if len(s.Disks) != 1 || s.Disks[0].Target != proof.VariableStore || s.Disks[0].Mode != proof.DiskInitial || s.Disks[0].ReadOnly || s.Disks[0].Digest == nil {
			t.Fatalf("the statement says of the variable store: %+v", s.Disks)
		}
		return s.Disks[0]
	}
	if got := stated(w.launchUEFI(token)); *got.Digest != sha256.Sum256([]byte("variables")) {
		t.Errorf("measured as %s", got.Digest)
	}
	if d := w.l.Book.Domain(guestUUID); len(d.Volumes) != 1 || d.Volumes[0].Path != "/images/g1.fd" {
		t.Errorf("the store is no volume of the domain: %+v", d.Volumes)
	}
	// The guest has written to it; what it is at the next start is told all the same.
	if refusal := w.l.Stop(t.Context(), guestUUID); refusal != nil {
		t.Fatal(refusal)
	}
	w.files["/images/g1.fd"] = []byte("boot order 2")
	if got := stated(w.launchUEFI(token)); *got.Digest != sha256.Sum256([]byte("boot order 2")) {
		t.Errorf("at the second link measured as %s", got.Digest)
	}
}

func attackVariableStore(t *testing.T) {
	for name, c := range map[string]struct {
		when string // the call at which it happens; empty: before the launch
		do   func(w *world)
		pins func(*proof.Token)
		want proof.Code
	}{
		"Secure Boot switched off before the start": {do: func(w *world) { w.files["/images/g1.fd"] = []byte("SecureBootEnable=0") }, want: proof.TokenConstraint},
		"the same between measuring and the paused guest": {when: "create", do: func(w *world) { w.files["/images/g1.fd"] = []byte("SecureBootEnable=0") },
			want: proof.ImageChanged},
		"removed, so that libvirt makes one from a template": {do: func(w *world) { delete(w.files, "/images/g1.fd") }, want: proof.ImageNotMeasured},
		"another file under its path": {when: "process", do: func(w *world) {
			w.process = func(p *Process) {
				for _, files := range [][]File{p.Named, p.Open} {
					for i := range files {
						if files[i].Path == "/images/g1.fd" {
							files[i].Ino++
						}
					}
				}
			}
		}, want: proof.ImageChanged},
		"not pinned, and the token has a secret": {pins: func(t *proof.Token) { t.Pins.Disks, t.Secret = nil, proof.NewSecret([]byte("s")) }, want: proof.TokenConstraint},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			var pins []func(*proof.Token)
			if c.pins != nil {
				pins = append(pins, c.pins)
			}
			token := w.uefi(pins...)
			switch {
			case c.when != "":
				w.strikeAt(c.when, func() { c.do(w) })
			case c.do != nil:
				c.do(w)
			}
			_, refusal := w.launchUEFI(token)
			expect(t, refusal, c.want)
			w.gone(nil)
		})
	}
}
