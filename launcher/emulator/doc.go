// Package emulator finds the emulators among the processes of this machine, says which of them run a trusted guest by UUID, volume or
// channel, and ends one of them.
//
//	/proc ──Scan──▶ processes ──Index.Why──▶ trusted, and why ──End──▶ gone (pidfd: never another process under a number used again)
//
// It promises: one pass, bounded in processes, descriptors and bytes; a process that ends while it is looked at is not there, and one that could not be
// looked at is counted and named, never passed over in silence; nothing is believed of a process but what the kernel says, except its
// arguments, which QEMU could overwrite and which can only add to the reasons.
// It trusts: the kernel's /proc. It does not know libvirt: whoever calls it knows which processes have a grant.
package emulator
