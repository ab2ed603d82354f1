package serve

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// Caller is who a request comes from. Its id keeps the idempotency keys of two callers apart.
type Caller struct {
	ID    string
	Roles []string
	named bool   // by the client CA, or by the configuration
	why   string // it has no role; empty: there is no more to say about it
}

// May says whether the caller has one of the roles.
func (c Caller) May(roles []string) bool {
	for _, r := range roles {
		if r == Public || slices.Contains(c.Roles, r) {
			return true
		}
	}
	return false
}

type callerKey struct{}

// callerOf finds who calls: on the unix socket by the peer's user, which ConnContext left; over TLS by the verified certificate. The certificate's times are
// looked at for each request, since a connection may outlive them.
func callerOf(r *http.Request, now func() time.Time) Caller {
	if c, ok := r.Context().Value(callerKey{}).(Caller); ok {
		return c
	}
	if r.TLS == nil || len(r.TLS.VerifiedChains) == 0 {
		return Caller{ID: "nobody"}
	}
	leaf := r.TLS.VerifiedChains[0][0]
	spki := sha256.Sum256(leaf.RawSubjectPublicKeyInfo)
	c := Caller{ID: "tls:" + hex.EncodeToString(spki[:]), named: true}
	if t := now(); t.Before(leaf.NotBefore) || t.After(leaf.NotAfter) {
		c.why = "the certificate is not valid now"
		return c
	}
	// One role a certificate: two would make a leaked key of the weaker one the stronger one's.
	if len(leaf.Subject.OrganizationalUnit) == 1 {
		c.Roles = leaf.Subject.OrganizationalUnit
	}
	return c
}

// peerContext is ConnContext of the unix socket (unix(7), SO_PEERCRED): root and the configured users are engine and operator.
func peerContext(uids []int) func(context.Context, net.Conn) context.Context {
	return func(ctx context.Context, conn net.Conn) context.Context {
		uid, err := peer(conn)
		if err != nil {
			return context.WithValue(ctx, callerKey{}, Caller{ID: "nobody"})
		}
		c := Caller{ID: fmt.Sprintf("uid:%d", uid)}
		if uid == 0 || slices.Contains(uids, int(uid)) {
			c.Roles, c.named = []string{Engine, Operator}, true
		}
		return context.WithValue(ctx, callerKey{}, c)
	}
}

func peer(conn net.Conn) (uint32, error) {
	u, ok := conn.(*net.UnixConn)
	if !ok {
		return 0, errors.New("not a unix socket")
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return 0, fmt.Errorf("cannot look at the peer: %w", err)
	}
	var cred *unix.Ucred
	var inner error
	if err := raw.Control(func(fd uintptr) { cred, inner = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil {
		return 0, fmt.Errorf("cannot look at the peer: %w", err)
	}
	if inner != nil {
		return 0, fmt.Errorf("cannot look at the peer: %w", inner)
	}
	return cred.Uid, nil
}
