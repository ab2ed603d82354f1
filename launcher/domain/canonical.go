package domain

import (
	"encoding/binary"
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"unicode"

	"troth/proof"
)

// The canonical form of a Config is a magic and then its leaves, in field order: for each the length of its path and
// the path, the length of its value and the value; lengths are four bytes, big-endian. A leaf with its zero value is
// left out, so that a field which a later version adds does not change the digest of domains that do not use it.
// A list gives its length (path "disk.count") and then its elements ("disk[0].source").
const canonicalMagic = "troth domain.Config 1\n"

// leaf is one value of a Config by name.
type leaf struct{ path, value string }

// Canonical is the binary form that is hashed. Name, UUID and this launcher's additions are not part of it.
func (c *Config) Canonical() []byte {
	b := []byte(canonicalMagic)
	for _, l := range leaves(c) {
		for _, s := range []string{l.path, l.value} {
			b = binary.BigEndian.AppendUint32(b, uint32(len(s)))
			b = append(b, s...)
		}
	}
	return b
}

// Digest is the configuration digest of tokens and statements.
func (c *Config) Digest() proof.Digest { return proof.Hash(proof.LabelConfiguration, c.Canonical()) }

// leaves flattens what is measured.
func leaves(c *Config) []leaf { return flatten(nil, "", reflect.ValueOf(c).Elem()) }

func flatten(out []leaf, path string, v reflect.Value) []leaf {
	add := func(value string) []leaf { return append(out, leaf{path, value}) }
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			f := v.Type().Field(i)
			if f.Tag.Get("config") == "-" || !f.IsExported() {
				continue
			}
			name := leafName(f.Name)
			if path != "" {
				name = path + "." + name
			}
			out = flatten(out, name, v.Field(i))
		}
		return out
	case reflect.Slice:
		if v.Len() == 0 {
			return out
		}
		out = append(out, leaf{path + ".count", strconv.Itoa(v.Len())})
		for i := range v.Len() {
			out = flatten(out, fmt.Sprintf("%s[%d]", path, i), v.Index(i))
		}
		return out
	case reflect.String:
		if v.String() == "" {
			return out
		}
		return add(v.String())
	case reflect.Uint64:
		if v.Uint() == 0 {
			return out
		}
		return add(strconv.FormatUint(v.Uint(), 10))
	case reflect.Bool:
		if !v.Bool() {
			return out
		}
		return add("yes")
	default:
		panic("domain: no canonical form for " + v.Kind().String())
	}
}

// leafName turns a field's name into the form of facts: "CurrentMemory" into "current-memory", "VCPUs" into "vcpus".
func leafName(field string) string {
	var b strings.Builder
	runes := []rune(field)
	for i, r := range runes {
		if i > 0 && unicode.IsUpper(r) && unicode.IsLower(runes[i-1]) {
			b.WriteByte('-')
		}
		b.WriteRune(unicode.ToLower(r))
	}
	return b.String()
}
