// Package config reads the configuration of every Troth program in one way, so that a person who knows one file knows all.
//
// Order, later wins: the defaults already in the struct, /usr/lib/troth/NAME.toml, /etc/troth/NAME.toml,
// /etc/troth/NAME.toml.d/*.toml (by name), the environment TROTH_NAME_KEY, flags. A key that nobody knows is an error
// that names file and key. It trusts whoever can write those files and set the environment.
//
//	cfg := hostd.DefaultConfig()                    // the documented struct with toml tags and defaults
//	err := config.Load(&cfg, config.Source{
//		Name:  "hostd",                             // => /etc/troth/hostd.toml, TROTH_HOSTD_*
//		File:  file,                                // --config: exactly this file (it must exist) and FILE.d/*.toml
//		Flags: map[string]string{"api.listen": s},  // flags that were given, by dotted key
//	})
//
// Environment: TROTH_HOSTD_API_LISTEN sets api.listen, TROTH_HOSTD_STATE_DIR sets state_dir. Strings, durations and other
// text types are given as they are; every other kind in TOML syntax (true, 5, ["a","b"]). Tables in arrays only stand in files.
package config

import (
	"encoding"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/BurntSushi/toml"
)

// Source says where a program's configuration stands.
type Source struct {
	Name  string            // "hostd", "verifierd", "troth"
	File  string            // exactly this file in place of the standard ones; "" for the standard ones
	Flags map[string]string // dotted key → text
	Env   []string          // os.Environ() when nil
}

// Load fills dst, a pointer to a struct that holds the defaults.
func Load(dst any, s Source) error {
	files, err := s.files()
	if err != nil {
		return err
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if errors.Is(err, fs.ErrNotExist) && s.File != f {
			continue
		}
		if err != nil {
			return fmt.Errorf("cannot read configuration: %w", err)
		}
		if err := decode(f, string(b), dst); err != nil {
			return err
		}
	}
	keys := leaves(reflect.TypeOf(dst).Elem(), "")
	if err := s.environment(dst, keys); err != nil {
		return err
	}
	for _, key := range slices.Sorted(maps.Keys(s.Flags)) {
		if err := set("flag for "+key, key, s.Flags[key], dst, keys); err != nil {
			return err
		}
	}
	return nil
}

func (s Source) files() ([]string, error) {
	base := []string{"/usr/lib/troth/" + s.Name + ".toml", "/etc/troth/" + s.Name + ".toml"}
	if s.File != "" {
		base = []string{s.File}
	}
	parts, err := filepath.Glob(base[len(base)-1] + ".d/*.toml") // Glob sorts
	if err != nil {
		return nil, fmt.Errorf("cannot list configuration parts: %w", err)
	}
	return append(base, parts...), nil
}

// environment applies TROTH_NAME_*; an unknown variable is an error like an unknown key.
func (s Source) environment(dst any, keys map[string]bool) error {
	env := s.Env
	if env == nil {
		env = os.Environ()
	}
	prefix := "TROTH_" + strings.ToUpper(s.Name) + "_"
	names := map[string]string{}
	for key := range keys {
		names[prefix+strings.ToUpper(strings.NewReplacer(".", "_", "-", "_").Replace(key))] = key
	}
	for _, e := range slices.Sorted(slices.Values(env)) {
		name, value, _ := strings.Cut(e, "=")
		if !strings.HasPrefix(name, prefix) {
			continue
		}
		key, ok := names[name]
		if !ok {
			return fmt.Errorf("environment: unknown variable %s", name)
		}
		if err := set("environment "+name, key, value, dst, keys); err != nil {
			return err
		}
	}
	return nil
}

// set writes one key from text; keys says for each known key whether it takes plain text.
func set(where, key, value string, dst any, keys map[string]bool) error {
	switch text, ok := keys[key]; {
	case !ok:
		return fmt.Errorf("%s: unknown key %q", where, key)
	case text:
		value = strconv.Quote(value)
	}
	return decode(where, key+" = "+value+"\n", dst)
}

func decode(where, text string, dst any) error {
	meta, err := toml.Decode(text, dst)
	if err != nil {
		return fmt.Errorf("%s: %w", where, err)
	}
	if u := meta.Undecoded(); len(u) > 0 {
		return fmt.Errorf("%s: unknown key %q", where, u[0].String())
	}
	return nil
}

// leaves lists the dotted keys of a configuration struct and whether each takes plain text.
func leaves(t reflect.Type, prefix string) map[string]bool {
	out := map[string]bool{}
	for f := range t.Fields() {
		name, _, _ := strings.Cut(f.Tag.Get("toml"), ",")
		if !f.IsExported() || name == "-" || name == "" {
			continue
		}
		isText := f.Type.Kind() == reflect.String || reflect.PointerTo(f.Type).Implements(reflect.TypeFor[encoding.TextUnmarshaler]())
		if f.Type.Kind() == reflect.Struct && !isText {
			maps.Copy(out, leaves(f.Type, prefix+name+"."))
			continue
		}
		out[prefix+name] = isText
	}
	return out
}
