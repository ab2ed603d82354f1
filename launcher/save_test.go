package launcher

import (
	"context"
	"testing"

	"troth/proof"
)

// saves is a world with a guest that may be saved and runs.
func savesWorld(t *testing.T) *sim {
	t.Helper()
	s := newSim(t)
	if _, refusal := s.launch(guestUUID); refusal != nil {
		t.Fatal(refusal)
	}
	return s
}

func (s *sim) save(t *testing.T) *proof.Refusal {
	t.Helper()
	return s.world.l.Save(context.Background(), guestUUID)
}

// TestSaveRestore: a saved guest goes on from what was saved, once, and its proof says so.
func TestSaveRestore(t *testing.T) {
	s := savesWorld(t)
	if refusal := s.save(t); refusal != nil {
		t.Fatal(refusal)
	}
	if err := s.Check(); err != nil {
		t.Fatal(err)
	}
	first := s.world.l.Book.Domain(guestUUID)
	if refusal := s.save(t); refusal != nil { // asked again by who has not heard the answer
		t.Fatal(refusal)
	}
	if _, refusal := s.launch(guestUUID); refusal == nil || refusal.Code != proof.RequestInvalid {
		t.Fatalf("a saved guest started afresh: %v", refusal)
	}
	out, refusal := s.restore(guestUUID)
	if refusal != nil {
		t.Fatal(refusal, refusal.Facts)
	}
	if err := s.Check(); err != nil {
		t.Fatal(err)
	}
	p, err := proof.ParseProof(out.Proof)
	if err != nil {
		t.Fatal(err)
	}
	st, err := proof.ParseStatement(p.Statement)
	if err != nil {
		t.Fatal(err)
	}
	if st.Action != proof.ActionRestore || st.SavedImage == nil || *st.SavedImage != *first.Saved || *st.Previous != *first.Link {
		t.Errorf("%+v", st)
	}
	if _, refusal := s.restore(guestUUID); refusal == nil {
		t.Error("restored twice")
	}
}

// TestSaveRefused: what is not saved runs on as it was.
func TestSaveRefused(t *testing.T) {
	for name, c := range map[string]struct {
		code  proof.Code
		spoil func(t *testing.T, s *sim)
	}{
		"the token does not allow it": {proof.TokenConstraint, func(_ *testing.T, s *sim) {
			s.world.l.Book.domains[guestUUID].Grant.Policy.Saves = ""
		}},
		"armed": {proof.RequestInvalid, func(_ *testing.T, s *sim) { s.world.l.Book.domains[guestUUID].Armed = true }},
		"broken": {proof.NotRegistered, func(_ *testing.T, s *sim) {
			s.world.l.Book.domains[guestUUID].State = StateBroken
		}},
		"another guest runs in its place": {proof.GrantMissing, func(_ *testing.T, s *sim) {
			s.world.process = func(p *Process) { p.PID = 43 }
		}},
	} {
		t.Run(name, func(t *testing.T) {
			s := savesWorld(t)
			c.spoil(t, s)
			if refusal := s.save(t); refusal == nil || refusal.Code != c.code {
				t.Errorf("%v", refusal)
			}
			if s.world.live[guestUUID] == nil || s.world.memory != 0 {
				t.Error("it was saved")
			}
		})
	}
}

// TestRestoreRefused: the guest does not go on, nothing of the image is used, and put right it goes on.
func TestRestoreRefused(t *testing.T) {
	for name, c := range map[string]struct {
		code  proof.Code
		spoil func(s *sim) (heal func())
	}{
		"the image changed": {proof.ImageChanged, func(s *sim) func() {
			was := s.world.files[s.world.Path(guestUUID)]
			s.world.files[s.world.Path(guestUUID)] = []byte("other")
			return func() { s.world.files[s.world.Path(guestUUID)] = was }
		}},
		"the image changed while it was loaded": {proof.ImageChanged, func(s *sim) func() {
			path := s.world.Path(guestUUID)
			was := s.world.files[path]
			s.world.process = func(p *Process) { s.world.files[path] = []byte("other") }
			return func() { s.world.files[path], s.world.process = was, nil }
		}},
		"the image is gone": {proof.ImageNotMeasured, func(s *sim) func() {
			was := s.world.files[s.world.Path(guestUUID)]
			delete(s.world.files, s.world.Path(guestUUID))
			return func() { s.world.files[s.world.Path(guestUUID)] = was }
		}},
		"the verifier kept another digest": {proof.ImageChanged, func(s *sim) func() {
			chain := s.world.chains[proof.TokenDigest(s.token)]
			was := chain.image
			chain.image = proof.Digest{1}
			return func() { chain.image = was }
		}},
		"QEMU boots instead": {proof.ConfigurationChanged, func(s *sim) func() {
			s.world.process = func(p *Process) { p.Loads = "" }
			return func() { s.world.process = nil }
		}},
		"the receipt does not allow it": {proof.TokenConstraint, func(s *sim) func() {
			s.world.receipt = func(r *proof.Receipt) { r.Policy.Saves = "" }
			return func() { s.world.receipt = nil }
		}},
		"another token": {proof.RequestInvalid, func(s *sim) func() {
			d := s.world.l.Book.domains[guestUUID]
			was := d.TokenText
			d.TokenText = s.world.token(func(t *proof.Token) { t.ID, t.Saves = "other", proof.SavesAllow })
			return func() { d.TokenText = was }
		}},
	} {
		t.Run(name, func(t *testing.T) {
			s := savesWorld(t)
			if refusal := s.save(t); refusal != nil {
				t.Fatal(refusal)
			}
			heal := c.spoil(s)
			if _, refusal := s.restore(guestUUID); refusal == nil || refusal.Code != c.code {
				t.Errorf("%v", refusal)
			}
			if s.world.live[guestUUID] != nil || len(s.world.wentOn) != 0 || s.world.l.Book.Domain(guestUUID).State != StateSaved {
				t.Errorf("runs: %v, went on: %v, %s", s.world.live[guestUUID] != nil, s.world.wentOn, s.world.l.Book.Domain(guestUUID).State)
			}
			heal()
			if _, refusal := s.restore(guestUUID); refusal != nil {
				t.Errorf("put right: %v %v", refusal, refusal.Facts)
			}
		})
	}
}
