package hostd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"runtime/debug"
	"strconv"
	"sync"
	"time"

	"troth/launcher"
	"troth/proof"
	"troth/tpm"
	"troth/tpm/chip"
	"troth/tpm/pcr"
	vapi "troth/verifier/api"
)

// Chip is what the daemon needs of tpm/chip.
type Chip interface {
	launcher.Chip
	Identity(ctx context.Context) (*chip.Identity, error)
	PCRs(ctx context.Context, sel pcr.Selection) (pcr.Values, error)
	Install(ctx context.Context, s tpm.SealedSeed, sel pcr.Selection, counters tpm.Counters) error
}

// Judge is what the attest worker needs of the verifiers.
type Judge interface {
	Challenge(ctx context.Context) (*vapi.Challenge, error)
	Attest(ctx context.Context, evidence []byte) (*vapi.Attestation, error)
	Verdict(ctx context.Context, jws string) (*proof.Verdict, *proof.VerdictKeys, error)
}

// retryFirst and retryMost bound the pauses after an attestation that came to no verdict.
const (
	retryFirst = 250 * time.Millisecond
	retryMost  = 15 * time.Second
)

// Attester keeps the newest verdict: it proves the host to the verifier each epoch, and installs the release key that comes back.
type Attester struct {
	Chip     Chip
	Judge    Judge
	SPKI     proof.Digest
	EventLog string // file; empty: none is sent
	LogKind  string
	Clock    launcher.Clock
	Log      *slog.Logger
	Dated    func(issued int64) // hears the verifier's time with each verdict
	Changed  func()             // hears that there is something new

	turn chan struct{} // holds one token while somebody attests
	ak   *tpm.AK
	next *vapi.Challenge // from the previous answer, used once

	key sync.RWMutex // read while a launch needs the release key that is in the TPM, written to replace it

	mu      sync.Mutex
	epoch   *launcher.Epoch
	report  *proof.Report
	failure *proof.Refusal // of the newest attestation; nil when it brought a verdict
	tried   time.Duration
	began   time.Duration // the newest attestation that nobody cut short
	due     time.Duration // when the verifier wants to see us again, on CLOCK_BOOTTIME
	proven  time.Duration // until when an affirming verdict about this host counts or has counted; at first: when we started
	wake    chan struct{}
}

// Start makes the attester ready. Call it once.
func (a *Attester) Start() {
	a.wake, a.turn, a.proven = make(chan struct{}, 1), make(chan struct{}, 1), a.Clock.Boot()
}

// State is what is known of this host.
type State struct {
	Epoch   *launcher.Epoch
	Report  *proof.Report
	Failure *proof.Refusal
	Tried   time.Duration // when the newest attestation ended, on CLOCK_BOOTTIME; zero: none did
	AK      tpm.Name
}

// State returns the newest state.
func (a *Attester) State() State {
	a.mu.Lock()
	defer a.mu.Unlock()
	s := State{Epoch: a.epoch, Report: a.report, Failure: a.failure, Tried: a.tried}
	if a.ak != nil {
		s.AK = a.ak.Name()
	}
	return s
}

// Kick makes the worker attest soon: something showed that the state of the host changed.
func (a *Attester) Kick() {
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

// Run attests each epoch until ctx ends.
func (a *Attester) Run(ctx context.Context) {
	pause := retryFirst
	for ctx.Err() == nil {
		err := a.Renew(ctx)
		wait := a.untilDue()
		if err != nil {
			wait = pause/2 + rand.N(pause/2+1)
			pause = min(2*pause, retryMost)
		} else {
			pause = retryFirst
		}
		select {
		case <-ctx.Done():
		case <-a.wake:
		case <-time.After(wait):
		}
	}
}

func (a *Attester) untilDue() time.Duration {
	a.mu.Lock()
	defer a.mu.Unlock()
	return max(a.due-a.Clock.Boot(), 100*time.Millisecond)
}

// attest runs one attestation. The caller has the turn.
func (a *Attester) attest(ctx context.Context) error {
	began := a.Clock.Boot()
	err := a.guarded(ctx)
	a.mu.Lock()
	a.tried = a.Clock.Boot()
	if ctx.Err() == nil {
		a.began = began
	}
	var refusal *proof.Refusal
	if err != nil {
		refusal = asRefusal(err)
		if lasting(refusal.Code) {
			a.epoch = nil // an older, better verdict does not outlive what was found now
		}
	}
	before := a.failure
	a.failure = refusal
	a.mu.Unlock()
	if refusal != nil && (before == nil || before.Code != refusal.Code) {
		a.Log.Warn("attestation brought no verdict", "code", string(refusal.Code), "sentence", refusal.Sentence)
	}
	if a.Changed != nil {
		a.Changed()
	}
	if refusal == nil {
		return nil
	}
	return refusal
}

// guarded makes a panic, over an answer of the verifier's or of the TPM's, a failure that leaves the host without a verdict.
func (a *Attester) guarded(ctx context.Context) (err error) {
	defer func() {
		if p := recover(); p != nil {
			a.Log.Error("panic in an attestation", "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
			a.forget()
			err = proof.Refuse(proof.Internal, "the attestation failed in a way that nobody foresaw")
		}
	}()
	return a.exchange(ctx, true)
}

// exchange: challenge, evidence, verdict, release key. A refusal that brings another challenge is answered once.
func (a *Attester) exchange(ctx context.Context, again bool) error {
	if err := a.identify(ctx); err != nil {
		return err
	}
	challenge := a.next
	a.next = nil
	if challenge == nil {
		var err error
		if challenge, err = a.Judge.Challenge(ctx); err != nil {
			return err
		}
	}
	sel, err := pcr.Parse(challenge.Selection)
	if err != nil {
		return proof.Refuse(proof.EvidenceInvalid, "the verifier asks for PCRs that cannot be quoted", proof.Fact{Name: "selection", Value: challenge.Selection})
	}
	evidence, epoch, err := a.evidence(ctx, challenge.Challenge, sel)
	if err != nil {
		return err
	}
	// The verdict's age counts from here: whoever holds the evidence back on its way makes the verdict older, not younger.
	epoch.Sent = a.Clock.Boot()
	answer, err := a.Judge.Attest(ctx, evidence)
	var c *challenged
	if errors.As(err, &c) && again && !lasting(c.Code) {
		a.next = &vapi.Challenge{Challenge: c.next, Selection: challenge.Selection}
		return a.exchange(ctx, false)
	}
	if err != nil {
		return err
	}
	a.next = &vapi.Challenge{Challenge: answer.Challenge, Expires: answer.ChallengeExpires, Selection: answer.Selection}
	return a.take(ctx, answer, epoch)
}

func (a *Attester) identify(ctx context.Context) error {
	if a.ak != nil {
		return nil
	}
	id, err := a.Chip.Identity(ctx)
	if err != nil {
		return chipRefusal(err)
	}
	ak, err := tpm.ParseAK(id.AKPublic)
	if err != nil {
		return proof.Refuse(proof.TPMUnavailable, "the TPM's attestation key is not one of ours: provision again", proof.Fact{Name: "cause", Value: err.Error()})
	}
	a.mu.Lock()
	a.ak = ak
	a.mu.Unlock()
	return nil
}

// evidence quotes. PCRs are read beside the quote and must be what it signed: an extend in between means doing both again.
func (a *Attester) evidence(ctx context.Context, challenge []byte, sel pcr.Selection) ([]byte, *launcher.Epoch, error) {
	const tries = 4
	for try := 1; ; try++ {
		quote, err := a.Chip.Quote(ctx, sel, proof.AttestExtraData(challenge, a.SPKI))
		if err != nil {
			return nil, nil, chipRefusal(err)
		}
		values, err := a.Chip.PCRs(ctx, sel)
		if err != nil {
			return nil, nil, chipRefusal(err)
		}
		attested, err := a.ak.VerifyQuote(quote)
		if err != nil {
			return nil, nil, proof.Refuse(proof.TPMUnavailable, "the TPM's quote is not one of its attestation key", proof.Fact{Name: "cause", Value: err.Error()})
		}
		if err := attested.CheckPCRs(sel, values); err != nil {
			var check *tpm.CheckError
			if errors.As(err, &check) && check.Check == tpm.CheckBank {
				return nil, nil, proof.Refuse(proof.BankUnallocated, err.Error(), proof.Fact{Name: "selection", Want: check.Want, Got: check.Got})
			}
			if try < tries {
				continue
			}
			return nil, nil, proof.Refuse(proof.TPMBusy, "the PCRs change faster than they can be quoted", proof.Fact{Name: "cause", Value: err.Error()})
		}
		logs, err := a.logs()
		if err != nil {
			return nil, nil, err
		}
		e := proof.Evidence{Challenge: challenge, AK: a.ak.Name(), Quote: proof.QuoteDoc{Message: quote.Message, Signature: quote.Signature},
			PCRs: proof.PCRList(values, sel), Logs: logs}
		b, err := e.Encode()
		if err != nil {
			return nil, nil, err
		}
		return b, &launcher.Epoch{AK: a.ak.Name(), AKPublic: a.ak.Public(), SPKI: a.SPKI, PCRs: values, Counters: attested.Counters, Quoted: attested.Clock}, nil
	}
}

func (a *Attester) logs() ([]proof.Log, error) {
	if a.EventLog == "" {
		return nil, nil
	}
	f, err := os.Open(a.EventLog)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil // no dynamic launch left one; the verifier says what that means
	}
	if err != nil {
		return nil, fmt.Errorf("cannot read the event log: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, proof.MaxLog+1))
	if err != nil {
		return nil, fmt.Errorf("cannot read the event log: %w", err)
	}
	if len(b) > proof.MaxLog {
		return nil, proof.Refuse(proof.EvidenceInvalid, "the event log is larger than a verifier reads", proof.Fact{Name: "event log", Value: a.EventLog})
	}
	return []proof.Log{{Kind: a.LogKind, Data: b}}, nil
}

// take makes the answer the newest epoch.
func (a *Attester) take(ctx context.Context, answer *vapi.Attestation, e *launcher.Epoch) error {
	verdict, keys, err := a.Judge.Verdict(ctx, answer.Verdict)
	if err != nil {
		return err
	}
	// A verdict carries the clock of the quote that it judged. Whoever keeps evidence back and answers it with an earlier verdict about this
	// host would otherwise make that verdict young again. (Another host's verdict is Decide's to refuse.)
	if verdict.Host == e.AK && verdict.Clock != e.Quoted {
		return proof.Refuse(proof.VerdictStale, "the evidence was answered with a verdict about earlier evidence",
			proof.Fact{Name: "clock", Want: strconv.FormatUint(e.Quoted, 10), Got: strconv.FormatUint(verdict.Clock, 10)})
	}
	e.Verdict, e.Keys, e.Text, e.Digest = verdict, keys, answer.Verdict, proof.VerdictDigest(answer.Verdict)
	if verdict.Status != proof.Affirming {
		e.Against = answer.Report.Refusal
	}
	if answer.Release != nil {
		// Launches that are about to unseal under the key before finish first; the next ones wait for this one.
		a.key.Lock()
		defer a.key.Unlock()
		seed := tpm.SealedSeed{Public: answer.Release.Public, Duplicate: answer.Release.Duplicate, EncryptedSeed: answer.Release.EncryptedSeed}
		if err := a.Chip.Install(ctx, seed, verdict.Selection, verdict.Counters); err != nil {
			a.forget() // its release key may be gone from the TPM by now, or be replaced later by one that we waited for too long
			return chipRefusal(err)
		}
	}
	if a.Dated != nil {
		a.Dated(verdict.IssuedAt)
	}
	report := answer.Report
	a.mu.Lock()
	defer a.mu.Unlock()
	a.epoch, a.report = e, &report
	if verdict.Host == e.AK && verdict.Status == proof.Affirming {
		a.proven = e.Sent + e.Lifetime()
	} else {
		a.proven = min(a.proven, e.Sent)
	}
	epoch := time.Duration(verdict.NextCheck-verdict.IssuedAt) * time.Second
	a.due = e.Sent + max(epoch, 0)
	return nil
}
