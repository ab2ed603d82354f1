package ask

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Code is a refusal's number: its place in the protocol's fixed order of refusal codes, counted from one.
// Zero means 'no refusal'. The names are the same as those of package proof; a test compares them.
type Code uint16

// The codes that a hook gives by itself.
const (
	CodeNone             Code = 0
	RequestInvalid       Code = 1
	Forbidden            Code = 4
	Internal             Code = 5
	ConfigurationChanged Code = 26
	GrantMissing         Code = 29
	HostdUnreachable     Code = 31
	NotRegistered        Code = 33
)

var codeNames = [...]string{
	"request-invalid", "token-invalid", "evidence-invalid", "forbidden", "internal",
	"tpm-unavailable", "tpm-busy", "verifier-unreachable", "host-not-approved",
	"no-dynamic-launch", "bank-unallocated", "host-rebooted", "host-relaunched",
	"pcr-mismatch", "profile-not-met", "verdict-missing", "verdict-stale",
	"verdict-for-other-host", "verdict-contraindicated", "sealed-to-other-state",
	"sealed-blob-damaged", "token-expired", "token-used", "token-constraint",
	"configuration-not-allowed", "configuration-changed", "image-not-measured",
	"image-changed", "grant-missing", "hook-not-live", "hostd-unreachable",
	"destination-unproven", "not-registered",
}

// Codes lists the refusal codes in their order; Codes()[i] is Code(i+1).
func Codes() []string { return append([]string(nil), codeNames[:]...) }

// CodeOf gives the number of a refusal code. A code that the table does not know is Internal, so that a refusal
// stays a refusal.
func CodeOf(name string) Code {
	for i, n := range codeNames {
		if n == name {
			return Code(i + 1)
		}
	}
	return Internal
}

func (c Code) String() string {
	switch {
	case c == CodeNone:
		return "none"
	case int(c) <= len(codeNames):
		return codeNames[c-1]
	}
	return "internal"
}

// AnswerSize is the length of an encoded Answer. Its first byte is sent as soon as hostd has the question, the
// rest when it has decided: so a hook can tell a hung hostd from one that thinks.
const AnswerSize = 8

const answerMagic = "TRA1"

// Taken is the first byte of every answer.
const Taken = 'T'

// Answer is hostd's decision. The zero value permits nothing: it does not encode.
type Answer struct {
	Allow bool
	Code  Code // CodeNone exactly if Allow
}

// Allow permits the operation.
func Allow() Answer { return Answer{Allow: true} }

// Deny refuses it with a code; CodeNone is no reason and becomes Internal.
func Deny(c Code) Answer {
	if c == CodeNone || int(c) > len(codeNames) {
		c = Internal
	}
	return Answer{Code: c}
}

// Encode gives the answer's only encoding: magic 4 ‖ allow 1 ‖ zero 1 ‖ code 2, big-endian. An answer that
// contradicts itself is encoded as a refusal.
func (a Answer) Encode() [AnswerSize]byte {
	if a.Allow != (a.Code == CodeNone) {
		a = Deny(a.Code)
	}
	var b [AnswerSize]byte
	copy(b[:4], answerMagic)
	if a.Allow {
		b[4] = 1
	}
	binary.BigEndian.PutUint16(b[6:], uint16(a.Code))
	return b
}

// ParseAnswer reads what Encode wrote and nothing else.
func ParseAnswer(b []byte) (Answer, error) {
	if len(b) != AnswerSize {
		return Answer{}, fmt.Errorf("cannot read answer: %d bytes, want %d", len(b), AnswerSize)
	}
	if string(b[:4]) != answerMagic {
		return Answer{}, errors.New("cannot read answer: wrong magic")
	}
	if b[4] > 1 || b[5] != 0 {
		return Answer{}, errors.New("cannot read answer: wrong allow byte or padding")
	}
	a := Answer{Allow: b[4] == 1, Code: Code(binary.BigEndian.Uint16(b[6:]))}
	if int(a.Code) > len(codeNames) {
		return Answer{}, fmt.Errorf("cannot read answer: code %d", a.Code)
	}
	if a.Allow != (a.Code == CodeNone) {
		return Answer{}, errors.New("cannot read answer: allow and code contradict each other")
	}
	return a, nil
}
