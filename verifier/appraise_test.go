package verifier

import (
	"bytes"
	"slices"
	"testing"

	"troth/proof"
	"troth/test/lab/txt"
	"troth/tpm"
	"troth/tpm/eventlog"
	"troth/tpm/pcr"
)

// forgedFacts are those of an honest attestation by a TPM in software, so that each test changes exactly one thing, signed or not.
func forgedFacts(t *testing.T) (*Facts, *softTPM) {
	t.Helper()
	m := newSoft(t)
	m.boot(t, example())
	sel := selectPCRs(t, 17, 18, 19)
	h := &Host{Name: "h", State: Approved, Class: tpm.Software, EK: proof.Digest{1}, AK: m.akPublic, SRK: m.srk, SPKI: proof.Digest{7}}
	check(t, h.complete(1))
	f := &Facts{SPKI: h.SPKI, Host: h, Selection: sel, Mark: &Mark{h.AKName, m.counters, m.clock}}
	f.Evidence = &proof.Evidence{Challenge: bytes.Repeat([]byte{9}, challengeSize), AK: h.AKName, PCRs: proof.PCRList(m.pcrs, sel),
		Logs: []proof.Log{{Kind: proof.LogTCG2, Data: m.events}}}
	requote(t, f, m, sel.Marshal())
	f.Profiles = []*Profile{forgedProfile(t, f)}
	return f, m
}

// requote signs the facts' PCR values, whatever they are, over any selection.
func requote(t *testing.T, f *Facts, m *softTPM, selection []byte) {
	t.Helper()
	values := pcr.Values{}
	for _, p := range f.Evidence.PCRs {
		values[p.Index] = p.Value
	}
	d, err := values.Digest(f.Selection)
	if err != nil {
		d = [32]byte{}
	}
	q := m.quoteOf(t, selection, d, proof.AttestExtraData(f.Evidence.Challenge, f.SPKI))
	f.Evidence.Quote = proof.QuoteDoc{Message: q.Message, Signature: q.Signature}
}

func forgedProfile(t *testing.T, f *Facts) *Profile {
	t.Helper()
	events := must[[]eventlog.Event](t)(eventlog.Parse(f.Evidence.Logs[0].Data))
	r := &Reference{Name: "r", Launcher: TbootLegacy, Values: f.Evidence.PCRs, Events: referenceEvents(events)}
	if refusal := r.check(); refusal != nil {
		t.Fatal(refusal)
	}
	p := &Profile{Name: "p", Launcher: TbootLegacy, Selection: f.Selection, References: []string{"r"}}
	check(t, p.check())
	if refusal := p.resolve(map[string]*Reference{"r": r}); refusal != nil {
		t.Fatal(refusal)
	}
	return p
}

func setPCR(f *Facts, index int, d [32]byte) {
	f.Evidence.PCRs = slices.Clone(f.Evidence.PCRs)
	for i := range f.Evidence.PCRs {
		if f.Evidence.PCRs[i].Index == index {
			f.Evidence.PCRs[i].Value = d
		}
	}
}

var ones = [32]byte(bytes.Repeat([]byte{0xFF}, 32))

// rebooted boots another kernel, with a true log.
func rebooted(t *testing.T, f *Facts, m *softTPM) {
	t.Helper()
	s := example()
	s.Kernel = []byte("another kernel")
	m.boot(t, s)
	f.Evidence.PCRs = proof.PCRList(m.pcrs, f.Selection)
	f.Evidence.Logs[0].Data = m.events
	requote(t, f, m, f.Selection.Marshal())
}

// sameEverywhere puts one value into all PCRs, quote and reference alike, so that nothing but the dynamic launch is missing.
func sameEverywhere(t *testing.T, f *Facts, m *softTPM, d [32]byte) {
	t.Helper()
	for _, i := range f.Selection.Indexes() {
		setPCR(f, i, d)
	}
	f.Evidence.Logs = nil
	requote(t, f, m, f.Selection.Marshal())
	f.Profiles = []*Profile{profileOf(t, f, f.Evidence.PCRs)}
	f.Values = must[pcr.Values](t)(proof.PCRValues(f.Evidence.PCRs)) // for when the check that reads them is taken out
}

// profileOf makes a profile without the checks that keep such values out of the store.
func profileOf(t *testing.T, f *Facts, list []proof.PCR) *Profile {
	t.Helper()
	r := &Reference{Name: "r", Launcher: TbootLegacy, Values: list, values: must[pcr.Values](t)(proof.PCRValues(list))}
	p := &Profile{Name: "p", Launcher: TbootLegacy, Selection: f.Selection, References: []string{"r"}}
	if refusal := p.resolve(map[string]*Reference{"r": r}); refusal != nil {
		t.Fatal(refusal)
	}
	return p
}

func TestAppraise(t *testing.T) {
	f, _ := forgedFacts(t)
	if a := Appraise(f, Checks); a.Refusal != nil || !a.Authentic || len(a.Results) != len(Checks) || len(f.Events) == 0 || !f.Judged[0].Met {
		t.Fatalf("honest evidence: %+v", a)
	}
	for _, c := range appraisalCases {
		t.Run(c.name, func(t *testing.T) {
			f, m := forgedFacts(t)
			c.spoil(t, f, m)
			a := Appraise(f, Checks)
			if a.Refusal == nil {
				t.Fatal("accepted")
			}
			if a.At != c.at {
				t.Fatalf("refused by %s, want %s: %v", a.At, c.at, a.Refusal)
			}
			r := refused(t, a.Refusal, c.code, c.fact)
			for _, fact := range r.Facts {
				if fact.Name == c.fact && !bytes.Contains([]byte(fact.Got), []byte(c.got)) {
					t.Errorf("fact %+v does not show %q", fact, c.got)
				}
			}
			if !c.only {
				return
			}
			// Without this check the same facts pass: it is necessary.
			f, m = forgedFacts(t)
			c.spoil(t, f, m)
			rest := slices.DeleteFunc(slices.Clone(Checks), func(x Check) bool { return x.Name == c.at })
			if a := Appraise(f, rest); a.Refusal != nil {
				t.Fatalf("%s notices it too: %v", a.At, a.Refusal)
			}
		})
	}
	// Each check of the list is alone in noticing something, or its order is what a case above pins.
	for _, x := range Checks {
		if !slices.ContainsFunc(appraisalCases, func(c appraisalCase) bool {
			return c.at == x.Name
		}) {
			t.Errorf("no case for %s", x.Name)
		}
	}
}

// TestAppraiseOrder: with everything wrong at once the refusal is the protocol's first, then the next, and so on.
func TestAppraiseOrder(t *testing.T) {
	want := []string{"sizes", "ak-known", "ak-approved", "quote", "challenge", "extra-data", "bank", "selection", "dynamic-launch", "counters", "pcr-digest", "logs", "profiles"}
	for i, c := range Checks {
		if c.Name != want[i] || c.Spec == "" {
			t.Fatalf("check %d is %s, want %s", i, c.Name, want[i])
		}
	}
	f, m := forgedFacts(t)
	f.Evidence.Logs = append(f.Evidence.Logs, proof.Log{Kind: "ima"})
	f.Evidence.AK[5] ^= 1
	f.Host.State = Pending
	f.Challenge = evidence("old")
	f.Mark.Clock = 1 << 50
	for _, i := range []int{17, 18, 19} {
		setPCR(f, i, ones)
	}
	m.ak = newSoft(t).ak
	requote(t, f, m, selectPCRs(t, 17, 18).Marshal())
	a := Appraise(f, Checks)
	if a.At != "sizes" || a.Results[1].Result != proof.NotRun || a.Authentic {
		t.Fatalf("%+v", a)
	}
	f.Evidence.Logs = f.Evidence.Logs[1:]
	for i, repair := range []struct {
		at string
		do func()
	}{
		{"ak-known", func() { f.Evidence.AK = f.Host.AKName }},
		{"ak-approved", func() { f.Host.State = Approved }},
		{"quote", func() {
			f.Host.AK = nil
			public := newSoft(t)
			f.Host.AK, m.ak, m.akName, m.akPublic = public.akPublic, public.ak, public.akName, public.akPublic
			check(t, f.Host.complete(1))
			f.Evidence.AK = f.Host.AKName
			requote(t, f, m, selectPCRs(t, 17, 18).Marshal())
			f.Evidence.Challenge[3] ^= 1
		}},
		{"challenge", func() { f.Challenge = nil }},
		{"extra-data", func() { requote(t, f, m, selectPCRs(t, 17, 18).Marshal()) }},
		{"selection", func() { requote(t, f, m, f.Selection.Marshal()) }},
		{"dynamic-launch", func() { f.Evidence.PCRs = proof.PCRList(m.pcrs, f.Selection); setPCR(f, 19, [32]byte{5}) }},
		{"counters", func() { f.Mark = nil }},
		{"pcr-digest", func() { requote(t, f, m, f.Selection.Marshal()) }},
		{"logs", func() { f.Evidence.Logs = nil }},
		{"profiles", func() { f.Profiles = []*Profile{profileOf(t, f, f.Evidence.PCRs)} }},
	} {
		a := Appraise(f, Checks)
		if a.At != repair.at {
			t.Fatalf("step %d: refused by %q, want %s: %v", i, a.At, repair.at, a.Refusal)
		}
		repair.do()
	}
	if a := Appraise(f, Checks); a.Refusal != nil {
		t.Fatalf("repaired: %v", a.Refusal)
	}
}

// TestHonestCounters: what a TPM may do without being refused.
func TestHonestCounters(t *testing.T) {
	for name, spoil := range map[string]func(f *Facts, m *softTPM){
		"first evidence":       func(f *Facts, m *softTPM) { f.Mark = nil },
		"reboot":               func(f *Facts, m *softTPM) { m.counters = tpm.Counters{Reset: m.counters.Reset + 1} },
		"relaunch":             func(f *Facts, m *softTPM) { m.counters.Restart++ },
		"power cut":            func(f *Facts, m *softTPM) { m.counters.Reset++; m.safe = false; f.Mark.Clock = m.clock + clockSlack/2 },
		"power cut when young": func(f *Facts, m *softTPM) { m.counters.Reset++; m.safe = false; f.Mark.Clock = 5; m.clock = 1 },
	} {
		t.Run(name, func(t *testing.T) {
			f, m := forgedFacts(t)
			spoil(f, m)
			requote(t, f, m, f.Selection.Marshal())
			if a := Appraise(f, Checks); a.Refusal != nil {
				t.Fatal(a.Refusal)
			}
		})
	}
}

// TestNearestReference: of several references the one with the fewest differences explains, and any one that matches is enough.
func TestNearestReference(t *testing.T) {
	f, _ := forgedFacts(t)
	far := slices.Clone(f.Evidence.PCRs)
	for i := range far {
		far[i].Value = proof.Digest{byte(i + 1)}
	}
	near := slices.Clone(f.Evidence.PCRs)
	near[2].Value = proof.Digest{9}
	refs := map[string]*Reference{}
	for n, list := range map[string][]proof.PCR{"a-far": far, "b-near": near} {
		refs[n] = &Reference{Name: n, Launcher: TbootLegacy, Values: list, values: must[pcr.Values](t)(proof.PCRValues(list))}
	}
	p := &Profile{Name: "p", Launcher: TbootLegacy, Selection: f.Selection, References: []string{"a-far", "b-near"}}
	if r := p.resolve(refs); r != nil {
		t.Fatal(r)
	}
	values := must[pcr.Values](t)(proof.PCRValues(f.Evidence.PCRs))
	j := p.judge(values, nil)
	if j.Met || j.Reference != "b-near" || len(j.Differences) != 1 || j.Differences[0].PCR != 19 {
		t.Fatalf("%+v", j)
	}
	// One PCR from each of two references is no match: a set is good as a whole.
	if mixed := p.judge(pcr.Values{17: far[0].Value, 18: values[18], 19: near[2].Value}, nil); mixed.Met {
		t.Fatal("a mixture of two references was accepted")
	}
	delete(values, 19)
	if d := compare(f.Selection, refs["b-near"], values, nil); len(d) != 1 || d[0].Got != "no value" {
		t.Fatalf("%+v", d)
	}
}

// TestLaunchers: the three launchers' real layouts of PCR 17-19 are accepted with their logs.
func TestLaunchers(t *testing.T) {
	for _, l := range []txt.Launcher{txt.TbootLegacy, txt.TbootDA, txt.SLaunch} {
		t.Run(string(l), func(t *testing.T) {
			f, m := forgedFacts(t)
			m.boot(t, txt.Example(l))
			f.Evidence.PCRs = proof.PCRList(m.pcrs, f.Selection)
			f.Evidence.Logs[0].Data = m.events
			requote(t, f, m, f.Selection.Marshal())
			p := forgedProfile(t, f)
			p.Launcher = string(l)
			f.Profiles = []*Profile{p}
			if a := Appraise(f, Checks); a.Refusal != nil {
				t.Fatal(a.Refusal)
			}
		})
	}
}

func BenchmarkAppraise(b *testing.B) {
	t := &testing.T{}
	f, _ := forgedFacts(t)
	for b.Loop() {
		if a := Appraise(f, Checks); a.Refusal != nil {
			b.Fatal(a.Refusal)
		}
	}
}
