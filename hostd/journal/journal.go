// Package journal keeps records that survive a crash: a write-ahead log of checksummed lines.
//
// It promises that a record whose Append returned nil is found again after a crash, in order, whole; that a record whose Append did not return
// is found whole or not at all; and that a file in which anything but the end was changed is refused, never half read. It trusts the disk to keep
// what it synced. It keeps no secrets and knows nothing of what the records mean.
//
// A line is "<chain> <payload>\n", where chain is the hex of the first 16 bytes of SHA-256(chain of the line before ‖ payload). So a line that
// is missing, doubled or moved is seen as well as one that was changed. Chains guard against faults, not against root, who can write the whole file anew.
package journal

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"sync"
)

const (
	chainLen = 16
	// MaxRecord bounds one record: a proof with its definition fits many times.
	MaxRecord = 8 << 20
	// maxFile bounds what Open reads into memory.
	maxFile = 1 << 30
)

// ErrDamaged says that the journal was changed before its end. Nobody repairs it by guessing: the daemon does not start on it.
var ErrDamaged = errors.New("journal is damaged before its end")

// Journal is open for appending. Safe for concurrent use; concurrent appends share a sync.
type Journal struct {
	fs   FS
	path string

	mu      sync.Mutex // guards the fields below
	file    File
	chain   [chainLen]byte
	size    int64 // bytes of whole lines
	written uint64
	broken  error // set once: after a failed sync nobody knows what the disk holds

	syncMu sync.Mutex // held while syncing, so that those who wait share the next sync
	synced uint64
}

// Open reads path, cuts a torn last line off, and returns the records.
func Open(fs FS, path string) (*Journal, [][]byte, error) {
	f, err := fs.Open(path)
	if err != nil {
		return nil, nil, fmt.Errorf("cannot open journal: %w", err)
	}
	content, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(content) > maxFile {
		err = fmt.Errorf("is larger than %d bytes", maxFile)
	}
	if err != nil {
		return nil, nil, closeAfter(f, fmt.Errorf("cannot read journal %s: %w", path, err))
	}
	records, chain, size, err := parse(content)
	if err != nil {
		return nil, nil, closeAfter(f, fmt.Errorf("cannot read journal %s: %w", path, err))
	}
	j := &Journal{fs: fs, path: path, file: f, chain: chain, size: size}
	if size < int64(len(content)) {
		// A torn tail: its Append never returned, so nobody was promised it.
		if err := f.Truncate(size); err != nil {
			return nil, nil, closeAfter(f, fmt.Errorf("cannot cut the torn end off journal %s: %w", path, err))
		}
		if err := f.Sync(); err != nil {
			return nil, nil, closeAfter(f, fmt.Errorf("cannot sync journal %s: %w", path, err))
		}
	}
	return j, records, nil
}

// parse returns the records of whole lines, and where they end. A bad line with a good line after it is damage; bad bytes at the end are a torn tail.
func parse(content []byte) (records [][]byte, chain [chainLen]byte, size int64, err error) {
	rest := content
	for len(rest) > 0 {
		line, after, whole := bytes.Cut(rest, []byte{'\n'})
		payload, next, ok := parseLine(chain, line)
		if !whole || !ok {
			if whole && len(after) > 0 {
				return nil, chain, 0, fmt.Errorf("%w: record %d", ErrDamaged, len(records))
			}
			return records, chain, size, nil
		}
		records = append(records, bytes.Clone(payload))
		chain, rest = next, after
		size += int64(len(line)) + 1
	}
	return records, chain, size, nil
}

func parseLine(chain [chainLen]byte, line []byte) (payload []byte, next [chainLen]byte, ok bool) {
	const head = 2*chainLen + 1
	if len(line) < head || line[head-1] != ' ' {
		return nil, next, false
	}
	payload = line[head:]
	next = link(chain, payload)
	var text [2 * chainLen]byte
	hex.Encode(text[:], next[:])
	return payload, next, bytes.Equal(text[:], line[:2*chainLen])
}

func link(chain [chainLen]byte, payload []byte) (next [chainLen]byte) {
	h := sha256.New()
	h.Write(chain[:])
	h.Write(payload)
	copy(next[:], h.Sum(nil))
	return next
}

func appendLine(to []byte, chain [chainLen]byte, payload []byte) ([]byte, [chainLen]byte) {
	next := link(chain, payload)
	to = hex.AppendEncode(to, next[:])
	to = append(to, ' ')
	to = append(to, payload...)
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
	line, next := appendLine(nil, j.chain, record)
	if _, err := j.file.Write(line); err != nil {
		// No space, or half a line: cut it off, so that the next record stands on a whole one.
		if terr := j.file.Truncate(j.size); terr != nil {
			j.broken = errors.Join(err, terr)
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
	upTo, file, broken := j.written, j.file, j.broken
	j.mu.Unlock()
	if broken != nil {
		return fmt.Errorf("cannot sync journal: %w", broken)
	}
	if err := file.Sync(); err != nil {
		j.mu.Lock()
		j.broken = err
		j.mu.Unlock()
		return fmt.Errorf("cannot sync journal: %w", err)
	}
	j.synced = upTo
	return nil
}

// Rewrite puts records in place of all that the journal holds, in one step: after a crash either the old content is there or the new.
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
	for _, r := range records {
		if len(r) > MaxRecord || bytes.IndexByte(r, '\n') >= 0 {
			return errors.New("cannot rewrite journal: a record is too large or holds a newline")
		}
		content, chain = appendLine(content, chain, r)
	}
	f, err := j.fs.Create(j.path + ".new")
	if err != nil {
		return fmt.Errorf("cannot rewrite journal: %w", err)
	}
	if _, err := f.Write(content); err != nil {
		return closeAfter(f, fmt.Errorf("cannot rewrite journal: %w", err))
	}
	if err := f.Sync(); err != nil {
		return closeAfter(f, fmt.Errorf("cannot rewrite journal: %w", err))
	}
	if err := j.fs.Rename(j.path+".new", j.path); err != nil {
		// Nobody knows which of the two the directory names: stop writing to either.
		j.broken = err
		return closeAfter(f, fmt.Errorf("cannot rewrite journal: %w", err))
	}
	old := j.file
	j.file, j.chain, j.size, j.synced = f, chain, int64(len(content)), j.written
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
