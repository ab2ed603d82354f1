package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
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
	if _, err := os.Lstat(dir); errors.Is(err, os.ErrNotExist) {
		return nil // its owner has removed it
	}
	lock, err := claim(dir)
	if err != nil {
		return err
	}
	defer lock.Close()
	return remove(dir)
}
