package stories

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/rogpeppe/go-internal/testscript"

	"troth/proof"
	"troth/test/lab"
)

// An engine that lies has what it carries (proofs, challenges, answers), and its own credentials at hostd.

// spliced puts each part of the proof B.proof in the place of A.proof's, makes the sum anew, and has A's tenant (or the one whose key is
// named) refuse the result: spliced A B [KEY].
func (s *stage) spliced(ctx context.Context, ts *testscript.TestScript, neg bool, args []string) {
	want(ts, neg, args, 2)
	key := append(slices.Clone(args), args[0])[max(2, len(args)-1)]
	whole, other := parts(ts, args[0]), parts(ts, args[1])
	var changed []string
	for at, part := range whole {
		if bytes.Equal(part.value, other[at].value) {
			continue // of the same host, in the same epoch
		}
		changed = append(changed, part.name)
		mixed := slices.Clone(whole)
		mixed[at] = other[at]
		ts.Check(os.WriteFile(ts.MkAbs("spliced.proof"), summed(ts, mixed), 0o600))
		verify := []string{"proof", "verify", "--trust", "trust.json"}
		if exit := s.run(ctx, ts, lab.RoleTenant, append(verify, "--key", key+".key", "spliced.proof")); exit != 1 {
			ts.Fatalf("%s of %s in the proof of %s: exit %d", part.name, args[1], args[0], exit)
		}
		keyless := 1
		if part.name == "mac" {
			keyless = 0 // only who has the key can tell
		}
		if exit := s.run(ctx, ts, lab.RoleTenant, append(verify, "--public", "spliced.proof")); exit != keyless {
			ts.Fatalf("%s of %s in the proof of %s, without the key: exit %d", part.name, args[1], args[0], exit)
		}
	}
	for _, must := range []string{"statement", "quote", "receipt", "mac"} {
		if !slices.Contains(changed, must) {
			ts.Fatalf("the two proofs have the same %s", must)
		}
	}
}

// part is one member of a proof's JSON.
type part struct {
	name  string
	value json.RawMessage
}

// parts gives a proof's members in their order, but for the sum.
func parts(ts *testscript.TestScript, name string) []part {
	d := json.NewDecoder(strings.NewReader(ts.ReadFile(name + ".proof")))
	_, err := d.Token()
	ts.Check(err)
	var all []part
	for d.More() {
		name, err := d.Token()
		ts.Check(err)
		p := part{name: name.(string)}
		ts.Check(d.Decode(&p.value))
		if p.name != "sum" {
			all = append(all, p)
		}
	}
	return all
}

// summed writes a proof of these members, with its sum, which needs no key (proof format, 'sum').
func summed(ts *testscript.TestScript, all []part) []byte {
	var members []string
	for _, p := range all {
		members = append(members, fmt.Sprintf("%q:%s", p.name, p.value))
	}
	last := all[len(all)-1]
	var mac proof.Digest
	ts.Check(json.Unmarshal(last.value, &mac))
	body := "{" + strings.Join(members[:len(members)-1], ",") + "}"
	sum, err := json.Marshal(proof.Hash(proof.LabelProof, []byte(body), mac[:]))
	ts.Check(err)
	return []byte("{" + strings.Join(members, ",") + `,"sum":` + string(sum) + "}")
}

// relay stands between tenant and hostd, with the engine's credentials, at the socket $RELAY: it carries challenges to the guest UUID,
// whoever's they are, and says that the answers are of the proof's link; with 'replay' it answers all with the first answer:
// relay FILE.proof UUID [replay].
func (s *stage) relay(ctx context.Context, ts *testscript.TestScript, neg bool, args []string) {
	want(ts, neg, args, 2)
	p, err := proof.ParseProof([]byte(ts.ReadFile(args[0])))
	ts.Check(err)
	engine, err := s.lab.Client(string(lab.RoleEngine))
	ts.Check(err)
	r := &relay{
		to: s.lab.Host(1).URL() + "/v1/domains/" + args[1] + "/challenge", engine: engine,
		link: proof.Link(p.Statement).String(), replay: slices.Contains(args[2:], "replay"),
	}
	dir, err := os.MkdirTemp("", "relay") // a socket's path is short
	ts.Check(err)
	path := filepath.Join(dir, "sock")
	l, err := net.Listen("unix", path)
	ts.Check(err)
	server := &http.Server{Handler: r}
	go func() {
		if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			fmt.Fprintln(os.Stderr, "relay:", err)
		}
	}()
	ts.Defer(func() {
		if err := errors.Join(server.Close(), os.RemoveAll(dir)); err != nil {
			fmt.Fprintln(os.Stderr, "relay:", err)
		}
		engine.CloseIdleConnections()
	})
	ts.Setenv("RELAY", path)
}

type relay struct {
	to     string
	engine *http.Client
	link   string
	replay bool

	mu    sync.Mutex
	first []byte
}

func (r *relay) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	r.mu.Lock()
	defer r.mu.Unlock()
	answer, status := r.first, http.StatusOK
	if answer == nil {
		var err error
		if answer, status, err = r.carry(req); err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
	}
	if r.replay && status == http.StatusOK {
		r.first = answer
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	if _, err := w.Write(answer); err != nil {
		fmt.Fprintln(os.Stderr, "relay:", err)
	}
}

// carry asks hostd, and puts the link that is wanted into an answer.
func (r *relay) carry(req *http.Request) (answer []byte, status int, err error) {
	if !strings.HasSuffix(req.URL.Path, "/challenge") {
		return nil, 0, fmt.Errorf("this relay carries challenges, not %s", req.URL.Path)
	}
	out, err := http.NewRequestWithContext(req.Context(), req.Method, r.to, req.Body)
	if err != nil {
		return nil, 0, err
	}
	out.Header.Set("Content-Type", "application/json")
	resp, err := r.engine.Do(out)
	if err != nil {
		return nil, 0, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		return b, resp.StatusCode, err
	}
	var said map[string]any
	if err := json.Unmarshal(b, &said); err != nil {
		return nil, 0, err
	}
	said["link"] = r.link
	b, err = json.Marshal(said)
	return b, http.StatusOK, err
}
