package verifier

import (
	"bytes"
	"slices"
	"testing"

	"troth/proof"
	"troth/tpm"
	"troth/tpm/pcr"
)

type appraisalCase struct {
	name  string
	at    string
	code  proof.Code
	fact  string
	got   string // part of the fact's Got
	only  bool
	spoil func(t *testing.T, f *Facts, m *softTPM)
}

// appraisalCases each break one thing. `only` marks those that no other check would notice: without the check named `at` they
// are accepted, so that each check of the list is necessary.
var appraisalCases = []appraisalCase{
	{"no evidence", "sizes", proof.EvidenceInvalid, "", "", false, func(t *testing.T, f *Facts, m *softTPM) { f.Evidence = nil }},
	{"two logs", "sizes", proof.EvidenceInvalid, "logs", "2", true, func(t *testing.T, f *Facts, m *softTPM) {
		f.Evidence.Logs = append(f.Evidence.Logs, f.Evidence.Logs[0])
	}},
	{"25 PCRs", "sizes", proof.EvidenceInvalid, "pcrs", "25", false, func(t *testing.T, f *Facts, m *softTPM) {
		f.Evidence.PCRs = make([]proof.PCR, 25)
	}},
	{"stranger", "ak-known", proof.HostNotApproved, "tls key", "", false, func(t *testing.T, f *Facts, m *softTPM) { f.Host = nil }},
	{"other AK named", "ak-known", proof.EvidenceInvalid, "ak", "", true, func(t *testing.T, f *Facts, m *softTPM) { f.Evidence.AK[5] ^= 1 }},
	{"pending", "ak-approved", proof.HostNotApproved, "state", "pending", true, func(t *testing.T, f *Facts, m *softTPM) { f.Host.State = Pending }},
	{"revoked", "ak-approved", proof.HostNotApproved, "state", "revoked", true, func(t *testing.T, f *Facts, m *softTPM) { f.Host.State = Revoked }},
	{"signature", "quote", proof.EvidenceInvalid, "quote: signature", "", true, func(t *testing.T, f *Facts, m *softTPM) {
		f.Attested = must[*tpm.Attested](t)(f.Host.ak.VerifyQuote(f.Evidence.Quote.Quote()))
		f.Evidence.Quote.Signature = bytes.Clone(f.Evidence.Quote.Signature)
		f.Evidence.Quote.Signature[40] ^= 1
	}},
	{"challenge", "challenge", proof.EvidenceInvalid, "", "", true, func(t *testing.T, f *Facts, m *softTPM) { f.Challenge = evidence("too old") }},
	{"other challenge quoted", extraDataCheck, proof.EvidenceInvalid, "extraData", "", true, func(t *testing.T, f *Facts, m *softTPM) { f.Evidence.Challenge[0] ^= 1 }},
	{"other TLS key quoted", extraDataCheck, proof.EvidenceInvalid, "extraData", "", true, func(t *testing.T, f *Facts, m *softTPM) { f.SPKI[0] ^= 1 }},
	{"bank unallocated", "bank", proof.BankUnallocated, "bank", "", false, func(t *testing.T, f *Facts, m *softTPM) {
		requote(t, f, m, []byte{0, 0, 0, 1, 0, 0x0B, 3, 0, 0, 0})
	}},
	{"bank sha1", "bank", proof.BankUnallocated, "bank", "", false, func(t *testing.T, f *Facts, m *softTPM) {
		requote(t, f, m, must[pcr.Selection](t)(pcr.Select(pcr.SHA1, 17, 18, 19)).Marshal())
	}},
	{"PCR 16 and 23", "selection", proof.EvidenceInvalid, "selection", "sha256:16,18,23", false, func(t *testing.T, f *Facts, m *softTPM) {
		requote(t, f, m, selectPCRs(t, 16, 18, 23).Marshal())
	}},
	{"more PCRs", "selection", proof.EvidenceInvalid, "selection", "sha256:17,18,19,23", false, func(t *testing.T, f *Facts, m *softTPM) {
		requote(t, f, m, selectPCRs(t, 17, 18, 19, 23).Marshal())
	}},
	{"sizeofSelect 4", "selection", proof.EvidenceInvalid, "selection", "00000001000b0400000e00", false, func(t *testing.T, f *Facts, m *softTPM) {
		requote(t, f, m, []byte{0, 0, 0, 1, 0, 0x0B, 4, 0, 0, 0x0E, 0})
	}},
	{"PCR list out of order", "dynamic-launch", proof.EvidenceInvalid, "pcrs", "is not above", false, func(t *testing.T, f *Facts, m *softTPM) {
		f.Evidence.PCRs = slices.Clone(f.Evidence.PCRs)
		slices.Reverse(f.Evidence.PCRs)
	}},
	{"no PCR 17", "dynamic-launch", proof.EvidenceInvalid, "pcrs", "", false, func(t *testing.T, f *Facts, m *softTPM) { f.Evidence.PCRs = f.Evidence.PCRs[1:] }},
	{"all ones, and the reference says so", "dynamic-launch", proof.NoDynamicLaunch, "PCR 17", "ffff", true, func(t *testing.T, f *Facts, m *softTPM) {
		sameEverywhere(t, f, m, ones)
	}},
	{"zero, and the reference says so", "dynamic-launch", proof.NoDynamicLaunch, "PCR 17", "0000", true, func(t *testing.T, f *Facts, m *softTPM) {
		sameEverywhere(t, f, m, [32]byte{})
	}},
	{"reset count back", "counters", proof.HostRebooted, "reset count", "", true, func(t *testing.T, f *Facts, m *softTPM) { f.Mark.Counters.Reset++ }},
	{"restart count back", "counters", proof.HostRebooted, "restart count", "", true, func(t *testing.T, f *Facts, m *softTPM) { f.Mark.Counters.Restart++ }},
	{"clock back", "counters", proof.HostRebooted, "clock", "", true, func(t *testing.T, f *Facts, m *softTPM) { f.Mark.Clock = m.clock + 1 }},
	{"clock back over an orderly reset", "counters", proof.HostRebooted, "clock", "", true, func(t *testing.T, f *Facts, m *softTPM) {
		m.counters.Reset++
		requote(t, f, m, f.Selection.Marshal())
		f.Mark.Clock = m.clock + 1
	}},
	{"clock back further than NV holds", "counters", proof.HostRebooted, "clock", "", true, func(t *testing.T, f *Facts, m *softTPM) {
		m.counters.Reset++
		m.safe = false
		requote(t, f, m, f.Selection.Marshal())
		f.Mark.Clock = m.clock + clockSlack + 1
	}},
	{"a value changed", "pcr-digest", proof.EvidenceInvalid, "pcr digest", "", false, func(t *testing.T, f *Facts, m *softTPM) { setPCR(f, 19, [32]byte{1}) }},
	{"a value changed, and the log and the reference say so", "pcr-digest", proof.EvidenceInvalid, "pcr digest", "", true, func(t *testing.T, f *Facts, m *softTPM) {
		setPCR(f, 19, [32]byte{1})
		f.Evidence.Logs, f.Profiles = nil, []*Profile{profileOf(t, f, f.Evidence.PCRs)}
	}},
	{"a value more", "pcr-digest", proof.EvidenceInvalid, "pcrs", "[17 18 19 23]", true, func(t *testing.T, f *Facts, m *softTPM) {
		f.Evidence.PCRs = append(slices.Clone(f.Evidence.PCRs), proof.PCR{Index: 23})
	}},
	{"log of a kind nobody reads", "logs", proof.EvidenceInvalid, "logs[0].kind", "ima", true, func(t *testing.T, f *Facts, m *softTPM) { f.Evidence.Logs[0].Kind = "ima" }},
	{"log cut", "logs", proof.EvidenceInvalid, "logs[0].data", "", true, func(t *testing.T, f *Facts, m *softTPM) {
		f.Evidence.Logs[0].Data = f.Evidence.Logs[0].Data[:len(f.Evidence.Logs[0].Data)-3]
	}},
	{"log of another boot", "logs", proof.EvidenceInvalid, "PCR 18", "", true, func(t *testing.T, f *Facts, m *softTPM) {
		s := example()
		s.CommandLine += " init=/bin/sh"
		f.Evidence.Logs[0].Data = must[[]byte](t)(s.Log())
	}},
	{"no profile", profilesCheck, proof.ProfileNotMet, "profiles", "none", true, func(t *testing.T, f *Facts, m *softTPM) { f.Profiles = nil }},
	{"another kernel", profilesCheck, proof.PCRMismatch, "PCR 18", "", true, func(t *testing.T, f *Facts, m *softTPM) { rebooted(t, f, m) }},
	{"another kernel, told by event", profilesCheck, proof.PCRMismatch, "PCR 18 event 2 TBOOT_MODULE", "", true, func(t *testing.T, f *Facts, m *softTPM) { rebooted(t, f, m) }},
}
