// Package journal keeps records that survive a crash: a write-ahead log of checksummed lines.
//
// It promises that a record whose Append returned nil is found again after a crash, in order, whole; that a record whose Append did not return
// is found whole or not at all; and that a file in which anything but the end was changed is refused, never half read. It trusts the disk to keep
// what it synced. It keeps no secrets and knows nothing of what the records mean.
//
// A line is "<chain> <settled> <payload>\n". Chain is the hex of the first 16 bytes of SHA-256(chain of the line before ‖ settled ‖ " " ‖ payload), so a
// line that is missing, doubled or moved is seen as well as one that was changed. Settled is how many bytes of the file were on the disk when the line
// was written, 16 digits of hex: a bad line that any line says was settled is damage; one that no line says so of was torn by a crash, also when the
// disk kept bytes that were written after it and lost it. Chains guard against faults, not against root, who can write the whole file anew.
package journal

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strconv"
	"sync"
)

const (
	chainLen   = 16
	settledLen = 16                              // digits
	headLen    = 2*chainLen + 1 + settledLen + 1 // of a line, before the payload
	// MaxRecord bounds one record: a proof with its definition fits many times.
	MaxRecord = 8 << 20
	// MaxFile bounds the file: what Open reads into memory, and so what Append and Rewrite make.
	MaxFile = 1 << 30
)

// ErrDamaged says that the journal was changed before its end. Nobody repairs it by guessing: the daemon does not start on it.
var ErrDamaged = errors.New("journal is damaged before its end")

// ErrFull says that the journal has no room for a record before it is made shorter.
var ErrFull = errors.New("journal is full")

// Journal is open for appending. Safe for concurrent use; concurrent appends share a sync.
type Journal struct {
	fs   FS
	path string
	max  int64 // bytes of the file

	mu      sync.Mutex // guards the fields below
	file    File
	chain   [chainLen]byte
	size    int64 // bytes of whole lines
	settled int64 // of them, bytes that are on the disk
	written uint64
	broken  error // set once: after a failed sync nobody knows what the disk holds
	failed  chan struct{}

	syncMu sync.Mutex // held while syncing, so that those who wait share the next sync
	synced uint64
}

// Open reads path, leaves a torn end out, and returns the records when they are on the disk.
func Open(fs FS, path string) (*Journal, [][]byte, error) {
	f, err := fs.Open(path)
	if err != nil {
		return nil, nil, fmt.Errorf("cannot open journal: %w", err)
	}
	content, err := io.ReadAll(io.LimitReader(f, MaxFile+1))
	if err == nil && len(content) > MaxFile {
		err = fmt.Errorf("is larger than %d bytes", MaxFile)
	}
	if err != nil {
		return nil, nil, closeAfter(f, fmt.Errorf("cannot read journal %s: %w", path, err))
	}
	records, chain, size, err := parse(content)
	if err != nil {
		return nil, nil, closeAfter(f, fmt.Errorf("cannot read journal %s: %w", path, err))
	}
	j := &Journal{fs: fs, path: path, max: MaxFile, file: f, chain: chain, size: size, failed: make(chan struct{})}
	if err := j.settle(records, int64(len(content))); err != nil {
		return nil, nil, closeAfter(j.file, err)
	}
	return j, records, nil
}

// settle makes sure that what was read is on the disk, before anyone acts on it: a daemon that was killed, or whose sync failed, leaves records
// that only memory has, and the kernel says of them that they are synced. So all is written anew. Without space for that, it is synced.
func (j *Journal) settle(records [][]byte, found int64) error {
	if found == 0 {
		return nil
	}
	err := j.Rewrite(records)
	if err == nil || j.broken != nil {
		return err
	}
	if j.size < found {
		// A torn end: its Append never returned, so nobody was promised it.
		if err := j.file.Truncate(j.size); err != nil {
			return fmt.Errorf("cannot cut the torn end off journal %s: %w", j.path, err)
		}
	}
	if err := j.file.Sync(); err != nil {
		return fmt.Errorf("cannot sync journal %s: %w", j.path, err)
	}
	j.settled = j.size
	return nil
}

// parse returns the records of whole lines, and where they end. Bad bytes after them are damage when any line says that they were settled;
// otherwise they were torn by a crash.
func parse(content []byte) (records [][]byte, chain [chainLen]byte, size int64, err error) {
	var settled int64
	rest := content
	for len(rest) > 0 {
		line, after, whole := bytes.Cut(rest, []byte{'\n'})
		payload, says, next, ok := parseLine(chain, line)
		if !whole || !ok {
			break
		}
		records = append(records, bytes.Clone(payload))
		chain, rest, settled = next, after, max(settled, says)
		size += int64(len(line)) + 1
	}
	for line := range bytes.SplitSeq(rest, []byte{'\n'}) {
		settled = max(settled, claim(line))
	}
	if size < settled {
		return nil, chain, 0, fmt.Errorf("%w: record %d, at byte %d of %d that were on the disk", ErrDamaged, len(records), size, settled)
	}
	return records, chain, size, nil
}

// claim is what a line says was settled, zero for what does not look like a line.
func claim(line []byte) int64 {
	if len(line) < headLen || line[2*chainLen] != ' ' || line[headLen-1] != ' ' {
		return 0
	}
	n, err := strconv.ParseInt(string(line[2*chainLen+1:headLen-1]), 16, 64)
	if err != nil || n < 0 {
		return 0
	}
	return n
}

func parseLine(chain [chainLen]byte, line []byte) (payload []byte, settled int64, next [chainLen]byte, ok bool) {
	if len(line) < headLen || line[2*chainLen] != ' ' || line[headLen-1] != ' ' {
		return nil, 0, next, false
	}
	next = link(chain, line[2*chainLen+1:])
	var text [2 * chainLen]byte
	hex.Encode(text[:], next[:])
	return line[headLen:], claim(line), next, bytes.Equal(text[:], line[:2*chainLen])
}

func link(chain [chainLen]byte, rest []byte) (next [chainLen]byte) {
	h := sha256.New()
	h.Write(chain[:])
	h.Write(rest)
	copy(next[:], h.Sum(nil))
	return next
}

func appendLine(to []byte, chain [chainLen]byte, settled int64, payload []byte) ([]byte, [chainLen]byte) {
	rest := append(fmt.Appendf(nil, "%0*x ", settledLen, settled), payload...)
	next := link(chain, rest)
	to = hex.AppendEncode(to, next[:])
	to = append(to, ' ')
	to = append(to, rest...)
	return append(to, '\n'), next
}

// Append writes one record and returns when it is on the disk. The record must not hold a newline.
// After an error the record may be found at the next Open, as after a crash.
func (j *Journal) Append(record []byte) error {
	if len(record) > MaxRecord {
		return fmt.Errorf("cannot append to journal: record has %d bytes, at most %d are allowed", len(record), MaxRecord)
	}
	if bytes.IndexByte(record, '\n') >= 0 {
		return errors.New("cannot append to journal: record holds a newline")
	}
	mine, err := j.write(record)
	if err != nil {
		return err
	}
	return j.sync(mine)
}

func (j *Journal) write(record []byte) (uint64, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.broken != nil {
		return 0, fmt.Errorf("cannot append to journal: an earlier write failed: %w", j.broken)
	}
	if j.size+int64(headLen+len(record)+1) > j.max {
		return 0, fmt.Errorf("cannot append to journal: %w", ErrFull)
	}
	line, next := appendLine(nil, j.chain, j.settled, record)
	if _, err := j.file.Write(line); err != nil {
		// No space, or half a line: cut it off, so that the next record stands on a whole one.
		if terr := j.file.Truncate(j.size); terr != nil {
			j.breaks(errors.Join(err, terr))
		}
		return 0, fmt.Errorf("cannot append to journal: %w", err)
	}
	j.chain, j.size = next, j.size+int64(len(line))
	j.written++
	return j.written, nil
}

func (j *Journal) sync(mine uint64) error {
	j.syncMu.Lock()
	defer j.syncMu.Unlock()
	if j.synced >= mine {
		return nil
	}
	j.mu.Lock()
	upTo, size, file, broken := j.written, j.size, j.file, j.broken
	j.mu.Unlock()
	if broken != nil {
		return fmt.Errorf("cannot sync journal: %w", broken)
	}
	if err := file.Sync(); err != nil {
		j.mu.Lock()
		j.breaks(err)
		j.mu.Unlock()
		return fmt.Errorf("cannot sync journal: %w", err)
	}
	j.synced = upTo
	j.mu.Lock()
	j.settled = size
	j.mu.Unlock()
	return nil
}

// breaks ends all writing. The caller holds mu.
func (j *Journal) breaks(err error) {
	if j.broken == nil {
		j.broken = err
		close(j.failed)
	}
}

// Failed is closed when nobody knows any more what the disk holds: open the journal anew.
func (j *Journal) Failed() <-chan struct{} { return j.failed }

// Size is how many bytes the journal has.
func (j *Journal) Size() int64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.size
}

// Rewrite puts records in place of all that the journal holds, in one step: after a crash either the old content is there or the new. The caller sees to it
// that no Append is under way: what it appends would be replaced.
func (j *Journal) Rewrite(records [][]byte) error {
	j.syncMu.Lock()
	defer j.syncMu.Unlock()
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.broken != nil {
		return fmt.Errorf("cannot rewrite journal: an earlier write failed: %w", j.broken)
	}
	var content []byte
	var chain [chainLen]byte
	var total int64 // all of it is on the disk before the file gets its name
	for _, r := range records {
		if len(r) > MaxRecord || bytes.IndexByte(r, '\n') >= 0 {
			return errors.New("cannot rewrite journal: a record is too large or holds a newline")
		}
		total += int64(headLen + len(r) + 1)
	}
	if total > j.max {
		return fmt.Errorf("cannot rewrite journal: %w", ErrFull)
	}
	for _, r := range records {
		content, chain = appendLine(content, chain, total, r)
	}
	f, err := j.fs.Create(j.path + ".new")
	if err != nil {
		return fmt.Errorf("cannot rewrite journal: %w", err)
	}
	if _, err := f.Write(content); err != nil {
		// Its blocks are given back: the journal that stays may need them.
		return closeAfter(f, fmt.Errorf("cannot rewrite journal: %w", errors.Join(err, f.Truncate(0))))
	}
	if err := f.Sync(); err != nil {
		return closeAfter(f, fmt.Errorf("cannot rewrite journal: %w", err))
	}
	if err := j.fs.Rename(j.path+".new", j.path); err != nil {
		// Nobody knows which of the two the directory names: stop writing to either.
		j.breaks(err)
		return closeAfter(f, fmt.Errorf("cannot rewrite journal: %w", err))
	}
	old := j.file
	j.file, j.chain, j.size, j.settled, j.synced = f, chain, total, total, j.written
	return old.Close()
}

// Close closes the file. What was appended is on the disk already.
func (j *Journal) Close() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.broken == nil {
		j.broken = errors.New("journal is closed")
	}
	return j.file.Close()
}
