package bypass

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"troth/hooks/ask"
	"troth/systemd/polkit"
	"troth/test/lab"
)

// free are the permissions on a registered object that stay with whoever had them; every other permission that libvirt has is troth-hostd's.
var free = map[string][]string{
	"domain":      {"getattr", "read", "stop", "init-control"},
	"storage-vol": {"getattr", "read"},
}

// question is one that libvirt could ask polkit.
type question struct{ user, class, permission, detail string }

// decisions asks polkit all of them in one go, as libvirt does by the bus, about a process of the user. true: authorized.
func decisions(ctx context.Context, t *testing.T, h *lab.Host, all []question) map[question]bool {
	t.Helper()
	var script strings.Builder
	pids := map[string]string{}
	for _, q := range all {
		if pids[q.user] == "" {
			pids[q.user] = process(ctx, t, h, q.user)
		}
		fmt.Fprintf(&script, "pkcheck --action-id org.libvirt.api.%s.%s --process %s %s >/dev/null 2>&1; echo $?\n", q.class, q.permission, pids[q.user], q.detail)
	}
	if err := os.WriteFile(h.Path("/tmp/questions"), []byte(script.String()), 0o644); err != nil {
		t.Fatal(err)
	}
	out, err := h.Exec(ctx, "sh", "/tmp/questions")
	if err != nil {
		t.Fatal(err)
	}
	said := strings.Fields(out)
	if len(said) != len(all) {
		t.Fatalf("%d answers to %d questions", len(said), len(all))
	}
	answers := map[question]bool{}
	for i, q := range all {
		// pkcheck(1): 0 authorized, 1 not; anything else is neither.
		if said[i] != "0" && said[i] != "1" {
			t.Errorf("%v: pkcheck ended %s", q, said[i])
		}
		answers[q] = said[i] == "0"
	}
	return answers
}

// process starts a process of the user that stays, and returns its number.
func process(ctx context.Context, t *testing.T, h *lab.Host, user string) string {
	t.Helper()
	cmd := h.Command(ctx, lab.As(user, "sh", "-c", "echo $$; exec sleep 600")...)
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := cmd.Process.Kill(); err != nil {
			t.Error(err)
		}
		cmd.Wait() //nolint:errcheck // it was killed
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(line)
}

// TestDecisions asks real polkit for every permission that libvirt's own list names, in every state of the registry.
func TestDecisions(t *testing.T) {
	_, h := host(t, lab.Options{Until: lab.Libvirt})
	ctx := deadline(t)
	all := map[string][]string{"domain": permissions(t, h, "domain"), "storage-vol": permissions(t, h, "storage-vol")}
	if len(all["domain"]) < 31 || len(all["storage-vol"]) < 8 {
		t.Fatalf("libvirt's list has %d permissions of domains and %d of volumes", len(all["domain"]), len(all["storage-vol"]))
	}
	for class, list := range all {
		for _, p := range list {
			if !strings.Contains(string(polkit.Rules), "\n        \""+p+"\": ") {
				t.Errorf("the rule does not decide %s.%s of this libvirt", class, p)
			}
		}
	}
	volume := ask.Volume{Path: "/srv/images/ours.img"}
	damaged := func(t *testing.T) {
		register(t, h, ask.Registry{UUIDs: uuids(t, ours)})
		appendTo(t, h.Path(registryInside), "x")
	}
	for _, c := range []struct {
		name       string
		registry   func(t *testing.T)
		held       []string // of "ours" and "theirs": whose held permissions are troth-hostd's
		heldVolume []string
	}{
		{"missing", func(*testing.T) {}, nil, nil},
		{"registered", func(t *testing.T) { register(t, h, ask.Registry{UUIDs: uuids(t, ours), Volumes: []ask.Volume{volume}}) }, []string{"ours"}, []string{"ours"}},
		{"all", func(t *testing.T) { register(t, h, ask.Registry{All: true}) }, []string{"ours", "theirs"}, nil},
		{"damaged", damaged, []string{"ours", "theirs"}, []string{"ours", "theirs"}},
		{"no helper", func(t *testing.T) {
			register(t, h, ask.Registry{})
			if err := os.Remove(h.Path("/libexec/troth/troth-registered")); err != nil {
				t.Fatal(err)
			}
		}, []string{"ours", "theirs"}, []string{"ours", "theirs"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.registry(t)
			want := map[question]bool{}
			for which, id := range map[string]string{"ours": ours, "theirs": theirs} {
				for _, p := range all["domain"] {
					detail := "--detail domain_uuid " + id
					want[question{lab.Operator, "domain", p, detail}] = slices.Contains(free["domain"], p) || !slices.Contains(c.held, which)
					want[question{lab.Hostd, "domain", p, detail}] = true
					want[question{lab.Stranger, "domain", p, detail}] = p == "getattr" || p == "read" // libvirt's defaults
				}
				for _, p := range all["storage-vol"] {
					detail := "--detail vol_key /srv/images/" + which + ".img"
					if p == "create" {
						detail = "--detail vol_name " + which + ".img"
					}
					// The key says nothing in a logical pool, and in 'create' what the client likes.
					for _, d := range []string{detail, "--detail vol_key kZq3Pv-1a2b --detail vol_name " + which + ".img"} {
						want[question{lab.Operator, "storage-vol", p, d}] = slices.Contains(free["storage-vol"], p) || !slices.Contains(c.heldVolume, which)
					}
				}
			}
			// libvirt always names what it asks about; a question without a name is nobody's.
			want[question{lab.Operator, "domain", "write", ""}] = false
			want[question{lab.Operator, "domain", "write", "--detail domain_uuid nonsense"}] = false
			want[question{lab.Hostd, "connect", "write", ""}] = false
			want[question{lab.Hostd, "connect", "getattr", ""}] = true
			// It makes whoever has it root in libvirt's eyes; reading and searching stay.
			want[question{lab.Operator, "connect", "write", ""}] = false
			want[question{lab.Operator, "connect", "read", ""}] = true
			want[question{lab.Operator, "connect", "search-domains", ""}] = true
			// Keys of sealed disks are hostd's, whatever the registry says.
			want[question{lab.Hostd, "connect", "search-secrets", ""}] = true
			for detail, key := range map[string]bool{"--detail secret_usage_volume troth/a/vda": true, "--detail secret_usage_volume /srv/a.luks": false} {
				for _, p := range []string{"write", "save", "delete"} {
					want[question{lab.Hostd, "secret", p, detail}] = key
					want[question{lab.Operator, "secret", p, detail}] = !key
				}
				want[question{lab.Hostd, "secret", "read-secure", detail}] = key
				want[question{lab.Operator, "secret", "read-secure", detail}] = !key
			}
			want[question{lab.Hostd, "secret", "delete", "--detail secret_uuid 10000000-0000-8000-8000-000000000001"}] = true
			want[question{lab.Hostd, "secret", "delete", "--detail secret_uuid 10000000-0000-4000-8000-000000000001"}] = false
			var list []question
			for q := range want {
				list = append(list, q)
			}
			for q, got := range decisions(ctx, t, h, list) {
				if got != want[q] {
					t.Errorf("%s asks for %s.%s %s: %v", q.user, q.class, q.permission, q.detail, got)
				}
			}
		})
	}
}
