package hooks

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"time"

	"troth/hooks/ask"
)

// What troth-registered prints. polkit's rule takes the second, whole and with exit status 0, for 'not ours', and whatever else for 'ours'.
const (
	saysRegistered = "registered\n"
	saysUntrusted  = "untrusted\n"
)

// unanswered is the exit status without an answer.
const unanswered = 2

// answerWithin is shorter than what polkit waits for a helper (10 s, polkit(8)): a rule is evaluated while everybody else waits.
const answerWithin = 2 * time.Second

// RegisteredMain is the whole of troth-registered: it limits itself, answers, and gives the exit status.
func RegisteredMain() int {
	debug.SetTraceback("none")
	if err := limit(); err != nil {
		return unanswered
	}
	time.AfterFunc(answerWithin, func() { os.Exit(unanswered) })
	return Gate{Registry: RegistryPath}.Registered(os.Args[1:], os.Stdout)
}

// Registered answers one question about the registry: 'domain UUID', or 'volume KEY NAME' with what libvirt's storage driver says of a volume: a path or
// something else, and a bare name. Either may be the client's word, so each counts; the name may be left out.
// Without a registry nothing is registered but the gate's own files; in a damaged one, and in one that says 'all', every domain is. A mark cannot be asked
// for: polkit sees no XML.
func (g Gate) Registered(argv []string, stdout io.Writer) int {
	if len(argv) < 2 || len(argv) > 3 || len(argv) == 3 && argv[0] != "volume" {
		return unanswered
	}
	var is func(ask.Published) bool
	switch argv[0] {
	case "domain":
		id, err := parseUUID(argv[1])
		if err != nil {
			return unanswered
		}
		is = func(r ask.Published) bool { return r.All() || r.Has(id) }
	case "volume":
		if slices.Contains(argv, "") {
			return unanswered
		}
		// 'all' says nothing about volumes: domains do not start without hostd, and hostd measures what they start from.
		is = func(r ask.Published) bool {
			return slices.ContainsFunc(argv[1:], func(v string) bool { return touches(volumeSubject(v), r) })
		}
	default:
		return unanswered
	}
	r, err := ask.OpenRegistry(g.Registry)
	says := saysUntrusted
	if err != nil && !errors.Is(err, fs.ErrNotExist) || is(r) { // without a registry r has no entry
		says = saysRegistered
	}
	if _, err := io.WriteString(stdout, says); err != nil {
		return unanswered
	}
	return 0
}

// volumeSubject looks at a volume as at a disk of a domain. A key of a directory pool is a path; of others (rbd, gluster) it is not, and may hold one.
func volumeSubject(key string) subject {
	switch {
	case filepath.IsAbs(key):
		return subject{paths: []string{key}}
	case filepath.Base(key) == key:
		return subject{volumes: []volume{{name: key}}}
	}
	return subject{mentions: []string{key}}
}
