package verifier

import (
	"slices"
	"testing"
	"time"

	"troth/proof"
)

// TestImportConfirmed: an import stores what was shown and confirmed, or nothing.
func TestImportConfirmed(t *testing.T) {
	w, h := newWorld(t), newHost(t, 1)
	w.enrol(h)
	w.approve(h)
	must[*Attestation](t)(w.attest(h))
	req := ImportRequest{Host: h.name, Name: "gold", Launcher: TbootLegacy, Profile: "gold", By: "operator"}
	apply := func(confirmed []proof.PCR) (*Import, error) {
		wet := req
		wet.Apply, wet.Confirmed = true, confirmed
		return w.Import(t.Context(), wet)
	}
	var shown *Import
	w.unchanged(h, func() {
		shown = must[*Import](t)(w.Import(t.Context(), req))
		v := shown.Values
		for name, bad := range map[string][]proof.PCR{"none": nil, "another order": {v[1], v[0], v[2]}, "one twice": {v[0], v[0], v[1], v[2]}} {
			if i, err := apply(bad); err == nil {
				t.Fatalf("%s: %+v", name, i)
			} else {
				refused(t, err, proof.RequestInvalid, "values")
			}
		}
		_, err := apply(v[:2])
		refused(t, err, proof.PCRMismatch, "PCR 19")
		_, err = apply(append(slices.Clone(v), proof.PCR{Index: 20}))
		refused(t, err, proof.PCRMismatch, "selection")
	})
	// The host attests another kernel while the operator reads.
	s := example()
	s.Kernel = []byte("evil kernel")
	h.boot(t, s)
	must[*Attestation](t)(w.attest(h))
	w.unchanged(h, func() {
		_, err := apply(shown.Values)
		r := refused(t, err, proof.PCRMismatch, "PCR 18")
		if r.Facts[0].Want != shown.Values[1].Value.String() || r.Facts[0].Got == r.Facts[0].Want {
			t.Fatalf("%v", r.Facts)
		}
	})
	if len(w.References()) > 0 || len(w.Profiles()) > 0 {
		t.Fatalf("%v %v", w.References(), w.Profiles())
	}
	// Back in the state that was shown, with newer evidence, the yes still holds.
	h.boot(t, example())
	must[*Attestation](t)(w.attest(h))
	w.pass(time.Second)
	must[*Attestation](t)(w.attest(h))
	if i := must[*Import](t)(apply(shown.Values)); !i.Applied || i.Profile == nil || !slices.Equal(i.Values, shown.Values) {
		t.Fatalf("%+v", i)
	}
	w.mustAttest(h)
}
