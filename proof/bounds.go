package proof

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"unicode"
	"unicode/utf8"
)

// Bounds of the documents, in bytes of their text.
const (
	MaxToken     = 64 << 10
	MaxStatement = 64 << 10
	MaxEvidence  = 3 << 20
	MaxLog       = 1 << 20
	MaxVerdict   = 64 << 10
	MaxReceipt   = 16 << 10
	MaxKeySet    = 256 << 10
	MaxTrust     = 512 << 10
	MaxKey       = 64 << 10
	MaxProof     = 256 << 10
	MaxDisks     = 64
	MaxProfiles  = 64
	MaxBatch     = 1 << 12 // leaves of one quote
	maxSeconds   = 1 << 40 // later times are mistakes
)

var (
	idPattern   = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,62}$`)
	uuidPattern = regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$`)
)

// checkID is for names that operators and tenants choose: tokens, profiles, log kinds.
func checkID(field, s string) error {
	if !idPattern.MatchString(s) {
		return fmt.Errorf("%s: %q is not 1-63 of a-z, 0-9, '.', '_', '-'", field, s)
	}
	return nil
}

func checkUUID(field, s string) error {
	if !uuidPattern.MatchString(s) {
		return fmt.Errorf("%s: %q is not a UUID in lower-case hex", field, s)
	}
	return nil
}

// checkName is for a domain's name: any text that libvirt takes, without control bytes.
func checkName(field, s string) error {
	if s == "" || len(s) > 255 || !utf8.ValidString(s) {
		return fmt.Errorf("%s: a name has 1-255 bytes of UTF-8", field)
	}
	for _, r := range s {
		if unicode.IsControl(r) || r == utf8.RuneError {
			return fmt.Errorf("%s: %q has a control character", field, s)
		}
	}
	return nil
}

func checkTime(field string, t int64) error {
	if t <= 0 || t >= maxSeconds {
		return fmt.Errorf("%s: %d is not a time in unix seconds", field, t)
	}
	return nil
}

func checkOneOf(field, s string, allowed ...string) error {
	if !slices.Contains(allowed, s) {
		return fmt.Errorf("%s: %q is not one of %q", field, s, allowed)
	}
	return nil
}

func checkVersion(got, want string) error {
	if got != want {
		return fmt.Errorf("version: %q is not %q", got, want)
	}
	return nil
}

// firstError gives the first error that is not nil.
func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

var errNil = errors.New("nothing was given")
