package standstill

import (
	"testing"
	"time"
)

func TestSinceLeavesOutWhatStoodStill(t *testing.T) {
	now := time.Now()
	at := func(seconds float64) time.Time { return now.Add(time.Duration((seconds - 100) * float64(time.Second))) }
	last = at(10)
	t.Cleanup(func() { last, stood = time.Time{}, nil })
	for _, s := range []float64{10.1, 10.2, 14.2, 14.3, 14.5, 20.5} { // stood still for 4 s, and for 6 s
		note(at(s))
	}
	if len(stood) != 2 {
		t.Fatalf("stood still: %v", stood)
	}
	last = now // it went on ever since
	for begun, want := range map[float64]float64{
		5:    85, // all of both
		12:   79.8,
		14.2: 79.8,
		17.5: 79.5,
		50:   50,
	} {
		if got := Since(at(begun)).Seconds(); got < want-0.01 || got > want+1 {
			t.Errorf("since %v: %v s, want %v", begun, got, want)
		}
	}
	last = now.Add(-2 * time.Second) // and it stands still now
	if got := Since(at(97)).Seconds(); got < 0.99 || got > 1.01 {
		t.Errorf("in a stall: %v s, want 1", got)
	}
}

func TestWatchNotesNothingWhereNothingStands(t *testing.T) {
	if err := Watch(); err != nil {
		t.Fatal(err)
	}
	if err := Watch(); err != nil { // the second is the first
		t.Fatal(err)
	}
	begun := time.Now()
	time.Sleep(3 * every)
	if took := Since(begun); took < 0 || took > time.Since(begun) {
		t.Errorf("%v of %v", took, time.Since(begun))
	}
}
