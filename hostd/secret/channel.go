package secret

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"troth/proof"
)

// ErrNoAnswer says that the guest did not answer: it is not up yet, does not run `troth guest respond`, or got no secret.
var ErrNoAnswer = errors.New("the guest did not answer")

// one keeps a channel to one talker at a time: QEMU serves one connection, and answers have no address.
var one = struct {
	sync.Mutex
	busy map[string]chan struct{}
}{busy: map[string]chan struct{}{}}

// Challenge sends a challenge through the channel troth.guest.0 and returns the guest's answer with the link that it says it is for.
// What it says proves nothing here: the tenant checks it. Every error but that of a bad challenge is ErrNoAnswer.
func (r *Room) Challenge(ctx context.Context, uuid string, challenge []byte) (answer []byte, link proof.Digest, err error) {
	line, err := proof.EncodeGuestChallenge(challenge)
	if err != nil {
		return nil, link, err
	}
	if err := check(uuid); err != nil {
		return nil, link, err
	}
	path := r.ChannelPath(uuid)
	free, err := take(ctx, path)
	if err != nil {
		return nil, link, fmt.Errorf("%w: another challenge is under way: %w", ErrNoAnswer, err)
	}
	defer free()
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
	if err != nil {
		return nil, link, fmt.Errorf("%w: cannot reach its channel: %w", ErrNoAnswer, err)
	}
	stop := context.AfterFunc(ctx, func() {
		if derr := conn.SetDeadline(time.Unix(1, 0)); derr != nil {
			err = derr
		}
	})
	defer stop()
	defer func() { err = errors.Join(err, conn.Close()) }()
	if _, err := conn.Write(line); err != nil {
		return nil, link, fmt.Errorf("%w: %w", ErrNoAnswer, err)
	}
	return read(conn, challenge)
}

// read takes the first line that answers this challenge. Lines before it are late answers to others, or whatever the guest wrote.
func read(conn io.Reader, challenge []byte) ([]byte, proof.Digest, error) {
	const lines = 16
	in := bufio.NewReaderSize(io.LimitReader(conn, lines*proof.MaxGuestLine), proof.MaxGuestLine)
	var last error
	for {
		l, err := in.ReadSlice('\n')
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			if errors.Is(err, os.ErrDeadlineExceeded) {
				err = context.DeadlineExceeded
			}
			return nil, proof.Digest{}, fmt.Errorf("%w: %w", ErrNoAnswer, errors.Join(err, last))
		}
		link, answer, err := proof.ParseGuestAnswer(l, challenge)
		if err == nil {
			return answer, link, nil
		}
		last = err
	}
}

func take(ctx context.Context, path string) (free func(), err error) {
	for {
		one.Lock()
		wait, busy := one.busy[path]
		if !busy {
			done := make(chan struct{})
			one.busy[path] = done
			one.Unlock()
			return func() {
				one.Lock()
				delete(one.busy, path)
				one.Unlock()
				close(done)
			}, nil
		}
		one.Unlock()
		select {
		case <-wait:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}
