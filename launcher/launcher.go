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
	Verifier Verifier
	Epochs   Epochs
	Chip     Chip
	Virt     Virt
	Images   Images
	Hook     Hook
	Secrets  Secrets
	Book     *Book
	Clock    Clock
	Log      *slog.Logger
	Sign     func(*proof.TrustLost) ([]byte, error) // with the key that verdicts name
	QEMU     *uint32                                // who QEMU must run as; nil: not compared
	Cleanup  time.Duration                          // how long undoing may take, whatever became of the launch's own context

	unseals *batcher[sealed, opened]
	quotes  *batcher[quoteIn, quoteOut]
	telling sync.Mutex
	mu      sync.Mutex
	busy    map[domain.UUID]bool

	brief    map[domain.UUID]chan struct{} // of busy: held by the reconcile worker, closed when it lets go
	compared map[domain.UUID][32]byte      // digests of live definitions that were compared and found good; of proved guests only
}

// Start makes the launcher ready. Call it once, before anything else.
func (l *Launcher) Start() {
	if l.Cleanup == 0 {
		l.Cleanup = time.Minute
	}
	l.busy, l.brief, l.compared = map[domain.UUID]bool{}, map[domain.UUID]chan struct{}{}, map[domain.UUID][32]byte{}
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

// claim makes sure that one thing at a time happens to a domain. It waits for whoever has it only to look.
func (l *Launcher) claim(id domain.UUID) (release func(), err *proof.Refusal) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.brief[id] != nil {
		looking := l.brief[id]
		l.mu.Unlock()
		<-looking
		l.mu.Lock()
	}
	if l.busy[id] {
		return nil, proof.Refuse(proof.RequestInvalid, "another launch or stop of this domain is under way", proof.Fact{Name: "uuid", Value: id.String()})
	}
	l.busy[id] = true
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.busy, id)
	}, nil
}

// claimBriefly is claim for the reconcile worker, whose looks bar nobody's launch or stop.
func (l *Launcher) claimBriefly(id domain.UUID) (release func(), err *proof.Refusal) {
	free, refusal := l.claim(id)
	if refusal != nil {
		return nil, refusal
	}
	looking := make(chan struct{})
	l.mu.Lock()
	l.brief[id] = looking
	l.mu.Unlock()
	return func() {
		free()
		l.mu.Lock()
		delete(l.brief, id)
		l.mu.Unlock()
		close(looking)
	}, nil
}

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

// Again gives the XML to launch a known domain from once more: what was asked for, under the UUID that it got.
func (l *Launcher) Again(d *Domain) ([]byte, error) {
	id, err := domain.ParseUUID(d.UUID)
	if err != nil {
		return nil, err
	}
	c, err := domain.Read(d.Request, domain.Request)
	if err != nil {
		return nil, err
	}
	if !c.UUID.IsZero() {
		return d.Request, nil
	}
	c.SetUUID(id)
	return domain.Emit(c, domain.Additions{}), nil
}

// Text checks a UUID as a caller wrote it, and gives it as libvirt and the book do.
func Text(uuid string) (string, *proof.Refusal) {
	id, err := domain.ParseUUID(uuid)
	if err != nil {
		return "", proof.Refuse(proof.RequestInvalid, err.Error(), proof.Fact{Name: "uuid", Value: uuid})
	}
	return id.String(), nil
}
