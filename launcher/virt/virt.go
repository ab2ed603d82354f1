// Package virt is the only room that speaks with libvirt: it defines, creates, resumes and destroys domains, reads
// their XML back, hears their lifecycle events, and finds a domain's QEMU process.
//
// It promises: no call outlives its context for the caller (a C call that hangs goes on alone and the caller is
// told so, ErrNotReturned); every libvirt handle is freed; a lost connection is opened again by itself; errors are
// typed. It judges nothing.
// It trusts: libvirt's daemon (libvirtd or virtqemud), and the kernel's /proc.
//
//	caller ──ctx──▶ call ──goroutine──▶ libvirt (C)          one connection, shared, counted
//	watcher ◀──newest per domain── event loop ◀── libvirt    one loop for the process
package virt

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"libvirt.org/go/libvirt"
)

// A dead peer is noticed after about keepaliveInterval × (keepaliveCount+1); its calls then fail by themselves.
const (
	keepaliveInterval = 5 // seconds
	keepaliveCount    = 3
)

// A lost connection is opened again after a jittered pause that doubles between these.
const (
	minPause = 50 * time.Millisecond
	maxPause = 2 * time.Second
)

// maxCalls bounds the C calls in flight, each of which holds a thread: when libvirtd hangs, callers wait for a
// place until their deadline instead of piling up threads.
const maxCalls = 64

var (
	errClosed     = errors.New("connection was closed by us")
	errLostAtOnce = errors.New("connection was lost while it opened")
)

// Virt is one connection to libvirt, opened again whenever it breaks. Its methods are safe to call at once from
// many goroutines.
type Virt struct {
	uri   string
	log   *slog.Logger
	slots chan struct{} // C calls in flight

	mu      sync.Mutex
	now     *session      // nil: no connection
	opening chan struct{} // closed when the attempt in flight is over; nil: none is
	failed  error         // of the last attempt
	opened  uint64        // connections so far
	calm    time.Time     // of the last loss and minPause: no attempt before
	closed  bool
	watches map[*Watch]struct{}
	work    sync.WaitGroup // redial and retire
	stop    chan struct{}
	turns   map[string]chan struct{} // by UUID: closed when the call about the definition has returned
}

// session is one open connection. Its C object is counted by libvirt: now holds one count, each call its own.
type session struct {
	conn     *libvirt.Connect
	callback []int // of events
	lost     bool  // its peer is gone; Virt.mu
}

var eventLoop = sync.OnceValue(func() error {
	if err := libvirt.EventRegisterDefaultImpl(); err != nil {
		return err
	}
	go func() {
		for {
			if err := libvirt.EventRunDefaultImpl(); err != nil {
				// poll(2) failed, as it does for an instant when descriptors run out.
				slog.Error("cannot run libvirt's event loop", "error", err)
				time.Sleep(maxPause)
			}
		}
	}()
	return nil
})

// Connect opens uri ("qemu:///system", which is virtqemud's socket where there is one and libvirtd's else: libvirt looks at each
// attempt). If the daemon is away it says so, ErrUnreachable; after a first success the
// connection is opened again by itself until Close. log may be nil.
func Connect(ctx context.Context, uri string, log *slog.Logger) (*Virt, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	if err := eventLoop(); err != nil { // before the first connection, or libvirt gives no events
		return nil, wrap("start event loop", "", err)
	}
	v := &Virt{
		uri: uri, log: log, slots: make(chan struct{}, maxCalls),
		watches: map[*Watch]struct{}{}, stop: make(chan struct{}), turns: map[string]chan struct{}{},
	}
	s, err := v.acquire(ctx)
	if err != nil {
		return nil, errors.Join(err, v.Close())
	}
	v.release(s)
	return v, nil
}

// Close ends the connection and its watches. Calls in flight keep their own count of it and end by themselves.
func (v *Virt) Close() error {
	v.mu.Lock()
	if v.closed {
		v.mu.Unlock()
		return nil
	}
	v.closed = true
	close(v.stop)
	s, opening := v.now, v.opening
	v.now = nil
	for w := range v.watches {
		w.end()
	}
	v.mu.Unlock()
	if opening != nil {
		select {
		case <-opening: // closes what it opened, since v is closed
		case <-time.After(maxPause): // hangs in libvirt; what it opens is closed when it returns
		}
	}
	if s != nil {
		v.retire(s)
	}
	v.work.Wait()
	return nil
}

// acquire gives the open session with one more count, opening a connection if there is none.
// One that opened and was lost before we looked has no error to give: it is tried again.
func (v *Virt) acquire(ctx context.Context) (*session, error) {
	for try := 0; ; try++ {
		v.mu.Lock()
		switch {
		case v.closed:
			v.mu.Unlock()
			return nil, &Error{Op: "connect", Kind: ErrUnreachable, Cause: errClosed}
		case v.now != nil:
			s := v.now
			err := s.conn.Ref()
			v.mu.Unlock()
			if err != nil {
				return nil, wrap("connect", "", err)
			}
			return s, nil
		case try > 0 && v.opening == nil && v.failed != nil:
			err := v.failed
			v.mu.Unlock()
			return nil, err
		}
		if v.opening == nil {
			v.opening = make(chan struct{})
			go v.open(v.opening)
		}
		opening := v.opening
		v.mu.Unlock()
		select {
		case <-opening:
		case <-ctx.Done():
			return nil, &Error{Op: "connect", Kind: ErrUnreachable, Cause: ctx.Err()}
		}
	}
}

// Session numbers the connection that is open now, from one; 0: there is none. A new number may mean a new libvirtd, which looked for its hooks anew.
func (v *Virt) Session() uint64 {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.now == nil {
		return 0
	}
	return v.opened
}

// release gives back the count that acquire took.
func (v *Virt) release(s *session) {
	if _, err := s.conn.Close(); err != nil {
		v.log.Warn("cannot release libvirt connection", "error", err)
	}
}

// open makes one attempt to connect; callers share it. A daemon that dies may accept for an instant after it has let go
// of us, and libvirt 9.0 forgets to free a connection whose peer leaves while it opens (a descriptor each): so not at once.
func (v *Virt) open(done chan struct{}) {
	v.mu.Lock()
	calm := v.calm
	v.mu.Unlock()
	select {
	case <-v.stop:
	case <-time.After(time.Until(calm)):
	}
	s, err := v.dial()
	v.mu.Lock()
	late := s != nil && (v.closed || s.lost)
	if late && err == nil {
		err = &Error{Op: "connect", Kind: ErrUnreachable, Cause: errLostAtOnce}
	}
	if s != nil && !late {
		v.now = s
		v.opened++
		for w := range v.watches {
			w.lost() // events may have passed while there was no connection
		}
	}
	v.failed, v.opening = err, nil
	v.mu.Unlock()
	if late {
		v.retire(s)
	}
	close(done)
}

func (v *Virt) dial() (*session, error) {
	conn, err := libvirt.NewConnect(v.uri)
	if err != nil {
		e := wrap("connect", "", err)
		var lv *Error
		if errors.As(e, &lv) && lv.Kind == nil {
			lv.Kind = ErrUnreachable // whatever it was, there is no connection
		}
		return nil, e
	}
	s := &session{conn: conn}
	// Drivers without a peer (test:///) know no keepalive and no close callback; they cannot lose a peer.
	if err := conn.SetKeepAlive(keepaliveInterval, keepaliveCount); err != nil {
		v.log.Debug("no keepalive", "uri", v.uri, "error", err)
	}
	if err := conn.RegisterCloseCallback(func(*libvirt.Connect, libvirt.ConnectCloseReason) { v.lose(s) }); err != nil {
		v.log.Debug("no close callback", "uri", v.uri, "error", err)
	}
	s.callback = v.hearChanges(conn)
	id, err := conn.DomainEventLifecycleRegister(nil, v.heard)
	if err != nil {
		v.retire(s) // each callback counts the connection
		return nil, wrap("hear events", "", err)
	}
	s.callback = append(s.callback, id)
	return s, nil
}

// lose retires s if it is still the session in use, and starts to connect again. It may run on libvirt's event
// loop, so it calls nothing of libvirt itself.
func (v *Virt) lose(s *session) {
	v.mu.Lock()
	defer v.mu.Unlock()
	s.lost = true
	v.calm = time.Now().Add(minPause)
	if v.now != s || v.closed {
		return
	}
	v.now = nil
	v.log.Warn("lost libvirt", "uri", v.uri)
	v.work.Go(func() { v.retire(s) })
	v.work.Go(v.redial)
}

// redial connects again, also when nobody asks, so that events flow.
func (v *Virt) redial() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		select {
		case <-v.stop:
			cancel()
		case <-ctx.Done():
		}
	}()
	for pause := minPause; ; pause = min(2*pause, maxPause) {
		s, err := v.acquire(ctx)
		if err == nil {
			v.release(s)
			v.log.Info("libvirt is back", "uri", v.uri)
			return
		}
		select {
		case <-v.stop:
			return
		case <-time.After(pause/2 + rand.N(pause)):
		}
	}
}

// retire drops callbacks and our count. On a connection whose peer is gone the first two fail, as they must.
func (v *Virt) retire(s *session) {
	for _, id := range s.callback {
		if err := s.conn.DomainEventDeregister(id); err != nil {
			v.log.Debug("cannot deregister events", "error", err)
		}
	}
	if err := s.conn.UnregisterCloseCallback(); err != nil {
		v.log.Debug("cannot unregister close callback", "error", err)
	}
	v.release(s)
}

// call runs f on the connection, in a goroutine of its own, until ctx ends. op and uuid name it in errors.
func (v *Virt) call(ctx context.Context, op, uuid string, f func(*libvirt.Connect) error) error {
	select {
	case v.slots <- struct{}{}:
	case <-ctx.Done():
		return &Error{Op: op, UUID: uuid, Kind: ErrUnreachable, Cause: ctx.Err(), Message: "too many calls wait for libvirt"}
	}
	s, err := v.acquire(ctx)
	if err != nil {
		<-v.slots
		return fmt.Errorf("cannot %s: %w", op, err)
	}
	done := make(chan error, 1)
	go func() {
		defer func() { <-v.slots }()
		defer v.release(s)
		err := wrap(op, uuid, f(s.conn))
		if errors.Is(err, ErrUnreachable) {
			v.lose(s)
		}
		done <- err
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return &Error{Op: op, UUID: uuid, Kind: ErrNotReturned, Cause: ctx.Err()}
	}
}
