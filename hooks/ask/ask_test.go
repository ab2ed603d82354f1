package ask_test

import (
	"testing"

	"troth/hooks/ask"
	"troth/proof"
)

// TestCodes: the numbers on the socket are the places of proof's codes in their order.
func TestCodes(t *testing.T) {
	codes := proof.Codes()
	if len(codes) != len(ask.Codes()) {
		t.Fatalf("%d codes, proof has %d", len(ask.Codes()), len(codes))
	}
	for i, c := range codes {
		if got := ask.Code(i + 1).String(); got != string(c.Code) || ask.CodeOf(string(c.Code)) != ask.Code(i+1) {
			t.Errorf("code %d is %q, proof says %q", i+1, got, c.Code)
		}
	}
	for c, want := range map[ask.Code]proof.Code{
		ask.RequestInvalid: proof.RequestInvalid, ask.Forbidden: proof.Forbidden, ask.Internal: proof.Internal,
		ask.ConfigurationChanged: proof.ConfigurationChanged, ask.GrantMissing: proof.GrantMissing,
		ask.HostdUnreachable: proof.HostdUnreachable, ask.NotRegistered: proof.NotRegistered,
	} {
		if c.String() != string(want) {
			t.Errorf("%d is %q, want %q", c, c, want)
		}
	}
	if ask.CodeOf("no such code") != ask.Internal || ask.Deny(ask.CodeNone) != ask.Deny(ask.Internal) || ask.Deny(999) != ask.Deny(ask.Internal) {
		t.Error("a refusal without a known code is not 'internal'")
	}
}

func FuzzQuestion(f *testing.F) {
	q := ask.Question{Op: ask.OpPrepare, SubOp: ask.SubBegin, Flags: ask.Marked, UUID: [16]byte{1}, LaunchID: [32]byte{2}, XML: [32]byte{3}}.Encode()
	f.Add(q[:])
	f.Fuzz(func(t *testing.T, b []byte) {
		q, err := ask.ParseQuestion(b)
		if err != nil {
			return
		}
		if again := q.Encode(); string(again[:]) != string(b) {
			t.Errorf("%x is a second encoding of %+v", b, q)
		}
	})
}

func FuzzAnswer(f *testing.F) {
	allow, deny := ask.Allow().Encode(), ask.Deny(ask.GrantMissing).Encode()
	f.Add(allow[:])
	f.Add(deny[:])
	f.Fuzz(func(t *testing.T, b []byte) {
		a, err := ask.ParseAnswer(b)
		if err != nil {
			return
		}
		if again := a.Encode(); string(again[:]) != string(b) {
			t.Errorf("%x is a second encoding of %+v", b, a)
		}
		if a.Allow != (a == ask.Allow()) {
			t.Errorf("%+v permits", a)
		}
	})
}

// TestAnswerEveryBit: one flipped bit makes of no refusal a permit, and of the permit no other permit.
func TestAnswerEveryBit(t *testing.T) {
	for _, a := range []ask.Answer{ask.Allow(), ask.Deny(ask.GrantMissing), ask.Deny(ask.RequestInvalid)} {
		for bit := range ask.AnswerSize * 8 {
			b := a.Encode()
			b[bit/8] ^= 1 << (bit % 8)
			if got, err := ask.ParseAnswer(b[:]); err == nil && got.Allow {
				t.Errorf("%+v with bit %d flipped permits", a, bit)
			}
		}
	}
	if contradiction := (ask.Answer{Allow: true, Code: ask.GrantMissing}).Encode(); contradiction != ask.Deny(ask.GrantMissing).Encode() {
		t.Error("a contradiction is not a refusal")
	}
	if nothing := (ask.Answer{}).Encode(); nothing != ask.Deny(ask.Internal).Encode() {
		t.Error("the zero answer is not a refusal")
	}
}
