// Package hooks is what libvirt runs at each step of a domain's life, as /etc/libvirt/hooks/qemu: it decides whether
// a domain is trusted, and asks hostd about those that are.
//
// It promises: an untrusted domain passes without a question, also with hostd down; a trusted one passes only on
// hostd's explicit permit, within three seconds; whatever cannot be read counts as trusted; nothing goes to standard
// output and at most one fixed line to standard error; a running guest is never killed ('reconnect' always passes).
// It trusts: the argument vector and the XML as libvirt gives them, the registry that hostd publishes, and the user
// who may bind hostd's socket. It uses no environment variable, makes no file, and never calls libvirt, which would
// deadlock.
package hooks

import (
	"crypto/sha256"
	"errors"
	"io"
	"io/fs"
	"os"
	"runtime/debug"
	"sync/atomic"
	"time"

	"troth/hooks/ask"
)

// Where hostd publishes the registry and listens. Constants: whoever could choose them could go round the gate.
const (
	RegistryPath = "/var/lib/troth/gate/registry"
	SocketPath   = "/run/troth/hook.sock"
)

// Exit statuses; libvirt takes any but zero for a veto.
const (
	permitted = 0
	refused   = 1
)

// Bounds of one run.
const (
	maxXML    = 8 << 20 // libvirt's own limit on a domain's XML over its API is 4 MiB of string
	endWithin = ask.InAll - 75*time.Millisecond
)

// Gate is one hook with its two paths.
type Gate struct {
	Registry string
	Socket   string
}

// Main is the whole program: it limits itself, runs the gate, and gives the exit status.
func Main() int {
	debug.SetTraceback("none") // libvirt keeps all of stderr in memory and hands it to the client
	if err := limit(); err != nil {
		return expire(os.Stderr, os.Args[1:])
	}
	// Whatever takes too long ends here: a huge document, one that does not end, a file system that hangs.
	var line once
	time.AfterFunc(endWithin, func() { os.Exit(expire(&line, os.Args[1:])) })
	return Gate{Registry: RegistryPath, Socket: SocketPath}.Run(os.Args[1:], os.Stdin, &line)
}

// once is standard error for one line, whoever comes first.
type once struct{ said atomic.Bool }

func (o *once) Write(b []byte) (int, error) {
	if o.said.Swap(true) {
		return len(b), nil
	}
	return os.Stderr.Write(b)
}

func expire(stderr io.Writer, argv []string) int {
	if parseCall(argv).told {
		return permitted
	}
	return refuse(stderr, ask.Internal)
}

// call is what libvirt said on the command line: NAME OPERATION SUBOPERATION EXTRA.
type call struct {
	op    ask.Op
	sub   ask.SubOp
	known bool // an operation that we know, with the words and the number of words that we know
	told  bool // hostd is told, nothing is vetoed
}

// subOps: the second word that each operation comes with.
var subOps = map[ask.Op]ask.SubOp{
	ask.OpPrepare: ask.SubBegin, ask.OpStart: ask.SubBegin, ask.OpStarted: ask.SubBegin,
	ask.OpMigrate: ask.SubBegin, ask.OpRestore: ask.SubBegin, ask.OpReconnect: ask.SubBegin,
	ask.OpStopped: ask.SubEnd, ask.OpRelease: ask.SubEnd,
}

// parseCall never looks at the name: it may be anything, and the UUID in the XML is the key. An operation that vetoes
// nothing is known by its own word alone, since to refuse 'reconnect' kills a guest that runs.
func parseCall(argv []string) call {
	c := call{op: ask.OpUnknown, sub: ask.SubUnknown}
	if len(argv) > 1 {
		c.op = ask.ParseOp(argv[1])
	}
	if len(argv) > 2 {
		c.sub = ask.ParseSubOp(argv[2])
	}
	c.known = len(argv) == 4 && c.op != ask.OpUnknown && c.sub == subOps[c.op]
	c.told = c.op.Told()
	return c
}

// Run judges one call of the hook: argv without the program's name. It returns the exit status.
func (g Gate) Run(argv []string, stdin io.Reader, stderr io.Writer) (status int) {
	begin := time.Now()
	c := parseCall(argv)
	defer func() {
		if p := recover(); p != nil { // before trust was decided, so it counts as trusted
			status = refuse(stderr, ask.Internal)
			if c.told {
				status = permitted
			}
		}
	}()

	// 1. What is it about? What cannot be read has no subject and counts as trusted.
	xml, unreadable := read(stdin)
	var s subject
	if unreadable == nil {
		s, unreadable = scan(xml)
	}
	if unreadable != nil {
		if c.told {
			return permitted // hostd hears it by libvirt's events
		}
		return refuse(stderr, ask.RequestInvalid)
	}

	// 2. Is it trusted? If not, hostd need not exist.
	flags := g.trust(s)
	if flags == 0 {
		if !c.known && !c.told {
			return note(stderr, permitted, "troth: allowed: unknown operation\n")
		}
		return permitted
	}

	// 3. Ask. No answer is no permit.
	q := ask.Question{
		Op: c.op, SubOp: c.sub, Flags: flags,
		UUID: s.uuid, LaunchID: s.launchID, XML: sha256.Sum256(xml),
	}
	if c.told {
		// Undelivered, it costs hostd one look at libvirt's list; the guest must not pay for it.
		return g.tell(q)
	}
	if c.op.Carries() && len(xml) > ask.MaxXML {
		return refuse(stderr, ask.RequestInvalid) // hostd could not judge it
	}
	a, err := ask.Ask(g.Socket, q, xml, begin)
	switch {
	case err != nil:
		return refuse(stderr, ask.HostdUnreachable)
	case !a.Allow:
		return refuse(stderr, a.Code)
	case !c.known:
		return refuse(stderr, ask.Forbidden) // hostd has heard of it; a gate for it does not exist yet
	case flags.Has(ask.Registered) && !flags.Has(ask.Marked):
		return refuse(stderr, ask.ConfigurationChanged) // somebody took the mark away
	}
	return permitted
}

func (g Gate) tell(q ask.Question) int {
	if err := ask.Tell(g.Socket, q); err != nil {
		return permitted // the same: nothing is vetoed here
	}
	return permitted
}

// refuse prints the only line that a refusal prints. launcher/virt reads the code out of libvirt's message.
func refuse(stderr io.Writer, c ask.Code) int {
	return note(stderr, refused, "troth: refused: "+c.String()+"\n")
}

// note prints one line. A line that cannot be printed changes no decision.
func note(stderr io.Writer, status int, line string) int {
	if _, err := io.WriteString(stderr, line); err != nil {
		return status
	}
	return status
}

var errTooLarge = errors.New("XML is too large")

// read takes standard input, bounded in bytes; in time Main bounds it.
func read(stdin io.Reader) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(stdin, maxXML+1))
	if err == nil && len(b) > maxXML {
		return nil, errTooLarge
	}
	return b, err
}

// trust gives the reasons for which the domain counts as trusted; none is zero.
func (g Gate) trust(s subject) ask.Flags {
	said := Subject{UUID: s.uuid, Marked: s.marked}
	r, err := ask.OpenRegistry(g.Registry)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		// Not provisioned: only marks count, and what is the gate's own.
	case err != nil:
		return said.Why(false, false) | ask.Damaged
	}
	f := said.Why(r.All(), r.Has(s.uuid))
	if touches(s, r) {
		f |= ask.OnVolume
	}
	return f
}
