package journal_test

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"strings"
	"testing"

	"troth/hostd/journal"
	"troth/test/tear"
)

// TestReorderedTail loses power while three appends wait for one sync, so that a later one may be on the disk whole and an earlier one not:
// what was synced is found, what was not is found in order or not at all, and the journal opens.
func TestReorderedTail(t *testing.T) {
	cut := 0
	for seed := range uint64(400) {
		fs := tear.New()
		j, _, err := journal.Open(fs, "j")
		if err != nil {
			t.Fatal(err)
		}
		want := []string{"first", strings.Repeat("second", 200)}
		for _, r := range want {
			if err := j.Append([]byte(r)); err != nil {
				t.Fatal(err)
			}
		}
		wrote, power := make(chan struct{}, 3), make(chan struct{})
		fs.Call = func(op string, _ []byte, do, _ func() error) error {
			if op == "fs sync" {
				<-power
				return errors.New("power was lost")
			}
			err := do()
			wrote <- struct{}{}
			return err
		}
		ended := make(chan struct{})
		for _, r := range []string{"a", "b", "c"} {
			want = append(want, strings.Repeat(r, 1500))
			go func() {
				if j.Append([]byte(want[len(want)-1])) == nil {
					t.Error("an append without a sync returned")
				}
				ended <- struct{}{}
			}()
			<-wrote
		}
		lost := fs.Clone()
		close(power)
		for range 3 {
			<-ended
		}
		lost.PowerLoss(tear.Reordered, rand.New(rand.NewPCG(seed, 1)))
		_, records, err := journal.Open(lost, "j")
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		if len(records) < 2 || len(records) > 5 {
			t.Fatalf("seed %d: %d records", seed, len(records))
		}
		if len(records) < 5 {
			cut++
		}
		for i, r := range records {
			if string(r) != want[i] {
				t.Fatalf("seed %d: record %d is %.20q", seed, i, r)
			}
		}
	}
	if cut == 0 {
		t.Error("nothing was ever lost")
	}
}

// TestDamagedMiddle changes what had been synced: the journal says so and does not open.
func TestDamagedMiddle(t *testing.T) {
	fs := tear.New()
	j, _, err := journal.Open(fs, "j")
	if err != nil {
		t.Fatal(err)
	}
	for range 20 {
		if err := j.Append([]byte("record")); err != nil {
			t.Fatal(err)
		}
	}
	whole := fs.Now("j")
	last := bytes.LastIndexByte(whole[:len(whole)-1], '\n')
	for at := range last {
		content := bytes.Clone(whole)
		content[at] ^= 0x20
		fs.Set("j", content)
		if _, _, err := journal.Open(fs, "j"); !errors.Is(err, journal.ErrDamaged) {
			// The newline before the last record joins both: what is lost is the end.
			if content[at] == '\n'^0x20 && bytes.Count(content[at:], []byte{'\n'}) == 1 {
				continue
			}
			t.Fatalf("byte %d: %v", at, err)
		}
	}
	// A journal that was written anew is short of nothing.
	fs.Set("j", whole)
	if _, _, err := journal.Open(fs, "j"); err != nil {
		t.Fatal(err)
	}
	whole = fs.Now("j")
	fs.Set("j", whole[:len(whole)-1])
	if _, _, err := journal.Open(fs, "j"); !errors.Is(err, journal.ErrDamaged) {
		t.Fatalf("a journal without its end: %v", err)
	}
}

// TestReadIsOnTheDisk opens a journal whose writer was killed before its sync: what Open returns is on the disk, even when the kernel has dropped
// what a failed sync should have written.
func TestReadIsOnTheDisk(t *testing.T) {
	fs := tear.New()
	j, _, err := journal.Open(fs, "j")
	if err != nil {
		t.Fatal(err)
	}
	fs.Call = func(op string, _ []byte, do, _ func() error) error {
		if op == "fs sync" {
			return errors.New("input/output error")
		}
		return do()
	}
	if j.Append([]byte("a")) == nil {
		t.Fatal("appended without a sync")
	}
	<-j.Failed()
	fs.Call = nil
	_, records, err := journal.Open(fs, "j")
	if err != nil {
		t.Fatal(err)
	}
	fs.PowerLoss(tear.Lost, nil)
	_, again, err := journal.Open(fs, "j")
	if err != nil || len(again) != len(records) {
		t.Fatalf("%d records were read and acted on, %d are on the disk: %v", len(records), len(again), err)
	}
}
