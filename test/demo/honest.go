package main

import (
	"context"
	"encoding/hex"
	"fmt"
	"os"
	"strings"

	"troth/proof"
	"troth/test/cast"
	"troth/test/lab"
)

// mainJob is what Troth is for: a host is approved, a tenant makes a token, an engine launches, the tenant checks.
func (s *story) mainJob(ctx context.Context) error {
	for _, chapter := range []func(context.Context) error{s.provision, s.golden, s.pin, s.order, s.launched, s.verify, s.challenge, s.hookMode} {
		if err := chapter(ctx); err != nil {
			return err
		}
	}
	return nil
}

// provision enrols both hosts; an operator approves each once.
func (s *story) provision(ctx context.Context) error {
	s.chapter("The hosts enrol; a person approves each TPM, once")
	for _, h := range s.lab.Hosts() {
		if err := h.Provision(ctx); err != nil {
			return err
		}
		s.say("%s  $ troth-hostd provision", h.Name)
	}
	relay, err := cast.NewRelay(s.lab, s.good, 8443)
	if err != nil {
		return err
	}
	s.relay = relay
	if err := relay.Through(s.good, s.lab.Verifier.URL()); err != nil {
		return err
	}
	s.say("(the network between %s and the verifier belongs to an attacker, who holds the host's TLS key too)", s.good.Name)
	var hosts []struct {
		Name, State string
	}
	if err := s.operator.Do(ctx, s.good, &hosts, "host", "list"); err != nil {
		return err
	}
	for _, h := range hosts {
		s.expect(h.State == "pending", "%s is pending: nobody has vouched for it yet (%s)", h.Name, h.State)
	}
	for _, h := range s.lab.Hosts() {
		if err := s.operator.Do(ctx, h, nil, "host", "approve", h.Name); err != nil {
			return err
		}
		if err := h.StartHostd(ctx); err != nil {
			return err
		}
	}
	return nil
}

// golden takes the measured state of the first host as good, and compares it with what the lab computed from its boot script.
func (s *story) golden(ctx context.Context) error {
	s.chapter("The operator says what a good host is")
	var imported struct {
		Values []struct {
			Index int
			Value string
		}
		Profile struct{ Name, Digest string }
	}
	a, err := s.imported(ctx)
	if err != nil {
		return err
	}
	if err := a.Decode(&imported); err != nil {
		return err
	}
	expected, err := s.good.Script().Expected()
	if err != nil {
		return err
	}
	for _, v := range imported.Values {
		want := expected[v.Index]
		s.expect(v.Value == hex.EncodeToString(want[:]), "PCR %d = %s…: equals what the lab computed from its boot script", v.Index, v.Value[:16])
	}
	s.expect(len(imported.Values) == 3, "PCR 17, 18 and 19 were imported")
	s.profile = imported.Profile.Name + "@" + imported.Profile.Digest
	for _, h := range s.lab.Hosts() {
		if err := h.AwaitReady(ctx); err != nil {
			return err
		}
	}
	return nil
}

// imported imports as soon as the host has attested once.
func (s *story) imported(ctx context.Context) (*cast.Answer, error) {
	a, err := s.eventually(ctx, s.operator, "reference", "import", s.good.Name, "--name", "golden", "--launcher", "tboot-legacy", "--profile", "gold", "--yes")
	if err != nil {
		return nil, err
	}
	return a, a.Err()
}

// pin lets the tenant pin the verifier's root.
func (s *story) pin(ctx context.Context) error {
	s.chapter("The tenant pins the verifier's root key, and trusts nobody else")
	return s.tenant.FetchTrust(ctx, s.good)
}

// order lets the tenant make a token, offline.
func (s *story) order(ctx context.Context) error {
	s.chapter("The tenant makes a token: a nonce, and what may run with it")
	token, _, err := s.token(ctx)
	if err != nil {
		return err
	}
	return s.tenant.Do(ctx, s.good, nil, "token", "show", token)
}

var first = lab.Domain{Name: "guest-1", UUID: uuid(1)}

// launched lets the engine launch the domain; the proof comes back.
func (s *story) launched(ctx context.Context) error {
	s.chapter("The engine hands token and domain to the host, and gets a proof")
	file, err := s.domain(first)
	if err != nil {
		return err
	}
	a, err := s.launch(ctx, s.good, "token", file, "proof.json")
	if err != nil {
		return err
	}
	if err := a.Err(); err != nil {
		return err
	}
	state, err := s.good.Virsh(ctx, "domstate", first.UUID)
	s.expect(err == nil && strings.TrimSpace(state) == "running", "libvirt says that it runs (%s)", strings.TrimSpace(state))
	return nil
}

// verify lets the tenant check the proof, offline, and lists what the check without the key can say.
func (s *story) verify(ctx context.Context) error {
	s.chapter("The tenant checks the proof, alone and offline")
	a, err := s.tenant.Troth(ctx, s.good, "proof", "verify", "--trust", "trust.json", "--key", "nonce.key", "proof.json")
	if err != nil {
		return err
	}
	s.expect(a.Exit == 0, "genuine, and what the tenant asked for (exit %d) %s", a.Exit, a.Failure())
	a, err = s.tenant.Troth(ctx, s.good, "proof", "verify", "--trust", "trust.json", "proof.json")
	if err != nil {
		return err
	}
	s.expect(a.Exit == 3, "without the key it cannot be decided (exit %d)", a.Exit)
	shown := s.lab.Command(ctx, "troth", "proof", "show", s.tenant.Path("proof.json"))
	out, err := shown.CombinedOutput()
	if err != nil {
		return fmt.Errorf("proof show: %w: %s", err, out)
	}
	for line := range strings.Lines(string(out)) {
		s.say("| %s", strings.TrimRight(line, "\n"))
	}
	return nil
}

// challenge asks the running guest, after the start, whether it holds this launch's secret.
func (s *story) challenge(ctx context.Context) error {
	s.chapter("The tenant challenges the running guest")
	if err := s.good.AwaitConsole(ctx, first.Name, lab.UserSpaceUp); err != nil {
		return err
	}
	ask := []string{"domain", "challenge", first.UUID, "--trust", "trust.json", "--key", "nonce.key", "--proof", "proof.json"}
	a, err := s.tenant.Troth(ctx, s.good, ask...)
	if err != nil {
		return err
	}
	s.expect(a.Exit == 0, "the guest answers with the secret of this launch (exit %d) %s", a.Exit, a.Failure())

	// A guest with another nonce: an honest launch under another token, asked for the first one's secret.
	s.say("A guest that was started with another nonce:")
	other, d, err := s.attempt(ctx, s.good)
	if err != nil {
		return err
	}
	if err := other.Err(); err != nil {
		return err
	}
	if err := s.good.AwaitConsole(ctx, d.Name, lab.UserSpaceUp); err != nil {
		return err
	}
	wrong, err := swapNonce(s.tenant, fmt.Sprintf("nonce-%d.key", s.tokens), "nonce.key")
	if err != nil {
		return err
	}
	a, err = s.tenant.Troth(ctx, s.good, "domain", "challenge", d.UUID, "--key", wrong, "--proof", d.Name+".proof")
	if err != nil {
		return err
	}
	s.expect(a.Exit == 1, "its answer is not the one of the tenant's nonce (exit %d: %s)", a.Exit, a.Failure())
	if err := os.Remove(s.tenant.Path(wrong)); err != nil {
		return err
	}
	if err := s.stop(ctx, s.good, d.UUID); err != nil {
		return err
	}
	return s.stop(ctx, s.good, first.UUID)
}

// swapNonce writes a copy of one key record that holds the nonce of another, and returns its name.
func swapNonce(p *cast.Person, record, from string) (string, error) {
	read := func(name string) (*proof.Key, error) {
		b, err := os.ReadFile(p.Path(name))
		if err != nil {
			return nil, err
		}
		return proof.ParseKey(b)
	}
	with, err := read(record)
	if err != nil {
		return "", err
	}
	give, err := read(from)
	if err != nil {
		return "", err
	}
	with.Nonce = give.Nonce
	b, err := with.EncodePrivate()
	if err != nil {
		return "", err
	}
	name := "wrong-" + record
	return name, os.WriteFile(p.Path(name), b, 0o600)
}
