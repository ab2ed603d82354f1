// Package txt makes a software TPM look like the TPM of a host that Intel TXT launched.
//
// It starts a real swtpm with EK certificates from a certificate authority of its own, and does to it what such a
// boot does to a chip (TCG PC Client PTP 4.6; Intel TXT Software Development Guide, 1.9 and 3): the hash sequence of
// the processor on the control channel (locality 4), the SINIT ACM's extends at locality 3, the launcher's at
// locality 2, and back to locality 0. What the PCRs hold afterwards is computed from the [Script] in expected.go with
// crypto/sha256 alone, so that a test compares the product with something that shares no code with it.
//
// It promises that nothing is left: Stop ends the process, and everything lies in the directory that the caller
// named. It is for tests and the lab and is in no product binary.
package txt
