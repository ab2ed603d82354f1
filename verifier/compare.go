package verifier

import (
	"fmt"

	"troth/tpm/eventlog"
	"troth/tpm/pcr"
)

// judge compares values with each of the profile's references; the events only explain.
func (p *Profile) judge(values pcr.Values, events []eventlog.Event) Judged {
	best := Judged{Ref: p.Ref()}
	for n, r := range p.sets {
		diff := compare(p.Selection, r, values, events)
		if len(diff) == 0 {
			return Judged{Ref: p.Ref(), Met: true, Reference: r.Name}
		}
		if n == 0 || len(diff) < len(best.Differences) {
			best.Reference, best.Differences = r.Name, diff
		}
	}
	return best
}

// compare lists the selected PCRs whose value is not the reference's, and per PCR the events from which on they part.
func compare(sel pcr.Selection, r *Reference, values pcr.Values, events []eventlog.Event) []Difference {
	var out []Difference
	for _, i := range sel.Indexes() {
		want, ok := r.values[i]
		got, have := values[i]
		if ok && have && want == got {
			continue
		}
		out = append(out, Difference{PCR: i, Want: hexOr(want, ok), Got: hexOr(got, have)})
		out = append(out, compareEvents(i, r.Events, events)...)
	}
	return out
}

func hexOr(d pcr.Digest, ok bool) string {
	if !ok {
		return "no value"
	}
	return fmt.Sprintf("%x", d)
}

// maxEventDifferences bounds what one PCR adds to a report.
const maxEventDifferences = 8

func compareEvents(index int, want []ReferenceEvent, events []eventlog.Event) []Difference {
	return compareReferenceEvents(index, want, referenceEvents(events))
}

func compareReferenceEvents(index int, want, got []ReferenceEvent) []Difference {
	if len(want) == 0 || len(got) == 0 {
		return nil // nothing to compare with
	}
	w, g := eventsOf(index, want), eventsOf(index, got)
	var out []Difference
	for n := 0; n < max(len(w), len(g)) && len(out) < maxEventDifferences; n++ {
		d := Difference{PCR: index, Want: "no event", Got: "no event"}
		label := ""
		if n < len(w) {
			d.Want, label = w[n].Digest.String(), w[n].Type
		}
		if n < len(g) {
			d.Got, label = g[n].Digest.String(), g[n].Type
		}
		if d.Want != d.Got {
			d.Event = itoa(n+1) + " " + label
			out = append(out, d)
		}
	}
	return out
}

func eventsOf(index int, all []ReferenceEvent) (out []ReferenceEvent) {
	for _, e := range all {
		if e.Index == index {
			out = append(out, e)
		}
	}
	return out
}

// referenceEvents are the extended events of a log, as a reference keeps them.
func referenceEvents(events []eventlog.Event) (out []ReferenceEvent) {
	for _, e := range events {
		if e.Extended() {
			out = append(out, ReferenceEvent{e.Index, eventlog.TypeName(e.Type), e.Digest})
		}
	}
	return out
}
