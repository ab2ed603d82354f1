package main

import (
	"errors"
	"fmt"

	"troth/proof"
)

// exit is what the process tells its caller. Every command ends through
// exitOf: no other place chooses a number.
type exit int

const (
	exitYes       exit = 0 // yes, done, genuine and wanted
	exitNo        exit = 1 // no: refused, not genuine, not wanted, unreadable
	exitUsage     exit = 2 // the command line or a settings file is wrong; nothing was asked
	exitUndecided exit = 3 // could not decide: something needed for the answer was out of reach
)

// usageError says that the command line or the settings are wrong.
type usageError struct{ err error }

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

func usagef(format string, args ...any) error {
	return &usageError{fmt.Errorf(format, args...)}
}

// noError is a decided no that is not a refusal of the protocol (a proof that
// is not what the tenant wanted, a question answered with no).
type noError struct{ err error }

func (e *noError) Error() string { return e.err.Error() }
func (e *noError) Unwrap() error { return e.err }

func nof(format string, args ...any) error {
	return &noError{fmt.Errorf(format, args...)}
}

// undecidedError says that no answer could be reached. Errors without a type
// count as undecided too: what failed unexpectedly never reads as yes or no.
type undecidedError struct{ err error }

func (e *undecidedError) Error() string { return e.err.Error() }
func (e *undecidedError) Unwrap() error { return e.err }

func undecidedf(format string, args ...any) error {
	return &undecidedError{fmt.Errorf(format, args...)}
}

// exitOf turns the end of a command into an exit status.
func exitOf(err error) exit {
	if err == nil {
		return exitYes
	}
	if _, ok := errors.AsType[*undecidedError](err); ok {
		return exitUndecided
	}
	if _, ok := errors.AsType[*usageError](err); ok {
		return exitUsage
	}
	if r, ok := errors.AsType[*proof.Refusal](err); ok {
		if undecided(r.Code) {
			return exitUndecided
		}
		return exitNo
	}
	if _, ok := errors.AsType[*proof.Invalid](err); ok {
		return exitNo
	}
	if _, ok := errors.AsType[*noError](err); ok {
		return exitNo
	}
	return exitUndecided
}

// undecided reports the refusal codes that mean "nobody judged the question":
// asking again later can give another answer with nothing changed by the caller.
func undecided(c proof.Code) bool {
	switch c {
	case proof.Internal, proof.TPMUnavailable, proof.TPMBusy, proof.VerifierUnreachable, proof.HostdUnreachable:
		return true
	default:
		return false
	}
}
