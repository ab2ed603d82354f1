// Package race lets clients, daemons and the clock race against the gate on a real host: a domain that is redefined while another client starts it, libvirtd
// killed below running guests, starts that are queued before a hostd that is stopped, gone or hangs. It holds nothing but tests; it needs root and what `make deps` installs, and
// with -short it is left out.
//
// Counts: small by default, as `make test-gate` has them; TROTH_SOAK=1 makes them 10,000 pairs, 300 real starts, 50 guests, 20
// kills and 11 rounds (`make soak`); TROTH_PAIRS and TROTH_STARTS say how many of the first two.
package race
