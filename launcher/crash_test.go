package launcher

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"troth/launcher/domain"
	"troth/proof"
	"troth/test/tear"
)

const secondUUID = "7b0f0a5e-4c55-4a53-9d5c-0d8b6f1f2a22"

// sequence is something that a host does, and that a crash cuts short. Another sequence is another entry in sequences.
type sequence struct {
	name    string
	prepare func(t *testing.T, s *sim) // without faults
	act     func(s *sim)
}

// sequences is what is crashed. What act returns does not count: a dead daemon's answer reached nobody.
func sequences() []*sequence {
	ctx := context.Background()
	launched := func(t *testing.T, s *sim) {
		if _, refusal := s.launch(guestUUID); refusal != nil {
			t.Fatal(refusal)
		}
	}
	stopped := func(t *testing.T, s *sim) {
		launched(t, s)
		if refusal := s.world.l.Stop(ctx, guestUUID); refusal != nil {
			t.Fatal(refusal)
		}
	}
	launch := func(s *sim) { unheard(s.launch(guestUUID)) }
	return append([]*sequence{
		{"launch", func(*testing.T, *sim) {}, launch},
		{"launch over a definition", redefined, launch},
		{"launch again", stopped, launch},
		{"stop", launched, func(s *sim) { unheard(s.world.l.Stop(ctx, guestUUID)) }},
		{"delete", launched, func(s *sim) { unheard(s.world.l.Delete(ctx, guestUUID)) }},
		{"guest ends by itself", launched, func(s *sim) {
			s.world.mu.Lock()
			delete(s.world.live, guestUUID)
			s.world.mu.Unlock()
			unheard(s.look())
		}},
		{"refused by the verifier", otherToken, func(s *sim) { unheard(s.launchWith(guestUUID, s.others["wrong"])) }},
		{"refused beside libvirt", func(_ *testing.T, s *sim) { s.world.process = func(p *Process) { p.Exe = "/tmp/evil" } }, launch},
		{"refused again beside libvirt", func(t *testing.T, s *sim) {
			stopped(t, s)
			s.world.process = func(p *Process) { p.Exe = "/tmp/evil" }
		}, launch},
		{"two at once", twoGuests, func(s *sim) {
			var both sync.WaitGroup
			for uuid := range s.xml {
				both.Go(func() { unheard(s.launch(uuid)) })
			}
			both.Wait()
		}},
		{"launch again, and the journal is made shorter", func(t *testing.T, s *sim) { s.growth = 1; stopped(t, s) }, launch},
		{"stop, and the journal is made shorter", func(t *testing.T, s *sim) { s.growth = 1; launched(t, s) }, func(s *sim) { unheard(s.world.l.Stop(ctx, guestUUID)) }},
		{"recovery of a paused guest", cutShort("create#0", after), recovery},
		{"recovery of a proved guest", cutShort("resume#0", before), recovery},
		{"recovery of an undoing", cutShort("destroy#0", after), recovery},
	}, append(hookSequences(), saveSequences()...)...)
}

// unheard drops the answer of a step: a dead daemon's reached nobody, and what it left is what is looked at.
func unheard(...any) {}

func redefined(t *testing.T, s *sim) {
	c, err := domain.Read(s.xml[guestUUID], domain.Request)
	if err != nil {
		t.Fatal(err)
	}
	c.Boot.CommandLine = "the definition from before"
	s.before[guestUUID] = domain.Emit(c, domain.Additions{})
	s.world.inactive[guestUUID] = s.before[guestUUID]
}

// otherToken makes a token that does not pin this guest.
func otherToken(_ *testing.T, s *sim) {
	s.others["wrong"] = s.world.token(func(t *proof.Token) { t.ID = "wrong"; t.Pins.CommandLine = &proof.Digest{9} })
}

func twoGuests(t *testing.T, s *sim) {
	s.xml[secondUUID] = bytes.ReplaceAll(bytes.ReplaceAll(guestXML(t), []byte(guestUUID), []byte(secondUUID)), []byte("<name>g1<"), []byte("<name>g2<"))
	s.others[secondUUID] = s.world.token(func(t *proof.Token) { t.ID = "second"; t.Pins.Configuration = nil })
}

// cutShort prepares a host on which hostd was killed in a launch.
func cutShort(at string, where side) func(t *testing.T, s *sim) {
	return func(_ *testing.T, s *sim) {
		if strings.HasPrefix(at, "destroy") {
			s.world.process = func(p *Process) { p.Exe = "/tmp/evil" }
		}
		p := point{at: at, side: where, end: killed}
		s.arm(&p)
		unheard(s.launch(guestUUID))
		s.crash(p)
	}
}

// recovery is hostd's own start.
func recovery(s *sim) {
	if s.start() == nil {
		unheard(s.look())
	}
}

// effectsOf runs a step without faults and lists its effects.
func effectsOf(t *testing.T, prepared *sim) []string {
	s := prepared.clone()
	s.arm(nil)
	if err := s.ready(); err != nil {
		t.Fatal(err)
	}
	s.arm(nil)
	s.step.act(s)
	s.pmu.Lock()
	defer s.pmu.Unlock()
	return slices.Clone(s.effects)
}

// ready starts hostd, unless its start is the step.
func (s *sim) ready() error {
	if strings.HasPrefix(s.step.name, "recovery") {
		return nil
	}
	return s.start()
}

// points are the crash points of a step: every effect, before, half and after, with every end; power is lost with draws of each kind of loss.
func points(effects []string, draws int) []point {
	var all []point
	for i, at := range effects {
		file := strings.HasPrefix(at, "fs ")
		sides := []side{before, after}
		if strings.HasPrefix(at, "fs write") {
			sides = []side{before, half, after}
		}
		for _, where := range sides {
			all = append(all, point{at: at, side: where, end: killed}, point{at: at, side: where, end: libvirtd}, point{at: at, side: where, end: power, loss: tear.Lost})
			for n := range draws {
				all = append(all, point{at: at, side: where, end: power, loss: tear.Torn, seed: uint64(1000*i + n)},
					point{at: at, side: where, end: power, loss: tear.Reordered, seed: uint64(1000*i + n)})
			}
			if !file {
				all = append(all, point{at: at, side: where, end: once})
				continue
			}
			for _, errno := range []syscall.Errno{syscall.ENOSPC, syscall.EIO, syscall.EROFS, syscall.EMFILE} {
				all = append(all, point{at: at, side: where, end: once, errno: errno}, point{at: at, side: where, end: lasting, errno: errno})
			}
		}
	}
	return all
}

// crashAll crashes every sequence at every point and proves all invariants after it: once hostd has looked, every guest is proved and running, or
// gone with its reason kept; and the next honest launch works.
func crashAll(t *testing.T) {
	// All points are for `make test-crash`; every other run takes a sample.
	draws, stride, seed, all := 1, 5, uint64(1), os.Getenv("TROTH_CRASH") == "all"
	switch {
	case all:
		draws, stride = 2, 1
	case testing.Short():
		stride = 17
	}
	if text := os.Getenv("TROTH_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("seed %d (TROTH_SEED sets another)", seed)
	linger = time.Millisecond
	begun, total, reached := time.Now(), 0, 0
	for _, q := range sequences() {
		t.Run(q.name, func(t *testing.T) {
			s := newSim(t)
			s.step = q
			q.prepare(t, s)
			n := draws
			if len(s.xml) > 1 {
				n = 1 // twice the effects, and their order differs from run to run
			}
			effects := effectsOf(t, s)
			if s.growth > 0 && !slices.Contains(effects, "fs rename#0") {
				t.Error("the journal was not made shorter")
			}
			every := points(effects, n)
			shown := 0
			for i := 0; i < len(every); i += stride {
				p := every[i]
				p.seed ^= rand.New(rand.NewPCG(seed, p.seed)).Uint64()
				c := s.clone()
				hit, err := c.survive(p, p.loss == tear.Lost && p.errno != syscall.EROFS && p.errno != syscall.EMFILE || i%8 == 0)
				total++
				if hit {
					reached++
				}
				if err != nil {
					t.Errorf("%v: %v", p, err)
					if shown++; shown == 5 {
						t.Fatal("and so on")
					}
				}
			}
			t.Logf("%d crash points", len(every)/stride)
		})
	}
	t.Logf("%d crash points, %d of them reached, in %v", total, reached, time.Since(begun).Round(time.Millisecond))
	if all && reached < 10_000 {
		t.Errorf("only %d crash points", reached)
	}
}

// survive crashes the step at a point, starts again, and checks everything; more says to go on and launch once more.
func (s *sim) survive(p point, more bool) (hit bool, err error) {
	if err := s.ready(); err != nil {
		return false, fmt.Errorf("before the step: %w", err)
	}
	s.arm(&p)
	s.step.act(s)
	s.pmu.Lock()
	hit = s.happens
	s.pmu.Unlock()
	alive := p.end != killed && p.end != power
	if alive {
		// hostd lives on. It opens its journal anew when that one broke, and looks again when the fault is gone.
		s.mend()
		if failed(s) {
			alive = false
		} else if err := s.look(); err != nil && !failed(s) {
			return hit, fmt.Errorf("the look after the fault: %w", err)
		}
	}
	if !alive || failed(s) || strings.HasPrefix(s.step.name, "recovery") {
		s.crash(p)
		if err := s.start(); err != nil {
			return hit, fmt.Errorf("the next start: %w", err)
		}
	}
	if err := s.look(); err != nil {
		return hit, fmt.Errorf("the first look: %w", err)
	}
	if err := s.Check(); err != nil {
		return hit, err
	}
	if !more {
		return hit, nil
	}
	if err := s.again(); err != nil {
		return hit, fmt.Errorf("afterwards: %w", err)
	}
	return hit, nil
}

func failed(s *sim) bool {
	if s.journal == nil {
		return true // it could not even be opened
	}
	select {
	case <-s.journal.Failed():
		return true
	default:
		return false
	}
}

// TestCheckSees breaks each invariant once, so that Check is known to see it.
func TestCheckSees(t *testing.T) {
	for name, spoil := range map[string]func(s *sim){
		"a guest without a proof":   func(s *sim) { s.world.live[secondUUID] = []byte("<domain/>") },
		"a guest that is gone":      func(s *sim) { delete(s.world.live, guestUUID) },
		"a guest that never ran on": func(s *sim) { s.world.paused[guestUUID] = true },
		"a secret in its file":      func(s *sim) { s.world.secrets[guestUUID] = []byte("x") },
		"a chain that stands still": func(s *sim) { s.world.chains[proof.TokenDigest(s.token)].state = "reserved" },
		"another link":              func(s *sim) { s.world.chains[proof.TokenDigest(s.token)].head = &proof.Digest{1} },
		"nothing defined":           func(s *sim) { delete(s.world.inactive, guestUUID) },
		"a journal that is short":   func(s *sim) { s.fs.Set(s.path(), nil) },
		"a journal that is damaged": func(s *sim) {
			b := s.fs.Now(s.path())
			b[len(b)/2] ^= 1
			s.fs.Set(s.path(), b)
		},
		"a guest that ran too early": func(s *sim) { s.watched("resume", func() error { return nil }) }, //nolint:errcheck // it cannot fail
	} {
		s := newSim(t)
		if _, refusal := s.launch(guestUUID); refusal != nil {
			t.Fatal(refusal)
		}
		if err := errors.Join(s.look(), s.Check()); err != nil {
			t.Fatal(err)
		}
		spoil(s)
		if s.Check() == nil {
			t.Errorf("%s: not seen", name)
		}
	}
}
