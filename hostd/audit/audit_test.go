package audit

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"troth/hostd/journal"
	"troth/test/tear"
)

func now() time.Time { return time.Unix(1_800_000_000, 0) }

func open(t *testing.T, fs journal.FS, path string) *Log {
	t.Helper()
	l, err := Open(fs, path, now, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func add(t *testing.T, l *Log, n int) {
	t.Helper()
	for i := range n {
		if err := l.Append(Record{What: Granted, Actor: "hostd", UUID: fmt.Sprint(i)}); err != nil {
			t.Fatal(err)
		}
	}
}

func verify(t *testing.T, path string) *Report {
	t.Helper()
	r, err := Verify(path, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestEveryByte changes every byte of a log but its last line: Verify says where it broke.
func TestEveryByte(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	l := open(t, journal.OS{}, path)
	add(t, l, 3)
	if r := verify(t, path); !r.Whole || r.Records != 4 || r.Head != l.Head() {
		t.Fatalf("%+v", r)
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	last := bytes.LastIndexByte(whole[:len(whole)-1], '\n') + 1
	for at := range last {
		content := bytes.Clone(whole)
		content[at] ^= 1
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		if r := verify(t, path); r.Whole || !strings.Contains(r.Broken, "log:") {
			t.Fatalf("byte %d (%q): %+v", at, whole[at], r)
		}
	}
	lines := bytes.SplitAfter(whole, []byte{'\n'})
	for name, order := range map[string][]int{"left out": {0, 2, 3}, "moved": {0, 2, 1, 3}, "doubled": {0, 1, 1, 2, 3}} {
		var content []byte
		for _, i := range order {
			content = append(content, lines[i]...)
		}
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		if r := verify(t, path); r.Whole {
			t.Errorf("%s: not seen", name)
		}
	}
	// An end that was cut off is found by a head that was kept.
	if err := os.WriteFile(path, whole[:last], 0o600); err != nil {
		t.Fatal(err)
	}
	head := l.Head()
	if r, err := Verify(path, &head, nil); err != nil || r.Whole {
		t.Errorf("the end is gone: %+v, %v", r, err)
	}
}

// TestRotate carries the chain over files, and over starts.
func TestRotate(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	for range 4 {
		l := open(t, journal.OS{}, path)
		l.limit = 1000
		add(t, l, 20)
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if r := verify(t, path); !r.Whole || r.First < 2 || r.Records < 30 {
		t.Fatalf("%+v", r)
	}
	if err := os.Remove(path + ".2"); err != nil {
		t.Fatal(err)
	}
	if r := verify(t, path); r.Whole {
		t.Fatal("a file that is missing was not seen")
	}
}

// TestPower loses power while records wait for their sync, in all ways: the log opens, what was synced is there, and the chain is whole.
func TestPower(t *testing.T) {
	for seed := range uint64(300) {
		fs := tear.New()
		l := open(t, fs, "log")
		l.limit = 1500
		add(t, l, 9)
		head, records := l.Head(), l.next-1
		power := errors.New("power was lost")
		at := int(seed % 5)
		fs.Call = func(op string, _ []byte, do, half func() error) error {
			if op == "fs sync" {
				return do()
			}
			if at--; at < 0 {
				return power
			}
			return do()
		}
		for range 4 {
			l.write(Record{What: Refused, Actor: "hostd"}) //nolint:errcheck // some of them fail
		}
		fs.Call = nil
		fs.PowerLoss(tear.Loss(seed%3), rand.New(rand.NewPCG(seed, 2)))
		l = open(t, fs, "log")
		add(t, l, 1)
		dir := t.TempDir()
		for _, name := range []string{"log", "log.1", "log.2", "log.3", "log.4"} {
			if b := fs.Now(name); len(b) > 0 {
				if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
					t.Fatal(err)
				}
			}
		}
		r, err := Verify(filepath.Join(dir, "log"), &head, nil)
		if err != nil || !r.Whole || r.Records <= records {
			t.Fatalf("seed %d: %+v, %v", seed, r, err)
		}
	}
}

// TestDamaged changes a line that was synced: the log opens, the damaged file is kept, and Verify still finds the place.
func TestDamaged(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	l := open(t, journal.OS{}, path)
	add(t, l, 5)
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	content[len(content)/2] ^= 1
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	add(t, open(t, journal.OS{}, path), 1)
	if kept, err := os.ReadFile(path + ".1"); err != nil || !bytes.Equal(kept, content) {
		t.Fatalf("the evidence is gone: %v", err)
	}
	if r := verify(t, path); r.Whole || !strings.Contains(r.Broken, "log.1:") {
		t.Fatalf("%+v", r)
	}
}

// TestNoSpace refuses what it cannot write, says later how much was lost, and goes on.
func TestNoSpace(t *testing.T) {
	fs := tear.New()
	l := open(t, fs, "log")
	full := true
	fs.Call = func(op string, _ []byte, do, half func() error) error {
		if op == "fs write" && full {
			return errors.Join(half(), syscall.ENOSPC)
		}
		return do()
	}
	if err := l.Append(Record{What: Granted, Actor: "hostd"}); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("a grant that nobody can read about: %v", err)
	}
	full = false
	add(t, l, 1)
	if text := string(fs.Now("log")); !strings.Contains(text, `"what":"lost"`) || !strings.Contains(text, `"count":1`) {
		t.Fatal(text)
	}
}

// TestGroups notes from many at once: all are there, in whole lines, and few syncs served them.
func TestGroups(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	l := open(t, journal.OS{}, path)
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		l.Run(done)
	}()
	var all sync.WaitGroup
	for range 50 {
		all.Go(func() { l.Note(Record{What: Hook, Actor: "libvirt"}) })
	}
	all.Wait()
	close(done)
	<-ended
	if r := verify(t, path); !r.Whole || r.Records != 51 {
		t.Fatalf("%+v", r)
	}
}

// TestFew floods the log with what anybody can cause: a bounded number of lines comes of it, the rest is counted in one, and no other record is lost.
func TestFew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs := tear.New()
		l := open(t, fs, "log")
		lines := func(of string) int { return strings.Count(string(fs.Now("log")), of) }
		const flood = 100_000
		for range flood {
			l.NoteFew(Strangers, Record{What: Forbidden, Actor: "nobody"})
		}
		l.Note(Record{What: Refused, Actor: "hostd"})
		if !l.NoteFew(Callers, Record{What: Forbidden, Actor: "tls:ab"}) {
			t.Error("strangers took the room of others")
		}
		done, ended := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(ended)
			l.Run(done)
		}()
		time.Sleep(fewEvery + time.Second)
		if n := lines(`"nobody"`); n != fewAtOnce {
			t.Errorf("%d lines of strangers", n)
		}
		if lines(`"refused"`) != 1 || lines(`"tls:ab"`) != 1 || lines(`"lost"`) != 0 {
			t.Error("honest records were lost")
		}
		if count := fmt.Sprintf(`"what":"forbidden","actor":"strangers","count":%d,`, flood-fewAtOnce); lines(count) != 1 {
			t.Errorf("no %s in\n%s", count, fs.Now("log"))
		}
		// Who goes on is one line each time; who stops gets the room back.
		l.NoteFew(Strangers, Record{What: Forbidden, Actor: "nobody"})
		time.Sleep(fewEvery)
		if lines(`"nobody"`) != fewAtOnce || lines(`"strangers","count":1,`) != 1 {
			t.Errorf("who goes on: %s", fs.Now("log"))
		}
		time.Sleep(fewEvery)
		for range 2 {
			l.NoteFew(Strangers, Record{What: Forbidden, Actor: "nobody"})
		}
		close(done)
		<-ended
		if lines(`"nobody"`) != fewAtOnce+1 || lines(`"strangers","count":1,`) != 2 {
			t.Errorf("who stopped for a while: %s", fs.Now("log"))
		}
	})
}
