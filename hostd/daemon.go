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
	"sync/atomic"
	"time"

	"troth/hooks"
	"troth/hooks/answer"
	"troth/hooks/ask"
	"troth/hostd/audit"
	"troth/hostd/journal"
	"troth/hostd/secret"
	"troth/launcher"
	"troth/launcher/domain"
	"troth/launcher/stall"
	"troth/proof"
)

// Libvirt is what the daemon needs of libvirt beside the launcher's part.
type Libvirt interface {
	launcher.Virt
	launcher.Keys
	// Version asks the daemon who it is.
	Version(ctx context.Context) (string, error)
	// Running lists the domains that have a QEMU, paused ones too.
	Running(ctx context.Context) ([]domain.UUID, error)
	// Autostart says whether libvirt starts the domain when the host boots; false for one that it does not know.
	Autostart(ctx context.Context, id domain.UUID) (bool, error)
	// Session numbers the connection that is open now; 0: there is none. Another number may mean another libvirtd.
	Session() uint64
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
	Liveness *Liveness
	Registry *Registry
	Status   *Status
	Launcher *launcher.Launcher
	Launches *Launches
	Strays   *Strays
	Workers  *Workers
	Room     *secret.Room
	Audit    *audit.Log

	state   *os.File // the lock of the state folder
	journal *journal.Journal
	asked   *stall.Guard // questions of the reconcile worker to libvirt
	ended   *stall.Guard // its recovery
	watched *stall.Guard // comparisons of guests with their grants, by UUID
	unswept string       // why keys could not be looked for; of the reconcile worker
	changed chan struct{}
	kick    chan struct{}
	rearm   chan struct{}
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
	d.changed, d.kick = make(chan struct{}, 1), make(chan struct{}, 1)
	d.asked = &stall.Guard{Within: patience, Most: maxStuck}
	d.ended = &stall.Guard{Within: overdue, Most: 1}
	d.watched = &stall.Guard{Within: 2 * patience, Most: maxStuck}
	d.rearm, d.owes = make(chan struct{}, 1), make(chan struct{}, 1)
	for _, dir := range []string{d.Config.StateDir, d.Config.RunDir} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("cannot make a folder: %w", err)
		}
	}
	uid, gid, err := qemuUser(d.Config.QEMU.User)
	if err != nil {
		return err
	}
	// Before anything there is read: reading a journal makes it new.
	if d.state, err = journal.Lock(d.Config.StateDir); err != nil {
		return err
	}
	if d.Room, err = secret.Open(d.Config.RunDir, uid, gid); err != nil {
		return err
	}
	if err := d.Room.Sweep(); err != nil {
		return err
	}
	if err := journal.MakeDir(filepath.Dir(AuditPath(d.Config.StateDir)), 0o700); err != nil {
		return fmt.Errorf("cannot make the audit log's folder: %w", err)
	}
	if d.Audit, err = audit.Open(journal.OS{}, AuditPath(d.Config.StateDir), d.Clock.Now, d.Log); err != nil {
		return err
	}
	book, j, err := OpenBook(Store{FS: journal.OS{}, Dir: filepath.Join(d.Config.StateDir, "journal")}, d.Clock.Now, func() { poke(d.changed); poke(d.rearm) },
		func(to launcher.Journal) launcher.Journal { return audited{to, d.Audit} })
	if err != nil {
		return err
	}
	if n := book.Late(); n > 0 {
		d.Log.Warn("the journal tells of strays of domains that were forgotten by then: they are left out", "entries", n)
	}
	d.journal = j
	within, err := time.ParseDuration(d.Config.TPM.Timeout)
	if err != nil {
		return fmt.Errorf("tpm.timeout: %w", err)
	}
	chip := patient{d.Chip, within}
	d.Attester = &Attester{Chip: chip, Judge: d.Judge, SPKI: d.Identity.SPKI, EventLog: d.Config.TPM.EventLog, LogKind: d.Config.TPM.LogKind,
		Clock: d.Clock, Log: d.Log, Dated: d.Clock.Dated}
	d.Attester.Start()
	d.Hook = &HookSocket{Script: d.Config.Hook.Script, UIDs: hookUIDs(d.Config.Hook.UIDs), Log: d.Log}
	d.live()
	saves, err := openSaves(d.Config.StateDir)
	if err != nil {
		return err
	}
	own := d.Config.own()
	d.Registry = &Registry{Path: RegistryPath(d.Config.StateDir), Book: book, Log: d.Log, Own: own}
	d.Launcher = &launcher.Launcher{Verifier: d.Verifier, Epochs: d.Attester, Chip: refusing{chip, d.Attester.Kick}, Virt: published{d.Virt, d.Registry}, Images: d.Images, Hook: d.Hook,
		Secrets: d.Room, Keys: d.Virt, Saves: saves, Book: book, Clock: d.Clock, Log: d.Log}
	if uid >= 0 {
		u := uint32(uid)
		d.Launcher.QEMU = &u
	}
	d.Launcher.Sign, d.Launcher.Leads, d.Launcher.Emulators = d.sign, d.Registry.Leads, holders{lookAround}
	d.Launcher.Kept = func(path string) bool { return hooks.Keeps(path, own...) }
	d.Launcher.Start()
	d.Hook.Starts = d.Launcher
	d.Strays = d.newStrays()
	d.Workers = &Workers{Log: d.Log, Boot: d.Clock.Boot}
	d.Status = &Status{Attester: d.Attester, Hook: d.Hook, Liveness: d.Liveness, Registry: d.Registry, Now: d.Clock.Now, Owed: func() int { return len(book.Owed()) },
		Strays: d.Strays.Condition, Workers: d.Workers.Condition}
	timeout, err := time.ParseDuration(d.Config.Launch.Timeout)
	if err != nil {
		return fmt.Errorf("launch.timeout: %w", err)
	}
	d.Launches = NewLaunches(d.ctx, d.Launcher, d.Log, d.Config.Launch.Max, timeout)
	d.Launches.Ended = unread(d.Audit, book)
	d.Launches.Missed = d.Liveness.Missed
	// The registry before the socket: a hook that finds the socket finds the registry of now, and of the devices and inodes of this boot.
	if _, err := d.Registry.Look(); err != nil {
		return err
	}
	if f := d.Registry.Failure(); f != "" {
		return fmt.Errorf("cannot publish the registry: %s", f)
	}
	if err := os.MkdirAll(filepath.Dir(d.Config.Hook.Socket), 0o755); err != nil {
		return fmt.Errorf("cannot make the folder of the hook's socket: %w", err)
	}
	d.hooks, err = answer.Listen(d.Config.Hook.Socket, 0o660)
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
	workers := d.Workers
	failed := make(chan error, 1)
	workers.Go(d.ctx, "hooks", func(ctx context.Context) {
		if err := d.Hook.Run(ctx, d.hooks); err != nil {
			select {
			case failed <- err:
			default:
			}
		}
	})
	workers.Go(d.ctx, "attest", d.Attester.Run)
	workers.Go(d.ctx, "registry", func(ctx context.Context) { d.Registry.Run(ctx, d.changed) })
	workers.Go(d.ctx, "reconcile", d.reconcile)
	workers.Go(d.ctx, "tell", d.tell)
	workers.Go(d.ctx, "events", d.events)
	workers.Go(d.ctx, "arming", d.arming)
	workers.Go(d.ctx, "autostart", d.autostart)
	workers.Go(d.ctx, "liveness", d.Liveness.Run)
	workers.Go(d.ctx, "watchdog", func(ctx context.Context) { watchdog(ctx, d.Log, d.alive) })
	audits, unaudited := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(audits)
		d.Audit.Run(unaudited)
	}()
	var err error
	select {
	case <-ctx.Done():
	case err = <-failed:
		err = fmt.Errorf("the hook's socket failed: %w", err)
	case <-d.journal.Failed():
		// Only a start reads what the disk really holds. Launches that are cut short here are ended by it.
		err = errors.New("the journal failed: nobody knows what the disk holds of it")
	case <-d.Audit.Failed():
		err = errors.New("the audit log failed: nothing can be granted without it")
	}
	// Launches end first, while hooks are still answered and the chip is still ours: cancelled, each undoes itself.
	d.cancel()
	d.Launches.Wait()
	d.Launcher.Wait()
	workers.Wait()
	close(unaudited)
	<-audits // it hears of all that ended above
	return errors.Join(err, d.journal.Close(), d.Audit.Close(), d.state.Close())
}

// alive is what the watchdog asks: the reconcile worker goes round.
func (d *Daemon) alive() bool {
	return d.Clock.Boot()-time.Duration(d.beat.Load()) < 2*time.Minute
}

// live puts the hook's liveness between hook socket, launcher and libvirt.
func (d *Daemon) live() {
	var canary *Canary
	d.Liveness, canary = NewLiveness(d.Config.Hook.Script, d.Virt, d.Virt.Session, d.Log)
	d.Hook.Live = d.Liveness
	d.Hook.Heard = func(q ask.Question, a ask.Answer) {
		if !canary.Heard(q, a.Allow) {
			d.heard(q, a)
		}
	}
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
