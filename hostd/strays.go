package hostd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sort"
	"strings"
	"sync"
	"time"

	"troth/hooks"
	"troth/hooks/ask"
	"troth/hostd/audit"
	"troth/launcher"
	"troth/launcher/domain"
	"troth/launcher/emulator"
	"troth/proof"
)

// Grants is what the launcher knows of who may run.
type Grants interface {
	// Granted says whether a guest of this domain may run.
	Granted(id domain.UUID) bool
	// Settled says that nobody has the domain at work: what runs of it is as the book says, or a stray.
	Settled(id domain.UUID) bool
	// Ending says that libvirt was asked to end whatever runs of this domain, for a launch that was cut short.
	Ending(id domain.UUID) bool
	// Holds says whether this process has a live grant.
	Holds(pid int, start uint64) bool
	// EndStray does what the policy says to a guest in our libvirt, unless it has a grant after all.
	EndStray(ctx context.Context, id domain.UUID, policy string) (done bool, err error)
	// NoteStray keeps it for people.
	NoteStray(uuid string, why *proof.Refusal) error
}

// Strays finds guests that are trusted and have no grant: first those in our libvirt, by mark and UUID, then processes that it does not know, by UUID,
// volume and channel. What has a grant, or is in the middle of a launch, is nobody's business here; what is not trusted runs on untouched.
type Strays struct {
	Policy   string
	QEMU     *uint32 // who libvirt's QEMU runs as; nil: not known
	Grants   Grants
	Live     func(ctx context.Context, id domain.UUID) ([]byte, error)
	Registry func() (ask.Registry, error)
	Look     func(ctx context.Context, want func(emulator.File) bool) (*emulator.Scan, error)
	End      func(ctx context.Context, pid int, start uint64, a emulator.Action) error
	Note     func(kind, uuid, done string) // for the audit log; nil: nobody keeps one
	Log      *slog.Logger

	mu     sync.Mutex
	found  map[string]string // what the newest scan found and is not gone, with what was done
	doubts map[string]string // what it could not decide
}

// Scan looks once at everything. It runs after events and every few seconds; running is what our libvirt has.
func (s *Strays) Scan(ctx context.Context, running []domain.UUID) {
	registry, err := s.Registry()
	if err != nil {
		s.Log.Error("cannot look for strays", "error", err.Error())
		return
	}
	found, doubts := map[string]string{}, map[string]string{}
	ours := s.domains(ctx, running, registry, found, doubts)
	s.processes(ctx, ours, registry, found, doubts)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.found, s.doubts = found, doubts
}

// Overdue ends the emulators of launches that were cut short and that libvirt has not ended in time. libvirt asks a QEMU to end itself and waits ten seconds, and
// answers nobody about the domain meanwhile; one that hangs is ended here, whatever the policy says of strays.
func (s *Strays) Overdue(ctx context.Context) {
	scan, err := s.Look(ctx, func(emulator.File) bool { return false })
	if err != nil {
		s.Log.Warn("cannot look for what is left of a launch that was cut short", "error", err.Error())
		return
	}
	for _, p := range scan.Emulators {
		if !s.ending(p) || s.Grants.Holds(p.PID, p.Start) {
			continue
		}
		err := s.End(ctx, p.PID, p.Start, emulator.Kill)
		if errors.Is(err, emulator.ErrNotIt) {
			continue // it has ended by now
		}
		done := "ended"
		if err != nil {
			done = "not ended: " + err.Error()
		}
		s.Log.Warn("libvirt has not ended what is left of a launch that was cut short", "pid", p.PID, "exe", p.Exe, "done", done)
	}
}

func (s *Strays) ending(p *emulator.Process) bool {
	for _, u := range p.UUIDs {
		if s.Grants.Ending(u) {
			return true
		}
	}
	return false
}

// domains deals with strays in our libvirt and returns them. A libvirt that does not answer in time about one is not asked about the next: it
// handles only a few calls of a client at once, and what it does not end is ended as a process.
func (s *Strays) domains(ctx context.Context, running []domain.UUID, registry ask.Registry, found, doubts map[string]string) map[domain.UUID]bool {
	ours := map[domain.UUID]bool{}
	begun := time.Now()
	for _, id := range running {
		if s.Policy == launcher.StrayDestroy && time.Since(begun) > patience {
			return ours // of many, the rest is ended as processes at once, which takes no time, and what shows in libvirt alone at the next scan
		}
		if s.Grants.Granted(id) {
			continue
		}
		look, cancel := context.WithTimeout(ctx, patience)
		xml, err := s.Live(look, id)
		late := look.Err() != nil
		cancel()
		if err != nil {
			doubts[inLibvirt+id.String()] = err.Error()
			if late {
				return ours
			}
			continue
		}
		if xml == nil {
			continue // it ended
		}
		subject, err := hooks.Read(xml)
		if err != nil {
			// Neither trusted nor untrusted by its definition; its UUID is libvirt's word.
			doubts[inLibvirt+id.String()] = err.Error()
			subject = hooks.Subject{}
		}
		subject.UUID = id
		why := subject.Why(registry.All, registry.Has(id))
		if why == 0 {
			continue
		}
		ours[id] = true
		key := inLibvirt + id.String()
		end, cancel := context.WithTimeout(ctx, patience)
		done, err := s.Grants.EndStray(end, id, s.Policy)
		late = end.Err() != nil
		cancel()
		if err == nil && !done {
			continue
		}
		s.tell(key, id.String(), because(why), id.String(), err, found)
		if late {
			return ours
		}
	}
	return ours
}

// inLibvirt begins the key of what was found in libvirt.
const inLibvirt = "domain "

// because puts the reasons in words.
func because(f ask.Flags) string {
	var all []string
	for _, r := range []struct {
		flag ask.Flags
		word string
	}{{ask.Registered, "uuid"}, {ask.Marked, "mark"}, {ask.All, "all"}} {
		if f.Has(r.flag) {
			all = append(all, r.word)
		}
	}
	return strings.Join(all, ", ")
}

// processes deals with emulators that our libvirt does not have, or has as an untrusted guest that holds a volume of a trusted one.
func (s *Strays) processes(ctx context.Context, ours map[domain.UUID]bool, registry ask.Registry, found, doubts map[string]string) {
	index := emulator.NewIndex(registry)
	scan, err := s.Look(ctx, index.Wants())
	if err != nil {
		doubts["processes"] = err.Error()
		return
	}
	if scan.Unseen > 0 {
		doubts["processes"] = fmt.Sprintf("%d could not be looked at: %s", scan.Unseen, scan.Why)
	}
	for _, p := range scan.Others {
		if p.PID != os.Getpid() {
			doubts[fmt.Sprintf("process %d", p.PID)] = fmt.Sprintf("%s, which is no emulator, has %s open", p.Exe, p.Open[0].Path)
		}
	}
	for _, p := range scan.Emulators {
		why, shows := index.Why(p)
		// The order of the questions counts: a launch that ended since the scan has written its grant before it let its domain go.
		if why == "" || !s.settled(p) && !s.foreign(p) || s.Grants.Holds(p.PID, p.Start) || s.dealtWith(p, ours) {
			continue
		}
		err := s.end(ctx, p)
		if errors.Is(err, emulator.ErrNotIt) {
			continue // it has ended by now
		}
		key := fmt.Sprintf("process %d/%d", p.PID, p.Start)
		var uuid string
		if why == emulator.ByUUID {
			uuid = shows
		}
		s.tell(key, uuid, string(why), fmt.Sprintf("%s (pid %d, uid %d, %s)", shows, p.PID, p.UID, p.Exe), err, found)
	}
}

// settled: no domain that the process says it is, is in the middle of a launch.
func (s *Strays) settled(p *emulator.Process) bool {
	for _, u := range p.UUIDs {
		if !s.Grants.Settled(u) {
			return false
		}
	}
	return true
}

// foreign: whatever is being launched, it is not this process: libvirt's QEMU is another user's. Whoever could keep such a one beside a launch
// would only have to start it again and again.
func (s *Strays) foreign(p *emulator.Process) bool { return s.QEMU != nil && p.UID != *s.QEMU }

// dealtWith: the process is, as far as its arguments tell, a stray of our libvirt, which the policy left running.
func (s *Strays) dealtWith(p *emulator.Process, ours map[domain.UUID]bool) bool {
	return s.Policy != launcher.StrayDestroy && len(p.UUIDs) == 1 && ours[p.UUIDs[0]]
}

func (s *Strays) end(ctx context.Context, p *emulator.Process) error {
	switch s.Policy {
	case launcher.StrayDestroy:
		return s.End(ctx, p.PID, p.Start, emulator.Kill)
	case launcher.StrayPause:
		return s.End(ctx, p.PID, p.Start, emulator.Stop)
	}
	return nil
}

// tell says once what was found and done, in the log, in the audit log and, for a domain that the book knows, in its history. A stray that stays is told again
// when something else was done with it; why it could not be ended is nothing else to the audit log.
func (s *Strays) tell(key, uuid, why, shows string, failed error, found map[string]string) {
	done := map[string]string{launcher.StrayDestroy: "destroyed", launcher.StrayPause: "paused", launcher.StrayReport: "reported"}[s.Policy]
	did := done
	if failed != nil {
		done = "not ended"
		did = done + ": " + failed.Error()
	}
	seen := fmt.Sprintf("trusted by %s: %s: ", why, shows)
	found[key] = seen + did
	s.mu.Lock()
	before := s.found[key]
	s.mu.Unlock()
	if before == found[key] {
		return
	}
	if s.Note != nil && !strings.HasPrefix(before, seen+done) {
		kind := audit.Processes
		if strings.HasPrefix(key, inLibvirt) {
			kind = audit.Domains
		}
		s.Note(kind, uuid, done)
	}
	s.Log.Error("a trusted guest runs without a grant", "where", key, "trusted_by", why, "shows", shows, "done", did)
	if uuid == "" {
		return
	}
	refusal := proof.Refuse(proof.GrantMissing, "a guest of this domain was found that has no grant",
		proof.Fact{Name: "found", Value: key + ": " + shows}, proof.Fact{Name: "trusted by", Value: why}, proof.Fact{Name: "done", Value: did})
	if err := s.Grants.NoteStray(uuid, refusal); err != nil {
		s.Log.Error("cannot keep that a stray was found", "uuid", uuid, "error", err.Error())
	}
}

// strays is the condition's name.
const strays = "strays"

// maxTold bounds what a condition tells.
const maxTold = 4

// Condition is what the newest scan found, for people. It is no reason against a launch.
func (s *Strays) Condition() Condition {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := Condition{Name: strays, State: OK, Evidence: "no trusted guest runs without a grant"}
	if len(s.doubts) > 0 {
		c.State, c.Evidence = Unknown, "not everything could be decided: "+list(s.doubts)
		c.Remedy = "See that troth-hostd has CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH, and who uses the disks of trusted guests."
	}
	if len(s.found) > 0 {
		c.State, c.Code, c.Evidence = Failed, proof.GrantMissing, list(s.found)
		c.Remedy = "Find who started it. Where it could not be ended: start troth-reaper.socket."
	}
	return c
}

func list(all map[string]string) string {
	var lines []string
	for key, what := range all {
		lines = append(lines, key+": "+what)
	}
	sort.Strings(lines)
	if n := len(lines) - maxTold; n > 0 {
		lines = append(lines[:maxTold], fmt.Sprintf("and %d more", n))
	}
	return strings.Join(lines, "; ")
}
