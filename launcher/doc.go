// Package launcher starts proven domains: a pure decision, and around it the long linear sequences that launch, stop and recover.
//
// It promises that libvirt hears of a domain only with a Permit, which only Decide makes; that a guest runs only after its proof is in the journal;
// and that a launch which fails at any step leaves nothing defined, granted, mounted or running that was not there before, with its reason kept.
// It trusts what the TPM and the verifier signed, and of libvirt only what it read back itself.
//
//	request -> read, measure -> verdict -> statement -> release -> unseal -> Decide -> Permit
//	                                                       |          |                   |
//	                                                    verifier   one per batch          v
//	  guest runs <- resume <- journal <- MAC <- quote <- compare <- create paused <- define, read back
//	                                              |
//	                                        one per batch
//
// The worlds that it needs stand in ports.go as small interfaces; tests supply made-up ones with state.
package launcher
