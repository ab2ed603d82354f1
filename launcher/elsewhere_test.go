package launcher

import (
	"strings"
	"testing"

	"troth/proof"
)

// TestLoadedMemory: a guest whose memory QEMU takes from elsewhere is refused while libvirt still waits for the hook, and not only once it runs.
func TestLoadedMemory(t *testing.T) {
	for _, option := range []string{"-incoming", "-loadvm"} {
		s := newSim(t)
		if refusal := s.register(guestUUID, s.token); refusal != nil {
			t.Fatal(refusal)
		}
		s.world.process = func(p *Process) { p.Loads = option }
		err := s.world.startOther(guestUUID)
		refusal, ok := err.(*proof.Refusal) //nolint:errorlint // Started's own answer, not one that went through libvirt
		if !ok || refusal.Code != proof.GrantMissing || !strings.Contains(refusal.Sentence, "memory from elsewhere") {
			t.Fatalf("%s: %v", option, err)
		}
		d := s.world.l.Book.Domain(guestUUID)
		if d.State != StateRefused || d.Refusal == nil || d.Refusal.Sentence != refusal.Sentence || s.world.live[guestUUID] != nil {
			t.Errorf("%s: %s, %v, runs %v", option, d.State, d.Refusal, s.world.live[guestUUID] != nil)
		}
		if c := s.world.chains[proof.TokenDigest(s.token)]; c.state != "free" {
			t.Errorf("%s: the chain is %s", option, c.state)
		}
		s.world.process = nil
		if err := s.world.startOther(guestUUID); err != nil {
			t.Errorf("%s: the honest start afterwards: %v", option, err)
		}
	}
}

// TestLoadedCPU: a snapshot with memory is reverted to with the CPU that libvirt made for the guest which ran, and that is told at prepare, for what it is.
func TestLoadedCPU(t *testing.T) {
	s := newSim(t)
	if refusal := s.register(guestUUID, s.token); refusal != nil {
		t.Fatal(refusal)
	}
	w := s.world
	honest := w.inactive[guestUUID]
	w.inactive[guestUUID] = []byte(strings.NewReplacer("check='none'", "check='full'", "</model>", "</model><feature policy='require' name='lahf_lm'/>").Replace(string(honest)))
	err := w.startOther(guestUUID)
	refusal, ok := err.(*proof.Refusal) //nolint:errorlint // Prepare's own answer, not one that went through libvirt
	if !ok || refusal.Code != proof.GrantMissing || !strings.Contains(refusal.Sentence, "memory from elsewhere") {
		t.Fatal(err)
	}
	if d := w.l.Book.Domain(guestUUID); d.Refusal == nil || d.Refusal.Sentence != refusal.Sentence {
		t.Errorf("%s, %v", d.State, d.Refusal)
	}
	w.inactive[guestUUID] = honest
	if err := w.startOther(guestUUID); err != nil {
		t.Errorf("the honest start afterwards: %v", err)
	}
}

// TestLoadedMemoryPaused: the same for a launch of our own, which nobody but a changed libvirt could make load anything.
func TestLoadedMemoryPaused(t *testing.T) {
	w := newWorld(t)
	w.process = func(p *Process) { p.Loads = "-loadvm" }
	if _, refusal := w.launch(w.token()); refusal == nil || refusal.Code != proof.GrantMissing {
		t.Fatal(refusal)
	}
	w.gone(nil)
}

// TestElsewhere: what the hook refuses at restore and migrate is kept with its remedy, and changes nothing of a domain.
func TestElsewhere(t *testing.T) {
	s := newSim(t)
	if refusal := s.register(guestUUID, s.token); refusal != nil {
		t.Fatal(refusal)
	}
	l := s.world.l
	for op, want := range map[string]string{"restore": "managedsave-remove", "migrate": "behind hostd's back"} {
		refusal := l.Elsewhere(mustUUID(guestUUID), op)
		l.Wait()
		d := l.Book.Domain(guestUUID)
		if refusal.Code != proof.GrantMissing || !strings.Contains(refusal.Sentence, want) || d.Refusal == nil || d.Refusal.Sentence != refusal.Sentence || d.State != StateArmed || !d.Registered {
			t.Errorf("%s: %v, the book has %s %v", op, refusal, d.State, d.Refusal)
		}
	}
	if l.Elsewhere(mustUUID(secondUUID), "restore") == nil || l.Book.Domain(secondUUID) != nil {
		t.Error("a domain that nobody knows came into the book")
	}
	if err := s.world.startOther(guestUUID); err != nil {
		t.Fatal(err)
	}
	if d := l.Book.Domain(guestUUID); d.State != StateProved {
		t.Fatalf("the honest start: %s, %v", d.State, d.Refusal)
	}
	if l.Elsewhere(mustUUID(guestUUID), "restore") == nil {
		t.Error("memory from elsewhere was permitted")
	}
	l.Wait()
	if d := l.Book.Domain(guestUUID); d.State != StateProved || d.Refusal != nil {
		t.Errorf("a guest that runs was touched: %s, %v", d.State, d.Refusal)
	}
}
