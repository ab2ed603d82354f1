package verifier

import (
	"testing"

	"troth/proof"
)

// attackSaveCopy: a guest is saved here and restored there, restored twice, or restored from another image. Only the host that saved goes on, once.
func attackSaveCopy(t *testing.T) {
	w, h, other := newWorld(t), newHost(t, 1), newHost(t, 2)
	w.good(h)
	vo := w.good(other)
	v := w.mustAttest(h) // both verdicts are for the profile as it is now
	a := w.newAsk(h, v, func(k *proof.Token) { k.Saves = proof.SavesAllow })
	must[*Release](t)(w.releaseTo(h, a, nil))
	if err := w.event(h, a, EventOpen); err != nil {
		t.Fatal(err)
	}
	booted, image := a.link(t), *digestOf("image")
	save := Event{Token: a.statement.Token, Link: booted, Event: EventSaved, Attempt: 1, Image: &image}
	if _, err := w.ChainEvent(t.Context(), h.spki, save); err != nil {
		t.Fatal(err)
	}
	restore := func(at *Attestation, previous, image proof.Digest) *ask {
		s := *a.statement
		s.Action, s.SavedImage, s.Previous = proof.ActionRestore, &image, &previous
		s.Host, s.Verdict, s.Blinder = at.Verdict.Host, proof.VerdictDigest(at.JWS), proof.NewBlinder()
		return &ask{a.text, a.key, &s}
	}
	_, err := w.releaseTo(other, restore(vo, booted, image), nil)
	refused(t, err, proof.TokenUsed, "chain")
	_, err = w.releaseTo(h, restore(v, booted, *digestOf("other image")), nil)
	refused(t, err, proof.ImageChanged, "saved image")

	honest := restore(v, booted, image)
	must[*Release](t)(w.releaseTo(h, honest, nil))
	if err := w.event(h, honest, EventOpen); err != nil {
		t.Fatal(err)
	}
	_, err = w.releaseTo(h, restore(v, honest.link(t), image), nil)
	refused(t, err, proof.TokenUsed, "chain")
	_, err = w.releaseTo(other, restore(vo, booted, image), nil)
	refused(t, err, proof.TokenUsed, "chain")
}
