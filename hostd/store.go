package hostd

import (
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"time"

	"troth/hostd/journal"
	"troth/launcher"
)

// Bounds of the journal while hostd runs.
const (
	growth = 64 << 20                // bytes by which it grows before it is made shorter
	full   = journal.MaxFile / 4 * 3 // bytes from which nothing new begins: what has begun can end, and what is here can be stopped and forgotten
	apart  = time.Minute             // between two tries that do not help
)

// Store is where the journal is. The bounds are for tests; zero: those above.
type Store struct {
	FS     journal.FS
	Dir    string
	Growth int64
	Full   int64
}

// entries is the journal as launcher.Journal, one JSON document a line, and as launcher.Shorter.
type entries struct {
	Store
	j *journal.Journal

	mu   sync.Mutex
	next int64     // the size at which it is made shorter
	vain time.Time // when that did not help
	why  error     // it could not be done
}

// Append implements launcher.Journal.
func (s *entries) Append(entry *launcher.Entry) error {
	b, err := json.Marshal(entry)
	if err != nil {
		return fmt.Errorf("cannot encode a journal entry: %w", err)
	}
	if begins := entry.What == launcher.WroteIntent || entry.What == launcher.WroteArmed; begins && s.j.Size()+int64(len(b)) > s.Full {
		s.mu.Lock()
		defer s.mu.Unlock()
		return errors.Join(fmt.Errorf("%w: it has %d bytes, and nothing new begins from %d on: delete domains that are not needed", journal.ErrFull, s.j.Size(), s.Full), s.why)
	}
	return s.j.Append(b)
}

// Due implements launcher.Shorter.
func (s *entries) Due() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	size := s.j.Size()
	return (size >= s.next || size >= s.Full) && (s.vain.IsZero() || time.Since(s.vain) >= apart)
}

// Shorten implements launcher.Shorter. A crash in it leaves the long journal or the short one.
func (s *entries) Shorten(all []*launcher.Entry) {
	err := s.rewrite(all)
	s.mu.Lock()
	defer s.mu.Unlock()
	size := s.j.Size()
	s.why, s.vain, s.next = err, time.Time{}, size+max(s.Growth, size/4)
	if err != nil || size >= s.Full {
		s.vain = time.Now()
	}
}

func (s *entries) rewrite(all []*launcher.Entry) error {
	short := make([][]byte, 0, len(all))
	for _, e := range all {
		b, err := json.Marshal(e)
		if err != nil {
			return fmt.Errorf("cannot encode a journal entry: %w", err)
		}
		short = append(short, b)
	}
	return s.j.Rewrite(short)
}

// OpenBook opens the journal in state_dir/journal and replays it. Each of around sees every entry on its way to it.
func OpenBook(at Store, now func() time.Time, changed func(), around ...func(launcher.Journal) launcher.Journal) (*launcher.Book, *journal.Journal, error) {
	if at.Growth == 0 {
		at.Growth = growth
	}
	if at.Full == 0 {
		at.Full = full
	}
	if err := journal.MakeDir(at.Dir, 0o700); err != nil {
		return nil, nil, fmt.Errorf("cannot make the journal's folder: %w", err)
	}
	j, records, err := journal.Open(at.FS, filepath.Join(at.Dir, "launches"))
	if err != nil {
		return nil, nil, err
	}
	found := make([]*launcher.Entry, 0, len(records))
	for i, r := range records {
		e := &launcher.Entry{}
		if err := json.Unmarshal(r, e); err != nil {
			return nil, nil, fmt.Errorf("cannot read entry %d of the journal: %w", i, err)
		}
		found = append(found, e)
	}
	store := &entries{Store: at, j: j, next: at.Growth}
	var to launcher.Journal = store
	for _, f := range around {
		to = f(to)
	}
	book, err := launcher.NewBook(to, now, changed, found)
	if err != nil {
		return nil, nil, err
	}
	book.Shorter = store
	// A journal that cannot be made shorter now is a journal still: what is appended tries again, or says why it cannot.
	if parts := book.Snapshot(); len(records) >= 4*len(parts)+1000 {
		store.Shorten(parts)
	}
	return book, j, nil
}
