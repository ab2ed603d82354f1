package launcher

import (
	"fmt"
	"slices"
	"sync"
	"time"

	"troth/proof"
)

// States of a domain.
const (
	StateArmed     = "armed" // defined, never started
	StateLaunching = "launching"
	StateProved    = "proved"
	StateBroken    = "broken" // it was proved, and is not what was proved any more, until it is stopped
	StateStopped   = "stopped"
	StateSaved     = "saved" // the guest's memory is in a file, from which it can go on
	StateRefused   = "refused"
)

// maxHistory bounds what is kept of a domain's past, and maxEnded how many ended launches are kept.
const (
	maxHistory = 32
	maxEnded   = 1024
	maxDomains = 4096
)

// Domain is what the book knows of one domain. Values that readers get are copies.
type Domain struct {
	UUID, Name    string
	State         string
	Registered    bool // belongs to hostd: in the registry that hooks read
	Armed         bool // any libvirt client may start it, with the token below
	Defined       bool // libvirt has had the definition of the armed domain
	Launch        string
	Since         int64
	TokenText     string
	Token         proof.Digest
	Configuration proof.Digest
	Request       []byte
	Link          *proof.Digest // of the newest proved launch
	Attempt       uint32        // of that link
	Proof         []byte        // of the newest proved launch
	Grant         *Grant        // of the newest proved launch: what was compared when it was proved
	Report        []byte        // signed, when the newest proved launch was broken
	Saved         *proof.Digest // of the save image; nil: there is none
	Volumes       []Volume
	Refusal       *proof.Refusal // of the newest launch that was refused, or why the guest is gone
	History       []Entry        // newest last; without bulk
}

// Record is what the book knows of one launch.
type Record struct {
	Launch, UUID, Asked string
	Reached             string // the newest of the Wrote constants
	Granted             bool   // libvirt may have heard of it
	Mode                string // proof.ModeHook: another libvirt client started it; empty: we did
	TokenText           string
	Token, Link         proof.Digest
	Configuration       proof.Digest
	Request             []byte
	Attempt             uint32
	Image               *proof.Digest // of the save image, of a restore
	Previous            []byte
	Proof               []byte
	Grant               *Grant
	Refusal             *proof.Refusal
	At                  int64
}

// usedUp says that the guest of a restore may have run: its image is not gone on from a second time.
func (r *Record) usedUp() bool { return r.Image != nil && r.Proof != nil }

// Ended says that nothing is left to do for the launch.
func (r *Record) Ended() bool { return r.Reached == WroteRunning || r.Reached == WroteRefused }

// chain is where a token's chain stands as far as this host moved it.
type chain struct {
	head    *proof.Digest // newest link of ours that was opened
	attempt uint32        // attempts used for the next link
}

// unmoved says that nothing is known of the chain: it need not be kept.
func (c *chain) unmoved() bool { return c.head == nil && c.attempt == 0 }

// Book is the state that the journal's entries make. Replaying the journal and normal operation go through the same apply,
// so that recovery is not a second program.
type Book struct {
	Shorter Shorter // nil: the journal grows; set before the first Write

	journal Journal
	now     func() time.Time
	changed func() // after every entry; may be nil

	mu       sync.Mutex
	domains  map[string]*Domain
	launches map[string]*Record
	ended    []string
	chains   map[proof.Digest]*chain
	owed     []ChainEvent
	taking   map[string][]Volume // by domain, what is just being written as its own

	writing sync.RWMutex      // held by those who write, and for itself by who makes the journal shorter
	lanes   [lanes]sync.Mutex // who writes of a domain, from the check of its entry until the book has it
	late    int
}

// NewBook replays the entries that were found in the journal.
func NewBook(j Journal, now func() time.Time, changed func(), found []*Entry) (*Book, error) {
	b := &Book{journal: j, now: now, changed: changed, domains: map[string]*Domain{}, launches: map[string]*Record{}, chains: map[proof.Digest]*chain{}}
	gone := map[string]bool{}
	for i, e := range found {
		if e.What == WroteStray && gone[e.UUID] && b.domains[e.UUID] == nil {
			b.late++ // until Write kept their order, a stray could get behind the end of its domain
			continue
		}
		e.Refusal = brief(e.Refusal)
		if err := b.apply(e); err != nil {
			return nil, fmt.Errorf("cannot replay entry %d of the journal: %w", i, err)
		}
		if e.What == WroteForgotten {
			gone[e.UUID] = true
		}
	}
	return b, nil
}

// check says why an entry means nothing to the book as it is. Write asks it before it appends, so that what is in the journal can be replayed.
func (b *Book) check(e *Entry) error {
	switch e.What {
	case WroteSnapshot:
		return nil // restore looks
	case WroteEvent:
		if e.Event == nil {
			return fmt.Errorf("%s without an event", e.What)
		}
		return nil
	case WroteTold:
		if e.Event == nil || !slices.Contains(b.owed, *e.Event) {
			return fmt.Errorf("%s, but nothing like it was owed", e.What)
		}
		return nil
	}
	if b.domains[e.UUID] == nil && (e.UUID == "" || !slices.Contains([]string{WroteIntent, WroteRefused, WroteArmed}, e.What)) {
		return fmt.Errorf("%s of an %w %q", e.What, errUnknown, e.UUID)
	}
	switch e.What {
	case WroteArmed:
		if e.Token == nil || e.Configuration == nil || e.TokenText == "" || len(e.Request) == 0 {
			return fmt.Errorf("%s without token or request", e.What)
		}
		return nil
	case WroteDefined, WroteDisarmed, WroteIntent, WroteRefused:
		return nil
	}
	if b.launches[e.Launch] == nil && !ofDomain(e.What) {
		return fmt.Errorf("%s of an unknown launch %q", e.What, e.Launch)
	}
	return nil
}

// apply is the whole meaning of the journal.
func (b *Book) apply(e *Entry) error {
	if err := b.check(e); err != nil {
		return err
	}
	switch e.What {
	case WroteSnapshot:
		return b.restore(e.Snapshot)
	case WroteEvent:
		b.moved(*e.Event)
		b.owed = append(b.owed, *e.Event)
		return nil
	case WroteTold:
		at := slices.Index(b.owed, *e.Event)
		b.owed = slices.Delete(b.owed, at, at+1)
		return nil
	}
	d := b.domains[e.UUID]
	if d == nil {
		d = &Domain{UUID: e.UUID}
		b.domains[e.UUID] = d
	}
	switch e.What {
	case WroteArmed:
		d.arm(e)
		return nil
	case WroteDefined:
		d.Defined = true
		return nil
	case WroteDisarmed:
		d.disarm(e)
		return nil
	}
	r := b.launches[e.Launch]
	if r == nil {
		r = &Record{Launch: e.Launch, UUID: e.UUID, Asked: e.Asked, At: e.At}
		if e.Launch != "" && (e.What == WroteIntent || e.What == WroteRefused) {
			b.launches[e.Launch] = r
		}
	}
	b.applyLaunch(e, d, r)
	return nil
}

// ofDomain says that an entry tells of a domain whose launch ended long ago, and may be forgotten.
func ofDomain(what string) bool {
	switch what {
	case WroteSaved, WroteStopped, WroteBroken, WroteStray, WroteForgotten:
		return true
	}
	return false
}

func (b *Book) applyLaunch(e *Entry, d *Domain, r *Record) {
	switch e.What {
	case WroteIntent:
		r.Token, r.Link, r.Attempt, r.TokenText, r.Configuration, r.Request = *e.Token, *e.Link, e.Attempt, e.TokenText, *e.Configuration, e.Request
		r.Image = e.Image
		d.Name, d.State, d.Launch, d.Refusal = e.Name, StateLaunching, e.Launch, nil
		b.chain(*e.Token).attempt = e.Attempt
	case WroteGranted:
		r.Granted, r.Mode, r.Previous, d.Registered, d.Volumes = true, e.Mode, e.Previous, true, e.Volumes
	case WroteProved:
		// The domain keeps the proof that it had until this one is worth something: a launch may be undone from here too.
		r.Proof, r.Grant = e.Proof, e.Grant
	case WroteRunning:
		link := r.Link
		d.State, d.Proof, d.Link, d.Attempt, d.Grant, d.Report = StateProved, r.Proof, &link, r.Attempt, r.Grant, nil
		d.TokenText, d.Token, d.Configuration, d.Request = r.TokenText, r.Token, r.Configuration, r.Request
		d.Saved = nil // used up, or not what this guest goes on from
		b.end(r)
	case WroteFailed:
		r.Refusal = e.Refusal
	case WroteRefused:
		b.refused(e, d, r)
	case WroteSaved:
		d.State, d.Refusal, d.Saved = StateSaved, nil, e.Image
	case WroteStopped:
		d.State, d.Refusal, d.Saved = StateStopped, e.Refusal, nil
	case WroteBroken:
		d.State, d.Refusal, d.Report = StateBroken, e.Refusal, e.Report
	case WroteStray: // told in the history; it says nothing of what the book knows to run
	case WroteForgotten:
		delete(b.domains, e.UUID)
		return
	}
	if !ofDomain(e.What) {
		r.Reached = e.What
	}
	d.remember(e)
}

// remember keeps an entry in the domain's past, without bulk.
func (d *Domain) remember(e *Entry) {
	d.Since = e.At
	past := Entry{What: e.What, At: e.At, Launch: e.Launch, Refusal: e.Refusal}
	if d.History = append(d.History, past); len(d.History) > maxHistory {
		d.History = d.History[1:]
	}
}

// disarm takes back what arm did to a domain that could not be defined.
func (d *Domain) disarm(e *Entry) {
	d.Armed, d.Defined, d.Refusal = false, false, e.Refusal
	if d.State == StateArmed {
		d.State = StateRefused
	}
	if d.Proof == nil {
		d.Registered, d.Volumes = false, nil
	}
	d.remember(e)
}

// arm notes what any libvirt client may start from now on, and with which token.
func (d *Domain) arm(e *Entry) {
	d.Name, d.Registered, d.Armed, d.Defined, d.Refusal, d.Volumes = e.Name, true, true, false, nil, e.Volumes
	d.TokenText, d.Token, d.Configuration, d.Request = e.TokenText, *e.Token, *e.Configuration, e.Request
	if d.State == "" || d.State == StateRefused {
		d.State = StateArmed
	}
	d.remember(e)
}

// refused ends a launch. One that was refused before it meant anything to the chain changes nothing of a domain that was there before.
func (b *Book) refused(e *Entry, d *Domain, r *Record) {
	r.Refusal, d.Refusal = e.Refusal, e.Refusal
	if r.Reached == "" && d.State != "" {
		b.end(r)
		return
	}
	d.State, d.Launch = StateRefused, e.Launch
	switch {
	case d.Saved == nil:
	case e.Used:
		d.Saved = nil
	default:
		d.State = StateSaved // nothing of the image was used
	}
	if e.Name != "" {
		d.Name = e.Name
	}
	r.Proof, r.Grant = nil, nil // it was never handed out
	if d.Proof == nil && !d.Armed {
		d.Registered, d.Volumes = false, nil
	}
	if c := b.chains[r.Token]; c != nil && e.Unmoved && c.attempt == r.Attempt {
		if c.attempt--; c.unmoved() {
			delete(b.chains, r.Token)
		}
	}
	b.end(r)
}

// end keeps the newest ended launches and forgets older ones.
func (b *Book) end(r *Record) {
	r.Previous, r.Request = nil, nil
	b.ended = append(b.ended, r.Launch)
	if len(b.ended) > maxEnded {
		delete(b.launches, b.ended[0])
		b.ended = b.ended[1:]
	}
}

func (b *Book) chain(token proof.Digest) *chain {
	c := b.chains[token]
	if c == nil {
		c = &chain{}
		b.chains[token] = c
	}
	return c
}

func (b *Book) moved(e ChainEvent) {
	if e.Event == EventClosed {
		// A saved guest whose link is closed is given up: nothing goes on from its image, also if we crash before that is noted by itself.
		for _, d := range b.domains {
			if d.State == StateSaved && *d.Link == e.Link {
				d.State, d.Saved = StateStopped, nil
			}
		}
	}
	if e.Event == EventOpen {
		link := e.Link
		*b.chain(e.Token) = chain{head: &link}
	}
}

// opened says whether the newest link of the token that was said to be open is this one.
func (b *Book) opened(token, link proof.Digest) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	c := b.chains[token]
	return c != nil && c.head != nil && *c.head == link
}
