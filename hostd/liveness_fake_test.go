package hostd

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"regexp"
	"sync"
	"time"

	"troth/hooks/ask"
	"troth/launcher/domain"
	"troth/proof"
)

// What stands where libvirt looks for its hook.
const (
	realHook    = "troth-hook"
	noHook      = "nothing"
	permits     = "a program that permits everything"
	forges      = "a program that refuses in our name"
	refuses     = "a program that refuses for itself"
	swallows    = "a program that asks through troth-hook and permits"
	lostSocket  = "troth-hook that finds no hostd"
	otherReason = "troth-hook of another day"
)

// veto is a hook's refusal as launcher/virt gives it.
type veto struct{ code string }

func (v veto) Error() string          { return "denied by the hook (" + v.code + ")" }
func (v veto) Denied() (string, bool) { return v.code, true }

// libvirtFake is a host of which a test changes the hook and libvirtd: what is installed, and what libvirtd believes since it looked.
type libvirtFake struct {
	mu      sync.Mutex
	hook    string // in the file system
	changes int    // of the file system
	entries []HookEntry
	known   bool // libvirtd saw a hook when it looked
	session uint64
	away    bool
	kinds   []string // of domains that this libvirt knows
	heard   func(q ask.Question, allowed bool) (own bool)
	running map[domain.UUID][]byte
	defined map[domain.UUID]bool
	created int
	slow    time.Duration // of each create
	during  func()        // happens while a canary is under way
	stuck   bool          // destroy fails
}

func newMachine() *libvirtFake {
	return &libvirtFake{hook: realHook, known: true, session: 1, kinds: []string{"qemu"}, running: map[domain.UUID][]byte{}, defined: map[domain.UUID]bool{}}
}

func (m *libvirtFake) set(change func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	change()
}

// flown counts what libvirt was asked to start.
func (m *libvirtFake) flown() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.created
}

func (m *libvirtFake) install(hook string) { m.set(func() { m.hook = hook; m.changes++ }) }

// restart is a new libvirtd, which looks for hooks.
func (m *libvirtFake) restart() { m.set(func() { m.session++; m.known = m.hook != noHook }) }

func (m *libvirtFake) Session() uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.away {
		return 0
	}
	return m.session
}

func (m *libvirtFake) inspect(string, *Installed) (*Installed, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.hook == noHook {
		return nil, &NotLive{Why: "the hook is not there"}
	}
	return &Installed{Content: proof.Digest([]byte(fmt.Sprintf("%-32.32s", m.hook))), Folder: HookFile{Size: int64(m.changes)}, Entries: m.entries}, nil
}

var errAway = errors.New("libvirt cannot be reached")

func (m *libvirtFake) Named(_ context.Context, name string) (domain.UUID, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.away {
		return domain.UUID{}, errAway
	}
	for id, xml := range m.running {
		if bytes.Contains(xml, []byte("<name>"+name+"</name>")) {
			return id, nil
		}
	}
	return domain.UUID{}, nil
}

func (m *libvirtFake) Inactive(_ context.Context, id domain.UUID) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.defined[id] {
		return m.running[id], nil
	}
	return nil, nil
}

func (m *libvirtFake) Live(_ context.Context, id domain.UUID) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.running[id], nil
}

func (m *libvirtFake) Destroy(_ context.Context, id domain.UUID) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.stuck {
		return errors.New("domain is busy")
	}
	delete(m.running, id)
	return nil
}

var described = regexp.MustCompile(`(?s)<domain type="(\w+)">.*<uuid>(.*)</uuid>.*<troth:launch xmlns:troth="urn:troth:launch:v1" id="([0-9a-f]{64})"/>`)

// CreatePaused does what libvirt does: it knows the domain's type, runs the hook if it ever saw one, and heeds its end.
func (m *libvirtFake) CreatePaused(ctx context.Context, xml []byte) error {
	m.mu.Lock()
	m.created++
	slow, during := m.slow, m.during
	m.mu.Unlock()
	if during != nil {
		during()
	}
	if slow > 0 {
		select {
		case <-time.After(slow):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.away {
		return errAway
	}
	d := described.FindSubmatch(xml)
	if d == nil {
		return errors.New("XML error")
	}
	if string(d[1]) != m.kinds[0] {
		return errors.New("could not find capabilities for domaintype=" + string(d[1]))
	}
	id, err := domain.ParseUUID(string(d[2]))
	if err != nil {
		return err
	}
	var launch [32]byte
	if _, err := hex.Decode(launch[:], d[3]); err != nil {
		return err
	}
	q := ask.Question{Op: ask.OpPrepare, SubOp: ask.SubBegin, Flags: ask.Marked, UUID: id, LaunchID: launch}
	hook := m.hook
	if !m.known {
		hook = noHook
	}
	switch hook {
	case realHook:
		m.heard(q, false)
		return veto{"grant-missing"}
	case otherReason:
		m.heard(q, false)
		return veto{"forbidden"}
	case forges:
		return veto{"grant-missing"}
	case refuses:
		return veto{""}
	case lostSocket:
		return veto{"hostd-unreachable"}
	case swallows:
		m.heard(q, false)
	}
	m.running[id] = xml
	return nil
}
