package race

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"troth/test/lab"
	"troth/test/scene"
)

// stage is a lab with one host, and guests that halt as soon as they run, so that many fit.
type stage struct{ *scene.Scene }

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
		return scene.Must[int](t)(strconv.Atoi(text))
	}
	return count(few, full)
}

func newStage(ctx context.Context, t *testing.T) *stage {
	s := &stage{scene.New(ctx, t, lab.Options{})}
	scene.Write(t, filepath.Join(s.Lab.Guest.Outside, "idle"), idleKernel())
	scene.Write(t, filepath.Join(s.Lab.Guest.Outside, "empty"), "empty\n")
	return s
}

// idleKernel is a kernel by the Linux boot protocol, as QEMU loads it, whose first two instructions turn interrupts off and halt.
func idleKernel() string {
	k := make([]byte, 2048)
	k[0x1f1] = 1 // sectors of set-up code
	copy(k[0x1fe:], "\x55\xaa\xeb\x62HdrS\x02\x02")
	k[0x211] = 1                        // loaded high
	copy(k[0x264:], "\xfa\xf4\xeb\xfd") // cli; hlt; again
	return string(k)
}

// guest is number n of the stage's guests.
func guest(kind string, n int) lab.Domain {
	return lab.Domain{Name: fmt.Sprintf("%s%d", kind, n), UUID: fmt.Sprintf("10000000-0000-4000-8000-%04x%08x", []byte(kind)[0], n),
		Kernel: "/srv/troth/guest/idle", Initrd: "/srv/troth/guest/empty", CommandLine: "halt", MemoryMiB: 32}
}

// view is a domain as hostd has it.
type view struct{ UUID, State, Link string }

func (s *stage) show(ctx context.Context, uuid string) (v view, err error) {
	c := s.Host.UnixClient()
	defer c.CloseIdleConnections()
	return v, lab.Call(ctx, c, "GET", "http://hostd/v1/domains/"+uuid, nil, &v)
}

// proof is the proof that hostd keeps of the domain's last launch.
func (s *stage) proof(ctx context.Context, uuid string) (doc json.RawMessage, err error) {
	c := s.Host.UnixClient()
	defer c.CloseIdleConnections()
	return doc, lab.Call(ctx, c, "GET", "http://hostd/v1/domains/"+uuid+"/proof", nil, &doc)
}

func TestAttack(t *testing.T) {
	if testing.Short() {
		t.Skip("needs the lab: make test-gate")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 95*time.Minute)
	defer cancel()
	s := newStage(ctx, t)
	t.Run("L-TOCTOU-XML", func(t *testing.T) { s.redefined(ctx, t) })
	t.Run("L-STALL", func(t *testing.T) { s.stalled(ctx, t) })
	t.Run("R-LEAK", func(t *testing.T) { s.flat(ctx, t) })
	t.Run("R-RECONN", func(t *testing.T) { s.reconnected(ctx, t) })
}
