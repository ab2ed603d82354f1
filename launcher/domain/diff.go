package domain

import (
	"fmt"
	"slices"
	"strings"

	"troth/proof"
)

// maxFacts bounds what one refusal tells.
const maxFacts = 32

// Diff says what of got differs from want, the judged Config: nothing when libvirt has what was judged. It compares
// name and UUID too, and it is the one comparison that knows how libvirt expands the CPU of a running domain: a
// custom CPU gains features there, host-model becomes a named model with features. What was asked for must be there.
func Diff(want, got *Config) []proof.Fact {
	w, g := leaves(want), leaves(got)
	w = append([]leaf{{"name", want.Name}, {"uuid", want.UUID.String()}}, w...)
	g = append([]leaf{{"name", got.Name}, {"uuid", got.UUID.String()}}, g...)
	cpu := got.live.expanded || want.live.expanded
	if cpu {
		w, g = slices.DeleteFunc(w, isCPU), slices.DeleteFunc(g, isCPU)
	}
	facts := diffLeaves(w, g)
	if cpu {
		facts = append(facts, diffCPU(want, got)...)
	}
	if len(facts) > maxFacts {
		facts = append(facts[:maxFacts], proof.Fact{Name: "more", Value: fmt.Sprintf("%d further differences", len(facts)-maxFacts)})
	}
	return facts
}

// Compare is Diff as a refusal with code configuration-changed, or nil.
func Compare(want, got *Config) error {
	facts := Diff(want, got)
	if len(facts) == 0 {
		return nil
	}
	return proof.Refuse(proof.ConfigurationChanged,
		fmt.Sprintf("the %s definition of domain %q is not the one that was judged", got.Mode, want.Name), facts...)
}

func diffLeaves(w, g []leaf) []proof.Fact {
	have := make(map[string]string, len(g))
	for _, l := range g {
		have[l.path] = l.value
	}
	var facts []proof.Fact
	for _, l := range w {
		got, ok := have[l.path]
		if delete(have, l.path); !ok || got != l.value {
			facts = append(facts, proof.Fact{Name: l.path, Want: l.value, Got: got})
		}
	}
	for _, l := range g {
		if _, left := have[l.path]; left {
			facts = append(facts, proof.Fact{Name: l.path, Got: l.value})
		}
	}
	return facts
}

func isCPU(l leaf) bool { return strings.HasPrefix(l.path, "cpu.") }

// diffCPU compares a CPU that was asked for with libvirt's expansion of it.
func diffCPU(want, got *Config) []proof.Fact {
	w, g := want.CPU, got.CPU
	var facts []proof.Fact
	differ := func(name, want, got string) {
		if want != got {
			facts = append(facts, proof.Fact{Name: "cpu." + name, Want: want, Got: got})
		}
	}
	if !(want.live.expanded || w.Mode == "host-model") {
		differ("mode", w.Mode, g.Mode)
		differ("model", w.Model, g.Model)
		differ("migratable", w.Migratable, g.Migratable)
	}
	if want.live.expanded && got.live.expanded {
		differ("mode", w.Mode, g.Mode)
		differ("model", w.Model, g.Model)
		differ("features", fmt.Sprint(want.live.features), fmt.Sprint(got.live.features))
	}
	differ("topology", topology(w), topology(g))
	for _, f := range w.Features {
		if p := got.live.policy(f.Name); !kept(f.Policy, p) {
			facts = append(facts, proof.Fact{Name: "cpu.feature." + f.Name, Want: f.Policy, Got: p})
		}
	}
	return facts
}

func topology(c CPU) string {
	if c.Sockets == 0 {
		return ""
	}
	return fmt.Sprintf("%d/%d/%d/%d", c.Sockets, c.Dies, c.Cores, c.Threads)
}

func (l liveCPU) policy(name string) string {
	for _, f := range l.features {
		if f.Name == name {
			return f.Policy
		}
	}
	return ""
}

// kept says whether libvirt's answer for a feature keeps what was asked: it lists every feature that was named, as
// QEMU has it. 'optional' may fall either way.
func kept(asked, got string) bool {
	switch asked {
	case "require", "force":
		return got == "require" || got == "force"
	case "disable", "forbid":
		return got == "disable" || got == "forbid"
	default:
		return true
	}
}
