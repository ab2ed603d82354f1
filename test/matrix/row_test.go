package matrix

import (
	"context"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"troth/test/standstill"
)

// limit is how long a guest without a grant may run, counted from its start, or from the return of a hostd that was down.
const limit = 10 * time.Second

// state is in what condition the gate is.
type state struct {
	name        string
	hook, hostd bool
}

// row is what happened to one way in one state.
type row struct {
	state        state
	way          string
	outcome, by  string
	took         time.Duration
	bad          string // why the row does not hold
	way_         *Way
	target       target
	own, plain   string
	n            int
	begun        time.Time
	from         int // of hostd's log
	fromLibvirtd int
}

func (r *row) end(outcome, by string) { r.outcome, r.by = outcome, by }

// said are the words of those who refuse.
var said = regexp.MustCompile(`troth: refused: [a-z-]+|access denied|denied access|Secret not found|unable to stat: /run/troth/guest/|this function is not supported by the connection driver: [^\n]*`)

func (s *stage) log(process string) string {
	b, err := os.ReadFile(s.Host.Log(process))
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// try carries out a way. A row without an outcome afterwards has a process that runs.
func (s *stage) try(ctx context.Context, r *row) {
	r.from, r.fromLibvirtd, r.begun = len(s.log("hostd")), len(s.log("libvirtd")), time.Now()
	soon, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	do := s.script(r.way_.Do, r.own, r.n, r.target)
	out, err := s.Host.Exec(soon, "sh", "-c", do)
	if err != nil {
		out += err.Error()[strings.Index(err.Error(), do)+len(do):] // the script itself is no answer
	}
	if r.way_.Moved && err == nil {
		if err := s.Host.KillLibvirtd(ctx); err != nil {
			r.bad = err.Error()
		}
		if err := s.Host.StartLibvirtd(ctx); err != nil {
			r.bad = err.Error()
		}
	}
	for done := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		if r.way_.Moved {
			out = s.log("libvirtd")[r.fromLibvirtd:]
		}
		words := said.FindString(out)
		if words == "" && r.way_.Refused != "" {
			words = regexp.MustCompile(r.way_.Refused).FindString(out)
		}
		runs := s.emulators.named(r.names()...)
		switch {
		case words != "":
			s.refused(ctx, r, words)
			return
		case len(runs) > 0:
			r.begun = runs[0].begun // what the script did before, and how long, is no guest that runs
			return
		case s.found(r):
			r.took = standstill.Since(r.begun)
			r.end("destroyed", s.foundBy(r))
			s.undo(ctx, r)
			return
		case err != nil && !r.state.hostd, standstill.Since(done) > 30*time.Second:
			r.bad = fmt.Sprintf("nobody refused, and nothing runs: %v: %s", err, out)
			s.undo(ctx, r)
			return
		}
	}
}

// refused ends a row that somebody refused, after a look whether something runs all the same.
func (s *stage) refused(ctx context.Context, r *row, words string) {
	r.took = standstill.Since(r.begun)
	switch {
	case strings.HasPrefix(words, "troth:"):
		r.end("blocked", "hook: "+words[len("troth: refused: "):])
	case strings.Contains(words, "denied"):
		r.end("blocked", "polkit: "+words)
	case words == "Secret not found", strings.HasPrefix(words, "unable to stat"): // the disk's key, or the guest's own secret
		r.end("keyless", "libvirt: "+words)
	default:
		r.end("blocked", "libvirt: "+words)
	}
	s.undo(ctx, r)
	if left := s.emulators.named(r.names()...); len(left) > 0 && r.way_.Guard != "scan" {
		r.bad = "refused, and it runs: " + left[0].line
	} else if len(left) > 0 {
		r.end("", "")
	}
}

func (r *row) names() []string { return []string{r.target.name, r.own, r.plain} }

// found: hostd says that it found this guest.
func (s *stage) found(r *row) bool { return s.foundBy(r) != "" }

var strayLine = regexp.MustCompile(`a trusted guest runs without a grant.*?trusted_by="?([a-z, ]+?)"? shows=(.*)`)

// foundBy is by what hostd found this row's guest: its line shows what is this row's own, not what its neighbours show.
func (s *stage) foundBy(r *row) string {
	mine := []string{r.target.uuid, r.target.disk, ownUUID(r.n)}
	if strings.Contains(r.way_.Do, "@SEALED@") {
		mine = append(mine, s.sealed.disk)
	}
	if strings.Contains(r.way_.Do, "troth.guest.0") {
		mine = append(mine, "troth.guest.0 (pid ")
	}
	for line := range strings.Lines(s.log("hostd")[r.from:]) {
		m := strayLine.FindStringSubmatch(line)
		if m == nil || !slices.ContainsFunc(mine, func(word string) bool { return strings.Contains(line, word) }) {
			continue
		}
		return "scan: " + m[1]
	}
	return ""
}

func ownUUID(n int) string { return fmt.Sprintf("10000000-0000-4000-8000-%012x", 0xd0000+n) }

// undo puts the world back. What cannot be put back shows in the next row.
func (s *stage) undo(ctx context.Context, r *row) {
	if r.way_.Undo == "" {
		return
	}
	for begun := time.Now(); ; time.Sleep(50 * time.Millisecond) { // libvirt may still be at the end of a guest whose process is gone
		out, err := s.Host.Exec(ctx, "sh", "-c", s.script(r.way_.Undo, r.own, r.n, r.target))
		if err == nil {
			return
		}
		if standstill.Since(begun) > 30*time.Second { // another row may be restarting libvirtd
			if r.bad == "" {
				r.bad = "cannot be undone: " + out + err.Error()
			}
			return
		}
	}
}

// gone waits until what rows started is gone, each by itself, from a moment on: their own beginning, or hostd's return.
func (s *stage) gone(ctx context.Context, rows []*row, since time.Time) {
	var all sync.WaitGroup
	for _, r := range rows {
		if r.outcome != "" || r.bad != "" {
			continue
		}
		from := r.begun
		if !since.IsZero() {
			from = since
		}
		all.Go(func() {
			for {
				left := s.emulators.named(r.names()...)
				r.took = standstill.Since(from)
				switch {
				case len(left) == 0:
					// hostd says so when libvirt has come back to it.
					for ended := time.Now(); !s.found(r) && standstill.Since(ended) < 10*time.Second; time.Sleep(20 * time.Millisecond) {
					}
					r.end("destroyed", s.foundBy(r))
					if r.by == "" {
						r.bad = "it ended, and hostd does not say that it found it"
					}
					if r.took > limit {
						r.bad = fmt.Sprintf("it ran for %v", r.took)
					}
					s.undo(ctx, r)
					return
				case r.took > 3*limit:
					r.bad = "it runs on: " + left[0].line
					return
				}
				time.Sleep(50 * time.Millisecond)
			}
		})
	}
	all.Wait()
}
