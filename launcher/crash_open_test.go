package launcher_test

import (
	"time"

	"troth/hostd"
	"troth/hostd/journal"
	"troth/launcher"
)

// The simulation opens the journal as the daemon does.
func init() {
	launcher.OpenBook = func(fs journal.FS, dir string, now func() time.Time, growth int64) (*launcher.Book, *journal.Journal, error) {
		return hostd.OpenBook(hostd.Store{FS: fs, Dir: dir, Growth: growth}, now, nil)
	}
}
