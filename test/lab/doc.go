// Package lab builds trusted hosts on one machine, for tests and the demonstration.
//
//	caller (a test, the demonstration, the lab command)
//	  │ holds the lab's lock; every node below dies with it
//	  ├── outside    bridge br0 10.77.0.1   where tenants, operators and engines run their commands
//	  ├── verifier   10.77.0.2              troth-verifierd
//	  ├── host1      10.77.0.11             swtpm with a TXT boot, libvirtd, troth-hook, troth-hostd, QEMU
//	  └── hostN      10.77.0.10+N
//
// A node is a process 1 that reaps, in mount, UTS, IPC, PID and network namespaces of its own, and what it was asked to
// run. Hosts and verifier have a root directory of their own as well: the machine's programs read-only, and a private
// /etc, /run, /tmp and /var that lie in the lab's directory, where a test may read them. Commands are run in a node by
// [Node.Command].
//
// What it promises: nothing of the machine is touched but the lab's directory and the cache; no interface is added to
// the machine's network namespace; no namespace is pinned and no mount is made outside a node, so that the end of the
// caller, of whatever kind, is the end of all processes, mounts, interfaces and namespaces of the lab. What then remains
// is the directory, which carries a marker and a lock; the next start removes it. [Lab.Close] goes the same road.
//
// What it trusts: the machine, its root user and the programs that Debian's packages installed. Its keys and certificates are for
// tests; the package must never be part of a product binary, and importing it gives a program two further faces (process
// 1 of a node, and the stand-in for a command inside it) that are told apart by argv[0]; see reexec.go.
package lab
