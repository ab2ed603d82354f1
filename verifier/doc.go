// Package verifier is the judge: it enrols hosts, holds what a good host looks like, turns evidence into signed verdicts,
// and releases to a proven host what a tenant sealed, one link of a token's chain at a time.
//
//	enrol.go      TPM identity → credential activation → pending     (compare-and-swap; identity = EK digest)
//	hosts.go      an operator approves or revokes
//	reference.go  reference values and profiles, with digests;  import.go takes them from a host that is known good
//	challenge.go  stateless challenges, each good for one evidence
//	appraise.go   the checks of evidence: a pure function over facts; attest.go puts the effects around it
//	judge.go      the checks of a release: pure; chain.go the links of a token: pure; release.go the effects
//	why.go        what stands against a host
//
// It promises that no verdict is signed and nothing is released unless every check of the list held, that a token's chain
// has one winner, and that a refusal changes nothing but the log. It never dials out, and keeps no release key.
//
// It trusts its own clock, its key files, its store and the EK roots in its configuration; of a host, only what its TPM signed.
package verifier
