package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"troth/proof"
	"troth/test/cast"
	"troth/test/lab"
	"troth/test/lab/txt"
)

// cheats tells every way to cheat that the story knows. Each asserts the exact code and facts, is undone, and ends with an honest launch.
func (s *story) cheats(ctx context.Context, only string) error {
	for _, c := range []struct {
		name, title string
		tell        func(context.Context) error
	}{
		{"no-launch", "Cheat: the host starts without a dynamic launch", s.noDynamicLaunch},
		{"pcr18", "Cheat: a second launch, of another kernel: PCR 18 differs", s.otherKernelMeasured},
		{"relaunch", "Cheat: a second, identical launch: the same PCRs, another boot state", s.identicalRelaunch},
		{"held", "Cheat: the evidence is held back until the verdict has expired", s.evidenceHeld},
		{"foreign", "Cheat: the host is given another host's verdict", s.foreignVerdict},
		{"kernel", "Cheat: another kernel lies where the tenant's should be", s.kernelBefore},
		{"swap", "Cheat: the kernel is swapped after it was measured", s.kernelAfter},
		{"initrd", "Cheat: the engine boots its own initrd with the tenant's token", s.enginesInitrd},
		{"twice", "Cheat: the token is used again, on a second host", s.secondHost},
		{"virsh", "Cheat: the domain is started behind hostd's back", s.behindBack},
		{"down", "Cheat: hostd is stopped, then the domain is started", s.hostdDown},
		{"redefined", "Cheat: an armed domain is given another command line", s.redefined},
		{"stray", "Cheat: QEMU alone runs the domain, where no hook is asked", s.stray},
		{"proof", "Cheat: the proof is changed by one byte; another nonce is claimed", s.forgedProof},
	} {
		if only != "" && only != c.name {
			continue
		}
		s.chapter(c.title)
		if err := c.tell(ctx); err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
	}
	return nil
}

// noDynamicLaunch resets the platform and leaves out the measured launch.
func (s *story) noDynamicLaunch(ctx context.Context) error {
	if err := s.attack(ctx, "a release key of the last boot is worth nothing in this one", s.good.Reset); err != nil {
		return err
	}
	s.say("after the host has attested anew:")
	if err := s.refusedUntil(ctx, s.good, proof.NoDynamicLaunch); err != nil {
		return err
	}
	if _, err := s.good.TXTBoot(); err != nil {
		return err
	}
	return s.honest(ctx, s.good)
}

// attack changes the host's state while its attestation is held, so that a launch meets the verdict and the release key of the state before.
func (s *story) attack(ctx context.Context, why string, change func() error) error {
	s.relay.Hold("/v1/attestations")
	defer s.relay.Release("/v1/attestations")
	if err := change(); err != nil {
		return err
	}
	s.say("before the host has attested anew (%s):", why)
	a, d, err := s.attempt(ctx, s.good)
	if err != nil {
		return err
	}
	if a.Exit == 0 {
		s.expect(false, "the launch is refused")
		return s.stop(ctx, s.good, d.UUID)
	}
	r := a.Refusal()
	s.expect(r != nil && (r.Code == proof.SealedToOtherState || r.Code == proof.HostRelaunched || r.Code == proof.HostRebooted), "the launch is refused for the state of the host")
	return nil
}

func (s *story) relaunch(script txt.Script) func() error {
	return func() error {
		_, err := s.good.Relaunch(script)
		return err
	}
}

// otherKernelMeasured launches again with another kernel, which goes to PCR 18.
func (s *story) otherKernelMeasured(ctx context.Context) error {
	script := s.good.Script()
	script.Kernel = []byte("a kernel that nobody approved")
	if err := s.attack(ctx, "what was sealed to PCR 18 stays sealed", s.relaunch(script)); err != nil {
		return err
	}
	s.say("after the host has attested anew:")
	if err := s.refusedUntil(ctx, s.good, proof.PCRMismatch, "PCR 18"); err != nil {
		return err
	}
	a, err := s.operator.Troth(ctx, s.good, "host", "why", s.good.Name)
	if err != nil {
		return err
	}
	s.expect(bytes.Contains(a.Stdout, []byte("pcr-mismatch")) && bytes.Contains(a.Stdout, []byte("PCR 18")), "the operator asks why, and is told of PCR 18")
	if _, err := s.good.TXTBoot(); err != nil {
		return err
	}
	return s.honest(ctx, s.good)
}

// identicalRelaunch launches the same again: only the restart counter tells.
func (s *story) identicalRelaunch(ctx context.Context) error {
	if err := s.attack(ctx, "the PCRs are equal, the restart counter is not", s.relaunch(s.good.Script())); err != nil {
		return err
	}
	s.say("after the host has attested anew, nothing is wrong with it:")
	return s.honest(ctx, s.good)
}

// evidenceHeld lets the relay keep the host's evidence back, and answer it with the last good verdict, until that is too old.
func (s *story) evidenceHeld(ctx context.Context) error {
	s.relay.Replay("/v1/attestations", true)
	s.say("the evidence is held back, and answered with the last verdict; while that is fresh, launches go on")
	err := s.refusedUntil(ctx, s.good, proof.VerdictStale)
	s.relay.Replay("/v1/attestations", false)
	if err != nil {
		return err
	}
	return s.honest(ctx, s.good)
}

// foreignVerdict answers the host's evidence with what the verifier said of the other host.
func (s *story) foreignVerdict(ctx context.Context) error {
	var foreign struct{ Verdict string }
	c := s.other.UnixClient()
	defer c.CloseIdleConnections()
	if err := lab.Call(ctx, c, "GET", "http://hostd/v1/verdict", nil, &foreign); err != nil {
		return err
	}
	s.relay.Change("/v1/attestations", func(body []byte) []byte {
		var answer map[string]any
		if err := json.Unmarshal(body, &answer); err != nil {
			return body
		}
		answer["verdict"] = foreign.Verdict
		changed, err := json.Marshal(answer)
		if err != nil {
			return body
		}
		return changed
	})
	err := s.refusedUntil(ctx, s.good, proof.VerdictForOtherHost)
	s.relay.Change("/v1/attestations", nil)
	if err != nil {
		return err
	}
	return s.honest(ctx, s.good)
}

// kernelBefore puts another kernel in the place of the tenant's before the launch.
func (s *story) kernelBefore(ctx context.Context) error {
	d := lab.Domain{Name: "guest-kernel", UUID: uuid(900), Kernel: s.inside("vmlinuz")}
	return s.replaced(ctx, "vmlinuz", d, func(path, token, file string) error {
		if err := flipByte(path); err != nil {
			return err
		}
		return s.refused(ctx, s.good, token, file, proof.TokenConstraint, "kernel")
	})
}

// kernelAfter swaps the kernel while the release is under way: it was measured already, and libvirt has not opened it yet.
func (s *story) kernelAfter(ctx context.Context) error {
	d := lab.Domain{Name: "guest-swap", UUID: uuid(901), Kernel: s.inside("vmlinuz")}
	return s.replaced(ctx, "vmlinuz", d, func(path, token, file string) error {
		measured := s.relay.Hold("/v1/releases")
		type ended struct {
			a   *cast.Answer
			err error
		}
		done := make(chan ended, 1)
		go func() {
			a, err := s.launch(ctx, s.good, token, file, "never.proof")
			done <- ended{a, err}
		}()
		select {
		case <-measured:
			s.say("the kernel is measured; now it is swapped")
		case e := <-done:
			s.relay.Release("/v1/releases")
			s.expect(false, "the launch came as far as the release: %v", e)
			return e.err
		}
		err := swap(path)
		s.relay.Release("/v1/releases")
		if err != nil {
			return err
		}
		e := <-done
		if e.err != nil {
			return e.err
		}
		s.expectRefusal(e.a, proof.ImageChanged)
		s.nothingLeft(ctx, d.UUID)
		return nil
	})
}

// enginesInitrd boots the engine's own initrd with the tenant's token.
func (s *story) enginesInitrd(ctx context.Context) error {
	d := lab.Domain{Name: "guest-initrd", UUID: uuid(902), Initrd: s.inside("initrd")}
	return s.replaced(ctx, "initrd", d, func(path, token, file string) error {
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if err := os.WriteFile(path, append(b, "the engine's own"...), 0o644); err != nil {
			return err
		}
		if err := s.refused(ctx, s.good, token, file, proof.TokenConstraint, "initrd"); err != nil {
			return err
		}
		s.nothingLeft(ctx, d.UUID)
		return nil
	})
}

// secondHost uses a token on the other host while its domain runs on the first.
func (s *story) secondHost(ctx context.Context) error {
	d := lab.Domain{Name: "guest-twice", UUID: uuid(903)}
	token, file, err := s.prepare(ctx, d)
	if err != nil {
		return err
	}
	a, err := s.launch(ctx, s.good, token, file, "twice.proof")
	if err != nil {
		return err
	}
	s.expect(a.Exit == 0, "the first use is honest (exit %d)", a.Exit)
	if err := s.refused(ctx, s.other, token, file, proof.TokenUsed); err != nil {
		return err
	}
	if err := s.stop(ctx, s.good, d.UUID); err != nil {
		return err
	}
	return s.honest(ctx, s.other)
}

// forgedProof changes one byte of the proof, and claims another nonce.
func (s *story) forgedProof(ctx context.Context) error {
	b, err := os.ReadFile(s.tenant.Path("proof.json"))
	if err != nil {
		return err
	}
	b[len(b)/2] ^= 1
	if err := os.WriteFile(s.tenant.Path("forged.json"), b, 0o644); err != nil {
		return err
	}
	a, err := s.tenant.Troth(ctx, s.good, "proof", "verify", "--trust", "trust.json", "--key", "nonce.key", "forged.json")
	if err != nil {
		return err
	}
	s.expect(a.Exit == 1, "one byte changed: exit %d: %s", a.Exit, a.Failure())
	// Another nonce with all else equal.
	wrong, err := swapNonce(s.tenant, "nonce.key", fmt.Sprintf("nonce-%d.key", s.tokens))
	if err != nil {
		return err
	}
	a, err = s.tenant.Troth(ctx, s.good, "proof", "verify", "--trust", "trust.json", "--key", wrong, "proof.json")
	if err != nil {
		return err
	}
	s.expect(a.Exit == 1, "the wrong nonce: exit %d: %s", a.Exit, a.Failure())
	for _, name := range []string{"forged.json", wrong} {
		if err := os.Remove(s.tenant.Path(name)); err != nil {
			return err
		}
	}
	a, err = s.tenant.Troth(ctx, s.good, "proof", "verify", "--trust", "trust.json", "--key", "nonce.key", "proof.json")
	if err != nil {
		return err
	}
	s.expect(a.Exit == 0, "the true proof is as good as before (exit %d)", a.Exit)
	return nil
}

// nothingLeft expects that a refused launch left no domain.
func (s *story) nothingLeft(ctx context.Context, uuid string) {
	out, err := s.good.Virsh(ctx, "list", "--all", "--uuid")
	s.expect(err == nil && !strings.Contains(out, uuid), "nothing of it stays defined or running")
}

// replaced lets a cheat work on a copy of one of the guest's files, which a domain boots with a token that pins the original, so
// that an honest launch beside it is untouched. Then the copy goes, and honest work goes on.
func (s *story) replaced(ctx context.Context, name string, d lab.Domain, cheat func(path, token, file string) error) error {
	b, err := os.ReadFile(filepath.Join(s.lab.Guest.Outside, name))
	if err != nil {
		return err
	}
	path := filepath.Join(s.lab.Guest.Outside, "cheat-"+name)
	if err := os.WriteFile(path, b, 0o644); err != nil {
		return err
	}
	token, file, err := s.prepare(ctx, d)
	if err != nil {
		return err
	}
	if err := cheat(path, token, file); err != nil {
		return err
	}
	if err := os.Remove(path); err != nil {
		return err
	}
	return s.honest(ctx, s.good)
}

// inside is the copy of one of the guest's files as hosts see it.
func (s *story) inside(name string) string {
	return filepath.Join(filepath.Dir(s.lab.Guest.Kernel), "cheat-"+name)
}

// flipByte changes one byte in the middle of a file.
func flipByte(path string) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	b[len(b)/2] ^= 1
	return os.WriteFile(path, b, 0o644)
}

// swap puts another file of the same name in its place, by rename: the descriptor that was measured still reads the old one.
func swap(path string) error {
	if err := os.WriteFile(path+".new", []byte("another kernel"), 0o644); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

func oneLine(out string, err error) string {
	text := out
	if err != nil {
		text = err.Error() + " " + out
	}
	return strings.Join(strings.Fields(text), " ")
}
