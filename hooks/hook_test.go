package hooks_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"debug/elf"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"troth/hooks"
	"troth/hooks/answer"
	"troth/hooks/ask"
)

const (
	uuidText = "6cf3a1f8-0f41-4f6e-9a5e-6f8f7a2b9c01"
	otherID  = "11111111-2222-3333-4444-555555555555"
	launchID = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"
	mark     = `<metadata><troth:launch xmlns:troth="urn:troth:launch:v1" id="` + launchID + `"/></metadata>`
)

func uuidOf(t testing.TB, s string) [16]byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(s, "-", ""))
	if err != nil {
		t.Fatal(err)
	}
	return [16]byte(b)
}

// domain writes XML as libvirt gives it to a hook.
func domain(uuid, metadata, disk string) string {
	return `<domain type='qemu' id='3' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>guest</name>
  <uuid>` + uuid + `</uuid>
  ` + metadata + `
  <memory unit='KiB'>65536</memory>
  <os><type arch='x86_64' machine='pc-q35-7.2'>hvm</type><kernel>/boot/vmlinuz</kernel></os>
  <devices><emulator>/usr/bin/qemu-system-x86_64</emulator>` + disk + `</devices>
</domain>
`
}

func disk(path string) string {
	return `<disk type='file' device='disk'><source file='` + path + `' index='1'/><target dev='vda' bus='virtio'/></disk>`
}

// host is the hook's world: a registry and a hostd, both for one test.
type host struct {
	mu    sync.Mutex
	asked []ask.Question
}

func (h *host) questions() []ask.Question {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append([]ask.Question(nil), h.asked...)
}

// newHost empties the hook's directories.
func newHost(t testing.TB) *host {
	t.Helper()
	for _, p := range []string{hooks.RegistryPath, hooks.SocketPath} {
		if err := os.RemoveAll(filepath.Dir(p)); err != nil {
			t.Fatal(err)
		}
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return &host{}
}

func (h *host) register(t testing.TB, r ask.Registry) {
	t.Helper()
	if err := ask.WriteRegistry(hooks.RegistryPath, r); err != nil {
		t.Fatal(err)
	}
}

// serve runs a hostd that decides so, until the test ends or stop is called.
func (h *host) serve(t testing.TB, decide func(ask.Question) ask.Answer) (stop func()) {
	t.Helper()
	l, err := answer.Listen(hooks.SocketPath, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	s := &answer.Server{UIDs: []uint32{0}, Answer: func(_ context.Context, q ask.Question, _ []byte) ask.Answer {
		h.mu.Lock()
		h.asked = append(h.asked, q)
		h.mu.Unlock()
		return decide(q)
	}}
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return stop
}

// raw runs something that is no hostd on the socket.
func raw(t testing.TB, behave func(net.Conn)) (stop func()) {
	t.Helper()
	l, err := answer.Listen(hooks.SocketPath, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	end := make(chan struct{})
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				behave(c)
				<-end // hold it open
			})
		}
	})
	stop = sync.OnceFunc(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		close(end)
		wg.Wait()
	})
	t.Cleanup(stop)
	return stop
}

type outcome struct {
	status         int
	stdout, stderr string
	took           time.Duration
}

// run executes the real hook as libvirt does. It fails the test itself when a rule for every run is broken.
func run(t testing.TB, xml string, argv ...string) outcome {
	t.Helper()
	return inTime(t, 2900*time.Millisecond, func() outcome {
		return runEnv(t, []string{"LC_ALL=C", "PATH=/bin:/usr/bin"}, strings.NewReader(xml), argv...)
	})
}

// inTime runs a hook again that took this long, at most twice: a machine that stands still spoils one run, a slow hook is late in each.
func inTime(t testing.TB, again time.Duration, once func() outcome) (o outcome) {
	t.Helper()
	for range 3 {
		if o = once(); o.took < again {
			return o
		}
		t.Logf("took %v: exit %d, %q", o.took, o.status, o.stderr)
	}
	if o.took > 3*time.Second {
		t.Errorf("took %v: a hook has three seconds", o.took)
	}
	return o
}

func runEnv(t testing.TB, env []string, stdin io.Reader, argv ...string) outcome {
	t.Helper()
	c := exec.Command(hookBinary, argv...)
	var out, errs bytes.Buffer
	c.Stdin, c.Stdout, c.Stderr, c.Env = stdin, &out, &errs, env
	begin := time.Now()
	err := c.Run()
	o := outcome{stdout: out.String(), stderr: errs.String(), took: time.Since(begin), status: c.ProcessState.ExitCode()}
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) && !strings.Contains(err.Error(), "broken pipe") {
		t.Fatal(err)
	}
	if o.stdout != "" {
		t.Errorf("standard output %q: libvirt takes it for new XML", o.stdout)
	}
	if n := strings.Count(o.stderr, "\n"); n > 1 || len(o.stderr) > 64 || (o.stderr != "" && !strings.HasSuffix(o.stderr, "\n")) {
		t.Errorf("standard error is not one short line: %q", o.stderr)
	}
	return o
}

func (o outcome) wantRefused(t testing.TB, code string) {
	t.Helper()
	if want := "troth: refused: " + code + "\n"; o.status != 1 || o.stderr != want {
		t.Errorf("exit %d, stderr %q; want exit 1, %q", o.status, o.stderr, want)
	}
}

func (o outcome) wantPermitted(t testing.TB) {
	t.Helper()
	if o.status != 0 || o.stderr != "" {
		t.Errorf("exit %d, stderr %q; want exit 0 and silence", o.status, o.stderr)
	}
}

func permit(ask.Question) ask.Answer { return ask.Allow() }

var vetoes = []string{"prepare", "start", "started", "migrate", "restore"}

// TestHonest: hostd's own start is echoed with its launch id and passes; everything hostd must compare arrives.
func TestHonest(t *testing.T) {
	h := newHost(t)
	h.register(t, ask.Registry{UUIDs: [][16]byte{uuidOf(t, uuidText)}})
	h.serve(t, permit)
	xml := domain(uuidText, mark, "")
	for _, op := range vetoes {
		run(t, xml, "guest", op, "begin", "-").wantPermitted(t)
	}
	asked := h.questions()
	if len(asked) != len(vetoes) {
		t.Fatalf("hostd was asked %d times, want %d", len(asked), len(vetoes))
	}
	id, err := hex.DecodeString(launchID)
	if err != nil {
		t.Fatal(err)
	}
	for i, q := range asked {
		want := ask.Question{
			Op: ask.ParseOp(vetoes[i]), SubOp: ask.SubBegin, Flags: ask.Marked | ask.Registered,
			UUID: uuidOf(t, uuidText), LaunchID: [32]byte(id), XML: sha256.Sum256([]byte(xml)),
		}
		if want.Op.Carries() {
			want.Size = uint32(len(xml))
		}
		if q != want {
			t.Errorf("question %d: %+v, want %+v", i, q, want)
		}
	}
}

// TestEnvironment: nothing in the environment changes a decision.
func TestEnvironment(t *testing.T) {
	newHost(t)
	env := []string{
		"LD_PRELOAD=/nonexistent.so", "LD_LIBRARY_PATH=/tmp", "GOTRACEBACK=crash", "TMPDIR=/nonexistent", "HOME=/nonexistent",
		"TROTH_SOCKET=/tmp/x", "TROTH_REGISTRY=/tmp/x",
	}
	runEnv(t, env, strings.NewReader(domain(uuidText, mark, "")), "guest", "prepare", "begin", "-").wantRefused(t, "hostd-unreachable")
	runEnv(t, env, strings.NewReader(domain(uuidText, "", "")), "guest", "prepare", "begin", "-").wantPermitted(t)
}

// TestRegistryDamaged: what cannot be believed makes every domain count; a registry that is not there none.
func TestRegistryDamaged(t *testing.T) {
	plain := domain(otherID, "", "")
	good, err := ask.Registry{UUIDs: [][16]byte{uuidOf(t, uuidText)}}.Encode()
	if err != nil {
		t.Fatal(err)
	}
	write := func(b []byte, mode fs.FileMode) func(t *testing.T) {
		return func(t *testing.T) {
			if err := os.WriteFile(hooks.RegistryPath, b, mode); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(hooks.RegistryPath, mode); err != nil {
				t.Fatal(err)
			}
		}
	}
	flipped := bytes.Clone(good)
	flipped[len(flipped)/2] ^= 1
	for name, prepare := range map[string]func(t *testing.T){
		"bit flipped":    write(flipped, 0o644),
		"truncated":      write(good[:len(good)-10], 0o644),
		"empty":          write(nil, 0o644),
		"world-writable": write(good, 0o666),
		"directory": func(t *testing.T) {
			if err := os.Mkdir(hooks.RegistryPath, 0o755); err != nil {
				t.Fatal(err)
			}
		},
		"symbolic link": func(t *testing.T) {
			if err := os.Symlink("/etc/hostname", hooks.RegistryPath); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			prepare(t)
			run(t, plain, "guest", "prepare", "begin", "-").wantRefused(t, "hostd-unreachable")
			run(t, plain, "guest", "reconnect", "begin", "-").wantPermitted(t)
			h.serve(t, permit)
			run(t, plain, "guest", "prepare", "begin", "-").wantPermitted(t)
			if q := h.questions(); len(q) == 0 || q[len(q)-1].Flags != ask.Damaged {
				t.Errorf("hostd was not told that the registry is damaged: %+v", q)
			}
		})
	}
	t.Run("missing", func(t *testing.T) {
		newHost(t)
		run(t, plain, "guest", "prepare", "begin", "-").wantPermitted(t)
		run(t, domain(otherID, mark, ""), "guest", "prepare", "begin", "-").wantRefused(t, "hostd-unreachable")
	})
	t.Run("all", func(t *testing.T) {
		newHost(t).register(t, ask.Registry{All: true})
		run(t, plain, "guest", "prepare", "begin", "-").wantRefused(t, "hostd-unreachable")
	})
}

// TestImports keeps what libvirt runs as root on every start small.
func TestImports(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", "-f", "{{if not .Standard}}{{.ImportPath}}{{end}}", "troth/cmd/troth-hook").Output()
	if err != nil {
		t.Fatal(err)
	}
	own := map[string]bool{"troth/hooks/ask": true, "troth/hooks": true, "troth/cmd/troth-hook": true}
	for _, p := range strings.Fields(string(out)) {
		if !own[p] {
			t.Errorf("troth-hook imports %s", p)
		}
	}
	all, err := exec.Command("go", "list", "-deps", "troth/cmd/troth-hook").Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range strings.Fields(string(all)) {
		switch p {
		case "net", "net/http", "encoding/json", "os/exec", "crypto/tls", "log", "log/slog", "flag", "plugin", "math/big":
			t.Errorf("troth-hook imports %s", p)
		}
	}
	program, err := elf.Open(hookBinary)
	if err != nil {
		t.Fatal(err)
	}
	defer program.Close()
	for _, p := range program.Progs {
		if p.Type == elf.PT_INTERP || p.Type == elf.PT_DYNAMIC {
			t.Errorf("troth-hook is not statically linked: it has %v", p.Type)
		}
	}
}

// BenchmarkHook measures one exec of the hook for an untrusted domain, on a host with so many registered ones, beside one of /bin/true: medians, taken in turn.
func BenchmarkHook(b *testing.B) {
	for _, registered := range []int{100, 1000} {
		b.Run(fmt.Sprintf("registered=%d", registered), func(b *testing.B) { benchmarkHook(b, registered) })
	}
}

func benchmarkHook(b *testing.B, registered int) {
	var r ask.Registry
	for i := range registered {
		r.UUIDs = append(r.UUIDs, [16]byte{byte(i), byte(i >> 8), 1})
		r.Volumes = append(r.Volumes, ask.Volume{Path: fmt.Sprintf("/srv/images/%d.qcow2", i), Dev: 1, Ino: uint64(i)})
	}
	newHost(b).register(b, r)
	xml := domain(uuidText, "", disk("/srv/untrusted.qcow2"))
	timed := func(name string, argv ...string) time.Duration {
		begin := time.Now()
		c := exec.Command(name, argv...)
		c.Stdin, c.Env = strings.NewReader(xml), []string{"PATH=/bin"}
		if err := c.Run(); err != nil {
			b.Fatal(err)
		}
		return time.Since(begin)
	}
	var hook, none []time.Duration
	for b.Loop() {
		none = append(none, timed("/bin/true"))
		hook = append(hook, timed(hookBinary, "guest", "prepare", "begin", "-"))
	}
	slices.Sort(hook)
	slices.Sort(none)
	middle := b.N / 2
	b.ReportMetric(float64(hook[middle].Microseconds()), "µs/hook")
	b.ReportMetric(float64(hook[middle])/float64(none[middle]), "hook/true")
}
