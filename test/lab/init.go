package lab

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// initConfig is what process 1 of a node is started with, in a file of the lab's directory.
type initConfig struct {
	Name    string   // host name
	Socket  string   // where commands are taken, in the lab's directory
	Root    string   // mount point for a root directory of its own; empty: the machine's root is seen
	Tree    string   // directory with the private /etc, /run, /tmp, /var of a node with a Root
	Binds   []string // directories that are seen under their own path in a node with a Root
	Files   []bind   // further binds, after all else
	Path    []string // put in front of every command's PATH
	Devices []string // in /dev of a node with a Root
	Online  bool     // shares the machine's network namespace
}

// bind is one bind mount, made private to the node.
type bind struct {
	Source, Target string
	ReadOnly       bool
}

// request is what a client asks of process 1: one message, for run with the three standard files attached.
type request struct {
	Op     string // run | start | signal | wait | status
	Name   string `json:",omitempty"` // of a service (start, signal, wait, status)
	Path   string `json:",omitempty"` // of the program, if not Argv[0] found by PATH
	Argv   []string
	Env    []string
	Dir    string
	Log    string   // file for a service's output, appended to
	Listen []listen `json:",omitempty"` // what a service is handed; activate.go
	Signal int      `json:",omitempty"`
}

// reply is one message back. For run there are two: started, then exited.
type reply struct {
	Pid     int  `json:",omitempty"` // in the node's PID namespace
	Exited  bool `json:",omitempty"`
	Status  int  `json:",omitempty"` // exit status, or 128 + signal
	Running bool `json:",omitempty"`
	Error   string
}

const maxRequest = 1 << 17

// process1 is the state of a node's process 1.
type process1 struct {
	config initConfig

	mu       sync.Mutex         // held over fork and over reaping, so that no exit is missed or taken by another
	waiting  map[int]*exited    // by pid
	services map[string]*exited // by name: the last process started under it
}

// exited is closed with a status once its process has been reaped.
type exited struct {
	pid    int
	status int
	done   chan struct{}
}

// runInit is the body of process 1. File 3 is the lifeline: it ends when the lab's owner ends, and so do we, and with us
// the PID namespace. (The parent death signal says the same; it does not reach a process whose parent died before it was
// set.) File 4 is the lab's lock, held for as long as we live. File 5 takes one line: empty for ready, else what failed.
func runInit(configFile string) error {
	for fd := 3; fd <= 5; fd++ {
		unix.CloseOnExec(fd)
	}
	go func() {
		var b [1]byte
		for {
			if _, err := syscall.Read(3, b[:]); !errors.Is(err, syscall.EINTR) {
				os.Exit(0)
			}
		}
	}()
	ready := os.NewFile(5, "ready")
	p, listener, err := setUp(configFile)
	if err != nil {
		fmt.Fprintf(ready, "%v\n", err)
		return err
	}
	fmt.Fprintln(ready)
	ready.Close()
	go p.reap()
	for {
		conn, err := listener.AcceptUnix()
		if err != nil {
			return fmt.Errorf("cannot take commands: %w", err)
		}
		go p.serve(conn)
	}
}

func setUp(configFile string) (*process1, *net.UnixListener, error) {
	data, err := os.ReadFile(configFile)
	if err != nil {
		return nil, nil, fmt.Errorf("cannot read the node's configuration: %w", err)
	}
	var c initConfig
	if err := json.Unmarshal(data, &c); err != nil {
		return nil, nil, fmt.Errorf("cannot read the node's configuration: %w", err)
	}
	if err := unix.Sethostname([]byte(c.Name)); err != nil {
		return nil, nil, fmt.Errorf("cannot set the host name: %w", err)
	}
	listener, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: c.Socket, Net: "unixpacket"})
	if err != nil {
		return nil, nil, fmt.Errorf("cannot listen for commands: %w", err)
	}
	if err := mountNode(&c); err != nil {
		return nil, nil, err
	}
	p := &process1{config: c, waiting: make(map[int]*exited), services: make(map[string]*exited)}
	return p, listener, nil
}

// reap collects every child, our own and those that others left behind: libvirtd waits for ever on a QEMU that is a
// zombie.
func (p *process1) reap() {
	child := make(chan os.Signal, 1)
	signal.Notify(child, syscall.SIGCHLD)
	for {
		p.mu.Lock()
		for {
			var ws syscall.WaitStatus
			pid, err := syscall.Wait4(-1, &ws, syscall.WNOHANG, nil)
			if errors.Is(err, syscall.EINTR) {
				continue
			}
			if err != nil || pid <= 0 {
				break
			}
			if e := p.waiting[pid]; e != nil {
				delete(p.waiting, pid)
				e.status = ws.ExitStatus()
				if ws.Signaled() {
					e.status = 128 + int(ws.Signal())
				}
				close(e.done)
			}
		}
		p.mu.Unlock()
		<-child
	}
}

// start runs a program in its own process group. files are its standard input, output and error, and what it is handed besides.
func (p *process1) start(r *request, files []uintptr, newSession bool) (*exited, error) {
	env := p.environment(r.Env)
	path := r.Path
	if path == "" {
		var err error
		if path, err = lookPath(r.Argv[0], env); err != nil {
			return nil, err
		}
	}
	dir := r.Dir
	if info, err := os.Stat(dir); err != nil || !info.IsDir() {
		dir = "/"
	}
	sys := &syscall.SysProcAttr{Setpgid: !newSession, Setsid: newSession}
	p.mu.Lock()
	defer p.mu.Unlock()
	pid, err := syscall.ForkExec(path, r.Argv, &syscall.ProcAttr{Dir: dir, Env: env, Files: files, Sys: sys})
	if err != nil {
		return nil, fmt.Errorf("cannot run %s: %w", path, err)
	}
	e := &exited{pid: pid, done: make(chan struct{})}
	p.waiting[pid] = e
	return e, nil
}

// environment is what a command sees: the caller's, with the node's own directories first in PATH.
func (p *process1) environment(env []string) []string {
	path := "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	var out []string
	for _, e := range env {
		if v, ok := strings.CutPrefix(e, "PATH="); ok {
			path = v + ":/usr/sbin:/sbin"
			continue
		}
		out = append(out, e)
	}
	return append(out, "PATH="+strings.Join(append(p.config.Path[:len(p.config.Path):len(p.config.Path)], path), ":"))
}

// lookPath is exec.LookPath with the PATH of env.
func lookPath(name string, env []string) (string, error) {
	if strings.Contains(name, "/") {
		return name, nil
	}
	for _, e := range env {
		v, ok := strings.CutPrefix(e, "PATH=")
		if !ok {
			continue
		}
		for _, dir := range filepath.SplitList(v) {
			file := filepath.Join(dir, name)
			if info, err := os.Stat(file); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
				return file, nil
			}
		}
	}
	return "", &exec.Error{Name: name, Err: exec.ErrNotFound}
}

// serve answers one client.
func (p *process1) serve(conn *net.UnixConn) {
	defer hangUp(conn)
	r, files, err := receive(conn)
	if err != nil {
		answer(conn, reply{Error: err.Error()})
		return
	}
	defer closeAll(files)
	switch r.Op {
	case "run":
		p.run(conn, r, files)
	case "start":
		answer(conn, p.startService(r))
	case "signal", "wait", "status":
		answer(conn, p.service(conn, r))
	default:
		answer(conn, reply{Error: fmt.Sprintf("unknown operation %q", r.Op)})
	}
}

// run runs a command for a client and ends it when the client goes away.
func (p *process1) run(conn *net.UnixConn, r *request, files []int) {
	if len(files) != 3 || len(r.Argv) == 0 {
		answer(conn, reply{Error: "run needs a command and three files"})
		return
	}
	e, err := p.start(r, []uintptr{uintptr(files[0]), uintptr(files[1]), uintptr(files[2])}, false)
	if err != nil {
		answer(conn, reply{Error: err.Error()})
		return
	}
	closeAll(files)
	answer(conn, reply{Pid: e.pid, Running: true})
	go func() {
		for {
			s, _, err := receive(conn)
			sig := syscall.SIGKILL
			if err == nil {
				sig = syscall.Signal(s.Signal)
			}
			if kerr := p.kill(-e.pid, e, sig); err != nil || kerr != nil {
				return // the client has gone, or the command
			}
		}
	}()
	<-e.done
	answer(conn, reply{Pid: e.pid, Exited: true, Status: e.status})
}

// kill signals a process, or with a negative number its group, unless it has been reaped already.
func (p *process1) kill(pid int, e *exited, sig syscall.Signal) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-e.done:
		return syscall.ESRCH
	default:
		return syscall.Kill(pid, sig)
	}
}

// startService starts a program that goes on when the client goes away.
func (p *process1) startService(r *request) reply {
	if len(r.Argv) == 0 || r.Name == "" {
		return reply{Error: "start needs a name and a command"}
	}
	p.mu.Lock()
	old := p.services[r.Name]
	p.mu.Unlock()
	if old != nil {
		select {
		case <-old.done:
		default:
			return reply{Error: fmt.Sprintf("%s is running already", r.Name)}
		}
	}
	log, err := os.OpenFile(r.Log, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		return reply{Error: err.Error()}
	}
	defer log.Close()
	null, err := os.Open("/dev/null")
	if err != nil {
		return reply{Error: err.Error()}
	}
	defer null.Close()
	handed, err := r.activate()
	defer closeAll(handed) // the service has its own
	if err != nil {
		return reply{Error: err.Error()}
	}
	files := []uintptr{null.Fd(), log.Fd(), log.Fd()}
	for _, fd := range handed {
		files = append(files, uintptr(fd))
	}
	e, err := p.start(r, files, true)
	if err != nil {
		return reply{Error: err.Error()}
	}
	p.mu.Lock()
	p.services[r.Name] = e
	p.mu.Unlock()
	return reply{Pid: e.pid, Running: true}
}

// service signals a service, waits for it, or says how it is.
func (p *process1) service(conn *net.UnixConn, r *request) reply {
	p.mu.Lock()
	e := p.services[r.Name]
	p.mu.Unlock()
	if e == nil {
		if r.Op == "status" {
			return reply{}
		}
		return reply{Error: fmt.Sprintf("%s was never started", r.Name)}
	}
	switch r.Op {
	case "signal":
		if err := p.kill(e.pid, e, syscall.Signal(r.Signal)); err != nil && !errors.Is(err, syscall.ESRCH) {
			return reply{Error: err.Error()}
		}
	case "wait":
		gone := make(chan struct{})
		go func() {
			defer close(gone)
			for err := error(nil); err == nil; { // until the client does not care any more
				_, _, err = receive(conn)
			}
		}()
		select {
		case <-e.done:
		case <-gone:
		}
	}
	select {
	case <-e.done:
		return reply{Pid: e.pid, Exited: true, Status: e.status}
	default:
		return reply{Pid: e.pid, Running: true}
	}
}
