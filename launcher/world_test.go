package launcher

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"troth/proof"
	"troth/tpm"
	"troth/tpm/pcr"
)

const guestUUID = "6a0f0a5e-4c55-4a53-9d5c-0d8b6f1f2a11"

// errFault is what a world answers where the test made it fail.
var errFault = errors.New("fault of the test")

// world is a whole made-up host with state: libvirt, chip, verifier, files, journal. Every call that a launch makes goes through call, so that a
// test can make the n-th one fail before it took effect or after, or end the world there.
type world struct {
	t  *testing.T
	mu sync.Mutex

	calls  []string // "name#n", n-th call of that name: the quote runs beside the rest, so that places in the whole list mean nothing
	count  map[string]int
	fault  string // the call that fails; empty: none
	after  bool   // it fails after it took effect
	dead   bool   // every call from there on fails: the daemon was killed
	struck bool
	strike func()                                   // what an attacker does at that call, in place of a fault
	around func(name string, do func() error) error // decides instead of the fields above, when it is set

	// libvirt
	inactive, live map[string][]byte
	paused         map[string]bool
	ran            map[string]bool   // was resumed
	loaded         map[string]string // the memory that a guest went on from
	wentOn         map[string]int    // how often a guest ran on from a memory
	memory         int               // memories that were saved
	noHook         bool
	noStart        bool                    // QEMU does not come up for another client
	rewrite        func(xml []byte) []byte // of what is read back live
	process        func(p *Process)
	strangers      []Holder // emulators that libvirt does not have, each with one file open
	twin           bool     // another user has a process by an emulator's name, with the UUID of whatever guest is asked about
	unseen         int      // how often a process that runs is not seen by its number
	taints         []string
	tlsKey         *ecdsa.PrivateKey

	// files
	real    *realFiles // instead of the made-up files below
	files   map[string][]byte
	opened  int
	changed map[string]bool   // was written to since it was measured
	links   map[string]string // paths that lead to another path's file

	// secrets
	secrets  map[string][]byte
	diskKeys map[string]string // with libvirt: the keys of sealed disks, by domain and target

	// the hook's socket
	expected map[[32]byte]bool
	asked    map[[32]byte]bool

	// journal
	entries [][]byte

	// verifier and chip
	signing  *proof.SigningKey
	keys     *proof.VerdictKeys
	tokenKey *proof.TokenPrivateKey
	profile  proof.ProfileRef
	seed     []byte
	verdict  proof.Verdict
	epoch    *Epoch
	boot     time.Duration
	heldBack error // Hold's answer
	late     bool  // releases are not answered, and arrive when arrives is called
	arrives  func() error
	renewed  func(w *world) error
	chains   map[proof.Digest]*fakeChain
	unseals  int
	released atomic.Int64 // releases that were answered

	beforeUnseal func()
	beforeQuote  func()
	quotes       int
	receipt      func(r *proof.Receipt)
	tokens       map[proof.Digest]*proof.Token

	l *Launcher
}

type fakeChain struct {
	state   string // free, reserved, open, closed
	link    proof.Digest
	head    *proof.Digest
	number  uint32
	attempt uint32
	aborted uint32
	image   proof.Digest // while it is saved
	was     string       // before it was reserved
	held    uint32       // attempt of the link before the reserved one
	answer  Release
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, inactive: map[string][]byte{}, live: map[string][]byte{}, paused: map[string]bool{}, ran: map[string]bool{}, loaded: map[string]string{}, wentOn: map[string]int{},
		files: map[string][]byte{"/images/vmlinuz": []byte("kernel"), "/images/initrd": []byte("initrd")}, changed: map[string]bool{}, secrets: map[string][]byte{}, diskKeys: map[string]string{},
		expected: map[[32]byte]bool{}, asked: map[[32]byte]bool{}, chains: map[proof.Digest]*fakeChain{}, tokens: map[proof.Digest]*proof.Token{}, boot: time.Hour,
		seed: bytes.Repeat([]byte{7}, proof.SeedSize), profile: proof.ProfileRef{Name: "lab", Digest: proof.Digest{1}}}
	var err error
	if w.signing, err = proof.GenerateSigningKey(); err != nil {
		t.Fatal(err)
	}
	if w.keys, err = proof.NewVerdictKeys(w.signing.JWK()); err != nil {
		t.Fatal(err)
	}
	if w.tokenKey, err = proof.GenerateTokenKey(); err != nil {
		t.Fatal(err)
	}
	w.attest()
	w.restart()
	return w
}

// attest makes a fresh epoch.
func (w *world) attest() {
	sel, err := pcr.Select(pcr.SHA256, 17, 18, 19)
	if err != nil {
		w.t.Fatal(err)
	}
	values := pcr.Values{17: {17}, 18: {18}, 19: {19}}
	digest, err := values.Digest(sel)
	if err != nil {
		w.t.Fatal(err)
	}
	public, err := proof.ReleasePublic(w.seed)
	if err != nil {
		w.t.Fatal(err)
	}
	var ak tpm.Name
	ak[1], ak[2] = 0x0b, 1
	w.verdict = proof.Verdict{Issuer: "auditor", Host: ak, Confirmation: proof.Digest{5}, Class: tpm.Software, Selection: sel, PCRDigest: digest,
		Counters: tpm.Counters{Reset: 3, Restart: 1}, Clock: 1000, Profiles: []proof.ProfileRef{w.profile}, Status: proof.Affirming, Release: public,
		IssuedAt: 1_800_000_000, Expires: 1_800_000_180, NextCheck: 1_800_000_060}
	text, err := proof.SignVerdict(&w.verdict, w.signing)
	if err != nil {
		w.t.Fatal(err)
	}
	v := w.verdict
	w.epoch = &Epoch{Verdict: &v, Text: text, Keys: w.keys, Digest: proof.VerdictDigest(text), AK: ak, AKPublic: []byte("ak"), SPKI: proof.Digest{5},
		Sent: w.boot - time.Second, PCRs: values, Counters: v.Counters}
}

// restart makes a launcher from the journal, as the daemon does when it starts.
func (w *world) restart() {
	w.t.Helper()
	w.mu.Lock()
	w.clear()
	var found []*Entry
	for _, b := range w.entries {
		e := &Entry{}
		if err := json.Unmarshal(b, e); err != nil {
			w.t.Fatal(err)
		}
		found = append(found, e)
	}
	w.expected = map[[32]byte]bool{}
	w.mu.Unlock()
	book, err := NewBook(w, func() time.Time { return time.Unix(1_800_000_100, 0) }, nil, found)
	if err != nil {
		w.t.Fatal(err)
	}
	w.l = &Launcher{Verifier: w, Epochs: w, Chip: w, Virt: w, Images: w, Hook: fakeHook{w}, Secrets: fakeSecrets{w}, Keys: fakeKeys{w}, Saves: w, Emulators: w, Book: book, Clock: fakeClock{w},
		Log: slog.New(slog.DiscardHandler), Sign: w.sign, Cleanup: 5 * time.Second}
	w.l.Start()
}

// clear ends all faults. The caller holds mu.
func (w *world) clear() {
	w.calls, w.count, w.fault, w.after, w.dead, w.struck, w.strike = nil, map[string]int{}, "", false, false, false, nil
}

func (w *world) heal() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.clear()
}

// call is one call of the launcher to the world.
func (w *world) call(name string, do func() error) error {
	if w.around != nil {
		return w.around(name, do)
	}
	w.mu.Lock()
	at := fmt.Sprintf("%s#%d", name, w.count[name])
	w.count[name]++
	w.calls = append(w.calls, at)
	first := at == w.fault
	dead := w.dead && w.struck
	if first {
		w.struck = true
	}
	strike, after := w.strike, w.after
	w.mu.Unlock()
	switch {
	case first && strike != nil:
		strike()
		return do()
	case first && after:
		if err := do(); err != nil {
			return err
		}
		return fmt.Errorf("%s: %w", name, errFault)
	case first, dead:
		return fmt.Errorf("%s: %w", name, errFault)
	}
	return do()
}

func (w *world) failAt(call string, after, dead bool) {
	w.heal()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.fault, w.after, w.dead = call, after, dead
}

func (w *world) Append(e *Entry) error {
	return w.call("journal "+e.What, func() error {
		b, err := json.Marshal(e)
		if err != nil {
			return err
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		w.entries = append(w.entries, b)
		return nil
	})
}

func (w *world) Hold(context.Context) (*Epoch, func(), error) {
	if w.heldBack != nil {
		return nil, nil, w.heldBack
	}
	return w.epoch, func() {}, nil
}

func (w *world) Proven() time.Duration { return w.epoch.Sent + w.epoch.Lifetime() }

func (w *world) Renew(context.Context) error {
	if w.renewed != nil {
		return w.renewed(w)
	}
	w.attest()
	return nil
}

func (w *world) Unseal(context.Context) (seed []byte, err error) {
	if w.beforeUnseal != nil {
		w.beforeUnseal()
	}
	err = w.call("unseal", func() error {
		w.unseals++
		seed = bytes.Clone(w.seed)
		return nil
	})
	return seed, err
}

func (w *world) Quote(_ context.Context, _ pcr.Selection, extra []byte) (q tpm.Quote, err error) {
	if w.beforeQuote != nil {
		w.beforeQuote()
	}
	err = w.call("quote", func() error {
		w.quotes++
		q = tpm.Quote{Message: bytes.Clone(extra), Signature: make([]byte, 64)}
		return nil
	})
	return q, err
}

// Release is the verifier: chains as chain.go of package verifier has them, as far as launches see them.
func (w *world) Release(ctx context.Context, text string, statement []byte) (out Release, err error) {
	if w.late {
		w.arrives = func() error { _, err := w.Release(ctx, text, statement); return err }
		return out, proof.Refuse(proof.VerifierUnreachable, "no verifier answers")
	}
	defer w.released.Add(1)
	err = w.call("release", func() error {
		w.mu.Lock()
		defer w.mu.Unlock()
		sealed, err := proof.ParseToken(text)
		if err != nil {
			return proof.Refuse(proof.TokenInvalid, err.Error())
		}
		token, err := sealed.Open(w.tokenKey)
		if err != nil {
			return proof.Refuse(proof.TokenInvalid, err.Error())
		}
		s, err := proof.ParseStatement(statement)
		if err != nil {
			return err
		}
		if s.Verdict != w.epoch.Digest {
			return proof.Refuse(proof.VerdictStale, "this verdict is not the newest one")
		}
		c := w.chains[sealed.Digest()]
		if c == nil {
			c = &fakeChain{state: "free"}
			w.chains[sealed.Digest()] = c
		}
		link := proof.Link(statement)
		switch {
		case c.state == "reserved" && c.link == link:
			out = c.answer
			return nil
		case c.state == "reserved" || c.state == "open" || c.state == "broken":
			return proof.Refuse(proof.TokenUsed, "another launch holds the token", proof.Fact{Name: "present link", Value: c.link.String()})
		case (c.state == "saved") != (s.Action == proof.ActionRestore):
			return proof.Refuse(proof.TokenUsed, "the chain does not allow "+s.Action+" now")
		case c.state == "saved" && *s.SavedImage != c.image:
			return proof.Refuse(proof.ImageChanged, "the save image is not the one that was saved")
		case s.Attempt <= c.aborted:
			return proof.Refuse(proof.TokenUsed, "this attempt was aborted")
		case text2(s.Previous) != text2(c.head):
			return proof.Refuse(proof.TokenUsed, "the statement does not follow", proof.Fact{Name: "previous", Want: text2(c.head), Got: text2(s.Previous)})
		}
		if token.Pins != nil {
			if r := token.Pins.Judge(s); r != nil {
				return r
			}
		}
		r := &proof.Receipt{Issuer: "auditor", IssuedAt: 1_800_000_010, Token: sealed.Digest(), Statement: link, Verdict: s.Verdict, Link: c.number + 1,
			Previous: c.head, Attempt: s.Attempt, Policy: token.Policy()}
		if w.receipt != nil {
			w.receipt(r)
		}
		jws, err := proof.SignReceipt(r, w.signing)
		if err != nil {
			return err
		}
		box, err := proof.SealRelease(w.verdict.Release, proof.ReceiptDigest(jws), proof.Released{Nonce: token.Nonce, Secret: token.Secret, GuestAllowed: token.GuestAllowed()})
		if err != nil {
			return err
		}
		c.was, c.held = c.state, c.attempt
		c.state, c.link, c.attempt, c.answer = "reserved", link, s.Attempt, Release{jws, box}
		out = c.answer
		return nil
	})
	return out, err
}

func text2(d *proof.Digest) string {
	if d == nil {
		return "none"
	}
	return d.String()
}

func (w *world) Report(_ context.Context, e ChainEvent) error {
	return w.call("report "+e.Event, func() error {
		w.mu.Lock()
		defer w.mu.Unlock()
		c := w.chains[e.Token]
		if c == nil || c.link != e.Link || c.attempt != e.Attempt {
			if c != nil && e.Event == EventAborted && c.aborted >= e.Attempt {
				return nil
			}
			return proof.Refuse(proof.TokenUsed, "this is not the chain's present link")
		}
		switch e.Event {
		case EventOpen:
			link := c.link
			c.state, c.head, c.number, c.aborted = "open", &link, c.number+1, 0
		case EventSaved:
			c.state, c.image = "saved", e.Image
		case EventClosed:
			if c.state == "reserved" { // it ran, though nobody said that it opened
				link := c.link
				c.head, c.number, c.aborted = &link, c.number+1, 0
			}
			c.state = "closed"
		case EventBroken:
			c.state = "broken"
		case EventAborted:
			if c.state == "reserved" {
				c.state, c.aborted = c.was, c.attempt
				if c.was == "saved" {
					c.link, c.attempt = *c.head, c.held
				}
			}
		}
		return nil
	})
}
