// Package crash kills hostd and libvirtd for real at every step of a launch and of a stop, on a host of the lab, and looks each time whether what is
// left is one of two things: a guest that is proved and runs, or a guest that is gone with the reason kept. All launches are of one domain with one
// token, so that a chain that is stuck once is seen at the next launch. It also fills the disk under hostd's journal.
//
// Nothing in the programs helps it: a step is seen from outside, by the journal, by libvirt's and hostd's files, and by the clock.
//
// Counts: a few kills by default, as `make test-gate` has them; TROTH_KILLS says how many (`make test-crash`); TROTH_SOAK=1 makes it 300
// (`make soak`).
package crash
