package standstill

import (
	"runtime"
	"testing"
	"time"
)

func TestSinceLeavesOutWhatStoodStill(t *testing.T) {
	start := time.Now()
	at := func(seconds float64) time.Time { return start.Add(time.Duration(seconds * float64(time.Second))) }
	var w watch
	for _, s := range []float64{10, 10.1, 10.2, 14.2, 14.3, 14.5, 20.5, 20.6} { // stands still for 4 s, and for 6 s
		w.note(at(s))
	}
	for _, c := range []struct{ begun, now, want float64 }{
		{5, 20.7, 5.7}, // all of both
		{12, 20.7, 0.5},
		{14.2, 20.7, 0.5},
		{17.5, 20.7, 0.2},
		{20.6, 20.7, 0.1},
		{20.6, 23, 0}, // it stands still now
		{5, 23, 5.6},
	} {
		if got := w.between(at(c.begun), at(c.now)).Seconds(); got < c.want-0.001 || got > c.want+0.001 {
			t.Errorf("from %v to %v: %v s, want %v", c.begun, c.now, got, c.want)
		}
	}
	var none watch
	if got := none.between(at(1), at(9)); got != 8*time.Second {
		t.Errorf("without a watch: %v", got)
	}
}

func TestWatch(t *testing.T) {
	for range 2 { // the second is the first
		if err := Watch(); err != nil {
			t.Fatal(err)
		}
	}
	begun := time.Now()
	for written := begun; !written.After(begun); runtime.Gosched() {
		if time.Since(begun) > time.Minute {
			t.Fatal("the watch does not write")
		}
		machine.mu.Lock()
		written = machine.last
		machine.mu.Unlock()
	}
	if took := Since(begun); took < 0 || took > time.Since(begun) {
		t.Errorf("%v of %v", took, time.Since(begun))
	}
}
