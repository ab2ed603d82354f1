// Package differential writes domains by the thousand, to hold this project's reading of domain XML against libvirt's.
//
//	libvirt's RELAX NG schema ──┐
//	requests and definitions ───┼─ Stream ──▶ documents ──▶ libvirt: define, read back ──┐
//	what no schema makes ───────┘                  └──────▶ domain.Read ─────────────────┴─ equal, or refused
//
// It promises: the same seed gives the same documents; each is bounded in size; and [Start] runs a libvirtd of its own,
// in namespaces of its own, that dies with the caller and never touches the machine's.
// It trusts: the schema files of the libvirt package that is installed. It is for tests and in no product binary.
package differential
