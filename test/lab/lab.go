package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// Options say what New builds.
type Options struct {
	Hosts int    // 1 if zero
	Dir   string // the lab's directory, absent, empty or left by an earlier lab; one for temporary files if empty
	Cache string // what labs share: guest kernel, initrd; build/lab-cache of the module if empty

	// Binaries is the directory with troth, troth-hostd, troth-verifierd and troth-hook. If it is empty, they are built.
	Binaries string

	// Until says how far New goes. The rest is left to calls of Verifier.Start, Host.Boot, Host.Provision, …
	Until Stage

	// Polkit makes hosts as an operator installs them: libvirt asks polkit, with Troth's rule, and troth-hostd runs as the user and with
	// the capabilities that its unit names. Without it root is the only user of a host.
	Polkit bool

	// Modular makes hosts of libvirt's modular daemons: QEMU is served at virtqemud's sockets, and nothing stands at libvirtd's (virtqemud.go).
	Modular bool

	Epoch, Verdict time.Duration // how often hosts attest and how long a verdict holds; 2 s and 6 s if zero
	Binds          []string      // directories that hosts see under the same path, besides the lab's and the binaries'
	Log            io.Writer     // a line per step; none if nil
}

// Stage is a point up to which New builds a lab.
type Stage int

// The stages, each with all before it.
const (
	Ready       Stage = iota // all of it: hosts are approved and have a verdict
	Namespaces               // nodes and their network
	Libvirt                  // swtpm after a TXT boot; libvirtd, with troth-hook installed if there are binaries
	Verifying                // troth-verifierd answers
	Provisioned              // hosts are enrolled and wait for approval; troth-hostd does not run
)

func (s Stage) includes(other Stage) bool { return s == Ready || s >= other }

const (
	sharedInside   = "/srv/troth"     // where hosts see the directory that all of them share
	binariesInside = "/opt/troth/bin" // where nodes with a root of their own see the programs
	labFile        = "lab.json"
	maxDir         = 70 // bytes: paths of sockets below it must stay under 108 (unix(7))
)

// Lab is a set of running nodes.
type Lab struct {
	PKI      *PKI
	Outside  *Node // where tenants, operators and engines run commands
	Verifier *Verifier
	Guest    *Guest // nil before the stage Libvirt

	options Options
	hosts   []*Host
	dir     string
	own     bool     // dir is one that we made for ourselves
	lock    *os.File // nil for a lab that we attached to
	spawner *spawner
	tools   *Node // where programs of the machine run that the lab itself needs; nil until one is
}

// New builds a lab and returns when what Options.Until names is ready. The lab ends with Close, or with the process that
// called New, however that ends.
func New(ctx context.Context, o Options) (*Lab, error) {
	l, err := prepare(o)
	if err != nil {
		return nil, err
	}
	if err := l.build(ctx); err != nil {
		return nil, errors.Join(err, l.end()) // the directory stays, to be read
	}
	return l, nil
}

// prepare fills in what Options leave open and claims the directory.
func prepare(o Options) (*Lab, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("the lab needs root, for namespaces")
	}
	if o.Hosts == 0 {
		o.Hosts = 1
	}
	if o.Hosts < 0 || o.Hosts > 200 {
		return nil, fmt.Errorf("cannot build %d hosts: 1 to 200", o.Hosts)
	}
	if o.Epoch == 0 {
		o.Epoch = 2 * time.Second
	}
	if o.Verdict == 0 {
		o.Verdict = 6 * time.Second
	}
	if o.Log == nil {
		o.Log = io.Discard
	}
	var err error
	if o.Cache == "" {
		if o.Cache, err = DefaultCache(); err != nil {
			return nil, err
		}
	}
	own := o.Dir == ""
	dir, lock, err := settle(o.Dir)
	if err != nil {
		return nil, err
	}
	o.Dir = dir
	s, err := newSpawner(lock)
	if err != nil {
		lock.Close()
		return nil, err
	}
	return &Lab{options: o, dir: o.Dir, own: own, lock: lock, spawner: s}, nil
}

// settle claims the directory that is named, or a new one where none is.
func settle(named string) (dir string, lock *os.File, err error) {
	dir = named
	if named == "" {
		dir = filepath.Join(os.TempDir(), tempPrefix+"0123456789") // as long as its name can be
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return "", nil, err
	}
	if len(dir) > maxDir {
		return "", nil, fmt.Errorf("%s: longer than %d bytes, sockets below it would have no address", dir, maxDir)
	}
	if named == "" {
		return makeTemporary(filepath.Dir(dir))
	}
	lock, err = claim(dir)
	return dir, lock, err
}

// build goes through the stages.
func (l *Lab) build(ctx context.Context) error {
	o := &l.options
	for _, dir := range []string{"log", "shared", "pki"} {
		if err := os.MkdirAll(filepath.Join(l.dir, dir), 0o755); err != nil {
			return fmt.Errorf("cannot make the lab's directory: %w", err)
		}
	}
	if o.Polkit { // others than root go through it to the TPM's socket; what is in it is their own business
		if err := os.Chmod(l.dir, 0o711); err != nil {
			return fmt.Errorf("cannot open the lab's directory: %w", err)
		}
	}
	l.arrange()
	if err := os.MkdirAll(o.Cache, 0o755); err != nil {
		return fmt.Errorf("cannot make the cache: %w", err)
	}
	if o.Binaries == "" && o.Until != Namespaces {
		if err := l.buildPrograms(ctx); err != nil {
			return err
		}
	}
	if err := l.makeOutside(ctx); err != nil {
		return err
	}
	if o.Until.includes(Libvirt) {
		var err error
		if l.Guest, err = l.makeGuest(ctx); err != nil {
			return err
		}
	}
	l.say("making %d hosts in namespaces", o.Hosts)
	if err := l.makeHosts(ctx); err != nil {
		return err
	}
	if !o.Until.includes(Libvirt) {
		return l.save()
	}
	l.say("booting the hosts: TXT launch on swtpm, libvirtd")
	if err := l.each(func(h *Host) error { return h.Boot(ctx) }); err != nil {
		return err
	}
	if !o.Until.includes(Verifying) {
		return l.save()
	}
	l.say("starting the verifier")
	if err := l.Verifier.Init(ctx); err != nil {
		return err
	}
	if err := l.Verifier.Start(ctx); err != nil {
		return err
	}
	if !o.Until.includes(Provisioned) {
		return l.save()
	}
	l.say("provisioning the hosts")
	if err := l.each(func(h *Host) error { return h.Provision(ctx) }); err != nil {
		return err
	}
	if o.Until != Ready {
		return l.save()
	}
	l.say("approving the hosts and importing their reference values")
	if err := l.each(func(h *Host) error { return h.BringUp(ctx) }); err != nil {
		return err
	}
	return l.save()
}

// makeOutside makes the keys, the node outside and the bridge in it.
func (l *Lab) makeOutside(ctx context.Context) error {
	var err error
	if l.PKI, err = NewPKI(filepath.Join(l.dir, "pki")); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(l.dir, "hosts"), []byte(l.names()), 0o644); err != nil {
		return fmt.Errorf("cannot write the names of the nodes: %w", err)
	}
	if err := l.spawnNode(ctx, l.Outside); err != nil {
		return err
	}
	return makeBridge(l.Outside)
}

// makeHosts makes the other nodes and connects them.
func (l *Lab) makeHosts(ctx context.Context) error {
	rooted := []*Node{&l.Verifier.Node}
	for _, h := range l.hosts {
		rooted = append(rooted, &h.Node)
	}
	for _, n := range rooted {
		if err := l.spawnNode(ctx, n); err != nil {
			return err
		}
		if err := join(l.Outside, n); err != nil {
			return err
		}
	}
	return nil
}

// arrange makes the values that stand for the nodes.
func (l *Lab) arrange() {
	node := func(name, address string, rooted bool) Node {
		dir := filepath.Join(l.dir, name)
		return Node{Name: name, Address: address, dir: dir, log: filepath.Join(l.dir, "log"), socket: filepath.Join(dir, "init.sock"), rooted: rooted}
	}
	outside := node("outside", outsideAddress, false)
	l.Outside = &outside
	l.Verifier = &Verifier{Node: node("verifier", verifierAddress, true), lab: l}
	for i := 1; i <= l.options.Hosts; i++ {
		l.hosts = append(l.hosts, &Host{Node: node(hostName(i), hostAddress(i), true), lab: l})
	}
}

// names is the /etc/hosts of all nodes.
func (l *Lab) names() string {
	var b strings.Builder
	b.WriteString("127.0.0.1 localhost\n")
	fmt.Fprintf(&b, "%s outside\n%s verifier\n", outsideAddress, verifierAddress)
	for _, h := range l.hosts {
		fmt.Fprintf(&b, "%s %s\n", h.Address, h.Name)
	}
	return b.String()
}

// spawnNode makes a node's directory and starts its process 1.
func (l *Lab) spawnNode(ctx context.Context, n *Node) error {
	if err := os.MkdirAll(n.dir, 0o755); err != nil {
		return fmt.Errorf("cannot make the directory of %s: %w", n.Name, err)
	}
	c := initConfig{Name: n.Name, Socket: n.socket}
	names := filepath.Join(l.dir, "hosts")
	if !n.rooted {
		c.Files = []bind{{Source: names, Target: "/etc/hosts"}}
		if l.options.Binaries != "" {
			c.Path = []string{l.options.Binaries}
		}
		return l.spawner.spawn(ctx, l.dir, n, c)
	}
	c.Tree = filepath.Join(n.dir, "tree")
	c.Root = filepath.Join(n.dir, "root")
	if err := os.MkdirAll(c.Root, 0o755); err != nil {
		return fmt.Errorf("cannot make the directory of %s: %w", n.Name, err)
	}
	if err := makeTree(ctx, c.Tree, n.Name); err != nil {
		return err
	}
	c.Devices = []string{"null", "zero", "full", "random", "urandom", "tty"}
	if l.Guest != nil && l.Guest.Type == "kvm" {
		c.Devices = append(c.Devices, "kvm") // libvirt probes it again and again where it is and cannot be used
	}
	c.Binds = append([]string{l.dir}, l.options.Binds...)
	c.Files = []bind{
		{Source: names, Target: "/etc/hosts"},
		{Source: filepath.Join(l.dir, "shared"), Target: sharedInside},
	}
	if l.options.Binaries != "" {
		// A directory of its own for the mount point, since /opt is the machine's.
		c.Files = append(c.Files, bind{Source: l.options.Binaries, Target: binariesInside, ReadOnly: true})
		c.Path = []string{binariesInside}
	}
	if l.options.Polkit && n != &l.Verifier.Node {
		binds, err := l.preparePolkit(ctx, c.Tree)
		if err != nil {
			return err
		}
		c.Files = append(c.Files, binds...)
	}
	return l.spawner.spawn(ctx, l.dir, n, c)
}

// each does something on all hosts at once.
func (l *Lab) each(do func(*Host) error) error {
	errs := make([]error, len(l.hosts))
	done := make(chan struct{})
	for i, h := range l.hosts {
		go func() {
			errs[i] = do(h)
			done <- struct{}{}
		}()
	}
	for range l.hosts {
		<-done
	}
	return errors.Join(errs...)
}

func (l *Lab) say(format string, a ...any) {
	fmt.Fprintf(l.options.Log, "lab: "+format+"\n", a...)
}

// Close ends the lab and removes its directory.
func (l *Lab) Close() error {
	if l.lock == nil {
		return errNotOwner
	}
	if err := l.end(); err != nil {
		return err
	}
	return dispose(l.dir)
}

// Keep ends the lab and leaves its directory: for good if the lab made it for itself, else until the next lab there.
func (l *Lab) Keep() error {
	if l.lock == nil {
		return errNotOwner
	}
	if err := l.end(); err != nil || !l.own {
		return err
	}
	return keep(l.dir)
}

func (l *Lab) end() error {
	err := l.spawner.end()
	for _, h := range l.hosts {
		err = errors.Join(err, h.leaveCapabilities())
	}
	return errors.Join(err, l.lock.Close())
}

// Dir is the lab's directory: log/, pki/, shared/ and one directory per node.
func (l *Lab) Dir() string { return l.dir }

// Host returns host i, counted from 1, as its name is.
func (l *Lab) Host(i int) *Host { return l.hosts[i-1] }

// Hosts returns all hosts.
func (l *Lab) Hosts() []*Host { return l.hosts }

// Command prepares a command in the node outside: on the machine's own files, but on the lab's network and with the
// programs in PATH.
func (l *Lab) Command(ctx context.Context, argv ...string) *exec.Cmd {
	return l.Outside.Command(ctx, argv...)
}
