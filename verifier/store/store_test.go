package store

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
)

func open(t *testing.T) (Store, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "a b?.db")
	s, err := Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s, path
}

func TestCompareAndSwapHasOneWinner(t *testing.T) {
	s, _ := open(t)
	if err := s.Apply(t.Context(), Write{Kind: "chain", Name: "a", Body: []byte("0")}); err != nil {
		t.Fatal(err)
	}
	var wins atomic.Int32
	var wg sync.WaitGroup
	for i := range 32 {
		wg.Go(func() {
			err := s.Apply(t.Context(), Write{Kind: "chain", Name: "a", Rev: 1, Body: fmt.Appendf(nil, "%d", i)})
			switch {
			case err == nil:
				wins.Add(1)
			case !errors.Is(err, ErrConflict):
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if wins.Load() != 1 {
		t.Fatalf("%d winners", wins.Load())
	}
	d, err := s.Get(t.Context(), "chain", "a")
	if err != nil || d.Rev != 2 {
		t.Fatalf("%+v %v", d, err)
	}
}

func TestClaimsAreUniqueAndApplyIsWhole(t *testing.T) {
	s, path := open(t)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(s.Apply(t.Context(), Write{Kind: "host", Name: "a", Body: []byte("{}"), Claims: []string{"ek:1", "ek:2"}}))
	err := s.Apply(t.Context(),
		Write{Kind: "log", Name: "x", Body: []byte("{}")},
		Write{Kind: "host", Name: "b", Body: []byte("{}"), Claims: []string{"ek:2"}})
	var taken *TakenError
	if !errors.Is(err, ErrTaken) || !errors.As(err, &taken) || taken.Name != "a" || taken.Claim != "ek:2" {
		t.Fatalf("claim: %v", err)
	}
	if _, err := s.Get(t.Context(), "log", "x"); !errors.Is(err, ErrNotFound) {
		t.Fatalf("a refused Apply left something: %v", err)
	}
	// Another revision drops a claim; then another may take it. Deleting frees all.
	must(s.Apply(t.Context(), Write{Kind: "host", Name: "a", Rev: 1, Body: []byte("{}"), Claims: []string{"ek:1"}}))
	must(s.Apply(t.Context(), Write{Kind: "host", Name: "b", Body: []byte("{}"), Claims: []string{"ek:2"}}))
	must(s.Apply(t.Context(), Write{Kind: "host", Name: "a", Rev: 2}))
	if d, err := s.Owner(t.Context(), "ek:2"); err != nil || d.Name != "b" {
		t.Fatalf("%+v %v", d, err)
	}
	if _, err := s.Owner(t.Context(), "ek:1"); !errors.Is(err, ErrNotFound) {
		t.Fatal(err)
	}
	if err := s.Apply(t.Context(), Write{Kind: "host", Name: "b", Body: []byte("{}")}); !errors.Is(err, ErrConflict) {
		t.Fatalf("insert over: %v", err)
	}
	if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != 0o600 {
		t.Fatalf("database is readable by others: %v %v", fi, err)
	}
}

func TestListByPrefix(t *testing.T) {
	s, path := open(t)
	for _, n := range []string{"a/1", "a/2", "b/1", "a%", "A/1"} {
		if err := s.Apply(t.Context(), Write{Kind: "k", Name: n, Rev: Any, Body: []byte(n)}); err != nil {
			t.Fatal(err)
		}
	}
	got, err := s.List(t.Context(), "k", "a/")
	if err != nil || len(got) != 2 || got[0].Name != "a/1" || got[1].Name != "a/2" {
		t.Fatalf("%v %v", got, err)
	}
	if all, err := s.List(t.Context(), "k", ""); err != nil || len(all) != 5 {
		t.Fatalf("%v %v", all, err)
	}
	// A second opening migrates nothing and finds everything.
	again, err := Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := again.Close(); err != nil {
			t.Error(err)
		}
	}()
	if all, err := again.List(t.Context(), "k", ""); err != nil || len(all) != 5 {
		t.Fatalf("%v %v", all, err)
	}
	if err := again.Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
}
