package stories

import (
	"errors"
	"fmt"
	"net"
	"os"
)

// mask puts somebody in the place of a daemon that was ended: one who takes connections and closes them, or who answers garbage.
func (s *stage) mask(how string, listen func() (net.Listener, error)) error {
	if s.masks != nil {
		return errors.New("there is one already")
	}
	l, err := listen()
	if err != nil {
		return err
	}
	s.masks = l
	go func() {
		for n := 0; ; n++ {
			c, err := l.Accept()
			if err != nil {
				return // unmasked
			}
			if how == "babble" {
				go babble(c, n)
				continue
			}
			if err := c.Close(); err != nil {
				fmt.Fprintln(os.Stderr, "mask:", err)
			}
		}
	}()
	return nil
}

// garbage: no answer of any protocol; a TPM's answer that claims four gigabytes; one that says success and holds nothing; one cut short.
var garbage = []string{
	"HTTP/1.0 200 OK\r\n\r\n{}", "\x80\x01\xff\xff\xff\xff\x00\x00\x00\x00",
	"\x80\x01\x00\x00\x00\x0a\x00\x00\x00\x00", "\x80\x01\x00\x00\x00\x20\x00\x00\x00\x00\x01",
}

// babble waits for a question, whatever it is, and answers garbage.
func babble(c net.Conn, n int) {
	defer c.Close()
	if _, err := c.Read(make([]byte, 4096)); err != nil {
		return // who asked has gone
	}
	if _, err := c.Write([]byte(garbage[n%len(garbage)])); err != nil {
		return
	}
}

// unmask sends whoever stands in a daemon's place away.
func (s *stage) unmask() error {
	if s.masks == nil {
		return nil
	}
	l := s.masks
	s.masks = nil
	return l.Close()
}

// listenAt listens at the path of a socket whose owner was killed.
func listenAt(path string) (net.Listener, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	return net.Listen("unix", path)
}
