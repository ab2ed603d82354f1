// Package hostd is the daemon of a measured host: it proves the host to a verifier each epoch and launches domains with what the verifier released.
//
// It promises that libvirt hears of a trusted domain only after launcher.Decide permitted it, that every launch ends proved and running or gone
// with its reason kept, and that a domain which another client starts is refused. It trusts nothing that the TPM or the verifier did not sign;
// it trusts the kernel and root of this host exactly as far as the measured configuration does.
//
//	           verifier (TLS, bound to our key)
//	              ^  evidence       | verdict, release key
//	              |                 v
//	chip ----> attest (each epoch) ---> epoch (newest value) ---> launcher ---> libvirt
//	                                        |                      ^   |          |
//	                                        v                      |   v          v prepare, start
//	                                     status <--- API --- serve |  journal   troth-hook
//	                                                               |              |
//	                                                               +-- hooksocket <
//
// One worker per duty and file: attest.go, hooksocket.go, liveness.go, events.go, reconcile.go, registry.go, watchdog.go. Workers leave newest values, not queues;
// the one exception is the outbox of chain events, which must not be lost and stands in the journal.
package hostd
