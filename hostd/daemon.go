package hostd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"troth/hooks/ask"
	"troth/hostd/journal"
	"troth/hostd/secret"
	"troth/launcher"
	"troth/launcher/domain"
	"troth/proof"
)

// Libvirt is what the daemon needs of libvirt beside the launcher's part.
type Libvirt interface {
	launcher.Virt
	// Version asks the daemon who it is.
	Version(ctx context.Context) (string, error)
	// Running lists the domains that have a QEMU, paused ones too.
	Running(ctx context.Context) ([]domain.UUID, error)
	// Next waits for something to happen to a domain.
	Next(ctx context.Context) error
}

// Timer is the time as the daemon needs it; Clock is the real one.
type Timer interface {
	launcher.Clock
	TLS() time.Time
	Dated(issued int64)
}

// Daemon is a running troth-hostd but for its API: the workers and what they share.
type Daemon struct {
	Config   *Config
	Identity *Identity
	Log      *slog.Logger
	Chip     Chip
	Virt     Libvirt
	Judge    Judge
	Verifier launcher.Verifier
	Images   launcher.Images
	Clock    Timer

	Attester *Attester
	Hook     *HookSocket
	Registry *Registry
	Status   *Status
	Launcher *launcher.Launcher
	Launches *Launches
	Strays   *Strays
	Room     *secret.Room

	journal *journal.Journal
	changed chan struct{}
	kick    chan struct{}
	owes    chan struct{}
	beat    atomic.Int64 // of the reconcile worker, nanoseconds of Boot
	cancel  context.CancelFunc
	ctx     context.Context
	hooks   net.Listener
}

// Open puts the daemon together: it replays the journal, opens the hook's socket, and ends what a crash cut short.
// It refuses to start on a journal that is damaged.
func (d *Daemon) Open(ctx context.Context) error {
	d.ctx, d.cancel = context.WithCancel(context.WithoutCancel(ctx))
	d.changed, d.kick, d.owes = make(chan struct{}, 1), make(chan struct{}, 1), make(chan struct{}, 1)
	for _, dir := range []string{d.Config.StateDir, d.Config.RunDir} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("cannot make a folder: %w", err)
		}
	}
	uid, gid, err := qemuUser(d.Config.QEMU.User)
	if err != nil {
		return err
	}
	if d.Room, err = secret.Open(d.Config.RunDir, uid, gid); err != nil {
		return err
	}
	if err := d.Room.Sweep(); err != nil {
		return err
	}
	book, j, err := OpenBook(journal.OS{}, filepath.Join(d.Config.StateDir, "journal"), d.Clock.Now, func() { poke(d.changed) })
	if err != nil {
		return err
	}
	d.journal = j
	d.Attester = &Attester{Chip: d.Chip, Judge: d.Judge, SPKI: d.Identity.SPKI, EventLog: d.Config.TPM.EventLog, LogKind: d.Config.TPM.LogKind,
		Clock: d.Clock, Log: d.Log, Dated: d.Clock.Dated}
	d.Attester.Start()
	d.Hook = &HookSocket{Script: d.Config.Hook.Script, UIDs: hookUIDs(d.Config.Hook.UIDs), Log: d.Log, Heard: func(ask.Question, bool) { poke(d.kick) }}
	d.Registry = &Registry{Path: RegistryPath(d.Config.StateDir), Book: book, Log: d.Log}
	d.Launcher = &launcher.Launcher{Verifier: d.Verifier, Epochs: d.Attester, Chip: refusing{d.Chip, d.Attester.Kick}, Virt: d.Virt, Images: d.Images, Hook: d.Hook,
		Secrets: d.Room, Book: book, Clock: d.Clock, Log: d.Log}
	if uid >= 0 {
		u := uint32(uid)
		d.Launcher.QEMU = &u
	}
	d.Launcher.Sign = d.sign
	d.Launcher.Start()
	d.Strays = d.newStrays()
	d.Status = &Status{Attester: d.Attester, Hook: d.Hook, Registry: d.Registry, Now: d.Clock.Now, Owed: func() int { return len(book.Owed()) },
		Strays: d.Strays.Condition}
	timeout, err := time.ParseDuration(d.Config.Launch.Timeout)
	if err != nil {
		return fmt.Errorf("launch.timeout: %w", err)
	}
	d.Launches = NewLaunches(d.ctx, d.Launcher, d.Log, d.Config.Launch.Max, timeout)
	// The registry before the socket: a hook that finds the socket finds the registry of now.
	if err := d.Registry.Publish(); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(d.Config.Hook.Socket), 0o755); err != nil {
		return fmt.Errorf("cannot make the folder of the hook's socket: %w", err)
	}
	d.hooks, err = ask.Listen(d.Config.Hook.Socket, 0o660)
	return err
}

// ErrNoAnswer is what Challenge returns when the guest did not answer.
var ErrNoAnswer = secret.ErrNoAnswer

// Challenge carries a tenant's challenge to a guest and its answer back. The answer proves something to the tenant alone.
func (d *Daemon) Challenge(ctx context.Context, uuid string, challenge []byte) (answer []byte, link proof.Digest, err error) {
	return d.Room.Challenge(ctx, uuid, challenge)
}

// Time is what certificates are checked against.
func (d *Daemon) Time() time.Time { return d.Clock.TLS() }

// Run works until ctx ends, then lets the launches under way end and closes what Open opened.
func (d *Daemon) Run(ctx context.Context) error {
	var workers sync.WaitGroup
	failed := make(chan error, 1)
	workers.Go(func() {
		if err := d.Hook.Run(d.ctx, d.hooks); err != nil {
			select {
			case failed <- err:
			default:
			}
		}
	})
	workers.Go(func() { d.Attester.Run(d.ctx) })
	workers.Go(func() { d.Registry.Run(d.ctx, d.changed) })
	workers.Go(func() { d.reconcile(d.ctx) })
	workers.Go(func() { d.tell(d.ctx) })
	workers.Go(func() { d.events(d.ctx) })
	workers.Go(func() { watchdog(d.ctx, d.Log, d.alive) })
	var err error
	select {
	case <-ctx.Done():
	case err = <-failed:
		err = fmt.Errorf("the hook's socket failed: %w", err)
	}
	// Launches end first, while hooks are still answered and the chip is still ours: cancelled, each undoes itself.
	d.cancel()
	d.Launches.Wait()
	workers.Wait()
	return errors.Join(err, d.journal.Close())
}

// alive is what the watchdog asks: the reconcile worker goes round.
func (d *Daemon) alive() bool {
	return d.Clock.Boot()-time.Duration(d.beat.Load()) < 2*time.Minute
}

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

func hookUIDs(more []int) []uint32 {
	uids := []uint32{0, uint32(os.Geteuid())}
	for _, u := range more {
		uids = append(uids, uint32(u))
	}
	return uids
}

// qemuUser finds who QEMU runs as: a name or a number. Empty: not known, -1.
func qemuUser(name string) (uid, gid int, err error) {
	if name == "" {
		return -1, -1, nil
	}
	u, err := user.Lookup(name)
	if err != nil {
		if u, err = user.LookupId(name); err != nil {
			return 0, 0, fmt.Errorf("qemu.user: %w", err)
		}
	}
	uid, err1 := strconv.Atoi(u.Uid)
	gid, err2 := strconv.Atoi(u.Gid)
	if err := errors.Join(err1, err2); err != nil {
		return 0, 0, fmt.Errorf("qemu.user: %w", err)
	}
	return uid, gid, nil
}

// refusing is the launcher's chip: errors are refusals, and one that shows that the host's state changed makes the host attest at once.
type refusing struct {
	Chip
	kick func()
}

func (r refusing) Unseal(ctx context.Context) ([]byte, error) {
	seed, err := r.Chip.Unseal(ctx)
	if err != nil {
		r.kick()
		return nil, chipRefusal(err)
	}
	return seed, nil
}
