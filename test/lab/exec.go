package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
)

// ExitStatus is the error of a command that ended with another status than zero; 128 and more: by that signal.
type ExitStatus int

func (s ExitStatus) Error() string { return fmt.Sprintf("exit status %d", int(s)) }

// environ is what the node's commands see.
func (n *Node) environ() []string {
	if n.rooted {
		return []string{"HOME=/root", "LC_ALL=C.UTF-8", "TERM=dumb", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	}
	return os.Environ()
}

// Exec runs a command in the node and returns its standard output. The error of a command that failed is an ExitStatus, and ends with what it
// wrote to standard error. No process stands in for the command: process 1 of the node has the pipes' other ends.
func (n *Node) Exec(ctx context.Context, argv ...string) (string, error) {
	out, stderr, err := n.exec(ctx, argv)
	if err != nil {
		return out, fmt.Errorf("%s: %s: %w: %s", n.Name, strings.Join(argv, " "), err, strings.TrimSpace(stderr))
	}
	return out, nil
}

func (n *Node) exec(ctx context.Context, argv []string) (stdout, stderr string, err error) {
	null, err := os.Open(os.DevNull)
	if err != nil {
		return "", "", err
	}
	defer null.Close()
	files := []int{int(null.Fd())}
	var texts [2]strings.Builder
	var reads sync.WaitGroup
	var ends []*os.File
	give := func() {
		for _, f := range ends {
			hangUp(f)
		}
		ends = nil
	}
	defer reads.Wait()
	defer give()
	for i := range texts {
		r, w, err := os.Pipe()
		if err != nil {
			return "", "", fmt.Errorf("cannot make a pipe: %w", err)
		}
		ends, files = append(ends, w), append(files, int(w.Fd()))
		reads.Go(func() {
			defer hangUp(r)
			if _, err := io.Copy(&texts[i], r); err != nil {
				fmt.Fprintln(&texts[i], "cannot read:", err)
			}
		})
	}
	dir, err := os.Getwd()
	if err != nil {
		return "", "", err
	}
	conn, _, err := ask(ctx, n.socket, request{Op: "run", Path: selfIn(argv[0]), Argv: argv, Env: n.environ(), Dir: dir}, files...)
	if err != nil {
		return "", "", err
	}
	defer hangUp(conn) // process 1 kills the command, if it is there yet
	give()
	stop := context.AfterFunc(ctx, func() { hangUp(conn) })
	defer stop()
	end, err := await(conn)
	hangUp(conn)
	reads.Wait()
	switch {
	case ctx.Err() != nil:
		err = errors.Join(ctx.Err(), err)
	case err == nil && end.Status != 0:
		err = ExitStatus(end.Status)
	}
	return texts[0].String(), texts[1].String(), err
}
