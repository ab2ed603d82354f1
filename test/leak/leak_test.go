package leak

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"troth/proof"
	"troth/test/cast"
	"troth/test/lab"
	"troth/test/scene"
)

const (
	name = "leak"
	uuid = "10000000-0000-4000-8000-000000005ec1"
)

// TestAttack runs the attack of docs/attacks.md that is a search.
func TestAttack(t *testing.T) {
	t.Run("S-LEAK", func(t *testing.T) {
		if testing.Short() {
			t.Skip("needs the lab: make test")
		}
		ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
		defer cancel()
		a := newStage(ctx, t)
		a.provePlanted(ctx, t)
		a.makeToken(ctx, t)
		a.launch(ctx, t)
		a.proveLive(ctx, t)
		a.searchAll(ctx, t)
	})
}

// stage is a lab with one launch, and what is searched for.
type stage struct {
	lab                      *lab.Lab
	host                     *lab.Host
	operator, tenant, engine *cast.Person
	heard                    bytes.Buffer // all that people other than the tenant were told
	values                   searcher
	key                      *proof.Key
}

func newStage(ctx context.Context, t *testing.T) *stage {
	l := lab.ForTest(ctx, t, lab.Options{})
	a := &stage{lab: l, host: l.Host(1)}
	for role, p := range map[lab.Role]**cast.Person{lab.RoleOperator: &a.operator, lab.RoleTenant: &a.tenant, lab.RoleEngine: &a.engine} {
		*p = scene.Must[*cast.Person](t)(cast.New(l, role, filepath.Join(t.TempDir(), string(role))))
	}
	hear := func(x *cast.Answer) { fmt.Fprintf(&a.heard, "%s\n%s%s", x.Command(), x.Stdout, x.Stderr) }
	a.operator.Heard, a.engine.Heard = hear, hear
	return a
}

func (a *stage) nodes() []*lab.Node {
	return []*lab.Node{a.lab.Outside, &a.lab.Verifier.Node, &a.host.Node}
}

// found demands that a search found each of the things that were planted.
func found(t *testing.T, hits []hit, wants ...string) {
	t.Helper()
	for _, want := range wants {
		ok := false
		for _, h := range hits {
			ok = ok || strings.Contains(h.String(), want)
		}
		if !ok {
			t.Fatalf("the search is blind: nothing found for %q among %d hits", want, len(hits))
		}
	}
}

// provePlanted shows, before anything is at stake, that what is planted on a host is found in every form and place.
func (a *stage) provePlanted(ctx context.Context, t *testing.T) {
	canary := make([]byte, 32)
	rand.Read(canary)
	var s searcher
	s.look("canary", canary)
	text := hex.EncodeToString(canary)

	// A file in the host's tree with all forms, one of them across the border of two reads.
	var forms bytes.Buffer
	forms.Write(make([]byte, chunk-20))
	for _, p := range s.patterns {
		forms.Write(p.bytes)
		forms.WriteByte('\n')
	}
	file := a.host.Path("/var/lib/troth/planted")
	if err := os.WriteFile(file, forms.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	hits, _, err := s.files(a.lab.Dir())
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range s.patterns {
		found(t, hits, p.what+" in "+file)
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}

	// A process of the host with one canary each in its command line, its environment and its memory.
	plant := func(kind string, script, argument, variable, input string) (int, func()) {
		ctx, cancel := context.WithCancel(ctx)
		cmd := a.host.Command(ctx, "sh", "-c", script, argument)
		cmd.Env = append(cmd.Env, "PLANTED="+variable)
		cmd.Stdin = strings.NewReader(input + "\n")
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		var inner, pid int
		if _, err := fmt.Fscan(out, &inner); err != nil {
			t.Fatalf("%s: %v", kind, err)
		}
		if pid, err = outer(&a.host.Node, inner); err != nil {
			t.Fatalf("%s: %v", kind, err)
		}
		return pid, func() {
			cancel()
			_ = cmd.Wait() // it was ended by us
		}
	}
	const script = "echo $$; sleep 60; :"
	pid, end := plant("command line", script, text, "", "")
	pids, err := processes(&a.host.Node)
	if err != nil {
		t.Fatal(err)
	}
	hits, _ = s.started(pids)
	found(t, hits, fmt.Sprintf("/proc/%d/cmdline", pid))
	end()
	pid, end = plant("environment", script, "none", text, "")
	if pids, err = processes(&a.host.Node); err != nil {
		t.Fatal(err)
	}
	hits, _ = s.started(pids)
	found(t, hits, fmt.Sprintf("/proc/%d/environ", pid))
	end()
	pid, end = plant("memory", "read x; "+script, "none", "", text)
	if hits, _ = s.started([]int{pid}); len(hits) > 0 {
		t.Fatalf("the canary for memory is elsewhere: %v", hits)
	}
	hits, _, err = s.memory(pid, "the planted process")
	if err != nil {
		t.Fatal(err)
	}
	found(t, hits, "canary (hex, first half)", "canary (hex, second half)")
	end()
}

// makeToken lets the tenant make a token with a secret, and reads from the tenant's own record what to search for.
func (a *stage) makeToken(ctx context.Context, t *testing.T) {
	secret := make([]byte, 48)
	rand.Read(secret)
	if err := os.WriteFile(a.tenant.Path("secret"), secret, 0o600); err != nil {
		t.Fatal(err)
	}
	profile := scene.Must[string](t)(a.operator.Profile(ctx, a.host, lab.Golden))
	if err := a.tenant.FetchTrust(ctx, a.host); err != nil {
		t.Fatal(err)
	}
	words := cast.NewToken(a.lab.Guest, lab.Domain{}, profile, "key", a.engine.Path("token"), "--secret-file", "secret")
	if err := a.tenant.Do(ctx, a.host, nil, words...); err != nil {
		t.Fatal(err)
	}
	record, err := os.ReadFile(a.tenant.Path("key"))
	if err != nil {
		t.Fatal(err)
	}
	if a.key, err = proof.ParseKey(record); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(a.key.Secret.Reveal(), secret) {
		t.Fatal("the record does not hold the secret of the file")
	}
	a.values.look("nonce", a.key.Nonce.Reveal())
	a.values.look("secret", secret)
	hits, _, err := a.values.files(a.tenant.Dir)
	if err != nil {
		t.Fatal(err)
	}
	found(t, hits, "nonce (base64url+0", "secret (base64url+0", "secret (raw")
}

// launch launches, searches command lines and environments all the while, and waits for the guest to answer with its secret.
func (a *stage) launch(ctx context.Context, t *testing.T) {
	xml := a.lab.Guest.XML(lab.Domain{Name: name, UUID: uuid})
	if err := os.WriteFile(a.engine.Path("domain.xml"), []byte(xml), 0o600); err != nil {
		t.Fatal(err)
	}
	over := make(chan struct{})
	var watch sync.WaitGroup
	watch.Go(func() {
		looks := 0
		for told := map[string]bool{}; ; looks++ {
			for _, n := range a.nodes() {
				pids, err := processes(n)
				if err != nil {
					t.Error(err)
				}
				hits, _ := a.values.started(pids)
				for _, h := range hits {
					if !told[h.String()] {
						t.Errorf("during the launch: %v", h)
					}
					told[h.String()] = true
				}
			}
			select {
			case <-over:
				t.Logf("%d looks at command lines and environments during the launch", looks+1)
				return
			case <-time.After(10 * time.Millisecond):
			}
		}
	})
	err := a.engine.Do(ctx, a.host, nil, "domain", "launch", "--token", "token", "--domain", "domain.xml", "--proof-out", "proof")
	close(over)
	watch.Wait()
	if err != nil {
		t.Fatal(err)
	}
	if err := a.host.AwaitConsole(ctx, name, lab.UserSpaceUp); err != nil {
		t.Fatal(err)
	}
	scene.Until(t, 30*time.Second, func() error {
		return a.tenant.Do(ctx, a.host, nil, "domain", "challenge", uuid, "--trust", "trust.json", "--key", "key", "--proof", a.engine.Path("proof"))
	})
	text, err := os.ReadFile(a.engine.Path("proof"))
	if err != nil {
		t.Fatal(err)
	}
	p, err := proof.ParseProof(text)
	if err != nil {
		t.Fatal(err)
	}
	// What the guest answers with is made from the nonce: who has it can answer in the guest's place.
	a.values.look("guest secret", proof.GuestSecret(a.key.Nonce, proof.Link(p.Statement)).Reveal())
}

// proveLive shows that the search sees into the very processes that are searched, and that the values are where they belong.
func (a *stage) proveLive(ctx context.Context, t *testing.T) {
	var marks searcher
	marks.look("the domain's id", []byte(uuid))
	for _, daemon := range []string{"hostd", "libvirtd"} {
		pid, err := service(ctx, &a.host.Node, daemon)
		if err != nil {
			t.Fatal(err)
		}
		hits, _, err := marks.memory(pid, daemon)
		if err != nil {
			t.Fatal(err)
		}
		found(t, hits, "the domain's id (raw, first half)", "the domain's id (raw, second half)")
	}
	qemu, err := a.qemu()
	if err != nil {
		t.Fatal(err)
	}
	hits, _, err := a.values.memory(qemu, "QEMU")
	if err != nil {
		t.Fatal(err)
	}
	found(t, hits, "secret (base64url+0, first half)", "guest secret (base64url+0, first half)")
	for _, h := range hits {
		if strings.HasPrefix(h.what, "nonce ") {
			t.Errorf("the guest has the nonce: %v", h)
		}
	}
}

// qemu finds the guest's process.
func (a *stage) qemu() (int, error) {
	pids, err := processes(&a.host.Node)
	if err != nil {
		return 0, err
	}
	for _, pid := range pids {
		if line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)); err == nil && bytes.Contains(line, []byte("guest="+name+",")) {
			return pid, nil
		}
	}
	return 0, fmt.Errorf("no QEMU runs %s", name)
}

// searchAll searches every place outside the guest and the tenant's own directory. Nothing may be found.
func (a *stage) searchAll(ctx context.Context, t *testing.T) {
	none := func(hits []hit, err error) {
		t.Helper()
		if err != nil {
			t.Error(err)
		}
		for i, h := range hits {
			if i == 12 {
				t.Errorf("... and %d more", len(hits)-i)
				break
			}
			t.Errorf("leaked: %v", h)
		}
	}
	for _, of := range []string{"", "--inactive"} {
		args := []string{"dumpxml", "--security-info", name}
		if of != "" {
			args = append(args, of)
		}
		xml, err := a.host.Virsh(ctx, args...)
		if err == nil && !strings.Contains(xml, uuid) {
			t.Errorf("virsh %v: not the domain's XML: %s", args, xml)
		}
		none(a.values.bytes([]byte(xml), "virsh "+strings.Join(args, " ")), err)
	}
	for _, n := range a.nodes() {
		pids, err := processes(n)
		if err != nil {
			t.Fatal(err)
		}
		hits, searched := a.values.started(pids)
		if searched == 0 {
			t.Errorf("%s: no process was searched", n.Name)
		}
		none(hits, nil)
	}
	for _, daemon := range []string{"hostd", "libvirtd"} {
		pid, err := service(ctx, &a.host.Node, daemon)
		if err != nil {
			t.Fatal(err)
		}
		hits, searched, err := a.values.memory(pid, daemon)
		none(hits, err)
		t.Logf("%s: %d MiB of memory searched, %d hits", daemon, searched>>20, len(hits))
	}
	// Hosts and verifier with all that they write; /dev and /dev/shm of a node are seen only through its process 1.
	dirs := []string{a.lab.Dir(), a.engine.Dir, a.operator.Dir, fmt.Sprintf("/proc/%d/root/dev", a.host.PID()), fmt.Sprintf("/proc/%d/root/dev", a.lab.Verifier.PID())}
	for _, dir := range dirs {
		hits, searched, err := a.values.files(dir)
		none(hits, err)
		t.Logf("%s: %d files searched", dir, searched)
	}
	none(a.values.bytes(a.heard.Bytes(), "what operator and engine were told"), nil)
}
