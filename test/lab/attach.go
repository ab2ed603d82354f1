package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// Nodes returns all nodes: outside, verifier, hosts.
func (l *Lab) Nodes() []*Node { return l.nodes() }

// Node finds a node by name.
func (l *Lab) Node(name string) (*Node, error) {
	for _, n := range l.nodes() {
		if n.Name == name {
			return n, nil
		}
	}
	return nil, fmt.Errorf("no node is named %q", name)
}

// HostNamed finds a host by name.
func (l *Lab) HostNamed(name string) (*Host, error) {
	for _, h := range l.hosts {
		if h.Name == name {
			return h, nil
		}
	}
	return nil, fmt.Errorf("no host is named %q", name)
}

// Down ends the lab in a directory, whoever owns it, and removes what is left of one that was killed.
func Down(ctx context.Context, dir string) error {
	if _, err := os.Lstat(dir); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	s, err := readState(dir)
	if err == nil && alive(s.Owner, s.Start) {
		if err := syscall.Kill(s.Owner, syscall.SIGTERM); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("cannot end the lab: %w", err)
		}
		for alive(s.Owner, s.Start) {
			select {
			case <-ctx.Done():
				return fmt.Errorf("the lab in %s does not end: %w", dir, ctx.Err())
			case <-time.After(10 * time.Millisecond):
			}
		}
	}
	return dispose(dir)
}

// state is what Attach needs to know.
type state struct {
	Owner    int    // pid
	Start    uint64 // its start time
	Hosts    int
	Cache    string
	Binaries string
	Epoch    time.Duration
	Verdict  time.Duration
	PIDs     map[string]int
	Guest    *Guest
	Polkit   bool
	Modular  bool
}

func (l *Lab) save() error {
	_, start, err := processStat(os.Getpid())
	if err != nil {
		return err
	}
	o := &l.options
	s := state{Owner: os.Getpid(), Start: start, Hosts: o.Hosts, Cache: o.Cache, Binaries: o.Binaries, Epoch: o.Epoch, Verdict: o.Verdict, PIDs: map[string]int{}, Guest: l.Guest, Polkit: o.Polkit, Modular: o.Modular}
	for _, n := range l.nodes() {
		s.PIDs[n.Name] = n.pid
	}
	data, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	tmp := filepath.Join(l.dir, labFile+".new")
	if err := os.WriteFile(tmp, data, 0o644); err != nil {
		return fmt.Errorf("cannot write the lab's state: %w", err)
	}
	if err := os.Rename(tmp, filepath.Join(l.dir, labFile)); err != nil {
		return fmt.Errorf("cannot write the lab's state: %w", err)
	}
	return nil
}

func (l *Lab) nodes() []*Node {
	all := []*Node{l.Outside, &l.Verifier.Node}
	for _, h := range l.hosts {
		all = append(all, &h.Node)
	}
	return all
}

// Attach returns a lab that another process built and owns.
func Attach(dir string) (*Lab, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	s, err := readState(dir)
	if err != nil {
		return nil, err
	}
	if !alive(s.Owner, s.Start) {
		return nil, fmt.Errorf("no lab runs in %s", dir)
	}
	l := &Lab{
		dir: dir, Guest: s.Guest,
		options: Options{Hosts: s.Hosts, Dir: dir, Cache: s.Cache, Binaries: s.Binaries, Polkit: s.Polkit, Modular: s.Modular, Epoch: s.Epoch, Verdict: s.Verdict, Log: io.Discard},
	}
	if l.PKI, err = LoadPKI(filepath.Join(dir, "pki")); err != nil {
		return nil, err
	}
	l.arrange()
	for _, n := range l.nodes() {
		n.pid = s.PIDs[n.Name]
	}
	return l, nil
}

func readState(dir string) (*state, error) {
	data, err := os.ReadFile(filepath.Join(dir, labFile))
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("no lab runs in %s", dir)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot read the lab's state: %w", err)
	}
	var s state
	if err := json.Unmarshal(data, &s); err != nil {
		return nil, fmt.Errorf("cannot read the lab's state: %w", err)
	}
	return &s, nil
}
