package launcher

import (
	"context"
	"fmt"
	"testing"

	"troth/proof"
)

// saveSequences are saving a guest and letting it go on. After each, at any crash, one guest runs or none, the chain says which, and no memory is gone on
// from twice.
func saveSequences() []*sequence {
	launched := func(t *testing.T, s *sim) {
		if _, refusal := s.launch(guestUUID); refusal != nil {
			t.Fatal(refusal)
		}
	}
	saved := func(t *testing.T, s *sim) {
		launched(t, s)
		if refusal := s.world.l.Save(context.Background(), guestUUID); refusal != nil {
			t.Fatal(refusal)
		}
	}
	restore := func(s *sim) { unheard(s.restore(guestUUID)) }
	return []*sequence{
		{"save", launched, func(s *sim) { unheard(s.world.l.Save(context.Background(), guestUUID)) }},
		{"restore", saved, restore},
		{"restore of a changed image", func(t *testing.T, s *sim) {
			saved(t, s)
			s.world.files = map[string][]byte{"/images/vmlinuz": s.world.files["/images/vmlinuz"], "/images/initrd": s.world.files["/images/initrd"], "/saved/" + guestUUID: []byte("other")}
		}, func(s *sim) {
			unheard(s.restore(guestUUID))
			s.world.mu.Lock() // and it is put back, for those who go on
			defer s.world.mu.Unlock()
			if s.world.files["/saved/"+guestUUID] != nil {
				s.world.files["/saved/"+guestUUID] = fmt.Appendf(nil, "memory %d of %s", s.world.memory, guestUUID)
			}
		}},
		{"restore, refused beside libvirt", func(t *testing.T, s *sim) {
			saved(t, s)
			s.world.process = func(p *Process) { p.Loads = "" }
		}, restore},
		{"stop of a saved guest", saved, func(s *sim) { unheard(s.world.l.Stop(context.Background(), guestUUID)) }},
		{"delete of a saved guest", saved, func(s *sim) { unheard(s.world.l.Delete(context.Background(), guestUUID)) }},
	}
}

// restore lets a saved guest of the simulation go on.
func (s *sim) restore(uuid string) (*Outcome, *proof.Refusal) {
	simLaunch.Lock()
	simLaunch.n++
	id := fmt.Sprint("restore", simLaunch.n)
	simLaunch.Unlock()
	d := s.world.l.Book.Domain(uuid)
	if d == nil || d.Request == nil {
		return nil, proof.Refuse(proof.NotRegistered, "not saved")
	}
	return s.world.l.Launch(context.Background(), Request{ID: id, Token: d.TokenText, Domain: d.Request, Action: proof.ActionRestore}, quiet{})
}
