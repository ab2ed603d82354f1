package launcher

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"testing"
	"time"

	"troth/launcher/domain"
	"troth/proof"
)

// racePairs is how many pairs of a redefinition and a start there are; TROTH_SOAK asks for all.
const (
	racePairs     = 1_000
	racePairsSoak = 100_000
)

// raced is one domain that is armed, a client that defines it anew at moments that the seed chooses, and one that starts it.
type raced struct {
	*world
	random *rand.Rand
	forms  [][]byte // the armed definition first
	armed  proof.Digest

	rmu   sync.Mutex
	calls int            // of the launcher to its world, in this pair
	moves map[int][]byte // what is defined at which call
	wrong error          // what libvirt saw that may not be
}

// raceAll: whatever a start reads at whatever moment, what runs in the end is what was granted at prepare, proved as such; all else is refused or gone.
func raceAll(t *testing.T) {
	pairs, seed := racePairs, uint64(time.Now().UnixNano())
	if os.Getenv("TROTH_SOAK") != "" {
		pairs = racePairsSoak
	}
	t.Logf("seed %d", seed)
	r := &raced{world: newWorld(t), random: rand.New(rand.NewPCG(seed, 0))}
	// The token leaves the configuration open, so that the host alone stands between.
	token := r.token(func(t *proof.Token) { t.Pins.Configuration = nil })
	if _, refusal := r.l.Arm(context.Background(), Request{ID: "arm", Token: token, Domain: guestXML(t), Action: proof.ActionStart, Arm: true}, quiet{}); refusal != nil {
		t.Fatal(refusal)
	}
	r.forms, r.armed = unjudged(t, r.inactive[guestUUID])
	r.around = r.meanwhile
	ends := map[string]int{}
	for n := range pairs {
		end, err := r.pair()
		if err != nil {
			t.Fatalf("pair %d of seed %d: %v", n, seed, err)
		}
		ends[end]++
		if (n+1)%10_000 == 0 {
			t.Logf("%d pairs: %v", n+1, ends)
		}
		r.entries = nil // 100,000 refusals are no business of this test
	}
	t.Logf("%d pairs: %v", pairs, ends)
	for _, end := range []string{"proved", "gone", string(proof.ConfigurationChanged)} {
		if ends[end] == 0 {
			t.Errorf("no pair ended as %q", end)
		}
	}
}

// unjudged is the armed definition and what nobody judged.
func unjudged(t *testing.T, armed []byte) (forms [][]byte, digest proof.Digest) {
	t.Helper()
	c, err := domain.Read(armed, domain.Inactive)
	if err != nil {
		t.Fatal(err)
	}
	forms = [][]byte{armed}
	for from, to := range map[string]string{c.Boot.CommandLine: "init=/evil", "/images/vmlinuz": "/images/evil", "/images/initrd": "/images/vmlinuz",
		"urn:troth:launch:v1": "urn:other", "</devices>": "<sound/></devices>", "262144": "524288"} {
		form := bytes.ReplaceAll(armed, []byte(from), []byte(to))
		if bytes.Equal(form, armed) {
			t.Fatalf("the armed definition has no %q", from)
		}
		forms = append(forms, form)
	}
	return forms, c.Digest()
}

// form is a definition: every tenth time the armed one.
func (r *raced) form() []byte {
	if r.random.IntN(10) == 0 {
		return r.forms[0]
	}
	return r.forms[1+r.random.IntN(len(r.forms)-1)]
}

// meanwhile lets the other client define before the call that the seed chose.
func (r *raced) meanwhile(_ string, do func() error) error {
	r.rmu.Lock()
	form := r.moves[r.calls]
	r.calls++
	r.rmu.Unlock()
	if form != nil {
		r.define(form)
	}
	return do()
}

func (r *raced) define(form []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.inactive[guestUUID] = form
}

// defined is what libvirt has now; a client may get in before it is read.
func (r *raced) defined() (xml []byte) {
	unheard(r.call("defined", func() error {
		r.mu.Lock()
		defer r.mu.Unlock()
		xml = r.inactive[guestUUID]
		return nil
	}))
	return xml
}

// pair starts the domain once while it is defined anew, and says how that ended. libvirt takes the definition once, at the beginning; every other one here reads it
// again at each step, so that nothing rests on libvirt's word.
func (r *raced) pair() (end string, err error) {
	r.rmu.Lock()
	r.calls, r.moves = 0, map[int][]byte{}
	for range 1 + r.random.IntN(3) {
		r.moves[r.random.IntN(40)] = r.form()
	}
	r.rmu.Unlock()
	again := r.random.IntN(2) == 0
	if r.random.IntN(10) == 0 {
		r.define(r.forms[0])
	}
	granted, refusal := r.begin(again)
	r.l.Wait()
	if r.wrong != nil {
		return "", r.wrong
	}
	r.mu.Lock()
	live, d := r.live[guestUUID], r.l.Book.Domain(guestUUID)
	r.mu.Unlock()
	switch {
	case live == nil && refusal != nil: // that the guest before was ended may be unknown still
		return string(refusal.Code), r.tidied()
	case live == nil && d.State == StateProved:
		return "", errors.New("proved, and nothing runs")
	case live == nil:
		return "gone", r.tidied()
	case d.State != StateProved:
		return "", fmt.Errorf("it runs, and is %s", d.State)
	}
	if err := r.same(live, granted, d); err != nil {
		return "", err
	}
	r.mu.Lock()
	delete(r.live, guestUUID)
	r.mu.Unlock()
	if r.random.IntN(2) == 0 { // else the next start finds it
		if err := r.l.Gone(context.Background(), guestUUID, proof.Refuse(proof.NotRegistered, "it was ended")); err != nil {
			return "", err
		}
	}
	return "proved", r.tidied()
}

// begin is libvirt that starts the domain for the other client: prepare, start, QEMU, started, and release when that failed.
func (r *raced) begin(again bool) (granted []byte, refusal *proof.Refusal) {
	id := mustUUID(guestUUID)
	xml := r.defined()
	granted = xml
	next := func() []byte {
		if again {
			xml = r.defined()
		}
		return xml
	}
	if refusal = r.l.Prepare(context.Background(), id, granted); refusal == nil {
		at := next()
		if refusal = r.l.Proceed(id, at); refusal == nil && !alike(at, granted) {
			r.wrong = errors.New("'start' was permitted for another definition than 'prepare'")
		}
	}
	if refusal != nil {
		r.l.Ended(id)
		return granted, refusal
	}
	runs := next()
	r.mu.Lock()
	r.live[guestUUID], r.paused[guestUUID] = runs, false
	r.mu.Unlock()
	if refusal = r.l.Started(context.Background(), id); refusal != nil {
		// libvirt ends a guest whose 'started' is vetoed.
		r.mu.Lock()
		delete(r.live, guestUUID)
		r.mu.Unlock()
		r.l.Ended(id)
	}
	return granted, refusal
}

// alike says that two definitions are of one configuration.
func alike(a, b []byte) bool {
	x, errX := definition(a)
	y, errY := definition(b)
	return errX == nil && errY == nil && x.Digest() == y.Digest()
}

// same: what runs is what was granted, and what its proof says.
func (r *raced) same(live, granted []byte, d *Domain) error {
	runs, err := domain.Read(live, domain.Live)
	if err != nil {
		return err
	}
	judged, err := definition(granted)
	if err != nil {
		return err
	}
	p, err := proof.ParseProof(d.Proof)
	if err != nil {
		return err
	}
	s, err := proof.ParseStatement(p.Statement)
	if err != nil {
		return err
	}
	want := r.armed
	if judged.Digest() != want || runs.Digest() != want || s.Configuration != want {
		return fmt.Errorf("armed %v, granted %v, runs %v, proved %v", want, judged.Digest(), runs.Digest(), s.Configuration)
	}
	return nil
}

// tidied: nothing of a start is left.
func (r *raced) tidied() error {
	if n := r.opened - r.held(); len(r.secrets) > 0 || n != 0 || len(r.l.Book.Unended()) > 0 {
		return fmt.Errorf("left: %d secrets, %d images, %d launches", len(r.secrets), n, len(r.l.Book.Unended()))
	}
	return nil
}
