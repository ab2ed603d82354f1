package verifier

import (
	"errors"
	"slices"
	"testing"

	"troth/proof"
	"troth/tpm"
)

// attackChain: answers lost, crashes, two hosts at once, a migration that the source never wanted.
func attackChain(t *testing.T) {
	w, h, other := newWorld(t), newHost(t, 1), newHost(t, 2)
	w.good(h)
	v2 := w.good(other)
	v := w.mustAttest(h) // the profile changed with the second import
	a := w.newAsk(h, v, nil)
	first := must[*Release](t)(w.releaseTo(h, a, nil))
	// The answer was lost: the same statement gets the same answer, also after a crash of the verifier.
	check(t, w.flush(t.Context()))
	w.open()
	again := must[*Release](t)(w.releaseTo(h, a, nil))
	if again.Receipt != first.Receipt || string(again.Sealed) != string(first.Sealed) {
		t.Fatal("another answer to the same statement")
	}
	r := must[*proof.Receipt](t)(proof.ParseReceipt(first.Receipt, w.keys.Load().Public))
	if r.Statement != a.link(t) || r.Link != 1 || r.Previous != nil || r.Attempt != 1 {
		t.Fatalf("%+v", r)
	}
	// Another host, another attempt of this one: not before `aborted`.
	b := w.newAsk(other, v2, nil)
	b.text, b.statement.Token = a.text, a.statement.Token
	_, err := w.releaseTo(other, b, nil)
	refused(t, err, proof.TokenUsed, "present host")
	retry := *a
	s := *a.statement
	s.Attempt, s.Blinder, retry.statement = 2, proof.NewBlinder(), &s
	_, err = w.releaseTo(h, &retry, nil)
	refused(t, err, proof.TokenUsed, "chain")
	refused(t, w.event(other, a, EventAborted), proof.TokenUsed, "link") // another host's word counts for nothing
	check(t, w.event(h, a, EventAborted))
	check(t, w.event(h, a, EventAborted)) // told twice
	_, err = w.releaseTo(h, a, nil)       // the aborted statement gets no second life
	refused(t, err, proof.TokenUsed, "")
	must[*Release](t)(w.releaseTo(h, &retry, nil))
	check(t, w.event(h, &retry, EventOpen))
	// A migrate-in that the source never wanted, then one that it consents to.
	in := *b
	si := *b.statement
	link := retry.link(t)
	si.Action, si.Previous, in.statement = proof.ActionMigrateIn, &link, &si
	_, err = w.releaseTo(other, &in, nil)
	refused(t, err, proof.TokenUsed, "chain")
	out := retry
	so := *retry.statement
	so.Action, so.Previous, so.Attempt, out.statement = proof.ActionMigrateOut, &link, 1, &so
	must[*Release](t)(w.releaseTo(h, &out, nil))
	check(t, w.event(h, &out, EventOpen))
	outLink := out.link(t)
	si.Previous = &outLink
	_, err = w.releaseTo(other, &in, nil)
	refused(t, err, proof.DestinationUnproven, "consent")
	_, err = w.releaseTo(other, &in, proof.NewConsent(proof.RandomSecret(32), v2.Verdict.Host, outLink))
	refused(t, err, proof.DestinationUnproven, "consent")
	_, err = w.releaseTo(other, &in, proof.NewConsent(a.key.Nonce, v.Verdict.Host, outLink))
	refused(t, err, proof.DestinationUnproven, "consent")
	must[*Release](t)(w.releaseTo(other, &in, proof.NewConsent(a.key.Nonce, v2.Verdict.Host, outLink)))
	// A failed migration: `open` is not `arrived`, and an abort leaves the chain with the source.
	refused(t, w.event(other, &in, EventOpen), proof.TokenUsed, "chain")
	check(t, w.event(other, &in, EventAborted))
	if c := must[*ChainView](t)(w.Chain(t.Context(), a.statement.Token)); c.State != Open || c.HostName != h.name || c.Revoked {
		t.Fatalf("%+v", c)
	}
	si.Attempt = 2
	must[*Release](t)(w.releaseTo(other, &in, proof.NewConsent(a.key.Nonce, v2.Verdict.Host, outLink)))
	check(t, w.event(other, &in, EventArrived))
	refused(t, w.event(h, &out, EventClosed), proof.TokenUsed, "link") // the source's link is over
	check(t, w.event(other, &in, EventClosed))
	// Closed: a restart needs the last link as its previous one.
	inLink := in.link(t)
	_, err = w.releaseTo(h, func() *ask { x := *a; y := *a.statement; y.Blinder = proof.NewBlinder(); x.statement = &y; return &x }(), nil)
	refused(t, err, proof.TokenUsed, "previous")
	last := *a
	sl := *a.statement
	sl.Previous, sl.Blinder, last.statement = &inLink, proof.NewBlinder(), &sl
	must[*Release](t)(w.releaseTo(h, &last, nil))
	c := must[*ChainView](t)(w.Chain(t.Context(), a.statement.Token))
	if c.Number != 4 || c.State != Reserved || len(c.Records) < 10 {
		t.Fatalf("%+v", c)
	}
	must[*Host](t)(w.Revoke(t.Context(), h.name, "operator"))
	if c := must[*ChainView](t)(w.Chain(t.Context(), a.statement.Token)); !c.Revoked {
		t.Fatal("the holder was revoked and the chain does not say so")
	}
}

var (
	hostA, hostB = tpm.Name{0, 0x0B, 1}, tpm.Name{0, 0x0B, 2}
	linkA        = proof.Digest{0xA}
	imageA       = proof.Digest{0x1A}
)

func chainAt(state ChainState, action string) *Chain {
	c := &Chain{UUID: "u", Place: Place{State: state, Host: hostA, Link: &linkA, Number: 1, Attempt: 1, Action: action}}
	if state == Free {
		c = &Chain{Place: Place{State: Free}}
	}
	if state == Reserved {
		c.Back = &Place{State: Free}
	}
	if state == Saved {
		c.Image = &imageA
	}
	return c
}

func wantLink(host tpm.Name, action string, previous *proof.Digest) Want {
	w := Want{Host: host, Link: proof.Digest{0xB}, Statement: &proof.Statement{UUID: "u", Action: action, Attempt: 1, Previous: previous},
		Policy: proof.Policy{Migration: proof.MigrationAllow, Restarts: proof.RestartsClosedFirst, Saves: proof.SavesAllow}}
	if action == proof.ActionRestore {
		w.Statement.SavedImage = &imageA
	}
	return w
}

// TestChainStates is the whole table: which action is allowed to whom in which state.
func TestChainStates(t *testing.T) {
	allowed := map[string]bool{
		"free start": true, "closed start": true, "closed start other": true, "open recover": true, "broken recover": true,
		"saved restore": true, "open migrate-out": true, "open migrate-in other after migrate-out": true,
		"open recover after migrate-out": true, "open migrate-out after migrate-out": true,
	}
	for _, state := range []ChainState{Free, Reserved, Open, Saved, Closed, Broken} {
		for _, action := range []string{proof.ActionStart, proof.ActionRecover, proof.ActionRestore, proof.ActionMigrateOut, proof.ActionMigrateIn} {
			for _, who := range []tpm.Name{hostA, hostB} {
				for _, after := range []string{proof.ActionStart, proof.ActionMigrateOut} {
					c := chainAt(state, after)
					if state == Free {
						c.Host = hostA
					}
					name := string(state) + " " + action
					if who == hostB {
						name += " other"
					}
					key := name
					if after == proof.ActionMigrateOut && state == Open {
						key += " after migrate-out"
					}
					_, r := c.Next(wantLink(who, action, c.head()))
					if want := allowed[key] || state == Free && action == proof.ActionStart; (r == nil) != want {
						t.Errorf("%s: allowed %v, want %v: %v", key, r == nil, want, r)
					}
				}
			}
		}
	}
}

// TestEachChainCheckIsNecessary: without it the case passes.
func TestEachChainCheckIsNecessary(t *testing.T) {
	cases := map[string]struct {
		code  proof.Code
		chain *Chain
		want  Want
	}{
		"domain": {proof.TokenConstraint, chainAt(Closed, ""), func() Want { w := wantLink(hostA, "start", &linkA); w.Statement.UUID = "v"; return w }()},
		"past":   {proof.TokenUsed, func() *Chain { c := chainAt(Closed, ""); c.Past = []proof.Digest{{0xB}}; return c }(), wantLink(hostA, "start", &linkA)},
		"attempt": {proof.TokenUsed, func() *Chain {
			c := chainAt(Free, "")
			c.Aborted = &Place{Host: hostA, Number: 1, Attempt: 1}
			return c
		}(), wantLink(hostA, "start", nil)},
		"state":     {proof.TokenUsed, chainAt(Open, ""), wantLink(hostB, "start", &linkA)},
		"previous":  {proof.TokenUsed, chainAt(Closed, ""), wantLink(hostA, "start", nil)},
		"migration": {proof.TokenConstraint, chainAt(Open, ""), func() Want { w := wantLink(hostA, "migrate-out", &linkA); w.Policy.Migration = "deny"; return w }()},
		"saves":     {proof.TokenConstraint, chainAt(Saved, ""), func() Want { w := wantLink(hostA, "restore", &linkA); w.Policy.Saves = ""; return w }()},
		"saved-image": {proof.ImageChanged, chainAt(Saved, ""), func() Want {
			w := wantLink(hostA, "restore", &linkA)
			w.Statement.SavedImage = &proof.Digest{0x1B}
			return w
		}()},
		"consent": {proof.DestinationUnproven, chainAt(Open, "migrate-out"), func() Want {
			w := wantLink(hostB, "migrate-in", &linkA)
			w.Consented = errors.New("there is no consent")
			return w
		}()},
	}
	for _, x := range chainChecks {
		c, ok := cases[x.Name]
		if !ok {
			t.Errorf("no case for %s", x.Name)
			continue
		}
		_, r := c.chain.Next(c.want)
		refused(t, orNil(r), c.code, "")
		rest := slices.DeleteFunc(slices.Clone(chainChecks), func(y chainCheck) bool { return y.Name == x.Name })
		if _, r := c.chain.next(c.want, rest); r != nil {
			t.Errorf("%s is noticed by another: %v", x.Name, r)
		}
	}
}

// TestRestarts: what the tenant's policy says of another launch.
func TestRestarts(t *testing.T) {
	for _, c := range []struct {
		policy string
		state  ChainState
		host   tpm.Name
		want   bool
	}{
		{proof.RestartsNone, Free, hostA, true}, {proof.RestartsNone, Closed, hostA, false},
		{proof.RestartsClosedFirst, Closed, hostB, true}, {proof.RestartsClosedFirst, Open, hostA, false}, {proof.RestartsClosedFirst, Reserved, hostA, false},
		{proof.RestartsAny, Open, hostB, true}, {proof.RestartsAny, Reserved, hostB, true}, {proof.RestartsAny, Broken, hostB, true},
	} {
		chain := chainAt(c.state, "")
		w := wantLink(c.host, proof.ActionStart, chain.head())
		w.Policy.Restarts = c.policy
		n, r := chain.Next(w)
		if (r == nil) != c.want {
			t.Errorf("%s in %s: %v", c.policy, c.state, r)
		}
		if r == nil && c.state == Reserved && n.Number != 1 {
			t.Errorf("a link that never opened was counted: %+v", n)
		}
	}
}

// TestChainInvariants walks the chain through every order of events and checks what must hold after each step.
func TestChainInvariants(t *testing.T) {
	events := []string{EventOpen, EventArrived, EventAborted, EventSaved, EventClosed, EventBroken, "nonsense"}
	actions := []string{proof.ActionStart, proof.ActionRecover, proof.ActionRestore, proof.ActionMigrateOut, proof.ActionMigrateIn}
	seen := 0
	var walk func(c *Chain, depth int, n byte)
	walk = func(c *Chain, depth int, n byte) {
		seen++
		if (c.State == Free) != (c.Number == 0) && c.State != Reserved || (c.Link == nil) != (c.State == Free) {
			t.Fatalf("inconsistent: %+v", c)
		}
		if c.State == Reserved && (c.Back == nil || c.Number != c.Back.Number+1) {
			t.Fatalf("reserved without a way back: %+v", c)
		}
		if (c.State == Saved) != (c.Image != nil) {
			t.Fatalf("saved without an image, or the reverse: %+v", c)
		}
		if depth == 0 {
			return
		}
		for _, action := range actions {
			for _, h := range []tpm.Name{hostA, hostB} {
				w := wantLink(h, action, c.head())
				w.Link, w.Statement.Attempt = proof.Digest{n, byte(depth)}, uint32(n)+1
				if next, r := c.Next(w); r == nil {
					next.Receipt = "r"
					if !next.Repeats(w) || c.Repeats(w) {
						t.Fatalf("the answer is not found again: %+v", next)
					}
					walk(next, depth-1, n+1)
				}
			}
		}
		if c.Link == nil {
			return
		}
		for _, e := range events {
			for _, h := range []tpm.Name{hostA, hostB} {
				before := *c
				event := Event{Link: *c.Link, Attempt: c.Attempt, Event: e}
				if e == EventSaved {
					event.Image = &imageA
				}
				next, repeated, r := c.After(h, event)
				if c.Host != h && r == nil {
					t.Fatalf("%s by another host was taken: %+v", e, c)
				}
				if r == nil && !repeated {
					walk(next, depth-1, n+1)
				}
				if before.Place != c.Place {
					t.Fatal("a pure function changed its input")
				}
			}
		}
	}
	walk(&Chain{Place: Place{State: Free}}, 6, 0)
	if seen < 1000 {
		t.Fatalf("walked only %d chains", seen)
	}
}

// TestSavedImage: an image is said once, by the host that saved, and is used up by the restore that opened.
func TestSavedImage(t *testing.T) {
	open := chainAt(Open, "")
	say := func(c *Chain, event string, image *proof.Digest) (*Chain, bool, *proof.Refusal) {
		return c.After(hostA, Event{Link: *c.Link, Attempt: c.Attempt, Event: event, Image: image})
	}
	for event, image := range map[string]*proof.Digest{EventSaved: nil, EventClosed: &imageA, EventBroken: &imageA} {
		_, _, r := say(open, event, image)
		refused(t, orNil(r), proof.RequestInvalid, "")
	}
	saved, _, r := say(open, EventSaved, &imageA)
	if r != nil || saved.State != Saved || *saved.Image != imageA {
		t.Fatalf("%+v, %v", saved, r)
	}
	if _, repeated, r := say(saved, EventSaved, &imageA); !repeated || r != nil {
		t.Errorf("said again: %v", r)
	}
	_, _, r = say(saved, EventSaved, &proof.Digest{2})
	refused(t, orNil(r), proof.TokenUsed, "")
	// A chain that says saved without an image, whoever wrote it, is restored by nobody.
	bare := chainAt(Saved, "")
	bare.Image = nil
	w := wantLink(hostA, proof.ActionRestore, &linkA)
	w.Statement.SavedImage = nil
	_, r = bare.Next(w)
	refused(t, orNil(r), proof.ImageChanged, "")

	want := wantLink(hostA, proof.ActionRestore, &linkA)
	reserved, r := saved.Next(want)
	if r != nil || reserved.Image != nil {
		t.Fatalf("%+v, %v", reserved, r)
	}
	back, _, r := say(reserved, EventAborted, nil)
	if r != nil || back.State != Saved || *back.Image != imageA {
		t.Fatalf("aborted: %+v, %v", back, r)
	}
	opened, _, r := say(reserved, EventOpen, nil)
	if r != nil || opened.Image != nil {
		t.Fatalf("opened: %+v, %v", opened, r)
	}
	closed, _, r := say(opened, EventClosed, nil)
	if r != nil {
		t.Fatal(r)
	}
	for state, c := range map[string]*Chain{"open": opened, "closed": closed} {
		again := want
		again.Link, again.Statement = proof.Digest{0xC}, &proof.Statement{UUID: "u", Action: proof.ActionRestore, Attempt: 1, Previous: c.head(), SavedImage: &imageA}
		_, r := c.Next(again)
		refused(t, orNil(r), proof.TokenUsed, "")
		if r == nil {
			t.Errorf("%s: restored twice", state)
		}
	}
	if dropped, _, r := say(saved, EventClosed, nil); r != nil || dropped.State != Closed || dropped.Image != nil {
		t.Errorf("closed: %+v, %v", dropped, r)
	}
}
