package launcher

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"troth/hostd/journal"
	"troth/launcher/domain"
	"troth/proof"
	"troth/test/tear"
)

// OpenBook is hostd's: this room may not import hostd, its external tests may.
// growth is by how much the journal grows before it is made shorter; zero: by more than a test writes.
var OpenBook func(fs journal.FS, dir string, now func() time.Time, growth int64) (*Book, *journal.Journal, error)

// end is what happens at a crash point.
type end int

const (
	killed   end = iota // hostd dies there; what it wrote stays in memory, and all others live on
	power               // the machine loses power there: guests, run folder and what was not synced are gone
	libvirtd            // libvirtd dies there, is away for the rest of the step, and comes back; its guests live on
	once                // that one call fails
	lasting             // that call of the file system fails, and every later one until somebody looks
)

func (e end) String() string {
	return [...]string{"hostd killed", "power lost", "libvirtd killed", "fails once", "fails until mended"}[e]
}

// side is where in an effect it happens.
type side int

const (
	before side = iota
	half
	after
)

func (s side) String() string { return [...]string{"before", "half of", "after"}[s] }

// point is one crash point.
type point struct {
	at    string // "name#n", the n-th call of that name
	side  side
	end   end
	errno syscall.Errno // of a file system's fault
	loss  tear.Loss
	seed  uint64
}

func (p point) String() string {
	return fmt.Sprintf("%v %v %s (errno %d, loss %d, seed %d)", p.end, p.side, p.at, int(p.errno), p.loss, p.seed)
}

// sim is a world whose journal lies on a file system that loses power, and whose every effect, the file system's too, is a place to crash at.
type sim struct {
	*world
	fs      *tear.FS
	dir     string
	journal *journal.Journal
	token   string            // of the first guest
	others  map[string]string // tokens by the UUIDs of other guests
	xml     map[string][]byte
	before  map[string][]byte // definitions from before the step
	step    *sequence
	growth  int64

	pmu     sync.Mutex
	point   *point
	nth     map[string]int
	effects []string
	happens bool // the point was reached
	over    bool // the step has ended: libvirtd and the disk are well again
	broken  []string
}

func newSim(t *testing.T) *sim {
	s := &sim{world: newWorld(t), fs: tear.New(), dir: t.TempDir(), others: map[string]string{}, xml: map[string][]byte{}, before: map[string][]byte{}, nth: map[string]int{}}
	s.token = s.world.token(func(t *proof.Token) { t.Saves = proof.SavesAllow })
	s.xml[guestUUID] = guestXML(t)
	s.attach()
	if err := s.start(); err != nil {
		t.Fatal(err)
	}
	return s
}

// attach puts the simulation around all effects.
func (s *sim) attach() {
	s.world.around = func(name string, do func() error) error { return s.effect(name, do, nil) }
	s.fs.Call = func(op string, data []byte, do, half func() error) error {
		if _, rest, ok := bytes.Cut(data, []byte(`"what":"`)); ok {
			what, _, _ := bytes.Cut(rest, []byte(`"`))
			op += " " + string(what)
		}
		return s.effect(op, do, half)
	}
}

// clone copies the world and the disk, with hostd not running.
func (s *sim) clone() *sim {
	o := s.world
	w := &world{t: o.t, count: map[string]int{}, inactive: maps.Clone(o.inactive), live: maps.Clone(o.live), paused: maps.Clone(o.paused), ran: maps.Clone(o.ran),
		noHook: o.noHook, noStart: o.noStart, rewrite: o.rewrite, process: o.process, files: maps.Clone(o.files), loaded: maps.Clone(o.loaded), wentOn: maps.Clone(o.wentOn), memory: o.memory, changed: maps.Clone(o.changed), secrets: maps.Clone(o.secrets),
		expected: map[[32]byte]bool{}, asked: map[[32]byte]bool{}, signing: o.signing, keys: o.keys, tokenKey: o.tokenKey, profile: o.profile, seed: o.seed,
		verdict: o.verdict, epoch: o.epoch, boot: o.boot, chains: map[proof.Digest]*fakeChain{}, receipt: o.receipt, tokens: o.tokens}
	for k, c := range o.chains {
		copied := *c
		w.chains[k] = &copied
	}
	c := &sim{world: w, fs: s.fs.Clone(), dir: s.dir, token: s.token, others: s.others, xml: s.xml, before: maps.Clone(s.before), step: s.step, growth: s.growth, nth: map[string]int{}}
	c.attach()
	return c
}

// arm makes the next effects count from none, and the point happen among them.
func (s *sim) arm(p *point) {
	s.pmu.Lock()
	defer s.pmu.Unlock()
	s.point, s.nth, s.effects, s.happens, s.over = p, map[string]int{}, nil, false, p == nil
}

func (s *sim) mend() {
	s.pmu.Lock()
	defer s.pmu.Unlock()
	s.over = true
}

var ofLibvirt = []string{"inactive", "live", "named", "define", "undefine", "create", "save", "restore", "resume", "destroy", "process"}

// effect is one call to the world or the file system.
func (s *sim) effect(name string, do, partly func() error) error {
	s.pmu.Lock()
	at := fmt.Sprintf("%s#%d", name, s.nth[name])
	s.nth[name]++
	s.effects = append(s.effects, at)
	p := s.point
	if p == nil || s.over && p.end != killed && p.end != power {
		s.pmu.Unlock()
		return do()
	}
	first := !s.happens && at == p.at
	struck := s.happens
	s.happens = s.happens || first
	s.pmu.Unlock()
	file := strings.HasPrefix(name, "fs ")
	failed := fmt.Errorf("%s: %w", name, errFault)
	if file && p.errno != 0 {
		failed = fmt.Errorf("%s: %w", name, p.errno)
	}
	switch {
	case first && p.end == libvirtd && !slices.Contains(ofLibvirt, name):
		return s.watched(name, do) // libvirtd dies beside it
	case first && p.side == after:
		if err := s.watched(name, do); err != nil {
			return err
		}
		return failed
	case first && p.side == half && partly != nil:
		return errors.Join(partly(), failed)
	case first:
		return failed
	case struck && (p.end == killed || p.end == power),
		struck && p.end == libvirtd && slices.Contains(ofLibvirt, name),
		struck && p.end == lasting && file:
		return failed
	}
	return s.watched(name, do)
}

// needs is what must be on the disk before an effect.
var needs = map[string]string{"release": WroteIntent, "define": WroteGranted, "create": WroteGranted, "restore": WroteGranted, "resume": WroteProved}

// watched makes an effect, and looks first whether the disk already has what must be there before it.
func (s *sim) watched(name string, do func() error) error {
	need := needs[name]
	if need != "" && !s.durable(need) {
		s.pmu.Lock()
		s.broken = append(s.broken, fmt.Sprintf("%s, and no %q is on the disk", name, need))
		s.pmu.Unlock()
	}
	return do()
}

// durable says whether a launch that has not ended has reached what, on the disk alone.
func (s *sim) durable(what string) bool {
	disk := tear.New()
	disk.Set("launches", s.fs.Durable(s.path()))
	_, records, err := journal.Open(disk, "launches")
	if err != nil {
		return false
	}
	book, err := bookOf(records)
	if err != nil {
		return false
	}
	for _, d := range book.Domains() {
		if d.Armed && what == WroteGranted {
			return true // it is registered, not launched: it is defined, and does not run
		}
	}
	for _, r := range book.Unended() {
		if r.Granted && what == WroteGranted || r.Proof != nil && what == WroteProved || what == WroteIntent || r.Reached == WroteFailed {
			return true
		}
	}
	return false
}

func (s *sim) path() string { return filepath.Join(s.dir, "launches") }

// start is hostd's start: the journal is replayed.
func (s *sim) start() error {
	book, j, err := OpenBook(s.fs, s.dir, fakeClock{s.world}.Now, s.growth)
	if err != nil {
		return err
	}
	s.journal = j
	s.world.mu.Lock()
	s.world.expected = map[[32]byte]bool{}
	s.world.mu.Unlock()
	s.world.l = &Launcher{Verifier: s.world, Epochs: s.world, Chip: s.world, Virt: s.world, Images: s.world, Hook: fakeHook{s.world}, Secrets: fakeSecrets{s.world}, Saves: s.world, Emulators: s.world,
		Book: book, Clock: fakeClock{s.world}, Log: slog.New(slog.DiscardHandler), Cleanup: 5 * time.Second,
		StartWithin: time.Second} // a 'started' that is lost is waited for
	s.world.l.Start()
	return nil
}

// crash takes from the world what the end takes.
func (s *sim) crash(p point) {
	s.arm(nil)
	w := s.world
	w.mu.Lock()
	defer w.mu.Unlock()
	w.opened = 0
	if p.end != power {
		return
	}
	s.fs.PowerLoss(p.loss, rand.New(rand.NewPCG(p.seed, 0)))
	clear(w.live)
	clear(w.paused)
	clear(w.loaded)
	clear(w.secrets)
}

// look is what hostd does at its start and every few seconds: end what was cut short, compare what runs with the book, tell the verifier.
func (s *sim) look() error {
	ctx, l := context.Background(), s.world.l
	errs := []error{l.Recover(ctx)}
	for _, d := range l.Book.Domains() {
		live, err := s.world.Live(ctx, mustUUID(d.UUID))
		errs = append(errs, err)
		switch {
		case err != nil:
		case d.State == StateProved && live == nil:
			errs = append(errs, l.Gone(ctx, d.UUID, proof.Refuse(proof.NotRegistered, "the guest is gone")))
		case (d.State == StateRefused || d.State == StateStopped || d.State == StateSaved) && live != nil:
			_, err = l.Stray(ctx, d.UUID)
			errs = append(errs, err)
		}
	}
	return errors.Join(append(errs, l.Tell(ctx), l.Rearm(ctx))...)
}

func mustUUID(text string) domain.UUID {
	id, err := domain.ParseUUID(text)
	if err != nil {
		panic(err)
	}
	return id
}

// launch launches a guest of the simulation.
func (s *sim) launch(uuid string) (*Outcome, *proof.Refusal) {
	token := s.token
	if uuid != guestUUID {
		token = s.others[uuid]
	}
	return s.launchWith(uuid, token)
}

var simLaunch struct {
	sync.Mutex
	n int
}

func (s *sim) launchWith(uuid, token string) (*Outcome, *proof.Refusal) {
	simLaunch.Lock()
	simLaunch.n++
	id := fmt.Sprint("sim", simLaunch.n)
	simLaunch.Unlock()
	return s.world.l.Launch(context.Background(), Request{ID: id, Token: token, Domain: s.xml[uuid], Action: proof.ActionStart}, quiet{})
}
