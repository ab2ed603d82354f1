package launcher

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"troth/launcher/domain"
	"troth/proof"
)

// Launcher has everything that launches need. Its fields are set once, then Start is called.
type Launcher struct {
	Verifier  Verifier
	Epochs    Epochs
	Chip      Chip
	Virt      Virt
	Images    Images
	Hook      Hook
	Secrets   Secrets
	Keys      Keys
	Saves     Saves
	Book      *Book
	Clock     Clock
	Log       *slog.Logger
	Sign      func(*proof.TrustLost) ([]byte, error) // with the key that verdicts name
	QEMU      *uint32                                // who QEMU must run as; nil: not compared
	Emulators Emulators
	Leads     Leads         // of registered volumes; nil: they are what they were when they were registered
	Cleanup   time.Duration // how long undoing may take, whatever became of the launch's own context; zero: a minute

	// Kept says that a path leads to files of hostd itself, or of what it stands on: no guest gets those as a disk. Nil: none.
	Kept func(path string) bool

	// StartWithin is how long a start by another client may take from the permit until QEMU runs; zero: a minute. libvirt itself waits 30 s for QEMU's monitor.
	StartWithin time.Duration

	unseals *batcher[sealed, opened]
	quotes  *batcher[quoteIn, quoteOut]
	telling sync.Mutex
	silent  silence // of the verifier; under telling
	mu      sync.Mutex
	busy    map[domain.UUID]bool
	ending  map[domain.UUID]bool // by recovery
	arms    map[domain.UUID]*armed
	pending map[domain.UUID]*pending
	begun   sync.WaitGroup // starts by other clients that are not at their end

	claims   uint64                   // that were made
	turns    map[domain.UUID]uint64   // the number of each domain's newest claim
	past     uint64                   // claims up to this one are not in turns any more
	compared map[domain.UUID][32]byte // digests of live definitions that were compared and found good; of proved guests only
}

// Start makes the launcher ready. Call it once, before anything else.
func (l *Launcher) Start() {
	if l.Cleanup == 0 {
		l.Cleanup = time.Minute
	}
	if l.StartWithin == 0 {
		l.StartWithin = time.Minute
	}
	l.busy, l.ending = map[domain.UUID]bool{}, map[domain.UUID]bool{}
	l.turns, l.compared = map[domain.UUID]uint64{}, map[domain.UUID][32]byte{}
	l.arms, l.pending = map[domain.UUID]*armed{}, map[domain.UUID]*pending{}
	l.unseals = newBatcher(proof.MaxBatch, l.unsealBatch)
	l.quotes = newBatcher(proof.MaxBatch, l.quoteBatch)
}

// Request asks for one launch.
type Request struct {
	ID     string // of the launch
	Asked  string // digest of the API request that asked for it
	Token  string
	Domain []byte // XML
	Action string
	DryRun bool
	Arm    bool   // define the domain and let any libvirt client start it, instead of launching it
	Mode   string // proof.ModeHook: another libvirt client starts it; empty: we create it paused
}

func (r Request) mode() string {
	if r.Mode == "" {
		return proof.ModePaused
	}
	return r.Mode
}

// Steps of a launch, in their order.
const (
	StepRead      = "read"
	StepMeasure   = "measure"
	StepVerdict   = "verdict"
	StepStatement = "statement"
	StepRelease   = "release"
	StepUnseal    = "unseal"
	StepDecide    = "decide"
	StepGrant     = "grant"
	StepDefine    = "define"
	StepCreate    = "create"
	StepCompare   = "compare"
	StepQuote     = "quote"
	StepProve     = "prove"
	StepResume    = "resume"
	StepDone      = "done"
)

// Watcher hears how far a launch is. Its methods do not block.
type Watcher interface {
	Step(step string)
	Domain(uuid, name string)
	Hashed(done, total int64)
}

// Outcome is what a launch that was not refused ends with.
type Outcome struct {
	UUID  string
	Proof []byte           // nil for a dry run
	Would *proof.Statement // of a dry run: what would have been asked for
}

// maxTurns bounds how many domains' claims are remembered.
const maxTurns = 2 * maxDomains

// claim makes sure that one thing at a time happens to a domain.
func (l *Launcher) claim(id domain.UUID) (release func(), err *proof.Refusal) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.busy[id] {
		return nil, proof.Refuse(proof.RequestInvalid, "another launch or stop of this domain is under way", proof.Fact{Name: "uuid", Value: id.String()})
	}
	return l.claimed(id), nil
}

// claimed marks a claim. The caller holds mu.
func (l *Launcher) claimed(id domain.UUID) (release func()) {
	if len(l.turns) >= maxTurns {
		clear(l.turns)
		l.past = l.claims // who began to look before now looks again
	}
	l.claims++
	l.busy[id], l.turns[id] = true, l.claims
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.busy, id)
	}
}

// turn is the number of the newest claim of all, for whoever only looks: the reconcile worker asks libvirt, which may be waiting for a hook that waits for
// the claim, so that it looks without one and claims afterwards, if nobody has been there meanwhile. ok is false while somebody has the domain.
func (l *Launcher) turn(id domain.UUID) (turn uint64, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.claims, !l.busy[id]
}

// claimAt claims the domain if nobody has claimed it since turn.
func (l *Launcher) claimAt(id domain.UUID, turn uint64) (release func(), ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.busy[id] || max(l.turns[id], l.past) > turn {
		return nil, false
	}
	return l.claimed(id), true
}

// claimSoon claims a domain, and waits a little for what is under way.
func (l *Launcher) claimSoon(ctx context.Context, id domain.UUID, within time.Duration) (release func(), refusal *proof.Refusal) {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	for {
		if release, refusal = l.claim(id); refusal == nil {
			return release, nil
		}
		select {
		case <-ctx.Done():
			return nil, refusal
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// claimWithin is how long a stop waits for a launch that is about to end.
const claimWithin = 5 * time.Second

// Busy says whether something is happening to the domain right now.
func (l *Launcher) Busy(id domain.UUID) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.busy[id]
}

// undoing is a context for putting things back: it outlives the launch's own, which may be what failed.
func (l *Launcher) undoing(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), l.Cleanup)
}

// Refusal makes a refusal of any error: one that is or holds a refusal is that refusal, one that says of itself what it is gets its code,
// everything else is internal, with the step and the error's words as facts.
func Refusal(step string, err error) *proof.Refusal {
	if err == nil {
		return nil
	}
	var r *proof.Refusal
	if errors.As(err, &r) {
		return r
	}
	var coded interface{ RefusalCode() proof.Code }
	facts := []proof.Fact{{Name: "step", Value: step}, {Name: "cause", Value: err.Error()}}
	if errors.As(err, &coded) {
		return proof.Refuse(coded.RefusalCode(), fmt.Sprintf("the step %q failed", step), facts...)
	}
	return proof.Refuse(proof.Internal, fmt.Sprintf("the step %q failed", step), facts...)
}

// Text checks a UUID as a caller wrote it, and gives it as libvirt and the book do.
func Text(uuid string) (string, *proof.Refusal) {
	id, err := domain.ParseUUID(uuid)
	if err != nil {
		return "", proof.Refuse(proof.RequestInvalid, err.Error(), proof.Fact{Name: "uuid", Value: uuid})
	}
	return id.String(), nil
}
