package launcher

import (
	"context"
	"errors"
	"time"

	"troth/proof"
)

// Events of a chain that a host reports.
const (
	EventOpen    = "open"
	EventAborted = "aborted"
	EventSaved   = "saved"
	EventClosed  = "closed"
	EventBroken  = "broken"
)

// owe puts a chain event into the journal; from then on it is told until the verifier takes it.
func (l *Launcher) owe(e ChainEvent) error {
	return l.Book.Write(&Entry{What: WroteEvent, Event: &e})
}

// Tell tells the verifier what it is owed, in order for each token. One token's trouble keeps no other token waiting; a verifier that cannot be
// reached ends the round. An event that the verifier refuses for good is dropped: it knows better where its chain stands.
func (l *Launcher) Tell(ctx context.Context) error {
	return l.tell(ctx, func(ChainEvent) bool { return true })
}

// tellToken tells what is owed of one token.
func (l *Launcher) tellToken(ctx context.Context, token proof.Digest) error {
	return l.tell(ctx, func(e ChainEvent) bool { return e.Token == token })
}

// silence is the newest report that no verifier answered.
type silence struct {
	began time.Duration // on CLOCK_BOOTTIME
	err   error         // nil: the newest report was answered
}

func (l *Launcher) tell(ctx context.Context, which func(ChainEvent) bool) error {
	came := l.Clock.Boot()
	l.telling.Lock()
	defer l.telling.Unlock()
	stuck := map[proof.Digest]bool{}
	var first error
	for _, e := range l.Book.Owed() {
		if stuck[e.Token] || !which(e) {
			continue
		}
		if l.silent.err != nil && l.silent.began >= came {
			return l.silent.err // somebody waited for the verifier in vain while we waited for our turn: not each of us as long again
		}
		began := l.Clock.Boot()
		err := l.Verifier.Report(ctx, e)
		var r *proof.Refusal
		l.silent = silence{}
		if errors.As(err, &r) && r.Code == proof.VerifierUnreachable && ctx.Err() == nil {
			l.silent = silence{began, err}
		}
		switch {
		case err == nil:
		case !errors.As(err, &r) || r.Code == proof.VerifierUnreachable || ctx.Err() != nil:
			return err
		case passing(r.Code):
			stuck[e.Token] = true
			first = firstOf(first, err)
			continue
		default:
			l.Log.Warn("the verifier does not take a chain event", "event", e.Event, "token", e.Token.String(), "code", string(r.Code), "sentence", r.Sentence)
		}
		if err := l.Book.Write(&Entry{What: WroteTold, Event: &e}); err != nil {
			return err
		}
	}
	return first
}

func firstOf(a, b error) error {
	if a != nil {
		return a
	}
	return b
}

// Passing says that a refusal is about this host's state, not about what was asked, and that it may be gone in a while.
func Passing(c proof.Code) bool {
	switch c {
	case proof.VerdictStale, proof.VerdictMissing, proof.TPMUnavailable, proof.HookNotLive, proof.HostRebooted, proof.HostRelaunched, proof.SealedToOtherState:
		return true
	default:
		return passing(c)
	}
}

// passing says that the verifier's refusal is not about what was asked: the chain may have moved, or not.
func passing(c proof.Code) bool {
	switch c {
	case proof.VerifierUnreachable, proof.Internal, proof.HostNotApproved, proof.Forbidden, proof.TPMBusy:
		return true
	default:
		return false
	}
}
