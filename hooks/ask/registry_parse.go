package ask

import (
	"cmp"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
)

// ParseRegistry reads what Encode wrote and nothing else; every error is ErrDamaged. Each line is held against its one
// encoding where it stands, and nothing is encoded again.
func ParseRegistry(b []byte) (Registry, error) {
	body, err := summed(b)
	if err != nil {
		return Registry{}, err
	}
	var r Registry
	rest := string(body[len(registryHeader):])
	for n := 2; rest != ""; n++ {
		line, after, whole := strings.Cut(rest, "\n")
		err := errPart
		if whole {
			err = r.take(line)
		}
		if err != nil {
			return Registry{}, fmt.Errorf("%w: line %d: %w", ErrDamaged, n, err)
		}
		rest = after
	}
	return r, nil
}

var (
	errPart     = errors.New("the line does not end")
	errOrder    = errors.New("not in canonical form: not in order, or twice")
	errTooMany  = errors.New("too many entries")
	errNoUUID   = errors.New("not a UUID")
	errNoVolume = errors.New("not a volume")
)

// take reads one line; one that comes after another kind than Encode writes before it is out of order.
func (r *Registry) take(line string) error {
	switch word, rest, _ := strings.Cut(line, " "); {
	case line == "all":
		if r.All || len(r.UUIDs) > 0 || len(r.Volumes) > 0 {
			return errOrder
		}
		r.All = true
	case word == "uuid":
		u, err := parseUUID(rest)
		switch n := len(r.UUIDs); {
		case err != nil:
			return err
		case len(r.Volumes) > 0 || n > 0 && string(u[:]) <= string(r.UUIDs[n-1][:]):
			return errOrder
		case n == MaxEntries:
			return errTooMany
		}
		r.UUIDs = append(r.UUIDs, u)
	case word == "volume":
		v, err := parseVolume(rest)
		switch n := len(r.Volumes); {
		case err != nil:
			return err
		case n > 0 && compareVolumes(v, r.Volumes[n-1]) <= 0:
			return errOrder
		case n == MaxEntries:
			return errTooMany
		}
		r.Volumes = append(r.Volumes, v)
	default:
		return errors.New("unknown entry")
	}
	return nil
}

// parseUUID reads 32 lower-case hexadecimal digits.
func parseUUID(s string) (u [16]byte, err error) {
	if len(s) != 2*len(u) {
		return u, errNoUUID
	}
	for i := range len(s) {
		var digit byte
		switch c := s[i]; {
		case c >= '0' && c <= '9':
			digit = c - '0'
		case c >= 'a' && c <= 'f':
			digit = c - 'a' + 10
		default:
			return u, errNoUUID
		}
		u[i/2] = u[i/2]<<4 | digit
	}
	return u, nil
}

// parseVolume reads 'DEV INO QUOTED-PATH' in the one way that Encode writes it.
func parseVolume(s string) (Volume, error) {
	first, rest, _ := strings.Cut(s, " ")
	second, quoted, _ := strings.Cut(rest, " ")
	dev, err1 := parseNumber(first)
	ino, err2 := parseNumber(second)
	path, err3 := unquote(quoted)
	if err := cmp.Or(err1, err2, err3); err != nil {
		return Volume{}, err
	}
	if !filepath.IsAbs(path) || filepath.Clean(path) != path || len(path) > maxPath {
		return Volume{}, errNoVolume
	}
	return Volume{Path: path, Dev: dev, Ino: ino}, nil
}

// parseNumber reads a decimal number without sign and leading zeros.
func parseNumber(s string) (uint64, error) {
	if len(s) > 1 && s[0] == '0' || s != "" && s[0] == '+' {
		return 0, errNoVolume
	}
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		return 0, errNoVolume
	}
	return n, nil
}

// unquote reads what strconv.QuoteToASCII writes. Most paths hold nothing that is written otherwise there.
func unquote(s string) (string, error) {
	if len(s) >= 2 && s[0] == '"' && s[len(s)-1] == '"' && plain(s[1:len(s)-1]) {
		return s[1 : len(s)-1], nil
	}
	path, err := strconv.Unquote(s)
	if err != nil || strconv.QuoteToASCII(path) != s {
		return "", errNoVolume
	}
	return path, nil
}

func plain(s string) bool {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c > '~' || c == '"' || c == '\\' {
			return false
		}
	}
	return true
}
