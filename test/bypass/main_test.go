package bypass

import (
	"context"
	"encoding/hex"
	"os"
	"strings"
	"testing"
	"time"

	"troth/hooks/ask"
	"troth/test/lab"
)

// host is a lab's host on which libvirt asks polkit. With -short it is left out; without it a missing part is a failure.
func host(t *testing.T, o lab.Options) (*lab.Lab, *lab.Host) {
	t.Helper()
	if testing.Short() {
		t.Skip("makes namespaces: not with -short")
	}
	o.Polkit = true
	l := lab.ForTest(deadline(t), t, o)
	return l, l.Host(1)
}

func deadline(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// register publishes a registry on a host, as troth-hostd would.
func register(t *testing.T, h *lab.Host, r ask.Registry) {
	t.Helper()
	if err := os.MkdirAll(h.Path("/var/lib/troth/gate"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := ask.WriteRegistry(h.Path(registryInside), r); err != nil {
		t.Fatal(err)
	}
}

const registryInside = "/var/lib/troth/gate/registry"

func uuids(t *testing.T, text ...string) (out [][16]byte) {
	t.Helper()
	for _, s := range text {
		b, err := hex.DecodeString(strings.ReplaceAll(s, "-", ""))
		if err != nil || len(b) != 16 {
			t.Fatalf("%q is no UUID", s)
		}
		out = append(out, [16]byte(b))
	}
	return out
}

func appendTo(t *testing.T, file, text string) {
	t.Helper()
	old, err := os.ReadFile(file)
	if err == nil {
		err = os.WriteFile(file, append(old, text...), 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
}
