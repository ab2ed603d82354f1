package main

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Progress starts to speak after this much silence, and then repeats itself on
// one line of a terminal, or as a new line every few seconds elsewhere.
const (
	progressPatience = 2 * time.Second
	progressTerminal = 250 * time.Millisecond
	progressLines    = 5 * time.Second
)

// progress tells a person on stderr what a slow command is doing. Its own
// goroutine writes; stop ends it and clears the line.
type progress struct {
	w        io.Writer
	terminal bool
	started  time.Time

	mu    sync.Mutex
	label string

	quit chan struct{}
	gone chan struct{}
}

// progress begins with a label ("measuring the images").
func (a *app) progress(label string) *progress {
	p := &progress{
		w: a.stderr, terminal: isTerminal(a.stderr), started: time.Now(), label: label,
		quit: make(chan struct{}), gone: make(chan struct{}),
	}
	go p.run()
	return p
}

// set replaces the label.
func (p *progress) set(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.label = clean(fmt.Sprintf(format, args...))
}

// stop returns after the last byte of progress was written.
func (p *progress) stop() {
	close(p.quit)
	<-p.gone
}

func (p *progress) run() {
	defer close(p.gone)
	every := progressLines
	if p.terminal {
		every = progressTerminal
	}
	wait := time.NewTimer(progressPatience)
	defer wait.Stop()
	spoke := false
	for {
		select {
		case <-p.quit:
			if spoke && p.terminal {
				fmt.Fprint(p.w, "\r\033[K")
			}
			return
		case <-wait.C:
			p.write()
			spoke = true
			wait.Reset(every)
		}
	}
}

func (p *progress) write() {
	p.mu.Lock()
	label := p.label
	p.mu.Unlock()
	seconds := int(time.Since(p.started).Seconds())
	if p.terminal {
		fmt.Fprintf(p.w, "\r\033[K… %s (%d s)", label, seconds)
		return
	}
	fmt.Fprintf(p.w, "… %s (%d s)\n", label, seconds)
}

// isTerminal reports whether w is a terminal.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// size writes a number of bytes for people.
func size(n int64) string {
	const unit = 1024
	if n < unit {
		return fmt.Sprintf("%d B", n)
	}
	f, i := float64(n)/unit, 0
	for f >= unit && i < 4 {
		f, i = f/unit, i+1
	}
	return fmt.Sprintf("%.1f %ciB", f, "KMGTP"[i])
}
