package lab

import (
	"context"
	"os"
	"strings"
	"testing"
)

// ForTest builds a lab that ends with the test; when the test has failed, its logs stay. What is not said in o comes from the
// test: its log, and the programs in the directory that TROTH_LAB_BINARIES names, if it names one.
func ForTest(ctx context.Context, t testing.TB, o Options) *Lab {
	t.Helper()
	o.Log = testLog{t}
	if o.Binaries == "" {
		o.Binaries = os.Getenv("TROTH_LAB_BINARIES")
	}
	l, err := New(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		end := l.Close
		if t.Failed() {
			t.Logf("the lab's logs stay in %s/log, and its hosts' files beside it: remove %s when you have read them", l.Dir(), l.Dir())
			end = l.Keep
		}
		if err := end(); err != nil {
			t.Error(err)
		}
	})
	return l
}

type testLog struct{ t testing.TB }

func (w testLog) Write(b []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(b)))
	return len(b), nil
}
