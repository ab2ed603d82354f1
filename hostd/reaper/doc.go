// Package reaper ends emulators of other users for hostd, which itself may signal nobody's processes but its own.
//
//	hostd ──one request──▶ unix socket (hostd's user alone) ──▶ /proc and the published registry ──▶ pidfd ──▶ SIGKILL or SIGSTOP
//
// It promises: it signals a process only if that process, under that start time, is an emulator that runs a trusted guest by the registry which
// it reads itself; never another process under a number used again; one bounded request and one answer for each connection.
// It trusts: the kernel, and the registry as far as hostd's user may write it: a hostd that somebody took over can have emulators ended that it
// names in the registry, and nothing else.
package reaper
