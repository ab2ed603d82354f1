package verifier

import (
	"slices"

	"troth/proof"
	"troth/tpm"
)

// ChainState is where the chain of a token stands.
type ChainState string

// The states of a chain:
//
//	free ──release──▶ reserved ──open, arrived──▶ open ──closed──▶ closed ──release──▶ reserved …
//	  ▲                  │ aborted: back to where it was       │ saved ▶ saved ──restore──▶ reserved
//	  └──────────────────┘                                     └ broken ▶ broken ──closed──▶ closed
const (
	Free     ChainState = "free"
	Reserved ChainState = "reserved"
	Open     ChainState = "open"
	Saved    ChainState = "saved"
	Closed   ChainState = "closed"
	Broken   ChainState = "broken"
)

// Place is a position in a chain.
type Place struct {
	State   ChainState    `json:"state"`
	Host    tpm.Name      `json:"host,omitzero"` // who holds it; zero while free
	Link    *proof.Digest `json:"link,omitempty"`
	Number  uint32        `json:"number"` // of the link, from 1; 0: no link yet
	Attempt uint32        `json:"attempt"`
	Action  string        `json:"action,omitempty"`
	Image   *proof.Digest `json:"image,omitempty"` // saved only: of the save image
}

// Chain is the whole of what the verifier remembers of a token. It holds no nonce.
type Chain struct {
	Token   proof.Digest `json:"token"`
	TokenID string       `json:"token_id"`
	UUID    string       `json:"uuid,omitempty"` // the one domain, from the first release on
	Place
	Back    *Place         `json:"back,omitempty"`    // where an abort of the reserved link returns to
	Aborted *Place         `json:"aborted,omitempty"` // the last aborted link: its host needs a higher attempt
	Past    []proof.Digest `json:"past,omitempty"`    // links before this one, newest last, at most maxPast
	Receipt string         `json:"receipt,omitempty"` // the answer to Link, for who asks again
	Sealed  proof.Bytes    `json:"sealed,omitempty"`
	Events  uint32         `json:"events"`
}

// maxPast bounds how many old links are remembered to be refused by name; the previous link orders all of them.
const maxPast = 64

// Want is the link that a release asks for.
type Want struct {
	Host      tpm.Name
	Link      proof.Digest
	Statement *proof.Statement
	Policy    proof.Policy
	Consented error // nil: the present host agreed that this link's host takes over
}

// Repeats reports whether the chain already stands at this very link of this very host: the same answer is due.
func (c *Chain) Repeats(w Want) bool {
	return (c.State == Reserved || c.State == Open) && c.Host == w.Host && c.Link != nil && *c.Link == w.Link && c.Receipt != ""
}

func used(sentence string, c *Chain, facts ...proof.Fact) *proof.Refusal {
	facts = append(facts, proof.Fact{Name: "chain", Value: string(c.State)})
	if c.Link != nil {
		facts = append(facts, proof.Fact{Name: "present host", Value: c.Host.String()}, proof.Fact{Name: "present link", Value: c.Link.String()})
	}
	return proof.Refuse(proof.TokenUsed, sentence, facts...)
}

// chainCheck is one rule of the next link; the table in chain_test.go makes each necessary.
type chainCheck struct {
	Name string
	Run  func(*Chain, Want) *proof.Refusal
}

var chainChecks = []chainCheck{
	{"domain", func(c *Chain, w Want) *proof.Refusal { // a token is bound to one domain by its first release (S-REUSE)
		if c.UUID != "" && c.UUID != w.Statement.UUID {
			return proof.Refuse(proof.TokenConstraint, "the token is bound to another domain", proof.Fact{Name: "domain", Want: c.UUID, Got: w.Statement.UUID})
		}
		return nil
	}},
	{"past", func(c *Chain, w Want) *proof.Refusal { // an old statement gets no second answer
		if slices.Contains(c.Past, w.Link) || c.Aborted != nil && c.Aborted.Link != nil && *c.Aborted.Link == w.Link {
			return used("this statement's link is over", c, proof.Fact{Name: "link", Got: w.Link.String()})
		}
		return nil
	}},
	{"attempt", func(c *Chain, w Want) *proof.Refusal {
		if a := c.Aborted; a != nil && a.Host == w.Host && a.Number == c.Number+1 && w.Statement.Attempt <= a.Attempt {
			return used("this attempt was aborted; the next one has a higher number", c, proof.Fact{Name: "attempt", Want: "above " + itoa(a.Attempt), Got: itoa(w.Statement.Attempt)})
		}
		return nil
	}},
	{"state", checkChainState},
	{"previous", func(c *Chain, w Want) *proof.Refusal {
		want, got := digestText(c.head()), digestText(w.Statement.Previous)
		if want != got {
			return proof.Refuse(proof.TokenUsed, "the statement does not follow the chain's last link", proof.Fact{Name: "previous", Want: want, Got: got})
		}
		return nil
	}},
	{"migration", func(c *Chain, w Want) *proof.Refusal {
		moves := w.Statement.Action == proof.ActionMigrateIn || w.Statement.Action == proof.ActionMigrateOut
		if moves && w.Policy.Migration != proof.MigrationAllow {
			return proof.Refuse(proof.TokenConstraint, "the token does not allow migration", proof.Fact{Name: "migration", Want: proof.MigrationAllow, Got: w.Policy.Migration})
		}
		return nil
	}},
	{"saves", func(c *Chain, w Want) *proof.Refusal {
		if w.Statement.Action == proof.ActionRestore && w.Policy.Saves != proof.SavesAllow {
			return proof.Refuse(proof.TokenConstraint, "the token does not allow the guest to be saved", proof.Fact{Name: "saves", Want: proof.SavesAllow, Got: "no"})
		}
		return nil
	}},
	{"saved-image", func(c *Chain, w Want) *proof.Refusal { // one image only goes on: the one that this host said when it saved
		if w.Statement.Action != proof.ActionRestore {
			return nil
		}
		if want, got := digestText(c.savedImage()), digestText(w.Statement.SavedImage); want != got || got == "none" {
			return proof.Refuse(proof.ImageChanged, "the save image is not the one that was saved", proof.Fact{Name: "saved image", Want: want, Got: got})
		}
		return nil
	}},
	{"consent", func(c *Chain, w Want) *proof.Refusal {
		if w.Statement.Action == proof.ActionMigrateIn && w.Consented != nil {
			return proof.Refuse(proof.DestinationUnproven, "the present host has not agreed: "+w.Consented.Error(), proof.Fact{Name: "consent", Want: "of the present host", Got: w.Consented.Error()})
		}
		return nil
	}},
}

func digestText(d *proof.Digest) string {
	if d == nil {
		return "none"
	}
	return d.String()
}

// head is the link that the next statement names as its previous one: the reserved one is not yet a link of the chain, unless
// the token lets any host start at any time.
func (c *Chain) head() *proof.Digest {
	if c.State == Reserved && c.Back != nil {
		return c.Back.Link
	}
	return c.Link
}

// savedImage is the digest of the image that may be restored; nil: there is none.
func (c *Chain) savedImage() *proof.Digest {
	if c.State != Saved {
		return nil
	}
	return c.Image
}

func checkChainState(c *Chain, w Want) *proof.Refusal {
	mine := c.Host == w.Host
	switch w.Statement.Action {
	case proof.ActionStart:
		switch {
		case c.State == Free:
			return nil
		case w.Policy.Restarts == proof.RestartsNone && c.Number > 0:
			return used("the token allows one launch in all", c)
		case c.State == Closed:
			return nil
		case w.Policy.Restarts == proof.RestartsAny:
			return nil
		case c.State == Reserved && mine:
			return used("an attempt of this host is under way; it has to be aborted first", c)
		}
		return used("another launch holds the token; it has to be closed first", c)
	case proof.ActionRecover: // the same host, after a crash of its own
		if mine && (c.State == Open || c.State == Broken) {
			return nil
		}
	case proof.ActionRestore:
		if mine && c.State == Saved { // another host's image is nobody's (M-SAVECOPY)
			return nil
		}
	case proof.ActionMigrateOut:
		if mine && c.State == Open {
			return nil
		}
	case proof.ActionMigrateIn:
		if !mine && c.State == Open && c.Action == proof.ActionMigrateOut {
			return nil
		}
	}
	return used("the chain does not allow "+w.Statement.Action+" now", c)
}

// Next judges the link that is asked for and returns the chain that has it reserved. c is not changed.
func (c *Chain) Next(w Want) (*Chain, *proof.Refusal) {
	return c.next(w, chainChecks)
}

func (c *Chain) next(w Want, checks []chainCheck) (*Chain, *proof.Refusal) {
	for _, check := range checks {
		if r := check.Run(c, w); r != nil {
			return nil, r
		}
	}
	n := *c
	back := c.Place
	if c.State == Reserved && c.Back != nil { // restarts: any, over a link that never opened
		back = *c.Back
	}
	n.Back = &back
	n.UUID = w.Statement.UUID
	link := w.Link
	n.Place = Place{State: Reserved, Host: w.Host, Link: &link, Number: back.Number + 1, Attempt: w.Statement.Attempt, Action: w.Statement.Action}
	n.Receipt, n.Sealed = "", nil
	return &n, nil
}

// Event is what a host reports of its link.
type Event struct {
	Token   proof.Digest  `json:"token"`
	Link    proof.Digest  `json:"link"`
	Event   string        `json:"event"`
	Attempt uint32        `json:"attempt"`
	Detail  string        `json:"detail,omitempty"`
	Image   *proof.Digest `json:"image,omitempty"` // saved only
}

// Events that a host reports.
const (
	EventOpen    = "open"
	EventArrived = "arrived"
	EventAborted = "aborted"
	EventSaved   = "saved"
	EventClosed  = "closed"
	EventBroken  = "broken"
)

// After returns the chain after an event of the host that holds it; repeated says that it had happened before and changes nothing.
func (c *Chain) After(host tpm.Name, e Event) (n *Chain, repeated bool, r *proof.Refusal) {
	if e.Event == EventAborted && c.Aborted != nil && c.Aborted.Host == host && c.Aborted.Link != nil && *c.Aborted.Link == e.Link && c.Aborted.Attempt == e.Attempt {
		return c, true, nil
	}
	if c.Host != host || c.Link == nil || *c.Link != e.Link || c.Attempt != e.Attempt {
		return nil, false, used("this is not the chain's present link", c, proof.Fact{Name: "link", Want: digestText(c.Link), Got: e.Link.String()},
			proof.Fact{Name: "attempt", Want: itoa(c.Attempt), Got: itoa(e.Attempt)})
	}
	if (e.Event == EventSaved) != (e.Image != nil) {
		return nil, false, proof.Refuse(proof.RequestInvalid, "saved has the save image's digest, and no other event has one", proof.Fact{Name: "image", Got: digestText(e.Image)})
	}
	next := *c
	arrives := c.Action == proof.ActionMigrateIn
	allowed := true
	switch e.Event {
	case EventOpen:
		// A migrated domain counts only once its RAM has arrived.
		if repeated = c.State == Open; !repeated {
			allowed = c.State == Reserved && !arrives
			next.open()
		}
	case EventArrived:
		if repeated = c.State == Open; !repeated || !arrives {
			allowed = c.State == Reserved && arrives
			next.open()
		}
	case EventAborted:
		allowed = c.State == Reserved && c.Back != nil
		if allowed {
			gone := c.Place
			next.Aborted, next.Place, next.Back, next.Receipt, next.Sealed = &gone, *c.Back, nil, "", nil
			if next.State == Free {
				next.UUID = "" // nothing ever ran
			}
		}
	case EventSaved:
		repeated, allowed = c.State == Saved && *c.Image == *e.Image, c.State == Open
		next.State, next.Image = Saved, e.Image
	case EventBroken:
		repeated, allowed = c.State == Broken, c.State == Open || c.State == Reserved
		next.State = Broken
	case EventClosed:
		repeated, allowed = c.State == Closed, c.State == Open || c.State == Broken || c.State == Saved || c.State == Reserved && !arrives
		next.State, next.Image = Closed, nil
	default:
		return nil, false, proof.Refuse(proof.RequestInvalid, "there is no such event",
			proof.Fact{Name: "event", Want: "open, arrived, aborted, saved, closed or broken", Got: cut(e.Event, 40)})
	}
	if repeated {
		return c, true, nil
	}
	if !allowed {
		return nil, false, used("the chain does not allow "+e.Event+" now", c)
	}
	if next.State == Closed || next.State == Saved || next.State == Broken {
		if c.State == Reserved { // it ran, though nobody reported that it opened
			state := next.State
			next.open()
			next.State = state
		}
		next.Receipt, next.Sealed, next.Back = "", nil, nil
	}
	return &next, false, nil
}

// open makes the reserved link the chain's own; the one before it is past and, after a migration, closed by this.
func (c *Chain) open() {
	c.State, c.Aborted = Open, nil
	if c.Back != nil && c.Back.Link != nil {
		c.Past = append(slices.Clone(c.Past), *c.Back.Link)
		if len(c.Past) > maxPast {
			c.Past = c.Past[len(c.Past)-maxPast:]
		}
	}
	c.Back = nil
}
