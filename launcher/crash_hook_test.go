package launcher

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"testing"

	"troth/launcher/domain"
	"troth/proof"
)

// hookSequences are what a host does in hook mode.
func hookSequences() []*sequence {
	armed := func(t *testing.T, s *sim) {
		if refusal := s.register(guestUUID, s.token); refusal != nil {
			t.Fatal(refusal)
		}
	}
	started := func(t *testing.T, s *sim) {
		armed(t, s)
		if err := s.world.startOther(guestUUID); err != nil {
			t.Fatal(err)
		}
	}
	start := func(s *sim) { unheard(s.world.startOther(guestUUID)) }
	return []*sequence{
		{"register", func(*testing.T, *sim) {}, func(s *sim) { unheard(s.register(guestUUID, s.token)) }},
		{"register over a definition", redefined, func(s *sim) { unheard(s.register(guestUUID, s.token)) }},
		{"start by another client", armed, start},
		{"start by another client, again", func(t *testing.T, s *sim) {
			started(t, s)
			s.world.mu.Lock()
			delete(s.world.live, guestUUID)
			s.world.mu.Unlock()
		}, start},
		{"start by another client, another guest", func(t *testing.T, s *sim) {
			armed(t, s)
			s.world.process = func(p *Process) { p.Exe = "/tmp/evil" }
		}, start},
		{"start by another client, of loaded memory", func(t *testing.T, s *sim) {
			armed(t, s)
			s.world.process = func(p *Process) { p.Loads = "-incoming" }
		}, start},
		{"start by another client, given up", func(t *testing.T, s *sim) {
			armed(t, s)
			s.world.noStart = true
		}, start},
		{"start by another client, by a carried token", func(t *testing.T, s *sim) {
			s.before[guestUUID] = s.carrying(t, s.token)
			s.world.inactive[guestUUID] = s.before[guestUUID]
		}, start},
		{"delete of an armed domain", armed, func(s *sim) { unheard(s.world.l.Delete(context.Background(), guestUUID)) }},
	}
}

var registration int

func (s *sim) register(uuid, token string) *proof.Refusal {
	registration++
	_, refusal := s.world.l.Arm(context.Background(), Request{ID: fmt.Sprint("arm", registration), Token: token, Domain: s.xml[uuid], Action: proof.ActionStart, Arm: true}, quiet{})
	return refusal
}

// carrying is a definition by another client, with its token in the mark.
func (s *sim) carrying(t *testing.T, token string) []byte {
	t.Helper()
	c, err := domain.Read(s.xml[guestUUID], domain.Request)
	if err != nil {
		t.Fatal(err)
	}
	return bytes.Replace(domain.Emit(c, domain.Additions{}), []byte(`v1"/>`), []byte(`v1" token="`+token+`"/>`), 1)
}

// startOther is libvirt that starts a domain for another client, and asks the hook.
func (w *world) startOther(uuid string) error {
	defer w.l.Wait()
	id := mustUUID(uuid)
	w.mu.Lock()
	xml := w.inactive[uuid]
	w.mu.Unlock()
	if xml == nil {
		return errors.New("no such domain")
	}
	defer w.l.Ended(id) // 'release', after a start that failed; for one that came to run it means nothing
	if refusal := w.l.Prepare(context.Background(), id, xml); refusal != nil {
		return refusal
	}
	if refusal := w.l.Proceed(id, xml); refusal != nil {
		return refusal
	}
	if w.noStart {
		return errors.New("QEMU did not start")
	}
	// libvirt itself cannot fail here: it is the caller. What can end is hostd.
	err := w.call("started", func() error {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.live[uuid], w.paused[uuid], w.ran[uuid] = xml, false, true
		return nil
	})
	if err != nil {
		return err
	}
	if refusal := w.l.Started(context.Background(), id); refusal != nil {
		return refusal
	}
	return nil
}

// held counts the images that armed domains hold open.
func (w *world) held() int {
	n := 0
	for _, a := range w.l.arms {
		n += len(a.images.images)
	}
	return n
}
