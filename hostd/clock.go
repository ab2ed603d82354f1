package hostd

import (
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Clock is the host's time. Boot counts through suspend and cannot be set (clock_gettime(2), CLOCK_BOOTTIME); Now dates what people read
// and decides nothing.
type Clock struct{ tls *tlsClock }

// NewClock makes the clock of a daemon.
func NewClock() Clock {
	c := Clock{&tlsClock{now: time.Now}}
	c.tls.boot = c.Boot
	return c
}

// TLS is the time that certificates are checked against.
func (c Clock) TLS() time.Time { return c.tls.Time() }

// Dated takes the time of a verdict that was just received.
func (c Clock) Dated(issued int64) { c.tls.set(issued) }

// Now is the wall clock.
func (Clock) Now() time.Time { return time.Now() }

// Boot is the time since boot.
func (Clock) Boot() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic("hostd: no CLOCK_BOOTTIME: " + err.Error()) // every Linux since 2.6.39 has it
	}
	return time.Duration(ts.Nano())
}

// tlsClock is the time that certificates are checked against: the verifier's, as the last verdict dated it, carried on by the time since boot.
// So whoever sets the host's clock revives no expired certificate and expires no good one. Before the first verdict there is only the wall clock.
type tlsClock struct {
	boot func() time.Duration
	now  func() time.Time
	base atomic.Pointer[tlsBase]
}

type tlsBase struct {
	issued time.Time
	boot   time.Duration
}

// set takes the time of a verdict that was just received.
func (c *tlsClock) set(issued int64) {
	c.base.Store(&tlsBase{time.Unix(issued, 0), c.boot()})
}

// Time is for tls.Config.
func (c *tlsClock) Time() time.Time {
	b := c.base.Load()
	if b == nil {
		return c.now()
	}
	return b.issued.Add(c.boot() - b.boot)
}
