package differential_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"troth/launcher/virt"
	"troth/test/differential"
)

// documents is how many are compared: a sample, as make test-gate has it; make test-differential takes 20,000, and TROTH_SEED another seed.
var documents = flag.Uint64("documents", 3_000, "how many documents TestDifferential compares")

// fixed is the seed of every run.
const fixed = 1

func seed(t *testing.T) uint64 {
	t.Helper()
	s := os.Getenv("TROTH_SEED")
	if s == "" {
		return fixed
	}
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		t.Fatalf("TROTH_SEED: %v", err)
	}
	return n
}

func stream(t *testing.T) *differential.Stream {
	t.Helper()
	schema, err := differential.Load(differential.SchemaDir)
	if err != nil {
		t.Fatal(err)
	}
	seeds, err := differential.Seeds("../..")
	if err != nil {
		t.Fatal(err)
	}
	s, err := differential.NewStream(schema, seeds, seed(t))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// session asks one libvirtd that nobody else uses.
type session struct {
	t      *testing.T
	daemon *differential.Libvirtd
	virt   *virt.Virt
	ctx    context.Context //nolint:containedctx // of one test
}

func newSession(t *testing.T) *session {
	t.Helper()
	s := &session{t: t, ctx: t.Context()}
	if err := s.start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(s.virt.Close(), s.daemon.Stop()); err != nil && !t.Failed() {
			t.Error(err)
		}
	})
	return s
}

func (s *session) start() (err error) {
	if s.daemon, err = differential.Start(s.t.TempDir()); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(s.ctx, 30*time.Second)
	defer cancel()
	s.virt, err = virt.Connect(ctx, s.daemon.URI(), nil)
	return err
}

// restart follows after a libvirtd that died, or that did not come back in time: it may be asking for all memory that there is.
func (s *session) restart() error {
	if err := s.virt.Close(); err != nil {
		return err
	}
	if err := s.daemon.Stop(); err == nil {
		s.t.Log("libvirtd had not died: it did not answer in time")
	}
	return s.start()
}

// tally counts what became of the documents.
type tally struct {
	mu                            sync.Mutex
	kinds                         [differential.Kinds]struct{ all, libvirt, ours, both int }
	reasons, incomplete, unusable map[string]int
	findings                      map[string]int
	first                         map[string]*differential.Node // a document of each class of finding
	lost                          int                           // documents of which libvirtd died
	killer                        *differential.Node            // one of them
}

func (c *tally) add(doc *differential.Node, k differential.Kind, v verdict) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := &c.kinds[k]
	n.all++
	if v.lost {
		c.lost++
		c.killer = doc
	}
	if v.libvirt {
		n.libvirt++
	}
	if v.ours {
		n.ours++
	}
	if v.libvirt && v.ours {
		n.both++
	}
	for m, s := range map[*map[string]int]string{&c.reasons: v.reason, &c.incomplete: v.incomplete, &c.unusable: v.unusable} {
		if s != "" {
			(*m)[s]++
		}
	}
	for _, f := range v.findings {
		c.findings[f.class]++
		if c.first[f.class] == nil {
			c.first[f.class] = doc
		}
	}
}

// TestDifferential: over thousands of domains, of libvirt's own schema and of what no schema allows, what we accept is
// what libvirt reads, or we refuse.
func TestDifferential(t *testing.T) {
	if testing.Short() {
		t.Skip("needs root and libvirtd")
	}
	s := stream(t)
	sessions := []*session{newSession(t), newSession(t)}
	count := &tally{reasons: map[string]int{}, incomplete: map[string]int{}, unusable: map[string]int{}, findings: map[string]int{}, first: map[string]*differential.Node{}}
	var next atomic.Uint64
	var work sync.WaitGroup
	begin := time.Now()
	for _, session := range sessions {
		work.Go(func() {
			for i := next.Add(1) - 1; i < *documents && !t.Failed(); i = next.Add(1) - 1 {
				doc, kind := s.Document(i)
				v, err := session.judge(doc)
				if err != nil {
					t.Errorf("document %d: %v\n%s", i, err, doc)
					return
				}
				count.add(doc, kind, v)
			}
		})
	}
	work.Wait()
	took := time.Since(begin)
	for _, class := range slices.Sorted(maps.Keys(count.first)) {
		doc, f, err := sessions[0].minimise(count.first[class], class)
		if err != nil {
			t.Fatal(err)
		}
		t.Errorf("%d × %s: %s\n%s", count.findings[class], class, short(f.detail, 600), doc)
	}
	count.report(t, took)
}

func (c *tally) report(t *testing.T, took time.Duration) {
	t.Helper()
	var sum struct{ all, libvirt, ours, both int }
	for k, n := range c.kinds {
		t.Logf("%-8s %6d: libvirt took %d, we %d, both %d", differential.Kind(k), n.all, n.libvirt, n.ours, n.both)
		sum.all, sum.libvirt, sum.ours, sum.both = sum.all+n.all, sum.libvirt+n.libvirt, sum.ours+n.ours, sum.both+n.both
	}
	for title, m := range map[string]map[string]int{"refused at": c.reasons, "accepted by both, but libvirt refuses it in full": c.incomplete, "libvirt refuses ours": c.unusable} {
		t.Logf("%s:\n%s", title, top(m, 40))
	}
	if c.killer != nil {
		t.Logf("libvirtd died of such as %s", short(c.killer.String(), 1500))
	}
	t.Logf("differential: %d documents in %s; libvirt took %d, we %d, both %d, libvirtd died of %d; %d kinds of disagreement",
		sum.all, took.Round(time.Second), sum.libvirt, sum.ours, sum.both, c.lost, len(c.findings))
}

func top(m map[string]int, n int) string {
	keys := slices.SortedFunc(maps.Keys(m), func(a, b string) int { return m[b] - m[a] })
	var b strings.Builder
	for _, k := range keys[:min(n, len(keys))] {
		fmt.Fprintf(&b, "%8d %s\n", m[k], k)
	}
	return b.String()
}
