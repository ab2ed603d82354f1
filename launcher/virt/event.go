package virt

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"libvirt.org/go/libvirt"
)

// Event is the newest thing that libvirt said about one domain.
type Event struct {
	UUID string
	Name string
	Kind string // defined, undefined, started, suspended, resumed, stopped, shutdown, pmsuspended, crashed; or one of change.go
	// Detail is virDomainEvent…DetailType's number for the kind (libvirt/libvirt-domain.h): for stopped 0 shutdown,
	// 1 destroyed, 2 crashed, 3 migrated, 4 saved, 5 failed; for started 0 booted, 1 migrated, 2 restored.
	Detail int
}

// ErrWatchEnded is what Next returns after the watch or its connection was closed.
var ErrWatchEnded = errors.New("watch has ended")

// maxPending bounds what a watch holds for a reader that sleeps; beyond it the reader is told to list again.
const maxPending = 4096

// Watch holds the newest event of each domain until it is read. It is no history: whoever hears of a domain asks
// what is true now. And it is no promise: libvirt (seen with 9.0.0) sends no event for a guest that ends while a
// restarted libvirtd is still taking it over, so whoever must know also looks by itself from time to time.
type Watch struct {
	v    *Virt
	wake chan struct{} // holds one token while there is something to read

	mu     sync.Mutex
	newest map[string]Event
	gap    bool
	ended  bool
}

// Watch begins to hear events. The first Next reports a gap, since what happened before was not heard.
func (v *Virt) Watch() *Watch {
	w := &Watch{v: v, wake: make(chan struct{}, 1), newest: map[string]Event{}}
	w.lost()
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.closed {
		w.end()
		return w
	}
	v.watches[w] = struct{}{}
	return w
}

// Next waits for news. gap says that events may have been missed (at the start, after a lost connection, after too
// many): list the domains again.
func (w *Watch) Next(ctx context.Context) (events []Event, gap bool, err error) {
	for {
		w.mu.Lock()
		if len(w.newest) > 0 || w.gap {
			for _, e := range w.newest {
				events = append(events, e)
			}
			gap = w.gap
			w.newest, w.gap = map[string]Event{}, false
			w.mu.Unlock()
			return events, gap, nil
		}
		ended := w.ended
		w.mu.Unlock()
		if ended {
			return nil, false, ErrWatchEnded
		}
		select {
		case <-w.wake:
		case <-ctx.Done():
			return nil, false, fmt.Errorf("cannot wait for events: %w", ctx.Err())
		}
	}
}

// Close ends the watch.
func (w *Watch) Close() {
	w.v.mu.Lock()
	delete(w.v.watches, w)
	w.v.mu.Unlock()
	w.end()
}

func (w *Watch) change(f func()) {
	w.mu.Lock()
	f()
	w.mu.Unlock()
	select {
	case w.wake <- struct{}{}:
	default: // a token is there already
	}
}

func (w *Watch) end()  { w.change(func() { w.ended = true }) }
func (w *Watch) lost() { w.change(func() { w.gap = true }) }

func (w *Watch) put(e Event) {
	w.change(func() {
		if _, known := w.newest[e.UUID]; !known && len(w.newest) >= maxPending {
			w.newest, w.gap = map[string]Event{}, true
			return
		}
		w.newest[e.UUID] = e
	})
}

// heard runs on libvirt's event loop: it hands on and returns. The domain is libvirt's to free.
func (v *Virt) heard(_ *libvirt.Connect, d *libvirt.Domain, ev *libvirt.DomainEventLifecycle) {
	v.told(d, eventKind(ev.Event), ev.Detail)
}

// told hands one event on.
func (v *Virt) told(d *libvirt.Domain, kind string, detail int) {
	uuid, err := d.GetUUIDString() // from the handle, no call to libvirtd
	if err != nil {
		v.log.Warn("event without a UUID", "error", err)
		return
	}
	name, err := d.GetName()
	if err != nil {
		v.log.Warn("event without a name", "uuid", uuid, "error", err)
		return
	}
	e := Event{UUID: uuid, Name: name, Kind: kind, Detail: detail}
	v.mu.Lock()
	defer v.mu.Unlock()
	for w := range v.watches {
		w.put(e)
	}
}

func eventKind(t libvirt.DomainEventType) string {
	switch t {
	case libvirt.DOMAIN_EVENT_DEFINED:
		return "defined"
	case libvirt.DOMAIN_EVENT_UNDEFINED:
		return "undefined"
	case libvirt.DOMAIN_EVENT_STARTED:
		return "started"
	case libvirt.DOMAIN_EVENT_SUSPENDED:
		return "suspended"
	case libvirt.DOMAIN_EVENT_RESUMED:
		return "resumed"
	case libvirt.DOMAIN_EVENT_STOPPED:
		return "stopped"
	case libvirt.DOMAIN_EVENT_SHUTDOWN:
		return "shutdown"
	case libvirt.DOMAIN_EVENT_PMSUSPENDED:
		return "pmsuspended"
	case libvirt.DOMAIN_EVENT_CRASHED:
		return "crashed"
	}
	return fmt.Sprintf("unknown(%d)", t)
}
