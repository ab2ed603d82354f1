package crash

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"time"

	"troth/test/lab"
)

// moment is a point of a launch or a stop that can be seen from outside.
type moment struct {
	name string
	stop bool                // of a stop; otherwise of a launch
	seen func(s *stage) bool // nil: as soon as the request was sent
	late time.Duration       // killed at random within this time after it was seen
}

// wrote sees an entry of the running step in the journal.
func wrote(what string) func(*stage) bool {
	return func(s *stage) bool { return bytes.Contains(s.fresh(), []byte(`{"what":"`+what+`"`)) }
}

func there(path string) func(*stage) bool {
	return func(s *stage) bool {
		info, err := os.Stat(s.Host.Path(path))
		return err == nil && info.ModTime().After(s.began)
	}
}

// moments are the steps of PROTOCOL.md §6 in their order, and those of a stop.
var moments = []moment{
	{name: "asked for: read, measure, verdict, statement", late: 40 * time.Millisecond},
	{name: "intent: release, unseal", seen: wrote("intent"), late: 15 * time.Millisecond},
	{name: "granted: define", seen: wrote("granted")},
	{name: "secret written", seen: there("/run/troth/guest/" + uuid + ".secret"), late: 3 * time.Millisecond},
	{name: "defined: create", seen: there("/etc/libvirt/qemu/" + name + ".xml"), late: 10 * time.Millisecond},
	{name: "QEMU's log opened: prepare and start hooks", seen: there("/var/log/libvirt/qemu/" + name + ".log"), late: 250 * time.Millisecond},
	{name: "QEMU's pid written: started", seen: there("/run/libvirt/qemu/" + name + ".pid"), late: 200 * time.Millisecond},
	{name: "proved: resume", seen: wrote("proved")},
	{name: "open owed", seen: wrote("event")},
	{name: "running: tell", seen: wrote("running"), late: 10 * time.Millisecond},
	{name: "stop asked for", stop: true, late: 200 * time.Millisecond},
	{name: "stopped: tell", stop: true, seen: wrote("stopped"), late: 10 * time.Millisecond},
}

// fresh is what the journal got since the step began. It is read, not watched: a watch tells later than the next step comes.
func (s *stage) fresh() []byte {
	f, err := os.Open(s.Host.Path("/var/lib/troth/journal/launches"))
	if err != nil {
		return nil
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil || info.Size() <= s.journalled {
		return nil
	}
	b := make([]byte, info.Size()-s.journalled)
	n, _ := f.ReadAt(b, s.journalled) // a short read is looked at again
	return b[:n]
}

// await waits until the moment is seen, at most until ended is closed, and then for a random part of what it may come late.
func (s *stage) await(ctx context.Context, m moment, ended <-chan struct{}, random *rand.Rand) (bool, error) {
	for m.seen != nil && !m.seen(s) {
		select {
		case <-ctx.Done():
			return false, fmt.Errorf("%s: %w", m.name, ctx.Err())
		case <-ended:
			return m.seen(s), nil
		case <-time.After(200 * time.Microsecond):
		}
	}
	if m.late > 0 {
		time.Sleep(time.Duration(random.Int64N(int64(m.late)))) // the point at which it is killed is what is random
	}
	return true, nil
}

// daemon is who is killed.
type daemon struct {
	name        string
	kill, start func(*lab.Host, context.Context) error
}

var daemons = []daemon{
	{"hostd", (*lab.Host).KillHostd, (*lab.Host).StartHostd},
	{"libvirtd", (*lab.Host).KillLibvirtd, (*lab.Host).StartLibvirtd},
}
