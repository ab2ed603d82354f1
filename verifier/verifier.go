package verifier

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"troth/proof"
	"troth/tpm"
	"troth/tpm/pcr"
	"troth/verifier/store"
)

// Kinds of stored documents.
const (
	kindHost       = "host"
	kindEnrolment  = "enrolment"
	kindReference  = "reference"
	kindProfile    = "profile"
	kindChain      = "chain"
	kindChainEvent = "chain-event"
	kindMark       = "mark"
	kindVerdict    = "verdict"
)

// Config is what the judge needs to know; cmd/troth-verifierd reads it from its file.
type Config struct {
	Issuer        string        // stands in verdicts, receipts and key sets
	Epoch         time.Duration // how often a host attests
	Lifetime      time.Duration // of a verdict
	ChallengeAge  time.Duration // how old a challenge may be; it must outlast an epoch, since each answer carries the next one
	Roots         tpm.Roots
	Intermediates []*x509.Certificate
}

// DefaultConfig has the times of the protocol, chapter 3.
func DefaultConfig() Config {
	return Config{Issuer: "troth-verifierd", Epoch: 60 * time.Second, Lifetime: 180 * time.Second, ChallengeAge: 120 * time.Second}
}

// Verifier judges. All its methods may be called at once.
type Verifier struct {
	cfg   Config
	keys  atomic.Pointer[Keys] // another after SetKeys
	store store.Store
	log   *slog.Logger
	now   func() time.Time // the verifier's own clock is the only one it believes
	spent spentSet

	mu       sync.RWMutex // guards what follows: the newest values, read from memory on the appraisal path
	hosts    map[string]*Host
	bySPKI   map[proof.Digest]*Host
	refs     map[string]*Reference
	profiles map[string]*Profile
	standing map[tpm.Name]*standing
	marks    map[tpm.Name]Mark
	verdicts map[proof.Digest]*issued

	admin  sync.Mutex    // one change of references and profiles at a time: a profile's digest covers both
	logged sync.Mutex    // guards queue
	queue  []store.Write // marks and verdicts on their way to the store; see flush
}

// issued is a verdict that this verifier signed and that has not expired.
type issued struct {
	Digest proof.Digest
	JWS    string
	KeyID  string // who signed it
	V      *proof.Verdict
}

// standing is what is known of a host since its last authentic evidence. An attacker without the host's TPM cannot change it.
type standing struct {
	At       int64
	Verdict  *issued        // nil when the evidence was refused
	Refusal  *proof.Refusal // the cause when untrusted
	Counters tpm.Counters
	Report   *proof.Report
	Judged   []Judged
	Values   pcr.Values
	Events   []ReferenceEvent
}

// New loads everything that is asked on the appraisal path into memory.
func New(ctx context.Context, cfg Config, keys *Keys, st store.Store, log *slog.Logger) (*Verifier, error) {
	if cfg.Issuer == "" || cfg.Epoch <= 0 || cfg.Lifetime < cfg.Epoch || cfg.ChallengeAge < cfg.Epoch {
		return nil, fmt.Errorf("cannot start verifier: issuer, epoch, verdict lifetime and challenge age do not fit each other")
	}
	if cfg.Issuer != keys.Issuer {
		return nil, fmt.Errorf("cannot start verifier: the configuration's issuer is %q, the key set's %q", cfg.Issuer, keys.Issuer)
	}
	v := &Verifier{cfg: cfg, store: st, log: log, now: time.Now,
		hosts: map[string]*Host{}, bySPKI: map[proof.Digest]*Host{}, refs: map[string]*Reference{}, profiles: map[string]*Profile{},
		standing: map[tpm.Name]*standing{}, marks: map[tpm.Name]Mark{}, verdicts: map[proof.Digest]*issued{}}
	v.keys.Store(keys)
	if err := v.load(ctx); err != nil {
		return nil, fmt.Errorf("cannot start verifier: %w", err)
	}
	return v, nil
}

// each decodes all documents of a kind.
func each[T any](ctx context.Context, st store.Store, kind, prefix string, f func(store.Doc, *T) error) error {
	docs, err := st.List(ctx, kind, prefix)
	if err != nil {
		return err
	}
	for _, d := range docs {
		v := new(T)
		if err := json.Unmarshal(d.Body, v); err != nil {
			return fmt.Errorf("stored %s %q is damaged: %w", kind, d.Name, err)
		}
		if err := f(d, v); err != nil {
			return fmt.Errorf("stored %s %q is damaged: %w", kind, d.Name, err)
		}
	}
	return nil
}

func (v *Verifier) load(ctx context.Context) error {
	now := v.now().Unix()
	return errors.Join(
		each(ctx, v.store, kindHost, "", func(d store.Doc, h *Host) error {
			older := len(h.EKs) > 0
			if err := h.complete(d.Rev); err != nil {
				return err
			}
			if older { // give up the claims to EKs that nobody proved; if we crash here, the next start does it
				if err := v.store.Apply(ctx, store.Write{Kind: kindHost, Name: d.Name, Rev: d.Rev, Body: encode(h), Claims: h.claims()}); err != nil {
					return err
				}
				h.rev++
			}
			v.keep(nil, h)
			return nil
		}),
		each(ctx, v.store, kindReference, "", func(_ store.Doc, r *Reference) error {
			v.refs[r.Name] = r
			return orNil(r.check())
		}),
		each(ctx, v.store, kindProfile, "", func(_ store.Doc, p *Profile) error {
			v.profiles[p.Name] = p
			return errors.Join(p.check(), orNil(p.resolve(v.refs)))
		}),
		each(ctx, v.store, kindMark, "", func(_ store.Doc, m *Mark) error { v.marks[m.AK] = *m; return nil }),
		each(ctx, v.store, kindVerdict, "", func(d store.Doc, s *storedVerdict) error {
			vd, err := proof.ParseVerdict(s.JWS, v.keys.Load().Public)
			if err != nil {
				v.log.Warn("stored verdict is not of the present keys", "digest", d.Name, "error", err.Error())
				return nil
			}
			if vd.Expires > now {
				i := &issued{proof.VerdictDigest(s.JWS), s.JWS, s.KeyID, vd}
				v.verdicts[i.Digest] = i
				// Of verdicts of one second the TPM's clock tells the newest.
				if st := v.standing[vd.Host]; st == nil || st.At < vd.IssuedAt || st.At == vd.IssuedAt && st.Verdict.V.Clock < vd.Clock {
					v.standing[vd.Host] = &standing{At: vd.IssuedAt, Verdict: i, Counters: vd.Counters, Refusal: s.Refusal}
				}
			}
			return nil
		}),
	)
}

type storedVerdict struct {
	JWS     string         `json:"jws"`
	KeyID   string         `json:"kid"`
	Expires int64          `json:"expires"`
	Refusal *proof.Refusal `json:"refusal,omitempty"`
}

// keep replaces old by h in memory; either may be nil. The caller holds mu or is alone.
func (v *Verifier) keep(old, h *Host) {
	if old != nil {
		delete(v.hosts, old.Name)
		delete(v.bySPKI, old.SPKI)
		if h == nil || h.AKName != old.AKName {
			delete(v.standing, old.AKName)
		}
	}
	if h != nil {
		v.hosts[h.Name] = h
		v.bySPKI[h.SPKI] = h
	}
}

// Ready reports whether the store answers.
func (v *Verifier) Ready(ctx context.Context) error { return v.store.Ping(ctx) }

// KeySet is the key set as the root signed it, and the root.
func (v *Verifier) KeySet() (string, proof.JWK) {
	k := v.keys.Load()
	return k.KeySet, k.Root
}

// flushEvery is how long marks and verdicts may wait for the disk. The appraisal path does not touch it: many hosts share
// one commit. A crash loses at most this much: a lost mark lets a clock go back by one second's evidence at most, a lost
// verdict costs its host one more attestation. Releases and chain events never wait here.
const flushEvery = time.Second

// Run commits marks and verdicts in groups until ctx ends, then once more.
func (v *Verifier) Run(ctx context.Context) error {
	tick := time.NewTicker(flushEvery)
	defer tick.Stop()
	lastPrune := v.now()
	for {
		select {
		case <-tick.C:
			if err := v.flush(ctx); err != nil {
				v.log.Error("cannot write verdict log", "error", err.Error())
			}
			if v.now().Sub(lastPrune) >= time.Minute {
				lastPrune = v.now()
				if err := v.prune(ctx); err != nil {
					v.log.Error("cannot prune", "error", err.Error())
				}
			}
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
			defer cancel()
			return v.flush(last)
		}
	}
}

// maxQueued bounds what waits for a disk that takes nothing.
const maxQueued = 1 << 16

// room says whether a verdict may wait for the disk. Without it none is given: what a restart would forget without bound is not worth signing.
func (v *Verifier) room() error {
	v.logged.Lock()
	defer v.logged.Unlock()
	if n := len(v.queue); n >= maxQueued {
		return fmt.Errorf("%d writes wait for the disk", n)
	}
	return nil
}

func (v *Verifier) enqueue(w ...store.Write) {
	v.logged.Lock()
	defer v.logged.Unlock()
	v.queue = append(v.queue, w...)
}

// flush writes the queue; what cannot be written goes back to its front.
func (v *Verifier) flush(ctx context.Context) error {
	v.logged.Lock()
	q := v.queue
	v.queue = nil
	v.logged.Unlock()
	if len(q) == 0 {
		return nil
	}
	if err := v.store.Apply(ctx, q...); err != nil {
		v.logged.Lock()
		v.queue = append(q, v.queue...)
		v.logged.Unlock()
		return err
	}
	return nil
}

// prune forgets what has expired: verdicts, challenges, enrolments that were never finished.
func (v *Verifier) prune(ctx context.Context) error {
	now := v.now().Unix()
	v.spent.prune(v.now())
	v.mu.Lock()
	for d, i := range v.verdicts {
		if i.V.Expires <= now {
			delete(v.verdicts, d)
		}
	}
	v.mu.Unlock()
	var gone []store.Write
	err := errors.Join(
		each(ctx, v.store, kindVerdict, "", func(d store.Doc, s *storedVerdict) error {
			if s.Expires <= now {
				gone = append(gone, store.Write{Kind: kindVerdict, Name: d.Name, Rev: store.Any})
			}
			return nil
		}),
		each(ctx, v.store, kindEnrolment, "", func(d store.Doc, e *enrolment) error {
			if e.Expires <= now {
				gone = append(gone, store.Write{Kind: kindEnrolment, Name: d.Name, Rev: store.Any})
			}
			return nil
		}))
	if err != nil || len(gone) == 0 {
		return err
	}
	return v.store.Apply(ctx, gone...)
}

// encode writes a stored document; the types are ours and cannot fail to encode.
func encode(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("cannot encode %T: %v", v, err))
	}
	return b
}

// orNil keeps a nil refusal from becoming an error that is not nil.
func orNil(r *proof.Refusal) error {
	if r == nil {
		return nil
	}
	return r
}

func internal(sentence string, err error) error {
	return fmt.Errorf("%s: %w", sentence, err)
}
