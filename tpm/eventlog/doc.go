// Package eventlog reads the event log of a dynamic launch and replays it.
//
// The log is the crypto-agile one of TCG PC Client Platform Firmware Profile, 10 (Spec ID header, then
// TCG_PCR_EVENT2), as the TXT ACM, tboot and Secure Launch leave it on a TPM 2.0. Parse promises bounds, one reading
// and a refusal of anything else; Replay promises the PCR values that exactly these events give. A log is a claim by
// the host: event types and data are covered by no digest, so that a log is worth what its replay says about PCR
// values that a quote signed, and its texts are for people. The package trusts nothing it reads.
package eventlog
