package ask

import (
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"syscall"
	"time"
)

// A hook holds the domain's lock inside libvirtd while it waits, so it waits little (the protocol's hook budget).
const (
	FirstByte = 200 * time.Millisecond // to connect, to ask, and to see that hostd took the question
	InAll     = 3 * time.Second        // to the whole answer
)

// margin is what is left of InAll for what stands round the waiting: libvirt starts the hook, and after a refusal runs it twice more to take the
// domain back. So whoever started the domain has the refusal after InAll, also in a crowd.
const margin = 350 * time.Millisecond

// connectTries bounds how often a full queue is tried again. A full queue means that hostd accepts nothing (the
// kernel answers at once) or that a burst came within a few microseconds: the second is over in no time.
const (
	connectTries = 3
	connectPause = 5 * time.Millisecond
)

// ErrUnreachable says that no answer came: nobody listens, the queue is full, hostd hangs, or what it said is
// not an answer.
var ErrUnreachable = errors.New("cannot get an answer from hostd")

// Ask asks hostd and waits for its decision: FirstByte from now for the first byte, InAll from begin (when the hook
// was started) for the rest. xml follows the question if its operation carries it. Every error is ErrUnreachable.
func Ask(socket string, q Question, xml []byte, begin time.Time) (Answer, error) {
	if q.Size = 0; q.Op.Carries() {
		q.Size = uint32(min(len(xml), math.MaxUint32))
	} else {
		xml = nil
	}
	c, err := send(socket, q, xml)
	if err != nil {
		return Answer{}, err
	}
	defer c.Close()
	var b [AnswerSize]byte
	if _, err := io.ReadFull(c, b[:1]); err != nil {
		return Answer{}, fmt.Errorf("%w: no first byte: %w", ErrUnreachable, err)
	}
	if err := c.SetDeadline(begin.Add(InAll - margin)); err != nil {
		return Answer{}, fmt.Errorf("%w: %w", ErrUnreachable, err)
	}
	if _, err := io.ReadFull(c, b[1:]); err != nil {
		return Answer{}, fmt.Errorf("%w: half an answer: %w", ErrUnreachable, err)
	}
	a, err := ParseAnswer(b[:])
	if err != nil {
		return Answer{}, fmt.Errorf("%w: %w", ErrUnreachable, err)
	}
	return a, nil
}

// Tell hands hostd the question and does not wait for an answer; for the operations that nothing can veto.
func Tell(socket string, q Question) error {
	q.Size = 0
	c, err := send(socket, q, nil)
	if err != nil {
		return err
	}
	return c.Close()
}

func send(socket string, q Question, xml []byte) (*os.File, error) {
	begin := time.Now()
	c, err := dial(socket)
	for try := 1; try < connectTries && errors.Is(err, syscall.EAGAIN); try++ {
		time.Sleep(connectPause)
		c, err = dial(socket)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnreachable, err)
	}
	err = c.SetDeadline(begin.Add(FirstByte))
	if err == nil {
		b := q.Encode()
		_, err = c.Write(append(b[:], xml...))
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%w: %w", ErrUnreachable, err), c.Close())
	}
	return c, nil
}

// dial connects without waiting: a unix socket takes the caller into its queue at once or not at all (connect(2), EAGAIN).
// System calls, since the start of package net is felt in a program that runs for a millisecond.
func dial(socket string) (*os.File, error) {
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC|syscall.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("cannot make socket: %w", err)
	}
	if err := syscall.Connect(fd, &syscall.SockaddrUnix{Name: socket}); err != nil {
		return nil, errors.Join(fmt.Errorf("cannot connect to %s: %w", socket, err), syscall.Close(fd))
	}
	return os.NewFile(uintptr(fd), socket), nil
}
