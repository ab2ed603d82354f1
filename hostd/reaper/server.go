package reaper

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	hook "troth/hooks/answer"
	"troth/hooks/ask"
	"troth/launcher/emulator"
)

// Bounds of the service.
const (
	within     = 5 * time.Second // one request, looking at the process included
	maxAtOnce  = 8
	acceptNext = 100 * time.Millisecond
)

// Server answers hostd.
type Server struct {
	Registry string   // as hostd publishes it
	UIDs     []uint32 // may ask: hostd's user
	Log      *slog.Logger

	end func(pid int, start uint64, a emulator.Action, judge func(*emulator.Process) error) error // emulator.End; a test's own
}

// Serve answers until ctx ends or the listener fails. It closes l.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	stop := context.AfterFunc(ctx, func() {
		if err := l.Close(); err != nil {
			s.Log.Debug("cannot close the socket", "error", err.Error())
		}
	})
	defer stop()
	var work sync.WaitGroup
	defer work.Wait()
	slots := make(chan struct{}, maxAtOnce)
	for {
		slots <- struct{}{}
		c, err := l.Accept()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				err = c.Close()
			}
			if err != nil && !errors.Is(err, net.ErrClosed) {
				s.Log.Debug("cannot close a connection", "error", err.Error())
			}
			return nil
		case errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) || errors.Is(err, unix.ECONNABORTED):
			<-slots
			time.Sleep(acceptNext) // out of descriptors passes; a dead listener does not
			continue
		case err != nil:
			return fmt.Errorf("cannot accept requests: %w", err)
		}
		work.Go(func() {
			defer func() { <-slots }()
			defer c.Close()
			defer func() {
				if p := recover(); p != nil { // nothing is ended on its account, and the next one is served
					s.Log.Error("panic over a request", "panic", fmt.Sprint(p))
				}
			}()
			if err := s.serve(c); err != nil {
				s.Log.Warn("request not served", "error", err.Error())
			}
		})
	}
}

func (s *Server) serve(c net.Conn) error {
	if err := c.SetDeadline(time.Now().Add(within)); err != nil {
		return fmt.Errorf("cannot set deadline: %w", err)
	}
	if err := s.admit(c); err != nil {
		return err
	}
	line, err := bufio.NewReader(io.LimitReader(c, maxLine)).ReadString('\n')
	if err != nil {
		return fmt.Errorf("cannot read request: %w", err)
	}
	r, err := parse(line)
	if err != nil {
		return err
	}
	err = s.reap(r)
	if _, werr := io.WriteString(c, answer(err)); werr != nil {
		return errors.Join(err, fmt.Errorf("cannot answer: %w", werr))
	}
	return err
}

// reap does what is asked if the process is what the registry knows as trusted.
func (s *Server) reap(r Request) error {
	registry, err := ask.ReadRegistry(s.Registry)
	if err != nil {
		return err // nothing is known of what is trusted, so nothing is ended
	}
	index := emulator.NewIndex(registry)
	end := s.end
	if end == nil {
		end = emulator.End
	}
	var why emulator.Reason
	var shows string
	err = end(r.PID, r.Start, r.Action, func(p *emulator.Process) error {
		if why, shows = index.Why(p); why == "" {
			return fmt.Errorf("%w: process %d runs no trusted guest", emulator.ErrNotIt, p.PID)
		}
		return nil
	})
	if err == nil {
		s.Log.Warn("signalled a foreign emulator", "pid", r.PID, "action", string(r.Action), "trusted_by", string(why), "shows", shows)
	}
	return err
}

// admit checks who asks.
func (s *Server) admit(c net.Conn) error {
	cred, err := hook.Peer(c)
	if err != nil {
		return err
	}
	if !slices.Contains(s.UIDs, cred.Uid) {
		return fmt.Errorf("cannot serve uid %d (pid %d): not hostd", cred.Uid, cred.Pid)
	}
	return nil
}
