package verifier

import (
	"errors"
	"fmt"
	"strconv"

	"troth/proof"
	"troth/tpm"
	"troth/tpm/eventlog"
	"troth/tpm/pcr"
)

// clockSlack is how far a TPM's clock may fall back over a reset that came without an orderly shutdown: it is written to
// NV at least each 2^22 ms, and then says Safe = NO (TPM 2.0 Part 1, 36.3.2).
const clockSlack = 1 << 22

// Mark is the high-water mark of an AK: neither counter nor clock may fall below it. After TPM2_Clear all are zero again, and
// the AK is another.
type Mark struct {
	AK       tpm.Name     `json:"ak"`
	Counters tpm.Counters `json:"counters"`
	Clock    uint64       `json:"clock"`
}

// Facts are all that evidence is judged by. The first block is given; checks fill in the second for the checks after them.
type Facts struct {
	Evidence  *proof.Evidence
	SPKI      proof.Digest   // of the key that the TLS peer proved to hold
	Host      *Host          // enrolled with that key; nil: none
	Challenge *proof.Refusal // what checkChallenge says
	Selection pcr.Selection  // what the host was asked to quote
	Mark      *Mark          // nil: the first evidence of this AK
	Profiles  []*Profile     // that judge the host

	Attested *tpm.Attested
	Values   pcr.Values
	Events   []eventlog.Event
	Judged   []Judged
}

// Check is one thing that evidence must satisfy.
type Check struct {
	Name string
	Spec string // document and chapter
	Run  func(*Facts) *proof.Refusal
}

// Checks of an appraisal, in the order of the protocol (docs, chapter "Attest → verdict"): the first refusal ends it. Nothing
// of a log is parsed before the signature held. extraDataCheck is the one from which on the evidence is known to be this
// host's and fresh; profilesCheck alone leads to a verdict that is contraindicated and not to a refusal.
var Checks = []Check{
	{"sizes", "protocol 3", checkSizes},
	{"ak-known", "protocol 2", checkAKKnown},
	{"ak-approved", "protocol 2", checkAKApproved},
	{"quote", "TPM 2.0 Part 3, 18.4; Part 2, 10.12", checkQuote}, // signature; magic, type, re-marshal equality, qualified signer
	{"challenge", "protocol 3", checkFresh},
	{extraDataCheck, "TPM 2.0 Part 2, 10.12.12", checkExtraData},
	{"bank", "TPM 2.0 Part 3, 18.4", checkBank},
	{"selection", "TPM 2.0 Part 2, 10.9.7", checkSelection},
	{"dynamic-launch", "TCG PC Client PTP, 4.6.2", checkDynamicLaunch},
	{"counters", "TPM 2.0 Part 1, 36", checkCounters},
	{"pcr-digest", "TPM 2.0 Part 1, 17.5", checkPCRDigest},
	{"logs", "TCG PC Client Platform Firmware Profile, 10", checkLogs},
	{profilesCheck, "protocol 3", checkProfiles},
}

const (
	extraDataCheck = "extra-data"
	profilesCheck  = "profiles"
)

// Appraisal is what the checks found.
type Appraisal struct {
	Authentic bool           // the evidence is this host's, over this key, for this challenge
	Refusal   *proof.Refusal // nil: affirming
	At        string         // the check that refused
	Results   []proof.ReportCheck
}

// Appraise runs the checks in order, up to the first refusal. It changes nothing but the second block of f.
func Appraise(f *Facts, checks []Check) Appraisal {
	var a Appraisal
	for _, c := range checks {
		if a.Refusal != nil {
			a.Results = append(a.Results, proof.ReportCheck{Name: c.Name, Result: proof.NotRun})
			continue
		}
		a.Refusal = c.Run(f)
		result := proof.ReportCheck{Name: c.Name, Result: proof.Passed}
		if a.Refusal != nil {
			a.At = c.Name
			result.Result, result.Detail = proof.Failed, a.Refusal.Error()
		} else if c.Name == extraDataCheck {
			a.Authentic = true
		}
		a.Results = append(a.Results, result)
	}
	return a
}

func evidence(sentence string, facts ...proof.Fact) *proof.Refusal {
	return proof.Refuse(proof.EvidenceInvalid, sentence, facts...)
}

// checkSizes: proof.ParseEvidence bounded every field; what is left is what one quote over one selection can have.
func checkSizes(f *Facts) *proof.Refusal {
	if f.Evidence == nil {
		return evidence("there is no evidence")
	}
	if len(f.Evidence.PCRs) > pcr.Count || len(f.Evidence.Logs) > 1 {
		return evidence("there are too many PCRs or logs", proof.Fact{Name: "pcrs", Want: "at most 24", Got: itoa(len(f.Evidence.PCRs))},
			proof.Fact{Name: "logs", Want: "at most 1", Got: itoa(len(f.Evidence.Logs))})
	}
	return nil
}

// checkAKKnown: the AK is the one that was enrolled over this very TLS key (A-HOST, A-CUCKOO).
func checkAKKnown(f *Facts) *proof.Refusal {
	if f.Host == nil {
		return proof.Refuse(proof.HostNotApproved, "no host is enrolled with this TLS key", proof.Fact{Name: "tls key", Got: f.SPKI.String()})
	}
	if f.Evidence.AK != f.Host.AKName {
		return evidence("the evidence names another host's AK", proof.Fact{Name: "ak", Want: f.Host.AKName.String(), Got: f.Evidence.AK.String()})
	}
	return nil
}

func checkAKApproved(f *Facts) *proof.Refusal {
	if f.Host.State != Approved {
		return proof.Refuse(proof.HostNotApproved, "no operator has approved this host", proof.Fact{Name: "host", Value: f.Host.Name},
			proof.Fact{Name: "state", Want: string(Approved), Got: string(f.Host.State)})
	}
	return nil
}

// checkQuote: signature first, then magic, type, re-marshal equality, qualified signer; package tpm keeps that order.
func checkQuote(f *Facts) *proof.Refusal {
	a, err := f.Host.ak.VerifyQuote(f.Evidence.Quote.Quote())
	if err != nil {
		return badEvidence("quote", err)
	}
	f.Attested = a
	return nil
}

func checkFresh(f *Facts) *proof.Refusal { return f.Challenge }

func checkExtraData(f *Facts) *proof.Refusal {
	want := proof.AttestExtraData(f.Evidence.Challenge, f.SPKI)
	if string(want) != string(f.Attested.ExtraData) {
		return evidence("the quote was made for another challenge or another TLS key",
			proof.Fact{Name: "extraData", Want: fmt.Sprintf("%x", want), Got: fmt.Sprintf("%x", f.Attested.ExtraData)})
	}
	return nil
}

// checkBank: a TPM signs a quote over a bank it has not allocated, validly, with an empty selection.
func checkBank(f *Facts) *proof.Refusal {
	var check *tpm.CheckError
	if err := f.Attested.CheckSelection(f.Selection); errors.As(err, &check) && check.Check == tpm.CheckBank {
		return proof.Refuse(proof.BankUnallocated, "the TPM has not allocated the bank that was to be quoted",
			proof.Fact{Name: "bank", Want: f.Selection.Bank.String(), Got: check.Got})
	}
	return nil
}

// checkSelection: byte for byte, or PCR 16 and 23, which anyone can set, stand for 17 and 18 (A-SELECT).
func checkSelection(f *Facts) *proof.Refusal {
	if err := f.Attested.CheckSelection(f.Selection); err != nil {
		return evidence("the quote is over other PCRs than those asked for",
			proof.Fact{Name: "selection", Want: f.Selection.String(), Got: selectionText(f.Attested.Selection)})
	}
	return nil
}

func selectionText(b []byte) string {
	if s, err := pcr.Unmarshal(b); err == nil {
		return s.String()
	}
	return fmt.Sprintf("%x", b)
}

// checkDynamicLaunch stands before every reference value: none makes such a state good.
func checkDynamicLaunch(f *Facts) *proof.Refusal {
	values, err := proof.PCRValues(f.Evidence.PCRs)
	if err != nil {
		return evidence(err.Error(), proof.Fact{Name: "pcrs", Want: "each index once, ascending, below 24", Got: err.Error()})
	}
	f.Values = values
	var none *pcr.NoDynamicLaunch
	if err := values.DynamicLaunch(); errors.As(err, &none) {
		return proof.Refuse(proof.NoDynamicLaunch, "the host did not come up through a dynamic launch",
			proof.Fact{Name: "PCR " + itoa(none.Index), Want: "a measurement of a dynamic launch", Got: fmt.Sprintf("%x", none.Value)})
	} else if err != nil {
		return evidence(err.Error(), proof.Fact{Name: "pcrs", Value: "refused"})
	}
	return nil
}

// checkCounters compares with the high-water mark of this AK: a TPM goes forward only (S-ROLLBACK).
func checkCounters(f *Facts) *proof.Refusal {
	m, a := f.Mark, f.Attested
	if m == nil {
		return nil
	}
	lowest := m.Clock
	if a.Counters.Reset > m.Counters.Reset && !a.Safe {
		lowest = max(lowest, clockSlack) - clockSlack
	}
	var back string
	switch {
	case a.Counters.Reset < m.Counters.Reset:
		back = "reset counter"
	case a.Counters.Reset == m.Counters.Reset && a.Counters.Restart < m.Counters.Restart:
		back = "restart counter"
	case a.Clock < lowest:
		back = "clock"
	default:
		return nil
	}
	r := proof.Refuse(proof.HostRebooted, "the TPM's "+back+" went back", counterFacts(m.Counters, a.Counters)...)
	r.Facts = append(r.Facts, proof.Fact{Name: "clock", Want: "at least " + itoa(lowest), Got: itoa(a.Clock)})
	r.Remedy = "After TPM2_Clear or a manipulated clock enrol the host again: troth-hostd provision, then troth host approve " + f.Host.Name + "."
	return r
}

func counterFacts(want, got tpm.Counters) []proof.Fact {
	return []proof.Fact{{Name: "reset count", Want: itoa(want.Reset), Got: itoa(got.Reset)}, {Name: "restart count", Want: itoa(want.Restart), Got: itoa(got.Restart)}}
}

// checkPCRDigest: the values are exactly the selected ones, and those that the TPM signed.
func checkPCRDigest(f *Facts) *proof.Refusal {
	if want := len(f.Selection.Indexes()); len(f.Values) != want {
		return evidence("the PCR values are not those of the selection", proof.Fact{Name: "pcrs", Want: f.Selection.String(), Got: fmt.Sprint(f.Values.Indexes())})
	}
	if err := f.Attested.CheckPCRs(f.Selection, f.Values); err != nil {
		var check *tpm.CheckError
		if errors.As(err, &check) {
			return evidence("the PCR values are not those that the TPM signed", proof.Fact{Name: "pcr digest", Want: check.Want, Got: check.Got})
		}
		return evidence(err.Error(), proof.Fact{Name: "pcrs", Value: "refused"})
	}
	return nil
}

// checkLogs: the signed values are the log's, event by event. A log is not needed, but a log that lies is refused.
func checkLogs(f *Facts) *proof.Refusal {
	for i, l := range f.Evidence.Logs {
		field := fmt.Sprintf("logs[%d]", i)
		if l.Kind != proof.LogTCG2 {
			return evidence("there is no such kind of log", proof.Fact{Name: field + ".kind", Want: proof.LogTCG2, Got: strconv.Quote(cut(l.Kind, 40))})
		}
		events, err := eventlog.Parse(l.Data)
		if err != nil {
			return evidence("the log cannot be read: "+err.Error(), proof.Fact{Name: field + ".data", Value: "refused"})
		}
		dynamic := pcr.Values{}
		for j, d := range f.Values {
			if j >= pcr.DynamicFirst && j <= pcr.DynamicLast {
				dynamic[j] = d
			}
		}
		if err := eventlog.Check(events, dynamic); err != nil {
			var m *eventlog.Mismatch
			if errors.As(err, &m) {
				return evidence("the log does not explain the PCR values",
					proof.Fact{Name: "PCR " + itoa(m.Index), Want: fmt.Sprintf("%x", m.Want), Got: fmt.Sprintf("%x", m.Got)})
			}
			return evidence("the log does not explain the PCR values: "+err.Error(), proof.Fact{Name: field + ".data", Value: "refused"})
		}
		f.Events = events
	}
	return nil
}

// Judged is one profile against one host.
type Judged struct {
	Ref         proof.ProfileRef
	Met         bool
	Reference   string // the matching set, or the one that is nearest
	Differences []Difference
}

// Difference is a PCR, or one event of it, that is not what a reference says.
type Difference struct {
	PCR       int
	Event     string // "" for the PCR's value
	Want, Got string
}

// checkProfiles: one profile met is enough; a token names the one it needs.
func checkProfiles(f *Facts) *proof.Refusal {
	if len(f.Profiles) == 0 {
		return proof.Refuse(proof.ProfileNotMet, "no profile judges this host", proof.Fact{Name: "profiles", Want: "at least one", Got: "none"})
	}
	var facts []proof.Fact
	met := false
	f.Judged = nil
	for _, p := range f.Profiles {
		j := p.judge(f.Values, f.Events)
		met = met || j.Met
		f.Judged = append(f.Judged, j)
		for _, d := range j.Differences {
			n := "PCR " + itoa(d.PCR)
			if d.Event != "" {
				n += " event " + d.Event
			}
			facts = append(facts, proof.Fact{Name: n, Want: d.Want, Got: d.Got}, proof.Fact{Name: n + " reference", Value: p.Name + "/" + j.Reference})
		}
	}
	if met {
		return nil
	}
	return proof.Refuse(proof.PCRMismatch, "the host meets no profile: PCR values differ from the reference values", facts[:min(len(facts), 64)]...)
}
