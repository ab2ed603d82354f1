package launcher

import (
	"context"
	"testing"

	"troth/proof"
)

// testTwinOfAnotherUser: a local user keeps a process by an emulator's name with the guest's UUID. Where it is known who QEMU runs as, no launch and no start is
// refused for that, and a guest that ended is gone.
func testTwinOfAnotherUser(t *testing.T) {
	ctx := context.Background()
	user := uint32(0) // the made-up QEMU's
	s := newSim(t)
	w := s.world
	w.l.QEMU, w.twin = &user, true
	end := func() {
		t.Helper()
		if d := w.l.Book.Domain(guestUUID); d.State != StateProved {
			t.Fatalf("it is %s: %v", d.State, d.Refusal)
		}
		w.mu.Lock()
		delete(w.live, guestUUID)
		w.mu.Unlock()
		if err := w.l.Gone(ctx, guestUUID, proof.Refuse(proof.NotRegistered, "ended")); err != nil {
			t.Fatal(err)
		}
		if d := w.l.Book.Domain(guestUUID); d.State != StateStopped {
			t.Fatalf("it ended, and is %s", d.State)
		}
	}
	if _, refusal := s.launch(guestUUID); refusal != nil {
		t.Fatal(refusal)
	}
	end()
	if refusal := s.register(guestUUID, s.token); refusal != nil {
		t.Fatal(refusal)
	}
	if err := w.startOther(guestUUID); err != nil {
		t.Fatal(err)
	}
	end()
}
