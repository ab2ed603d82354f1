package lab

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
)

// Node is one set of namespaces with a process 1.
type Node struct {
	Name    string // host name: outside, verifier, host1, …
	Address string // its IPv4 address on the lab's network

	dir    string // of the node, in the lab's directory
	log    string // directory for log files
	socket string // where process 1 takes commands
	pid    int    // of process 1, as the machine sees it
	rooted bool   // has a root directory of its own
}

// spawner starts the processes 1. The kernel sends the parent death signal when the *thread* that forked ends, so one
// thread does it, and lives as long as the lab.
type spawner struct {
	jobs chan func()
	lock *os.File // the lab's lock, inherited by every process 1

	life  *os.File // read end of the lifeline; the write end is closed by our end, however it comes
	alive *os.File
	inits []*os.Process
}

func newSpawner(lock *os.File) (*spawner, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("cannot make the lifeline: %w", err)
	}
	s := &spawner{jobs: make(chan func()), lock: lock, life: r, alive: w}
	go func() {
		runtime.LockOSThread()
		for job := range s.jobs {
			job()
		}
	}()
	return s, nil
}

// spawn starts a node's process 1 and waits until it has made its mounts and listens.
func (s *spawner) spawn(ctx context.Context, labDir string, n *Node, c initConfig) error {
	data, err := json.Marshal(c)
	if err != nil {
		return err
	}
	file := filepath.Join(n.dir, "init.json")
	if err := os.WriteFile(file, data, 0o600); err != nil {
		return fmt.Errorf("cannot write the node's configuration: %w", err)
	}
	log, err := os.OpenFile(filepath.Join(n.log, n.Name+"-init.log"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		return fmt.Errorf("cannot open the node's log: %w", err)
	}
	defer log.Close()
	ready, readyChild, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("cannot make a pipe: %w", err)
	}
	defer ready.Close()
	cmd := &exec.Cmd{
		Path: "/proc/self/exe", Args: []string{initName, file}, Env: os.Environ(),
		Stdout: log, Stderr: log,
		ExtraFiles: []*os.File{s.life, s.lock, readyChild},
		SysProcAttr: &syscall.SysProcAttr{
			Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWUTS | syscall.CLONE_NEWIPC | syscall.CLONE_NEWPID | syscall.CLONE_NEWNET,
			Pdeathsig:  syscall.SIGKILL,
			Setsid:     true,
		},
	}
	if c.Online {
		cmd.SysProcAttr.Cloneflags &^= syscall.CLONE_NEWNET
	}
	started := make(chan error)
	s.jobs <- func() { started <- cmd.Start() }
	err = <-started
	readyChild.Close()
	if err != nil {
		return fmt.Errorf("cannot start %s: %w", n.Name, err)
	}
	s.inits = append(s.inits, cmd.Process)
	n.pid = cmd.Process.Pid
	if err := recordInit(labDir, n.pid); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { ready.Close() })
	defer stop()
	line, err := bufio.NewReader(ready).ReadString('\n')
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, io.EOF):
		return fmt.Errorf("cannot start %s: its process 1 ended; see %s", n.Name, log.Name())
	case err != nil:
		return fmt.Errorf("cannot start %s: %w", n.Name, err)
	case line != "\n":
		return fmt.Errorf("cannot start %s: %s", n.Name, strings.TrimSpace(line))
	}
	return nil
}

// end kills every process 1 and waits until the kernel has ended all that ran below it.
func (s *spawner) end() error {
	var errs []error
	for _, p := range s.inits {
		if err := p.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
			errs = append(errs, fmt.Errorf("cannot end a node: %w", err))
		}
	}
	for _, p := range s.inits {
		if _, err := p.Wait(); err != nil {
			errs = append(errs, fmt.Errorf("cannot await the end of a node: %w", err))
		}
	}
	s.inits = nil
	s.alive.Close()
	s.life.Close()
	close(s.jobs)
	return errors.Join(errs...)
}

// Command prepares a command that runs in the node's namespaces, found by the PATH there. It is an ordinary exec.Cmd:
// the process that it starts stands in for the real one, passes standard files, signals and exit status, and takes the
// real one with it when it is killed. The working directory is the caller's where the node has it, else "/".
func (n *Node) Command(ctx context.Context, argv ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "/proc/self/exe", argv...)
	cmd.Args = append([]string{proxyName, n.socket}, argv...)
	cmd.Env = n.environ()
	return cmd
}

// Path says where a file of the node is seen from the machine.
func (n *Node) Path(inside string) string {
	if !n.rooted || strings.HasPrefix(inside, filepath.Dir(n.dir)+"/") {
		return inside
	}
	if rest, ok := strings.CutPrefix(inside, sharedInside+"/"); ok {
		return filepath.Join(filepath.Dir(n.dir), "shared", rest)
	}
	return filepath.Join(n.dir, "tree", inside)
}

// Log names the log file of a process of the node: init, swtpm, libvirtd, hostd, verifierd.
func (n *Node) Log(process string) string {
	return filepath.Join(n.log, n.Name+"-"+process+".log")
}

// PID is process 1 of the node, as the machine sees it; /proc/PID/root is its root directory, /proc/PID/ns its
// namespaces.
func (n *Node) PID() int { return n.pid }

// start starts a service in the node; its output goes to its log file.
func (n *Node) start(ctx context.Context, service string, argv ...string) error {
	return n.startHanded(ctx, service, nil, argv...)
}

// startHanded starts it with sockets that it is handed.
func (n *Node) startHanded(ctx context.Context, service string, sockets []listen, argv ...string) error {
	r := request{
		Op: "start", Name: service, Argv: argv, Dir: "/", Log: n.Log(service), Listen: sockets,
		Env: []string{"HOME=/root", "LC_ALL=C.UTF-8", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"},
	}
	conn, _, err := ask(ctx, n.socket, r)
	if err != nil {
		return fmt.Errorf("cannot start %s on %s: %w", service, n.Name, err)
	}
	return conn.Close()
}

// signal signals a service; one that has ended is left in peace.
func (n *Node) signal(ctx context.Context, service string, sig syscall.Signal) error {
	conn, _, err := ask(ctx, n.socket, request{Op: "signal", Name: service, Signal: int(sig)})
	if err != nil {
		return fmt.Errorf("cannot signal %s on %s: %w", service, n.Name, err)
	}
	return conn.Close()
}

// wait waits for the end of a service and returns its exit status.
func (n *Node) wait(ctx context.Context, service string) (int, error) {
	conn, r, err := ask(ctx, n.socket, request{Op: "wait", Name: service})
	if err != nil {
		return 0, fmt.Errorf("cannot await the end of %s on %s: %w", service, n.Name, err)
	}
	return r.Status, conn.Close()
}

// stop signals a service and waits for its end.
func (n *Node) stop(ctx context.Context, service string, sig syscall.Signal) error {
	if err := n.signal(ctx, service, sig); err != nil {
		return err
	}
	_, err := n.wait(ctx, service)
	return err
}

// Service is how a service of a node is.
type Service struct {
	PID     int // in the node's PID namespace; 0: never started
	Running bool
	Status  int // exit status of one that has ended
}

// Service says how a service of the node is: swtpm, libvirtd, hostd, verifierd.
func (n *Node) Service(ctx context.Context, name string) (Service, error) {
	conn, r, err := ask(ctx, n.socket, request{Op: "status", Name: name})
	if err != nil {
		return Service{}, fmt.Errorf("cannot ask %s for %s: %w", n.Name, name, err)
	}
	return Service{PID: r.Pid, Running: r.Running, Status: r.Status}, conn.Close()
}
