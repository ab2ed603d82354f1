// Package chip opens and owns a TPM, and keeps everything that goes on in it in one place.
//
// One goroutine, the actor, has the device; every operation is a closure that it runs to its end, so that commands of
// two operations never mix and no handle leaves it:
//
//	Quote, Unseal, … ──closure──▶ actor ──▶ Config.Wrap ──▶ device: /dev/tpmrm0 or swtpm's socket
//	                                │
//	                                └─ owns: SRK, AK, EK (persistent); release key, policy session (once per epoch)
//
// It promises: a lock file keeps a second process out; Open flushes what a killed predecessor left; after any failed
// operation everything but the epoch's release key and session is flushed, and if that fails too, before the next
// operation; a secret crosses the bus only under the encryption of a session salted with the SRK, and an answer whose
// HMAC is wrong is no answer; a command that another TPM user made fail (TPM_RC_PCR_CHANGED, a dirty or lost session)
// is healed here.
//
// It trusts the TPM, and the SRK public area that Config.SRK pins: without the pin a chip on the bus could pass its
// own key for the SRK. Whoever holds the device node can do all of this too: the protocol assumes it.
package chip

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"

	"github.com/google/go-tpm/tpm2/transport"
	"golang.org/x/sys/unix"

	"troth/tpm"
)

// Config says which TPM to use. Exactly one of Device and Socket is set.
type Config struct {
	// Device is a hardware TPM's node, by preference /dev/tpmrm0.
	Device string
	// Socket is the unix socket of a software TPM.
	Socket string
	// Lock is the file that keeps a second process from the TPM. Empty: Socket with ".lock" appended, or
	// /run/lock/troth-tpm.lock for a device.
	Lock string
	// SRK pins the Name of the storage root key. Zero: whatever the TPM shows at Open is taken.
	SRK tpm.Name
	// Wrap, if set, wraps the transport: tests record commands, add latency, flip bytes.
	Wrap func(transport.TPM) transport.TPM
}

// Errors by which callers act. They are found by errors.Is; the error itself says what happened.
var (
	// ErrUnavailable: the TPM does not answer, answers garbage, or is in failure or lockout mode.
	ErrUnavailable = errors.New("the TPM is not available")
	// ErrBusy: the TPM asks to try later, or its PCRs change faster than a policy can be satisfied.
	ErrBusy = errors.New("the TPM is busy")
	// ErrOtherState: the seed was sealed to other PCR values, or to another launch or boot.
	ErrOtherState = errors.New("sealed to another state of this host")
	// ErrDamaged: the sealed seed is not one that this TPM can load: damaged, or made for another TPM.
	ErrDamaged = errors.New("the sealed seed is damaged or made for another TPM")
	// ErrNotProvisioned: there is no AK or SRK.
	ErrNotProvisioned = errors.New("the TPM is not provisioned")
	// ErrNoSeed: nothing was installed since Open.
	ErrNoSeed = errors.New("no sealed seed is installed")
	// ErrBankUnallocated: the TPM has no PCRs of that bank.
	ErrBankUnallocated = errors.New("the PCR bank is not allocated")
	// ErrLocked: another process has the TPM.
	ErrLocked = errors.New("another process owns the TPM")
)

// Chip is an open TPM. Its methods may be called from any goroutine.
type Chip struct {
	operations chan func(*device)
	closing    chan struct{} // closed by Close
	finished   chan struct{} // closed when the actor has left
	once       sync.Once
	closeErr   error // written by the actor before finished is closed
}

// Open opens the TPM, takes the lock, and flushes transient objects and sessions that a predecessor left.
func Open(ctx context.Context, config Config) (*Chip, error) {
	if (config.Device == "") == (config.Socket == "") {
		return nil, errors.New("cannot open TPM: name either a device or a socket")
	}
	lock, err := takeLock(config)
	if err != nil {
		return nil, fmt.Errorf("cannot open TPM: %w", err)
	}
	link, err := openLink(config)
	if err != nil {
		return nil, fmt.Errorf("cannot open TPM: %w", errors.Join(err, lock.Close()))
	}
	d := newDevice(link, config)
	d.ctx = ctx
	if err := d.sweep(); err != nil {
		return nil, fmt.Errorf("cannot open TPM: cannot flush what a predecessor left: %w", errors.Join(err, link.Close(), lock.Close()))
	}
	c := &Chip{operations: make(chan func(*device)), closing: make(chan struct{}), finished: make(chan struct{})}
	go c.act(d, lock)
	return c, nil
}

// Close flushes what this process made, closes the device and gives the lock back. A second call waits for the first.
func (c *Chip) Close() error {
	c.once.Do(func() { close(c.closing) })
	<-c.finished
	return c.closeErr
}

// act is the actor: it alone touches the device.
func (c *Chip) act(d *device, lock *os.File) {
	defer close(c.finished)
	for {
		select {
		case operation := <-c.operations:
			operation(d)
		case <-c.closing:
			d.ctx = context.Background()
			d.epoch = nil
			c.closeErr = errors.Join(d.sweep(), d.link.Close(), lock.Close())
			return
		}
	}
}

// do runs f on the actor and returns what it returns. If ctx ends first, do returns at once; f, if it began, still
// runs to its end, so that no command is cut in half.
func do[T any](ctx context.Context, c *Chip, what string, f func(*device) (T, error)) (T, error) {
	type result struct {
		value T
		err   error
	}
	done := make(chan result, 1)
	operation := func(d *device) {
		value, err := guarded(ctx, d, f)
		done <- result{value, err}
	}
	var zero T
	select {
	case c.operations <- operation:
	case <-ctx.Done():
		return zero, fmt.Errorf("cannot %s: %w", what, ctx.Err())
	case <-c.closing:
		return zero, fmt.Errorf("cannot %s: %w: it was closed", what, ErrUnavailable)
	}
	select {
	case r := <-done:
		if r.err != nil {
			return zero, fmt.Errorf("cannot %s: %w", what, r.err)
		}
		return r.value, nil
	case <-ctx.Done():
		return zero, fmt.Errorf("cannot %s: %w", what, ctx.Err())
	}
}

// guarded runs f between two promises: before it, nothing unknown is in the TPM; after it, if it failed, nothing is.
// A panic in the decoding of an answer is an answer that is garbage.
func guarded[T any](ctx context.Context, d *device, f func(*device) (T, error)) (value T, err error) {
	if err := ctx.Err(); err != nil {
		return value, err
	}
	d.ctx = ctx
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%w: cannot decode its answer: %v", ErrUnavailable, p)
		}
		if err != nil {
			err = classify(err)
			d.unclean = d.sweep() != nil
		}
	}()
	if d.unclean {
		if err := d.sweep(); err != nil {
			return value, err
		}
		d.unclean = false
	}
	return f(d)
}

// takeLock takes the lock file without waiting. The file stays: removing it would let two processes lock two files.
func takeLock(config Config) (*os.File, error) {
	path := config.Lock
	if path == "" && config.Socket != "" {
		path = config.Socket + ".lock"
	} else if path == "" {
		path = "/run/lock/troth-tpm.lock"
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("cannot open lock file: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = ErrLocked
		}
		return nil, errors.Join(fmt.Errorf("cannot lock %s: %w", path, err), f.Close())
	}
	return f, nil
}
