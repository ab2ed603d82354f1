package race

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"troth/test/cast"
	"troth/test/lab"
)

// stage is a lab with one host, and guests that halt as soon as they run, so that many fit.
type stage struct {
	lab            *lab.Lab
	host           *lab.Host
	tenant, engine *cast.Person
	profile        string
	files          int
}

type logger struct{ t *testing.T }

func (l logger) Write(b []byte) (int, error) {
	l.t.Log(strings.TrimSpace(string(b)))
	return len(b), nil
}

func must[T any](t *testing.T) func(v T, err error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// soak says that the full counts are asked for.
func soak() bool { return os.Getenv("TROTH_SOAK") != "" }

// count is how often something is done.
func count(few, full int) int {
	if soak() {
		return full
	}
	return few
}

// counted is a count that the environment may name.
func counted(t *testing.T, name string, few, full int) int {
	t.Helper()
	if text := os.Getenv(name); text != "" {
		return must[int](t)(strconv.Atoi(text))
	}
	return count(few, full)
}

func newStage(ctx context.Context, t *testing.T) *stage {
	l := must[*lab.Lab](t)(lab.New(ctx, lab.Options{Hosts: 1, Until: lab.Ready, Log: logger{t}, Binaries: os.Getenv("TROTH_LAB_BINARIES")}))
	t.Cleanup(func() {
		end := l.Close
		if t.Failed() {
			t.Logf("the lab's logs stay in %s", l.Dir())
			end = l.Keep
		}
		if err := end(); err != nil {
			t.Error(err)
		}
	})
	s := &stage{lab: l, host: l.Host(1)}
	s.tenant = must[*cast.Person](t)(cast.New(l, lab.RoleTenant, t.TempDir()))
	s.engine = must[*cast.Person](t)(cast.New(l, lab.RoleEngine, s.tenant.Dir))
	operator := must[*cast.Person](t)(cast.New(l, lab.RoleOperator, t.TempDir()))
	var p struct{ Name, Digest string }
	s.do(ctx, t, operator, &p, "profile", "show", "lab")
	s.profile = p.Name + "@" + p.Digest
	s.do(ctx, t, s.tenant, nil, "trust", "fetch", "--out", "trust.json", "--allow-software-tpm", "--yes")
	for name, content := range map[string][]byte{"idle": idleKernel(), "empty": []byte("empty\n")} {
		if err := os.WriteFile(filepath.Join(l.Guest.Outside, name), content, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

// idleKernel is a kernel by the Linux boot protocol, as QEMU loads it, whose first two instructions turn interrupts off and halt.
func idleKernel() []byte {
	k := make([]byte, 2048)
	k[0x1f1] = 1 // sectors of set-up code
	copy(k[0x1fe:], "\x55\xaa\xeb\x62HdrS\x02\x02")
	k[0x211] = 1                        // loaded high
	copy(k[0x264:], "\xfa\xf4\xeb\xfd") // cli; hlt; again
	return k
}

func (s *stage) do(ctx context.Context, t *testing.T, p *cast.Person, v any, args ...string) {
	t.Helper()
	if err := p.Do(ctx, s.host, v, args...); err != nil {
		t.Fatal(err)
	}
}

// guest is number n of the stage's guests.
func guest(kind string, n int) lab.Domain {
	return lab.Domain{Name: fmt.Sprintf("%s%d", kind, n), UUID: fmt.Sprintf("10000000-0000-4000-8000-%04x%08x", []byte(kind)[0], n),
		Kernel: "/srv/troth/guest/idle", Initrd: "/srv/troth/guest/empty", CommandLine: "halt", MemoryMiB: 32}
}

// file puts a text where the host sees it and returns its path there.
func (s *stage) file(t *testing.T, text string) string {
	t.Helper()
	s.files++
	inside := fmt.Sprintf("/srv/troth/race%d.xml", s.files)
	if err := os.WriteFile(s.host.Path(inside), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return inside
}

// ask asks hostd for a guest with a token of its own: launch or register.
func (s *stage) ask(ctx context.Context, t *testing.T, how string, d lab.Domain) {
	t.Helper()
	in := func(name string) string { return filepath.Join(s.lab.Guest.Outside, name) }
	s.do(ctx, t, s.tenant, nil, "token", "new", "--trust", "trust.json", "--profile", s.profile, "--kernel", in("idle"), "--initrd", in("empty"),
		"--cmdline", d.CommandLine, "--interactive", "no", "--key-out", d.Name+".key", "--token-out", d.Name+".token")
	file := filepath.Join(s.tenant.Dir, d.Name+".xml")
	if err := os.WriteFile(file, []byte(s.lab.Guest.XML(d)), 0o644); err != nil {
		t.Fatal(err)
	}
	args := []string{"domain", how, "--token", d.Name + ".token", "--domain", file}
	if how == "launch" {
		args = append(args, "--proof-out", d.Name+".proof")
	}
	s.do(ctx, t, s.engine, nil, args...)
}

// view is a domain as hostd has it.
type view struct{ UUID, State, Link string }

func (s *stage) show(ctx context.Context, uuid string) (v view, err error) {
	c := s.host.UnixClient()
	defer c.CloseIdleConnections()
	return v, lab.Call(ctx, c, "GET", "http://hostd/v1/domains/"+uuid, nil, &v)
}

// proof is the proof that hostd keeps of the domain's last launch.
func (s *stage) proof(ctx context.Context, uuid string) (doc json.RawMessage, err error) {
	c := s.host.UnixClient()
	defer c.CloseIdleConnections()
	return doc, lab.Call(ctx, c, "GET", "http://hostd/v1/domains/"+uuid+"/proof", nil, &doc)
}

// within waits until try says "" and returns how long that took from begun.
func within(t *testing.T, limit time.Duration, begun time.Time, try func() string) time.Duration {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		why := try()
		took := time.Since(begun)
		switch {
		case why == "":
			return took
		case took > limit:
			t.Fatalf("after %v: %s", took.Round(time.Millisecond), why)
		}
		<-tick.C
	}
}

func TestAttack(t *testing.T) {
	if testing.Short() {
		t.Skip("needs the lab: make test")
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
	defer cancel()
	s := newStage(ctx, t)
	t.Run("L-TOCTOU-XML", func(t *testing.T) { s.redefined(ctx, t) })
	t.Run("L-STALL", func(t *testing.T) { s.stalled(ctx, t) })
	t.Run("R-RECONN", func(t *testing.T) { s.reconnected(ctx, t) })
}
