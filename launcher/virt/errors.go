package virt

import (
	"errors"
	"fmt"
	"regexp"

	"libvirt.org/go/libvirt"
)

// What a caller can act on; every *Error unwraps to one of them, or to none.
var (
	ErrNoDomain    = errors.New("no such domain")
	ErrUnreachable = errors.New("libvirt cannot be reached")
	ErrDenied      = errors.New("denied by the hook")
	ErrForbidden   = errors.New("forbidden by libvirt's access control")
	ErrState       = errors.New("not possible in the domain's state")
	ErrBusy        = errors.New("domain is busy")
	// ErrNotReturned: the deadline passed inside libvirt. The call may still take effect, now or later; whoever
	// needs to know asks again with State, or calls the opposite.
	ErrNotReturned = errors.New("libvirt has not answered yet")
)

// Error is one failed libvirt call.
type Error struct {
	Op      string // "create", "resume", …
	UUID    string // of the domain, if the call was about one
	Code    int    // virErrorNumber; 0 if libvirt was not asked
	Message string // libvirt's own words: may hold a domain's name, so it is quoted when printed
	Refusal string // for ErrDenied: the code that troth-hook printed; "" if another hook denied
	Kind    error  // one of the errors above, or nil
	Cause   error  // a context's error, or nil
}

func (e *Error) Error() string {
	s := "cannot " + e.Op
	if e.UUID != "" {
		s += fmt.Sprintf(" domain %q", e.UUID)
	}
	if e.Kind != nil {
		s += ": " + e.Kind.Error()
	}
	if e.Refusal != "" {
		s += " (" + e.Refusal + ")"
	}
	if e.Cause != nil {
		s += ": " + e.Cause.Error()
	}
	if e.Message != "" && e.Refusal == "" { // of a hook's refusal libvirt adds its own environment
		s += fmt.Sprintf(": %q", e.Message)
	}
	return s
}

// Unwrap gives kind and cause to errors.Is.
func (e *Error) Unwrap() []error {
	var all []error
	for _, err := range []error{e.Kind, e.Cause} {
		if err != nil {
			all = append(all, err)
		}
	}
	return all
}

// NoDomain says that there is no such domain. It, Unreachable, Denied and NotReturned let a room that may not import this one ask by a small interface.
func (e *Error) NoDomain() bool    { return e.Kind == ErrNoDomain }    //nolint:errorlint // Kind is never wrapped
func (e *Error) Unreachable() bool { return e.Kind == ErrUnreachable } //nolint:errorlint // Kind is never wrapped
func (e *Error) NotReturned() bool { return e.Kind == ErrNotReturned } //nolint:errorlint // Kind is never wrapped

// Denied says that a hook refused, and with which of Troth's codes ("" for another's hook).
func (e *Error) Denied() (code string, denied bool) {
	return e.Refusal, e.Kind == ErrDenied //nolint:errorlint // Kind is never wrapped
}

// refusalLine is what troth-hook prints; libvirt hands a hook's stderr to the client inside its own message.
var refusalLine = regexp.MustCompile(`troth: refused: ([a-z-]{1,40})`)

// wrap makes an *Error of what libvirt returned; nil stays nil.
func wrap(op, uuid string, err error) error {
	if err == nil {
		return nil
	}
	var own *Error
	if errors.As(err, &own) {
		return own // libvirt was not asked
	}
	e := &Error{Op: op, UUID: uuid, Message: err.Error()}
	var lv libvirt.Error
	if !errors.As(err, &lv) {
		e.Cause, e.Message = err, ""
		return e
	}
	e.Code, e.Message, e.Kind = int(lv.Code), lv.Message, kindOf(lv)
	if e.Kind == ErrDenied { //nolint:errorlint // just assigned
		if m := refusalLine.FindStringSubmatch(lv.Message); m != nil {
			e.Refusal = m[1]
		}
	}
	return e
}

// kindOf maps virErrorNumber (libvirt/virterror.h) to what a caller does about it.
func kindOf(e libvirt.Error) error {
	switch e.Code {
	case libvirt.ERR_NO_DOMAIN:
		return ErrNoDomain
	case libvirt.ERR_HOOK_SCRIPT_FAILED:
		return ErrDenied
	case libvirt.ERR_OPERATION_DENIED, libvirt.ERR_ACCESS_DENIED,
		libvirt.ERR_AUTH_FAILED, libvirt.ERR_AUTH_CANCELLED, libvirt.ERR_AUTH_UNAVAILABLE:
		return ErrForbidden
	case libvirt.ERR_OPERATION_INVALID:
		return ErrState
	case libvirt.ERR_OPERATION_TIMEOUT:
		return ErrBusy
	case libvirt.ERR_NO_CONNECT, libvirt.ERR_INVALID_CONN, libvirt.ERR_RPC:
		return ErrUnreachable
	case libvirt.ERR_SYSTEM_ERROR, libvirt.ERR_INTERNAL_ERROR:
		// A connection that broke under a call: "End of file while reading data", "client socket is closed",
		// "internal error: client is closed"; and a socket that nobody listens on.
		if e.Domain == libvirt.FROM_RPC || e.Domain == libvirt.FROM_REMOTE {
			return ErrUnreachable
		}
	}
	return nil
}
