package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"troth/proof"
	"troth/test/cast"
	"troth/test/lab"
	"troth/test/standstill"
)

// plainly is started by an engine that knows nothing of Troth.
var plainly = lab.Domain{Name: "guest-plainly", UUID: uuid(910)}

// hookMode lets plain libvirt start a domain that was registered before: the hook asks hostd, and the proof is fetched afterwards.
func (s *story) hookMode(ctx context.Context) error {
	s.chapter("An engine that knows only libvirt starts a registered domain with virsh")
	key, err := s.register(ctx, plainly)
	if err != nil {
		return err
	}
	var d struct {
		State string
		Armed bool
	}
	if err := s.engine.Do(ctx, s.good, &d, "domain", "show", plainly.UUID); err != nil {
		return err
	}
	s.expect(d.Armed && d.State == "armed", "it is armed, and has not run (%s)", d.State)
	out, err := s.virsh(ctx, "start", plainly.Name)
	s.expect(err == nil, "virsh starts it: the hook asked hostd, and hostd the verifier and the TPM %s", oneLine(out, err))
	if _, err := s.provedByHook(ctx, plainly, key); err != nil {
		return err
	}
	return s.remove(ctx, plainly)
}

// register makes a token for a domain and has the host arm it; it returns the tenant's record.
func (s *story) register(ctx context.Context, d lab.Domain) (key string, err error) {
	token, key, err := s.token(ctx)
	if err != nil {
		return "", err
	}
	file, err := s.domain(d)
	if err != nil {
		return "", err
	}
	return key, s.engine.Do(ctx, s.good, nil, "domain", "register", "--token", token, "--domain", file)
}

// provedByHook fetches the proof of a domain's newest start by another client, lets the tenant check it offline, and returns it.
func (s *story) provedByHook(ctx context.Context, d lab.Domain, key string) ([]byte, error) {
	file := d.Name + ".proof"
	a, err := s.eventually(ctx, s.engine, "domain", "proof", d.UUID, "--out", file, "--force")
	if err != nil {
		return nil, err
	}
	if err := a.Err(); err != nil {
		return nil, err
	}
	a, err = s.tenant.Troth(ctx, s.good, "proof", "verify", "--trust", "trust.json", "--key", key, file)
	if err != nil {
		return nil, err
	}
	s.expect(a.Exit == 0, "genuine, and what the tenant asked for (exit %d) %s", a.Exit, a.Failure())
	a, err = s.tenant.Text(ctx, s.good, "proof", "show", "--trust", "trust.json", "--key", key, file)
	if err != nil {
		return nil, err
	}
	said := ""
	for line := range strings.Lines(string(a.Stdout)) {
		if strings.Contains(line, "mode:") {
			said = strings.TrimSpace(line)
		}
	}
	s.expect(strings.Contains(said, "(mode: hook)"), "the proof says how: %s", said)
	return os.ReadFile(s.tenant.Path(file))
}

// remove ends a domain by libvirt's own client and has hostd forget it.
func (s *story) remove(ctx context.Context, d lab.Domain) error {
	if _, err := s.virsh(ctx, "destroy", d.Name); err != nil {
		return err
	}
	return s.engine.Do(ctx, s.good, nil, "domain", "remove", d.UUID)
}

// redefined gives an armed domain another command line, which nobody has judged, and starts it.
func (s *story) redefined(ctx context.Context) error {
	d := lab.Domain{Name: "guest-redefined", UUID: uuid(911)}
	key, err := s.register(ctx, d)
	if err != nil {
		return err
	}
	if out, err := s.virsh(ctx, "start", d.Name); err != nil {
		s.expect(false, "it starts while nobody has touched it: %s", oneLine(out, err))
		return nil
	}
	first, err := s.provedByHook(ctx, d, key)
	if err != nil {
		return err
	}
	if _, err := s.virsh(ctx, "destroy", d.Name); err != nil {
		return err
	}
	kept, err := s.good.Virsh(ctx, "dumpxml", "--inactive", d.Name)
	if err != nil {
		return err
	}
	const rescue = "init=/bin/sh"
	changed := strings.Replace(kept, "</cmdline>", " "+rescue+"</cmdline>", 1)
	if err := s.define(ctx, changed); err != nil {
		return err
	}
	s.say("(its command line ends with %s now)", rescue)
	out, err := s.virsh(ctx, "start", d.Name)
	s.expectVeto(out, err, proof.ConfigurationChanged)
	var why struct{ Domain struct{ Refusal noted } }
	if err := s.engine.Do(ctx, s.good, &why, "domain", "why", d.UUID); err != nil {
		return err
	}
	r := why.Domain.Refusal
	for _, f := range r.Facts {
		s.say("         %s", fact(f))
	}
	s.expect(r.Code == proof.ConfigurationChanged && slices.ContainsFunc(r.Facts, func(f proof.Fact) bool {
		return strings.HasSuffix(f.Got, rescue) && f.Want == s.lab.Guest.CommandLine
	}), "hostd names what differs (%s)", r.Code)

	if err := s.define(ctx, kept); err != nil {
		return err
	}
	s.say("(put back; nobody tells hostd)")
	out, err = s.virsh(ctx, "start", d.Name)
	s.expect(err == nil, "it starts again %s", oneLine(out, err))
	second, err := s.provedByHook(ctx, d, key)
	if err != nil {
		return err
	}
	s.expect(!bytes.Equal(first, second), "with a proof of its own")
	if err := s.remove(ctx, d); err != nil {
		return err
	}
	return s.honest(ctx, s.good)
}

// define defines a domain by libvirt's own client.
func (s *story) define(ctx context.Context, xml string) error {
	// The lab's own directory has the same path on hosts.
	file := filepath.Join(s.lab.Guest.Outside, "defined.xml")
	if err := os.WriteFile(file, []byte(xml), 0o644); err != nil {
		return err
	}
	_, err := s.virsh(ctx, "define", file)
	return err
}

// strayWithin is how soon hostd promises to end a stray (docs/attacks.md, L-RECONCILE).
const strayWithin = 10 * time.Second

// stray runs a trusted guest from its own disk, kernel and UUID with QEMU alone, so that no hook is asked, beside an honest guest.
func (s *story) stray(ctx context.Context) error {
	disk := filepath.Join(s.lab.Guest.Outside, "stray.raw")
	if err := os.WriteFile(disk, make([]byte, 1<<20), 0o644); err != nil {
		return err
	}
	token, _, err := s.token(ctx, "--disk", "vda=initial:"+disk)
	if err != nil {
		return err
	}
	d := lab.Domain{Name: "guest-stray", UUID: uuid(912), Disks: []lab.Disk{{Source: filepath.Join(filepath.Dir(s.lab.Guest.Kernel), "stray.raw"), Format: "raw"}}}
	file, err := s.domain(d)
	if err != nil {
		return err
	}
	a, err := s.launch(ctx, s.good, token, file, "stray.proof")
	if err != nil {
		return err
	}
	if err := a.Err(); err != nil {
		return err
	}
	if err := s.stop(ctx, s.good, d.UUID); err != nil {
		return err
	}
	a, beside, err := s.attempt(ctx, s.good)
	if err != nil {
		return err
	}
	if err := a.Err(); err != nil {
		return err
	}
	record := fmt.Sprintf("nonce-%d.key", s.tokens)
	if err := s.runByHand(ctx, d); err != nil {
		return err
	}
	if err := s.runsOn(ctx, beside, record); err != nil {
		return err
	}
	a, err = s.engine.Troth(ctx, s.good, "domain", "start", "--wait", d.UUID)
	if err != nil {
		return err
	}
	s.expect(a.Exit == 0, "by hostd the domain starts again (exit %d) %s", a.Exit, a.Failure())
	for _, uuid := range []string{d.UUID, beside.UUID} {
		if err := s.stop(ctx, s.good, uuid); err != nil {
			return err
		}
	}
	if err := s.engine.Do(ctx, s.good, nil, "domain", "remove", d.UUID); err != nil {
		return err
	}
	return os.Remove(disk)
}

// runByHand runs the domain with QEMU alone, and expects that it is ended and told of.
func (s *story) runByHand(ctx context.Context, d lab.Domain) error {
	g := s.lab.Guest
	ctx, cancel := context.WithTimeout(ctx, 3*strayWithin) // it is killed then, with another status
	defer cancel()
	qemu := s.good.Command(ctx, "qemu-system-x86_64", "-nodefaults", "-display", "none", "-machine", "q35,accel=tcg", "-m", "256", "-uuid", d.UUID,
		"-kernel", g.Kernel, "-initrd", g.Initrd, "-append", g.CommandLine, "-drive", "if=virtio,format=raw,file="+d.Disks[0].Source)
	var said bytes.Buffer
	qemu.Stdout, qemu.Stderr = &said, &said
	s.say("%s  $ %s", s.good.Name, cast.Quoted(qemu.Args[2:]))
	begun := time.Now()
	if err := qemu.Start(); err != nil {
		return err
	}
	err := qemu.Wait()
	took := standstill.Since(begun)
	s.expect(err != nil && ctx.Err() == nil && qemu.ProcessState.ExitCode() == killed && took <= strayWithin,
		"it is found and killed, %v after it was started (promised: %v) %s", took.Round(100*time.Millisecond), strayWithin, strings.TrimSpace(said.String()))

	var stray noted
	told := func(a *cast.Answer) bool {
		var why struct{ History []noted }
		if a.Decode(&why) != nil {
			return false
		}
		at := slices.IndexFunc(why.History, func(n noted) bool { return n.What == "stray" })
		if at >= 0 {
			stray = why.History[at]
		}
		return at >= 0
	}
	// It is killed first, and noted then.
	if _, err := s.until(ctx, s.engine, told, "domain", "why", d.UUID); err != nil {
		return err
	}
	for _, f := range stray.Facts {
		s.say("         %s", fact(f))
	}
	s.expect(stray.Code == proof.GrantMissing && slices.Contains(stray.Facts, proof.Fact{Name: "trusted by", Value: "uuid"}) &&
		slices.Contains(stray.Facts, proof.Fact{Name: "done", Value: "destroyed"}), "the domain's history tells of it: %s", stray.Code)
	return nil
}

// noted is what hostd keeps of a domain for people: a refusal, or an entry of its history.
type noted struct {
	What  string
	Code  proof.Code
	Facts []proof.Fact
}

// killed is the exit status of a command of the lab that SIGKILL ended.
const killed = 128 + 9

// runsOn expects that a guest is as it was: proved, and it answers its tenant.
func (s *story) runsOn(ctx context.Context, d lab.Domain, record string) error {
	var now struct{ State string }
	if err := s.engine.Do(ctx, s.good, &now, "domain", "show", d.UUID); err != nil {
		return err
	}
	s.expect(now.State == "proved", "the honest guest beside it is proved still (%s)", now.State)
	if err := s.good.AwaitConsole(ctx, d.Name, lab.UserSpaceUp); err != nil {
		return err
	}
	a, err := s.tenant.Troth(ctx, s.good, "domain", "challenge", d.UUID, "--trust", "trust.json", "--key", record, "--proof", d.Name+".proof")
	if err != nil {
		return err
	}
	s.expect(a.Exit == 0, "and answers its tenant (exit %d) %s", a.Exit, a.Failure())
	return nil
}
