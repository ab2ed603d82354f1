// Package store keeps what the attestation service must remember: documents with a revision, and claims that at most one
// document holds. Every change is a compare-and-swap (rows == 1) and a list of changes takes effect whole or not at all, so
// that two callers, or later two replicas, have one winner.
//
// SQLite holds it; the SQL is kept to what PostgreSQL reads too, and one set of migrations serves both.
//
// An attacker who can change the database can approve a host, change what 'good' means and move a token's chain: keep it
// readable and writable by the service's user alone. It holds no private key, no nonce and no secret; what was released lies in
// it only sealed to a host's release key.
package store

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/pressly/goose/v3"
	_ "modernc.org/sqlite" // the driver "sqlite"
)

// Doc is one stored document.
type Doc struct {
	Kind, Name string
	Rev        int64 // 1 when inserted, +1 with each change
	Body       []byte
}

// Any as a Write's revision replaces whatever is there, or nothing.
const Any int64 = -1

// Write is one conditional change.
type Write struct {
	Kind, Name string
	Rev        int64    // 0: must not exist; n: replaces exactly revision n; Any
	Body       []byte   // nil deletes
	Claims     []string // the document's claims after this write; none other keeps these
}

// Errors on which callers act.
var (
	ErrNotFound = errors.New("not found")
	ErrConflict = errors.New("changed by another") // the revision was another: read again and decide again
	ErrTaken    = errors.New("claimed by another") // a claim belongs to another document: *TakenError says which
)

// TakenError says which claim another document holds.
type TakenError struct{ Claim, Kind, Name string }

func (e *TakenError) Error() string {
	return fmt.Sprintf("%q belongs to %s %q", e.Claim, e.Kind, e.Name)
}

// Is makes errors.Is(err, ErrTaken) hold.
func (e *TakenError) Is(target error) bool { return target == ErrTaken }

// Store is all that the verifier needs. Bodies are at most 4 MiB.
type Store interface {
	Get(ctx context.Context, kind, name string) (Doc, error)
	Owner(ctx context.Context, claim string) (Doc, error)
	List(ctx context.Context, kind, prefix string) ([]Doc, error) // by name
	Apply(ctx context.Context, writes ...Write) error             // all or nothing
	Ping(ctx context.Context) error
	Close() error
}

//go:embed migrations/*.sql
var migrations embed.FS

type sqlStore struct {
	write *sql.DB // one connection: SQLite has one writer
	read  *sql.DB
}

// Open opens or creates the SQLite file at path (mode 0600) and brings its tables up to date.
func Open(ctx context.Context, path string) (Store, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600) // SQLite would create it world-readable
	if err != nil {
		return nil, fmt.Errorf("cannot open store: %w", err)
	}
	if err := f.Close(); err != nil {
		return nil, fmt.Errorf("cannot open store: %w", err)
	}
	// synchronous(FULL): a release that was answered survives power loss, or two hosts could win one token.
	dsn := (&url.URL{Scheme: "file", Opaque: (&url.URL{Path: path}).EscapedPath()}).String() +
		"?_pragma=journal_mode(WAL)&_pragma=synchronous(FULL)&_pragma=busy_timeout(5000)&_pragma=foreign_keys(1)&_txlock=immediate"
	w, err := sql.Open("sqlite", dsn)
	if err != nil {
		return nil, fmt.Errorf("cannot open store: %w", err)
	}
	w.SetMaxOpenConns(1)
	r, err := sql.Open("sqlite", dsn)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("cannot open store: %w", err), w.Close())
	}
	r.SetMaxOpenConns(4)
	s := &sqlStore{write: w, read: r}
	if err := migrate(ctx, w); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

func migrate(ctx context.Context, db *sql.DB) error {
	sub, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return fmt.Errorf("cannot read migrations: %w", err)
	}
	p, err := goose.NewProvider(goose.DialectSQLite3, db, sub)
	if err != nil {
		return fmt.Errorf("cannot read migrations: %w", err)
	}
	if _, err := p.Up(ctx); err != nil {
		return fmt.Errorf("cannot migrate store: %w", err)
	}
	return nil
}

func (s *sqlStore) Close() error { return errors.Join(s.read.Close(), s.write.Close()) }

func (s *sqlStore) Ping(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	var n int
	if err := s.read.QueryRowContext(ctx, "SELECT COUNT(*) FROM documents WHERE kind = 'ping'").Scan(&n); err != nil {
		return fmt.Errorf("store does not answer: %w", err)
	}
	return nil
}

func (s *sqlStore) Get(ctx context.Context, kind, name string) (Doc, error) {
	return one(s.read.QueryRowContext(ctx, "SELECT kind, name, rev, body FROM documents WHERE kind = $1 AND name = $2", kind, name))
}

func (s *sqlStore) Owner(ctx context.Context, claim string) (Doc, error) {
	return one(s.read.QueryRowContext(ctx,
		"SELECT d.kind, d.name, d.rev, d.body FROM claims c JOIN documents d ON d.kind = c.kind AND d.name = c.name WHERE c.claim = $1", claim))
}

func one(row *sql.Row) (Doc, error) {
	var d Doc
	err := row.Scan(&d.Kind, &d.Name, &d.Rev, &d.Body)
	if errors.Is(err, sql.ErrNoRows) {
		return Doc{}, ErrNotFound
	}
	if err != nil {
		return Doc{}, fmt.Errorf("cannot read store: %w", err)
	}
	return d, nil
}

func (s *sqlStore) List(ctx context.Context, kind, prefix string) (out []Doc, err error) {
	// Prefix by range, not LIKE, so that % and _ in a name mean themselves.
	rows, err := s.read.QueryContext(ctx,
		"SELECT kind, name, rev, body FROM documents WHERE kind = $1 AND name >= $2 AND (name < $3 OR $2 = '') ORDER BY name",
		kind, prefix, prefix+"\U0010FFFF")
	if err != nil {
		return nil, fmt.Errorf("cannot read store: %w", err)
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		var d Doc
		if err := rows.Scan(&d.Kind, &d.Name, &d.Rev, &d.Body); err != nil {
			return nil, fmt.Errorf("cannot read store: %w", err)
		}
		out = append(out, d)
	}
	return out, rows.Err()
}

func (s *sqlStore) Apply(ctx context.Context, writes ...Write) error {
	tx, err := s.write.BeginTx(ctx, nil)
	if err != nil {
		return fmt.Errorf("cannot write store: %w", err)
	}
	for _, w := range writes {
		if err := apply(ctx, tx, w); err != nil {
			return errors.Join(err, tx.Rollback())
		}
	}
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("cannot write store: %w", err)
	}
	return nil
}

func apply(ctx context.Context, tx *sql.Tx, w Write) error {
	if w.Kind == "" || w.Name == "" || strings.ContainsRune(w.Name, '\U0010FFFF') {
		return fmt.Errorf("cannot write store: bad name %q", w.Name)
	}
	var res sql.Result
	var err error
	switch {
	case w.Body == nil && w.Rev == Any:
		_, err = tx.ExecContext(ctx, "DELETE FROM documents WHERE kind = $1 AND name = $2", w.Kind, w.Name)
	case w.Body == nil:
		res, err = tx.ExecContext(ctx, "DELETE FROM documents WHERE kind = $1 AND name = $2 AND rev = $3", w.Kind, w.Name, w.Rev)
	case w.Rev == Any:
		_, err = tx.ExecContext(ctx, "INSERT INTO documents (kind, name, rev, body) VALUES ($1, $2, 1, $3) "+
			"ON CONFLICT (kind, name) DO UPDATE SET rev = documents.rev + 1, body = excluded.body", w.Kind, w.Name, string(w.Body))
	case w.Rev == 0:
		res, err = tx.ExecContext(ctx, "INSERT INTO documents (kind, name, rev, body) VALUES ($1, $2, 1, $3) ON CONFLICT DO NOTHING",
			w.Kind, w.Name, string(w.Body))
	default:
		res, err = tx.ExecContext(ctx, "UPDATE documents SET rev = rev + 1, body = $1 WHERE kind = $2 AND name = $3 AND rev = $4",
			string(w.Body), w.Kind, w.Name, w.Rev)
	}
	if err != nil {
		return fmt.Errorf("cannot write store: %w", err)
	}
	if err := oneRow(res); err != nil {
		return err
	}
	return claim(ctx, tx, w)
}

func oneRow(res sql.Result) error {
	if res == nil {
		return nil
	}
	n, err := res.RowsAffected()
	if err != nil {
		return fmt.Errorf("cannot write store: %w", err)
	}
	if n != 1 {
		return ErrConflict
	}
	return nil
}

func claim(ctx context.Context, tx *sql.Tx, w Write) error {
	if _, err := tx.ExecContext(ctx, "DELETE FROM claims WHERE kind = $1 AND name = $2", w.Kind, w.Name); err != nil {
		return fmt.Errorf("cannot write store: %w", err)
	}
	for _, c := range w.Claims {
		res, err := tx.ExecContext(ctx, "INSERT INTO claims (claim, kind, name) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING", c, w.Kind, w.Name)
		if err != nil {
			return fmt.Errorf("cannot write store: %w", err)
		}
		if err := oneRow(res); errors.Is(err, ErrConflict) {
			taken := &TakenError{Claim: c}
			if err := tx.QueryRowContext(ctx, "SELECT kind, name FROM claims WHERE claim = $1", c).Scan(&taken.Kind, &taken.Name); err != nil {
				return fmt.Errorf("cannot read store: %w", err)
			}
			return taken
		} else if err != nil {
			return err
		}
	}
	return nil
}
