// Package stories runs Troth's own programs on the lab as people would: one story per file in testdata, in testscript's language.
//
// A story has two hosts with a verdict, host1 and host2, the profile "lab", and these commands besides testscript's own:
//
//	operator|tenant|engine ARGS...   run troth as that person; [HOST:] before ARGS names a host other than host1
//	exits N PERSON ARGS...           the same, which must end with exit status N
//	on HOST ARGS...                  run a command on a host
//	guest FILE NAME UUID [KEY=VALUE...]  write a domain's XML: kernel, initrd, cmdline, extra, configured, metadata, carries
//	token NAME [ARGS...]             let the tenant make NAME.token and NAME.key, pinned to the lab's guest
//	launched NAME UUID               launch NAME.xml with NAME.token; the proof is NAME.proof
//	tpm HOST boot|relaunch|other|reset|s3  what happens to a host's TPM; other launches another kernel
//	tpm HOST kill|start|hold|go|replace|hangup|babble  its process; replace keeps its state; hangup and babble put one in its place that closes or answers garbage
//	hostd|libvirtd HOST start|stop|kill|hold|go|reload  hold and go for hostd, reload for libvirtd
//	verifier hold|go|stop|start|cut|join|hangup|babble  cut and join its network; hangup and babble as for a TPM
//	verifier rotate|revoke           renew its keys, or revoke those in use, while it runs
//	settles HOST                     wait until the host is ready again
//	eventually N PERSON ARGS...      exits, tried for a minute: a host notices a change of its own state within an epoch, and a guest takes its time to boot
//	says PATTERN PERSON ARGS...      the same, until what is printed matches; of all commands one that fails while the machine stands still is run again
//	console HOST NAME TEXT           wait until a guest's console has shown a text
//
// It needs root and what `make deps` installs; with -short it is left out.
package stories

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"troth/test/cast"
	"troth/test/lab"
	"troth/test/standstill"
)

func TestStories(t *testing.T) {
	if testing.Short() {
		t.Skip("stories need the lab: make test")
	}
	t.Parallel() // each has hosts of its own
	ctx, cancel := context.WithTimeout(t.Context(), 25*time.Minute)
	defer cancel()
	s := newStage(ctx, t, lab.Options{Hosts: 2})
	// Stories share hosts, so they are told one after another; each leaves the hosts as it found them.
	testscript.RunT(oneByOne{t}, testscript.Params{Dir: "testdata", Setup: s.setUp, Cmds: s.commands(ctx), UpdateScripts: *update})
}

var update = flag.Bool("update", false, "write what commands print into the stories")

// oneByOne is a test whose subtests do not run side by side.
type oneByOne struct{ *testing.T }

func (o oneByOne) Parallel() {}

func (o oneByOne) Run(name string, f func(testscript.T)) {
	o.T.Run(name, func(t *testing.T) { f(oneByOne{t}) })
}

func (o oneByOne) Verbose() bool { return testing.Verbose() }

// stage is the lab with its profile; people are made for each story, in the story's own directory.
type stage struct {
	lab     *lab.Lab
	profile string
	printed string       // by the newest command of a person
	masks   net.Listener // who stands in a daemon's place; nil: nobody
}

// pin finds the digest of the profile that the lab's hosts meet.
func (s *stage) pin(ctx context.Context, dir string) error {
	operator, err := cast.New(s.lab, lab.RoleOperator, dir)
	if err != nil {
		return err
	}
	s.profile, err = operator.Profile(ctx, s.lab.Host(1), lab.Golden)
	return err
}

// setUp gives a story its settings files and variables.
func (s *stage) setUp(e *testscript.Env) error {
	g := s.lab.Guest
	e.Setenv("PROFILE", s.profile)
	e.Setenv("KERNEL", filepath.Join(g.Outside, "vmlinuz"))
	e.Setenv("INITRD", filepath.Join(g.Outside, "initrd"))
	e.Setenv("CMDLINE", g.CommandLine)
	e.Setenv("SHARED", g.Outside)
	e.Setenv("LIBVIRTD_LOG", s.lab.Host(1).Log("libvirtd"))
	e.Setenv("INSIDE", filepath.Dir(g.Kernel))
	e.Defer(func() { s.afterwards(e.T().(oneByOne)) })
	for _, role := range []lab.Role{lab.RoleOperator, lab.RoleTenant, lab.RoleEngine} {
		p, err := cast.New(s.lab, role, e.WorkDir)
		if err != nil {
			return err
		}
		e.Values[role] = p
	}
	return s.person(e.Values, lab.RoleTenant).FetchTrust(context.Background(), s.lab.Host(1))
}

// afterwards puts the hook back when a story went wrong, perhaps with another in its place, so that the next one tells of itself alone.
func (s *stage) afterwards(t oneByOne) {
	if !t.Failed() {
		return
	}
	for _, h := range s.lab.Hosts() {
		_, err := h.Exec(context.Background(), "sh", "-c", "while umount /etc/libvirt/hooks/qemu; do :; done 2>&-; rm -rf /etc/libvirt/hooks/qemu.d")
		if err = errors.Join(err, h.InstallHook(), h.ReloadLibvirtd(context.Background())); err != nil {
			t.Logf("the hook of %s is not put back: %v", h.Name, err)
		}
	}
}

func (s *stage) person(values map[any]any, role lab.Role) *cast.Person {
	return values[role].(*cast.Person)
}

// host finds a host by name.
func (s *stage) host(ts *testscript.TestScript, name string) *lab.Host {
	for _, h := range s.lab.Hosts() {
		if h.Name == name {
			return h
		}
	}
	ts.Fatalf("no host %q", name)
	return nil
}

// tries is how often a command is run whose time was the machine's.
const tries = 3

// unlessStood does something, and again while it comes to no good end and the machine stood still meanwhile: verdicts are fresh for seconds, and a hook waits less.
func unlessStood(do func() (good bool)) {
	for range tries {
		begun := time.Now()
		if do() || time.Since(begun) <= standstill.Since(begun) {
			return
		}
	}
}

// run runs troth as a person, in text for people unless the arguments ask for json, and shows what it printed.
func (s *stage) run(ctx context.Context, ts *testscript.TestScript, role lab.Role, args []string) int {
	h := s.lab.Host(1)
	if len(args) > 0 && strings.HasSuffix(args[0], ":") {
		h, args = s.host(ts, strings.TrimSuffix(args[0], ":")), args[1:]
	}
	p, ok := ts.Value(role).(*cast.Person)
	if !ok {
		ts.Fatalf("nobody is called %q", role)
	}
	in := *p
	in.Dir = ts.MkAbs(".")
	var a *cast.Answer
	var err error
	unlessStood(func() bool {
		a, err = in.Text(ctx, h, args...)
		return err != nil || a.Exit == 0
	})
	ts.Check(err)
	fmt.Fprint(ts.Stdout(), string(a.Stdout))
	fmt.Fprint(ts.Stderr(), string(a.Stderr))
	s.printed = string(a.Stdout) + string(a.Stderr)
	return a.Exit
}

type command = func(ts *testscript.TestScript, neg bool, args []string)

func (s *stage) commands(ctx context.Context) map[string]command {
	as := func(role lab.Role) command {
		return func(ts *testscript.TestScript, neg bool, args []string) {
			if exit := s.run(ctx, ts, role, args); (exit != 0) != neg {
				ts.Fatalf("%s %s: exit %d", role, strings.Join(args, " "), exit)
			}
		}
	}
	return map[string]command{
		"operator":   as(lab.RoleOperator),
		"tenant":     as(lab.RoleTenant),
		"engine":     as(lab.RoleEngine),
		"exits":      func(ts *testscript.TestScript, neg bool, args []string) { s.exits(ctx, ts, neg, args, 0) },
		"eventually": func(ts *testscript.TestScript, neg bool, args []string) { s.exits(ctx, ts, neg, args, time.Minute) },
		"says":       func(ts *testscript.TestScript, neg bool, args []string) { s.says(ctx, ts, neg, args) },
		"on":         func(ts *testscript.TestScript, neg bool, args []string) { s.on(ctx, ts, neg, args) },
		"guest":      func(ts *testscript.TestScript, neg bool, args []string) { s.guest(ts, neg, args) },
		"token":      func(ts *testscript.TestScript, neg bool, args []string) { s.token(ctx, ts, neg, args) },
		"launched":   func(ts *testscript.TestScript, neg bool, args []string) { s.launched(ctx, ts, neg, args) },
		"tpm":        func(ts *testscript.TestScript, neg bool, args []string) { s.tpm(ctx, ts, neg, args) },
		"hostd":      func(ts *testscript.TestScript, neg bool, args []string) { s.daemon(ctx, ts, neg, "hostd", args) },
		"libvirtd":   func(ts *testscript.TestScript, neg bool, args []string) { s.daemon(ctx, ts, neg, "libvirtd", args) },
		"spliced":    func(ts *testscript.TestScript, neg bool, args []string) { s.spliced(ctx, ts, neg, args) },
		"relay":      func(ts *testscript.TestScript, neg bool, args []string) { s.relay(ctx, ts, neg, args) },
		"verifier":   func(ts *testscript.TestScript, neg bool, args []string) { s.verifier(ctx, ts, neg, args) },
		"settles": func(ts *testscript.TestScript, neg bool, args []string) {
			want(ts, neg, args, 1)
			soon, cancel := context.WithTimeout(ctx, time.Minute)
			defer cancel()
			ts.Check(s.host(ts, args[0]).AwaitReady(soon))
		},
		"console": func(ts *testscript.TestScript, neg bool, args []string) {
			want(ts, neg, args, 3)
			ts.Check(s.host(ts, args[0]).AwaitConsole(ctx, args[1], args[2]))
		},
	}
}

// want refuses a command that is negated or has the wrong number of arguments.
func want(ts *testscript.TestScript, neg bool, args []string, n int) {
	if neg || len(args) < n {
		ts.Fatalf("this command takes at least %d arguments, and no '!'", n)
	}
}
