package race

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"troth/launcher/domain"
	"troth/proof"
	"troth/test/scene"
)

// judgedIn is how long a guest that another client started may run until it is proved or gone: what hostd's comparing takes, and no more.
const judgedIn = 5 * time.Second

// race is two clients at one armed domain: one defines it anew again and again, the other starts it.
type race struct {
	s               *stage
	uuid, name      string
	redefine, start *client
	permitted       string   // file of the definition that was armed
	want            string   // digest of the configuration that was armed
	unjudged        []string // files of definitions that nobody judged
	random          *rand.Rand
	ends            map[string]int
}

// redefined races pairs in which nothing may start, and then pairs in which the armed definition is there for a moment, until enough of those have really started.
func (s *stage) redefined(ctx context.Context, t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := s.newRace(ctx, t, rand.New(rand.NewPCG(seed, 0)))
	t.Run("unjudged", func(t *testing.T) { r.unarmed(ctx, t, counted(t, "TROTH_PAIRS", 400, 10_000)) })
	t.Run("armed", func(t *testing.T) { r.armed(ctx, t, counted(t, "TROTH_STARTS", 8, 300)) })
}

// unarmed races pairs in which nothing may start.
func (r *race) unarmed(ctx context.Context, t *testing.T, pairs int) {
	r.ends = map[string]int{}
	begun := time.Now()
	// What was armed is what is defined until the first pair has begun: the start may come before it.
	if _, err := r.redefine.do("define " + r.any()); err != nil {
		t.Fatal(err)
	}
	for n := range pairs {
		if r.pair(ctx, t, r.any(), r.any()) {
			t.Fatal("a definition that nobody judged was started")
		}
		if (n+1)%1000 == 0 {
			t.Logf("%d pairs in %v", n+1, time.Since(begun).Round(time.Second))
		}
	}
	t.Logf("%d pairs in which nothing may start: %v in %v", pairs, r.ends, time.Since(begun).Round(time.Second))
}

// armed races pairs in which the armed definition is there for a moment, until enough have started.
func (r *race) armed(ctx context.Context, t *testing.T, starts int) {
	r.ends = map[string]int{}
	begun := time.Now()
	started, pairs := 0, 0
	for ; started < starts; pairs++ {
		if pairs > 100*starts {
			t.Fatalf("of %d pairs only %d started", pairs, started)
		}
		forms := []string{r.permitted, r.any()}
		if r.random.IntN(2) == 0 {
			forms = []string{r.any(), r.permitted}
		}
		if r.pair(ctx, t, forms...) {
			started++
			r.proved(ctx, t)
			if started%50 == 0 {
				t.Logf("%d started in %v", started, time.Since(begun).Round(time.Second))
			}
		}
	}
	t.Logf("%d pairs with the armed definition: %d started, each proved as armed; %v in %v", pairs, started, r.ends, time.Since(begun).Round(time.Second))
}

func (s *stage) newRace(ctx context.Context, t *testing.T, random *rand.Rand) *race {
	d := guest("race", 0)
	s.Ask(ctx, t, "register", d)
	r := &race{s: s, uuid: d.UUID, name: d.Name, random: random, ends: map[string]int{}, redefine: connect(ctx, t, s.Host), start: connect(ctx, t, s.Host)}
	armed := scene.Must[string](t)(s.Host.Virsh(ctx, "dumpxml", "--inactive", r.uuid))
	r.permitted = s.File(t, armed)
	c := scene.Must[*domain.Config](t)(domain.Read([]byte(armed), domain.Inactive))
	r.want = c.Digest().String()
	scene.Write(t, filepath.Join(s.Lab.Guest.Outside, "other"), idleKernel())
	for from, to := range map[string]string{
		"<cmdline>halt</cmdline>":      "<cmdline>halt init=/evil</cmdline>",
		"/srv/troth/guest/idle":        "/srv/troth/guest/other",
		"/srv/troth/guest/empty":       "/srv/troth/guest/idle",
		">32768</":                     ">65536</",
		"<on_crash>destroy</on_crash>": "<on_crash>preserve</on_crash>",
		"</devices>":                   "<rng model='virtio'><backend model='random'>/dev/urandom</backend></rng></devices>",
		`<troth:launch xmlns:troth="urn:troth:launch:v1"/>`: "",
	} {
		changed := strings.ReplaceAll(armed, from, to)
		if changed == armed {
			t.Fatalf("the armed definition has no %q: %s", from, armed)
		}
		r.unjudged = append(r.unjudged, s.File(t, changed))
	}
	return r
}

func (r *race) any() string { return r.unjudged[r.random.IntN(len(r.unjudged))] }

// pair defines the forms one after the other while the other client starts the domain at some moment of it. It says whether it was started. However it ends, the
// domain does not run any more when it was not.
func (r *race) pair(ctx context.Context, t *testing.T, forms ...string) bool {
	t.Helper()
	late := time.Duration(r.random.IntN(6000)) * time.Microsecond
	said := make(chan error, 1)
	timer := time.AfterFunc(late, func() {
		_, err := r.start.do("start " + r.name)
		said <- err
	})
	defer timer.Stop()
	for _, f := range forms {
		if _, err := r.redefine.do("define " + f); err != nil {
			t.Fatal(err)
		}
	}
	err := <-said
	if err == nil {
		r.ends["started"]++
		return true
	}
	_, line, ok := strings.Cut(err.Error(), "troth: refused: ")
	code, _, _ := strings.Cut(line, "\n")
	if !ok {
		t.Fatalf("the start failed, and not by the hook: %v", err)
	}
	r.ends[code]++
	out, err := r.redefine.do("domstate " + r.name)
	if err != nil || !strings.Contains(out, "shut off") {
		t.Fatalf("the start was refused, and the domain is %s %v", out, err)
	}
	return false
}

// proved demands of the guest that was just started that hostd proves it within its time, and that what libvirt runs is what was armed and what the proof says.
// Then the guest is ended.
func (r *race) proved(ctx context.Context, t *testing.T) {
	t.Helper()
	live, err := r.start.do("dumpxml " + r.name)
	if err != nil {
		t.Fatal(err)
	}
	var v view
	took := scene.Within(t, judgedIn, time.Now(), func() error {
		if v, err = r.s.show(ctx, r.uuid); err != nil {
			t.Fatal(err)
		}
		if v.State != "proved" {
			return errors.New("the guest runs and is " + v.State)
		}
		return nil
	})
	c := scene.Must[*domain.Config](t)(domain.Read([]byte(strings.TrimSpace(live)), domain.Live))
	p := scene.Must[*proof.Proof](t)(proof.ParseProof(scene.Must[json.RawMessage](t)(r.s.proof(ctx, r.uuid))))
	statement := scene.Must[*proof.Statement](t)(proof.ParseStatement(p.Statement))
	got, said := c.Digest().String(), fmt.Sprint(statement.Configuration)
	if got != r.want || said != r.want || statement.UUID != r.uuid || proof.Link(p.Statement).String() != v.Link {
		t.Fatalf("armed %s, live %s, proved %s of %s", r.want, got, said, statement.UUID)
	}
	if took > time.Second {
		r.ends["proved after more than 1 s"]++
	}
	if _, err := r.start.do("destroy " + r.name); err != nil {
		t.Fatal(err)
	}
	scene.Within(t, judgedIn, time.Now(), func() error {
		if v, err = r.s.show(ctx, r.uuid); err != nil {
			t.Fatal(err)
		}
		if v.State == "proved" {
			return errors.New("the guest was ended and is " + v.State)
		}
		return nil
	})
}
