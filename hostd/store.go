package hostd

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"time"

	"troth/hostd/journal"
	"troth/launcher"
)

// entries is the journal as launcher.Journal: one JSON document a line.
type entries struct{ j *journal.Journal }

// Append implements launcher.Journal.
func (e entries) Append(entry *launcher.Entry) error {
	b, err := json.Marshal(entry)
	if err != nil {
		return fmt.Errorf("cannot encode a journal entry: %w", err)
	}
	return e.j.Append(b)
}

// OpenBook opens the journal in state_dir/journal and replays it. Each of around sees every entry on its way to it.
func OpenBook(fs journal.FS, dir string, now func() time.Time, changed func(), around ...func(launcher.Journal) launcher.Journal) (*launcher.Book, *journal.Journal, error) {
	if err := journal.MakeDir(dir, 0o700); err != nil {
		return nil, nil, fmt.Errorf("cannot make the journal's folder: %w", err)
	}
	j, records, err := journal.Open(fs, filepath.Join(dir, "launches"))
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
	var to launcher.Journal = entries{j}
	for _, f := range around {
		to = f(to)
	}
	book, err := launcher.NewBook(to, now, changed, found)
	if err != nil {
		return nil, nil, err
	}
	if err := shorten(book, j, len(records)); err != nil {
		return nil, nil, err
	}
	return book, j, nil
}

// shorten makes a journal that has grown as short as the book is. A crash in it leaves the long one or the short one.
func shorten(book *launcher.Book, j *journal.Journal, records int) error {
	parts := book.Snapshot()
	if records < 4*len(parts)+1000 {
		return nil
	}
	short := make([][]byte, 0, len(parts))
	for _, e := range parts {
		b, err := json.Marshal(e)
		if err != nil {
			return fmt.Errorf("cannot encode a journal entry: %w", err)
		}
		short = append(short, b)
	}
	return j.Rewrite(short)
}
