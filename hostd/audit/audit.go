// Package audit keeps the host's audit log: one line for every request that changes something, every grant, refusal and refused hook, every stray,
// broken proof and end of a guest, each line with the hash of the line before it.
//
// It promises that a line whose Append returned nil is on the disk, that lines which Note took come after it in order, and that Verify finds any
// line that was changed, left out, doubled or moved, but for the newest ones: whoever cuts the end off must be found by a head that was kept
// elsewhere. It trusts the disk to keep what it synced. It guards against faults and against whoever cannot write all of it anew: root on the host
// can, so copy the head away. It holds no secret: codes, identifiers and callers, never a token, a definition or a fact.
package audit

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"sync"
	"time"

	"troth/hostd/journal"
	"troth/proof"
)

// What a record says.
const (
	Started   = "started"   // hostd opened the log
	Cut       = "cut"       // a crash had torn the end: that many bytes were cut off
	Damaged   = "damaged"   // the file before this one is damaged, and was put aside as it is
	Rotated   = "rotated"   // the first line of a new file
	Lost      = "lost"      // that many records could not be written
	Asked     = "asked"     // somebody asked for a change through the API
	Forbidden = "forbidden" // … and has not the role for it
	Granted   = "granted"   // libvirt may hear of the domain
	Proved    = "proved"    // the guest runs, and there is a proof
	Refused   = "refused"   // a launch ended without a guest
	Broken    = "broken"    // a guest that runs is not what was proved any more
	Stray     = "stray"     // a guest was found that has no grant, and what was done with it stands as the route
	Saved     = "saved"     // a guest ended, and its memory is in a file
	Stopped   = "stopped"   // a guest ended
	Forgotten = "forgotten" // a domain is not registered any more
	Hook      = "hook"      // a start by another client was refused
)

const (
	// MaxFile is when a file is put aside, and Kept how many of them there are.
	MaxFile = 16 << 20
	Kept    = 8
	maxLine = 4096
	maxWait = 4096 // records that wait to be written
)

// Record is one line.
type Record struct {
	Sequence uint64       `json:"seq"`
	At       string       `json:"at"` // RFC 3339, UTC
	What     string       `json:"what"`
	Actor    string       `json:"actor"` // hostd, libvirt, or who called: uid:N, tls:SPKI
	Code     string       `json:"code,omitempty"`
	UUID     string       `json:"uuid,omitempty"`
	Launch   string       `json:"launch,omitempty"`
	Route    string       `json:"route,omitempty"`
	Count    uint64       `json:"count,omitempty"`
	Settled  uint64       `json:"settled"`  // sequence up to which all was on the disk when this line was written
	Previous proof.Digest `json:"previous"` // of the line before, as it stands in the file; zero: there is none
}

// Hash is what the next line says of a line.
func Hash(line []byte) proof.Digest { return proof.Hash(proof.LabelAudit, line) }

// Log is open for appending. Safe for concurrent use; appends share a sync.
type Log struct {
	fs    journal.FS
	path  string
	now   func() time.Time
	log   *slog.Logger
	limit int64

	mu      sync.Mutex // guards the fields below
	file    journal.File
	head    proof.Digest
	next    uint64
	size    int64
	written uint64
	lost    uint64
	settled uint64 // sequence up to which all is on the disk
	broken  error
	failed  chan struct{}

	syncMu sync.Mutex
	synced uint64

	fewMu sync.Mutex
	few   map[string]*few

	waiting chan Record
}

// Open opens the log at path and says in it that it did. What a crash has torn is cut off, and that is said too. A log that was damaged is put
// aside as it is: it is evidence, and no reason for a host to stand still.
func Open(files journal.FS, path string, now func() time.Time, log *slog.Logger) (*Log, error) {
	l := &Log{fs: files, path: path, now: now, log: log, limit: MaxFile, next: 1, few: map[string]*few{}, waiting: make(chan Record, maxWait), failed: make(chan struct{})}
	say, err := l.open()
	if err != nil {
		return nil, err
	}
	if say.What != "" {
		log.Warn("the audit log was not whole", "what", say.What, "bytes", say.Count)
		if err := l.Append(say); err != nil {
			return nil, err
		}
	}
	return l, l.Append(Record{What: Started, Actor: "hostd"})
}

func (l *Log) open() (say Record, err error) {
	f, content, err := read(l.fs, l.path)
	if err != nil {
		return say, err
	}
	l.file = f
	fail := func(what string, err error) (Record, error) {
		return say, errors.Join(fmt.Errorf("cannot %s the audit log %s: %w", what, l.path, err), l.file.Close())
	}
	if len(content) == 0 {
		// New, or a crash came between two files: the chain is carried over from the one that was put aside.
		old, before, err := read(l.fs, l.aside(1))
		if err == nil {
			l.follow(before)
			err = old.Close()
		}
		if err != nil {
			return fail("read", err)
		}
	}
	whole, damaged := l.follow(content)
	l.size = int64(whole)
	switch {
	case damaged:
		if err := l.putAside(); err != nil {
			return fail("put aside", err)
		}
		return Record{What: Damaged, Actor: "hostd", Count: uint64(len(content))}, nil
	case whole < len(content):
		if err := f.Truncate(int64(whole)); err != nil {
			return fail("cut the torn end off", err)
		}
		say = Record{What: Cut, Actor: "hostd", Count: uint64(len(content) - whole)}
	}
	if err := f.Sync(); err != nil {
		return fail("sync", err)
	}
	l.settled = l.next - 1
	return say, nil
}

// follow takes head and sequence from the lines of a file, and says where the whole ones end. Damaged: one after that says that more was on the disk.
func (l *Log) follow(content []byte) (whole int, damaged bool) {
	rest := content
	for first := true; ; first = false {
		line, after, ok := bytes.Cut(rest, []byte{'\n'})
		var r Record
		if !ok || json.Unmarshal(line, &r) != nil || !first && (r.Previous != l.head || r.Sequence != l.next) {
			break
		}
		l.head, l.next, rest = Hash(line), r.Sequence+1, after
	}
	whole = len(content) - len(rest)
	for line := range bytes.SplitSeq(rest, []byte{'\n'}) {
		var r Record
		if json.Unmarshal(line, &r) == nil && r.Settled >= l.next {
			damaged = true
		}
	}
	if damaged { // what follows is not mistaken for what is there
		lines := bytes.Split(bytes.TrimSuffix(rest, []byte{'\n'}), []byte{'\n'})
		var r Record
		if json.Unmarshal(lines[len(lines)-1], &r) == nil {
			l.next = max(l.next, r.Sequence+1)
		}
		l.head = Hash(lines[len(lines)-1])
	}
	return whole, damaged
}

func read(files journal.FS, path string) (journal.File, []byte, error) {
	f, err := files.Open(path)
	if err != nil {
		return nil, nil, fmt.Errorf("cannot open the audit log: %w", err)
	}
	content, err := io.ReadAll(io.LimitReader(f, 2*MaxFile))
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("cannot read the audit log %s: %w", path, err), f.Close())
	}
	return f, content, nil
}

func (l *Log) aside(n int) string { return fmt.Sprintf("%s.%d", l.path, n) }

// Append writes a record and returns when it is on the disk.
func (l *Log) Append(r Record) error {
	mine, err := l.write(r)
	if err != nil {
		return err
	}
	return l.sync(mine)
}

// Note writes a record soon: Run does. It never waits; what finds no room is counted, and the count is written.
func (l *Log) Note(r Record) {
	select {
	case l.waiting <- r:
	default:
		l.mu.Lock()
		l.lost++
		l.mu.Unlock()
	}
}

// Run writes what Note took, as many records as wait under one sync, until done is closed and nothing waits.
func (l *Log) Run(done <-chan struct{}) {
	tally := time.NewTicker(fewEvery)
	defer tally.Stop()
	for {
		select {
		case r := <-l.waiting:
			l.group(r)
		case <-tally.C:
			l.tally()
		case <-done:
			for {
				select {
				case r := <-l.waiting:
					l.group(r)
				default:
					l.tally()
					return
				}
			}
		}
	}
}

func (l *Log) group(r Record) {
	mine, err := l.write(r)
	for more := true; more && err == nil; {
		select {
		case r = <-l.waiting:
			mine, err = l.write(r)
		default:
			more = false
		}
	}
	if err == nil {
		err = l.sync(mine)
	}
	if err != nil {
		l.log.Error("cannot write the audit log", "what", r.What, "uuid", r.UUID, "error", err.Error())
	}
}

func (l *Log) write(r Record) (uint64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.size >= l.limit {
		if err := l.rotate(); err != nil {
			l.lost++
			return 0, err
		}
	}
	if lost := l.lost; lost > 0 {
		if err := l.line(Record{What: Lost, Actor: "hostd", Count: lost}); err != nil {
			l.lost++
			return 0, err
		}
		l.lost -= lost
	}
	if err := l.line(r); err != nil {
		l.lost++
		return 0, err
	}
	return l.written, nil
}

// line puts one line at the end. The caller holds mu.
func (l *Log) line(r Record) error {
	if l.broken != nil {
		return fmt.Errorf("cannot write the audit log: an earlier write failed: %w", l.broken)
	}
	r.Sequence, r.At, r.Previous, r.Settled = l.next, l.now().UTC().Format(time.RFC3339), l.head, l.settled
	b, err := json.Marshal(r)
	if err != nil || len(b) >= maxLine {
		return fmt.Errorf("cannot write the audit log: a record of %d bytes: %w", len(b), err)
	}
	if _, err := l.file.Write(append(b, '\n')); err != nil {
		if terr := l.file.Truncate(l.size); terr != nil {
			l.breaks(errors.Join(err, terr))
		}
		return fmt.Errorf("cannot write the audit log: %w", err)
	}
	l.head, l.next, l.size = Hash(b), l.next+1, l.size+int64(len(b))+1
	l.written++
	return nil
}

func (l *Log) sync(mine uint64) error {
	l.syncMu.Lock()
	defer l.syncMu.Unlock()
	if l.synced >= mine {
		return nil
	}
	l.mu.Lock()
	upTo, settled, file, broken := l.written, l.next-1, l.file, l.broken
	l.mu.Unlock()
	if broken != nil {
		return fmt.Errorf("cannot sync the audit log: %w", broken)
	}
	if err := file.Sync(); err != nil {
		l.mu.Lock()
		defer l.mu.Unlock()
		if file != l.file {
			return nil // it was put aside meanwhile, synced, and closed
		}
		l.breaks(err)
		return fmt.Errorf("cannot sync the audit log: %w", err)
	}
	l.synced = upTo
	l.mu.Lock()
	l.settled = max(l.settled, settled)
	l.mu.Unlock()
	return nil
}

// breaks ends all writing. The caller holds mu.
func (l *Log) breaks(err error) {
	if l.broken == nil {
		l.broken = err
		close(l.failed)
	}
}

// Failed is closed when nothing can be written any more: open the log anew.
func (l *Log) Failed() <-chan struct{} { return l.failed }

// rotate begins another file, whose first line follows the old one's last. The caller holds mu.
func (l *Log) rotate() error {
	if l.broken != nil {
		return l.broken
	}
	if err := l.file.Sync(); err != nil {
		l.breaks(err)
		return fmt.Errorf("cannot sync the audit log: %w", err)
	}
	l.settled = l.next - 1
	if err := l.putAside(); err != nil {
		return err
	}
	return l.line(Record{What: Rotated, Actor: "hostd"})
}

// putAside gives the file the next older name and begins another. A crash in it leaves either, or none named log: Open carries the chain over.
func (l *Log) putAside() error {
	for n := Kept - 1; n > 0; n-- {
		if err := l.fs.Rename(l.aside(n), l.aside(n+1)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("cannot put the audit log aside: %w", err)
		}
	}
	if err := l.fs.Rename(l.path, l.aside(1)); err != nil {
		l.breaks(err) // nobody knows which name the file has
		return fmt.Errorf("cannot put the audit log aside: %w", err)
	}
	f, err := l.fs.Open(l.path)
	if err != nil {
		l.breaks(err) // the old file has another name now: nothing more is written to it
		return fmt.Errorf("cannot begin another audit log: %w", err)
	}
	old := l.file
	l.file, l.size = f, 0
	return old.Close()
}

// Head is the hash of the newest line.
func (l *Log) Head() proof.Digest {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.head
}

// Close closes the file.
func (l *Log) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.broken == nil {
		l.broken = errors.New("the audit log is closed")
	}
	return l.file.Close()
}
