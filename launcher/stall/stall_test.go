package stall

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

func TestAsk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := &Guard{Within: time.Second, Most: 2}
		hangs := make(chan struct{})
		hang := func() (int, error) { <-hangs; return 1, nil }
		seven := func() (int, error) { return 7, nil }
		refused := errors.New("refused")

		if v, err := Ask(g, "a", "quick", seven); v != 7 || err != nil {
			t.Errorf("%d, %v", v, err)
		}
		if _, err := Ask(g, "a", "fails", func() (int, error) { return 0, refused }); !errors.Is(err, refused) {
			t.Errorf("%v", err)
		}
		func() {
			defer func() {
				if p := recover(); p != "worker" {
					t.Errorf("the asker's panic is %v", p)
				}
			}()
			Ask(g, "a", "panics", func() (int, error) { panic("worker") }) //nolint:errcheck // it does not return
		}()
		begun := time.Now()
		for _, key := range []string{"x", "y"} {
			if _, err := Ask(g, "a", key, hang); !errors.Is(err, ErrStalled) {
				t.Errorf("%v", err)
			}
		}
		if took := time.Since(begun); took != 2*time.Second {
			t.Errorf("two questions that hang took %v", took)
		}
		// What hangs is not asked again, and a group that hangs whole costs no time and keeps no other group waiting.
		for _, key := range []string{"x", "another"} {
			if _, err := Ask(g, "a", key, seven); !errors.Is(err, ErrStalled) {
				t.Errorf("%s: %v", key, err)
			}
		}
		if v, err := Ask(g, "b", "x", seven); v != 7 || err != nil {
			t.Errorf("%d, %v", v, err)
		}
		if took := time.Since(begun); took != 2*time.Second {
			t.Errorf("questions that are not asked took %v", took-2*time.Second)
		}
		close(hangs)
		synctest.Wait()
		if v, err := Ask(g, "a", "x", seven); v != 7 || err != nil {
			t.Errorf("once it answers: %d, %v", v, err)
		}
		if synctest.Wait(); len(g.open) != 0 {
			t.Errorf("left: %v", g.open)
		}
	})
}
