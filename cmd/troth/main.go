// Troth is the tenant's and the operator's program: one static file that makes
// tokens, checks proofs, talks to a verifier and to a host's daemon, and answers
// for a guest from inside it.
//
// It promises that its exit status is the answer (0 yes, 1 no, 2 wrong use,
// 3 could not decide), that no secret is printed, and that no file is
// overwritten without being told to. A proof is checked here alone, offline:
// nothing that an engine, a host or a provider says is trusted for that, only the
// verifier's root key in the tenant's trust.json and the tenant's own nonce.
package main

import (
	"context"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}
