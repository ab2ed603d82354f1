// Package answer is hostd's end of the hook's socket: it takes the questions of package ask, from those who may ask.
//
// It promises: at most MaxWaiting questions are judged at once and as many wait, every read is bounded in bytes and in
// time, and whatever goes wrong answers nothing or a refusal.
// It trusts: the kernel's peer credentials, and that only hostd's user writes the socket's directory.
package answer

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"troth/hooks/ask"
)

// MaxWaiting is how many hooks wait at once in the socket's queue, and how many hostd judges at once. While all
// are taken the kernel turns the next one away at once, so a hung hostd costs a storm of trusted starts eight
// short waits and everything else nothing. The queue heals by itself: hooks that gave up are drained by Accept.
const MaxWaiting = 8

// acceptPause is how long a server out of descriptors waits before it accepts again.
const acceptPause = 5 * time.Millisecond

// Server answers hooks.
type Server struct {
	// Answer decides. It must not call libvirt, which holds the domain's lock until the hook ends. xml is what libvirt
	// wrote to the hook, for operations that carry it. ctx ends when the hook no longer waits. A panic counts as a refusal: ask.Internal.
	Answer func(ctx context.Context, q ask.Question, xml []byte) ask.Answer
	// UIDs may ask: root, and the user that libvirtd runs QEMU hooks as, if that is another.
	UIDs []uint32
	// Report hears about callers that were turned away and about panics; nil means nobody listens.
	Report func(err error)
}

// Listen opens the socket at path for the users in the given mode, in place of one that a dead hostd left.
// The name appears only when the socket is complete. Closing the listener leaves the name, so that a hook is told
// at once that nobody listens.
func Listen(path string, mode fs.FileMode) (net.Listener, error) {
	fresh := path + ".new"
	if err := os.Remove(fresh); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("cannot remove old socket: %w", err)
	}
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC|syscall.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("cannot make socket: %w", err)
	}
	f := os.NewFile(uintptr(fd), path)
	defer f.Close() // FileListener has its own copy
	if err := syscall.Bind(fd, &syscall.SockaddrUnix{Name: fresh}); err != nil {
		return nil, fmt.Errorf("cannot bind %s: %w", fresh, err)
	}
	if err := os.Chmod(fresh, mode); err != nil {
		return nil, fmt.Errorf("cannot set mode of %s: %w", fresh, err)
	}
	// unix(7): the kernel queues one more than the backlog.
	if err := syscall.Listen(fd, MaxWaiting-1); err != nil {
		return nil, fmt.Errorf("cannot listen on %s: %w", fresh, err)
	}
	l, err := net.FileListener(f)
	if err != nil {
		return nil, fmt.Errorf("cannot listen on %s: %w", fresh, err)
	}
	if err := os.Rename(fresh, path); err != nil {
		return nil, errors.Join(fmt.Errorf("cannot publish socket: %w", err), l.Close())
	}
	return l, nil
}

// Serve answers until ctx ends or the listener fails, then waits for the questions in hand. It closes l.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	stop := context.AfterFunc(ctx, func() { s.report(l.Close()) })
	defer stop()
	var wg sync.WaitGroup
	defer wg.Wait()
	slots := make(chan struct{}, MaxWaiting)
	for {
		slots <- struct{}{} // before Accept: what hostd cannot judge stays in the bounded queue
		c, err := l.Accept()
		if ctx.Err() != nil {
			if err == nil {
				err = c.Close()
				s.report(err)
			}
			return nil
		}
		if err != nil {
			<-slots
			if errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) || errors.Is(err, syscall.ECONNABORTED) {
				s.report(err)
				time.Sleep(acceptPause) // out of descriptors passes; a dead listener does not
				continue
			}
			return fmt.Errorf("cannot accept hooks: %w", errors.Join(err, l.Close()))
		}
		wg.Go(func() {
			defer func() { <-slots }()
			defer c.Close()
			defer func() {
				if p := recover(); p != nil { // before it was judged: no answer is no permit
					s.report(fmt.Errorf("panic over a question: %v", p))
				}
			}()
			if err := s.serve(ctx, c); err != nil {
				s.report(err)
			}
		})
	}
}

// serve answers one hook.
func (s *Server) serve(ctx context.Context, c net.Conn) error {
	if err := s.admit(c); err != nil {
		return err
	}
	if err := c.SetDeadline(time.Now().Add(ask.FirstByte)); err != nil {
		return fmt.Errorf("cannot set deadline: %w", err)
	}
	var b [ask.QuestionSize]byte
	if _, err := io.ReadFull(c, b[:]); err != nil {
		return fmt.Errorf("cannot read question: %w", err)
	}
	q, err := ask.ParseQuestion(b[:])
	if err != nil {
		return err
	}
	xml := make([]byte, q.Size)
	if _, err := io.ReadFull(c, xml); err != nil {
		return fmt.Errorf("cannot read the XML of a question: %w", err)
	}
	if q.Size > 0 && sha256.Sum256(xml) != q.XML {
		return errors.New("cannot read the XML of a question: it is not what the question names")
	}
	if err := c.SetDeadline(time.Now().Add(ask.InAll)); err != nil {
		return fmt.Errorf("cannot set deadline: %w", err)
	}
	// 'I have your question.' A hook that only tells has gone by now: the write fails, the telling counts.
	_, early := c.Write([]byte{ask.Taken})
	ctx, cancel := context.WithTimeout(ctx, ask.InAll)
	defer cancel()
	a := s.judge(ctx, q, xml).Encode()
	if early != nil {
		return nil
	}
	if _, err := c.Write(a[1:]); err != nil && !q.Op.Told() {
		return fmt.Errorf("cannot answer hook: %w", err)
	}
	return nil
}

func (s *Server) judge(ctx context.Context, q ask.Question, xml []byte) (a ask.Answer) {
	defer func() {
		if p := recover(); p != nil {
			a = ask.Deny(ask.Internal)
			s.report(fmt.Errorf("panic while a hook waited: %v", p))
		}
	}()
	return s.Answer(ctx, q, xml)
}

// admit checks who asks.
func (s *Server) admit(c net.Conn) error {
	cred, err := Peer(c)
	if err != nil {
		return err
	}
	for _, uid := range s.UIDs {
		if cred.Uid == uid {
			return nil
		}
	}
	return fmt.Errorf("cannot answer uid %d (pid %d): not a hook", cred.Uid, cred.Pid)
}

func (s *Server) report(err error) {
	if err != nil && s.Report != nil {
		s.Report(err)
	}
}

// Peer is the user and process at the other end of a unix socket, by the kernel's word (unix(7), SO_PEERCRED).
func Peer(c net.Conn) (*syscall.Ucred, error) {
	uc, ok := c.(*net.UnixConn)
	if !ok {
		return nil, errors.New("cannot tell who asks: not a unix socket")
	}
	raw, err := uc.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("cannot tell who asks: %w", err)
	}
	var cred *syscall.Ucred
	var credErr error
	err = raw.Control(func(fd uintptr) {
		cred, credErr = syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED)
	})
	if err = errors.Join(err, credErr); err != nil {
		return nil, fmt.Errorf("cannot tell who asks: %w", err)
	}
	return cred, nil
}
