package launcher

import (
	"context"
	"errors"

	"troth/proof"
)

// Events of a chain that a host reports.
const (
	EventOpen    = "open"
	EventAborted = "aborted"
	EventClosed  = "closed"
)

// owe puts a chain event into the journal; from then on it is told until the verifier takes it.
func (l *Launcher) owe(e ChainEvent) error {
	return l.Book.Write(&Entry{What: WroteEvent, Event: &e})
}

// Tell tells the verifier what it is owed, oldest first, until all is told or it cannot be reached. An event that the verifier refuses
// for good is dropped: it knows better where its chain stands.
func (l *Launcher) Tell(ctx context.Context) error {
	l.telling.Lock()
	defer l.telling.Unlock()
	for {
		e, n := l.Book.Owed()
		if n == 0 {
			return nil
		}
		err := l.Verifier.Report(ctx, e)
		var r *proof.Refusal
		switch {
		case err == nil:
		case errors.As(err, &r) && passing(r.Code), r == nil:
			return err
		default:
			l.Log.Warn("the verifier does not take a chain event", "event", e.Event, "token", e.Token.String(), "code", string(r.Code), "sentence", r.Sentence)
		}
		if err := l.Book.Write(&Entry{What: WroteTold}); err != nil {
			return err
		}
	}
}

// passing says that a refusal is not about what was asked, and may be gone in a while.
func passing(c proof.Code) bool {
	switch c {
	case proof.VerifierUnreachable, proof.Internal, proof.HostNotApproved, proof.Forbidden:
		return true
	default:
		return false
	}
}
