package matrix

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"troth/test/cast"
	"troth/test/lab"
)

// target is a trusted domain, and what scripts need of it.
type target struct{ name, uuid, disk, dump, bare, stripped string }

// stage is a host as it is installed, with its guests: one proved that runs, one untrusted that runs, one proved and stopped, one with a sealed disk, proved and
// stopped, and an armed one for each way.
type stage struct {
	lab                   *lab.Lab
	host                  *lab.Host
	tenant, engine        *cast.Person
	profile               string
	live, resting, sealed target
	armed                 []target
	emulators             *emulators
}

const (
	images  = "/var/lib/libvirt/images/"
	witness = "10000000-0000-4000-8000-00000000ee01"
)

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

func newStage(ctx context.Context, t *testing.T, ways int) *stage {
	l := must[*lab.Lab](t)(lab.New(ctx, lab.Options{Polkit: true, Log: logger{t}, Binaries: os.Getenv("TROTH_LAB_BINARIES")}))
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
	s.emulators = &emulators{init: s.host.PID()}
	s.tenant = must[*cast.Person](t)(cast.New(l, lab.RoleTenant, t.TempDir()))
	s.engine = must[*cast.Person](t)(cast.New(l, lab.RoleEngine, s.tenant.Dir))
	operator := must[*cast.Person](t)(cast.New(l, lab.RoleOperator, t.TempDir()))
	var p struct{ Name, Digest string }
	s.do(ctx, t, operator, &p, "profile", "show", "lab")
	s.profile = p.Name + "@" + p.Digest
	s.do(ctx, t, s.tenant, nil, "trust", "fetch", "--out", "trust.json", "--allow-software-tpm", "--yes")
	s.sh(ctx, t, "mkdir -p "+images+" && chmod 755 "+images)
	if err := os.WriteFile(s.tenant.Path("empty.raw"), make([]byte, 1<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	s.services(ctx, t)

	s.live = s.raw(ctx, t, "live", 0xa1, "launch")
	s.resting = s.raw(ctx, t, "resting", 0xa2, "launch")
	s.do(ctx, t, s.engine, nil, "domain", "stop", s.resting.uuid)
	s.sealed = s.luks(ctx, t)
	for i := range ways {
		s.armed = append(s.armed, s.raw(ctx, t, fmt.Sprintf("armed%02d", i), 0xb00+i, "register"))
	}
	if err := os.WriteFile(s.host.Path("/tmp/witness.xml"), []byte(l.Guest.XML(lab.Domain{Name: "witness", UUID: witness})), 0o644); err != nil {
		t.Fatal(err)
	}
	s.sh(ctx, t, "virsh -q create /tmp/witness.xml")
	return s
}

func (s *stage) do(ctx context.Context, t *testing.T, p *cast.Person, v any, args ...string) {
	t.Helper()
	if err := p.Do(ctx, s.host, v, args...); err != nil {
		t.Fatal(err)
	}
}

// sh runs a script on the host that must succeed.
func (s *stage) sh(ctx context.Context, t *testing.T, script string) string {
	t.Helper()
	return must[string](t)(s.host.Exec(ctx, "sh", "-c", script))
}

// services starts the reaper beside hostd, and the two libvirtds of somebody's own.
func (s *stage) services(ctx context.Context, t *testing.T) {
	for _, script := range []string{
		"mkdir -p /run/troth-reaper && exec troth-hostd reap --socket /run/troth-reaper/socket",
		`mkdir -p /tmp/second /tmp/main && chmod 755 /tmp/second && exec unshare -m sh -c 'set -e
mount --bind /run/libvirt /tmp/main
for d in /run/libvirt /var/lib/libvirt /var/cache/libvirt /var/log/libvirt /etc/libvirt; do mount -t tmpfs none $d; done
mkdir -p /var/log/libvirt/qemu
printf "security_driver=\"none\"\ncgroup_controllers=[]\nnamespaces=[]\nstdio_handler=\"file\"\nuser=\"root\"\ngroup=\"root\"\ndynamic_ownership=0\n" > /etc/libvirt/qemu.conf
printf "host_uuid=\"10000000-0000-4000-8000-00000000ffff\"\nunix_sock_dir=\"/tmp/second\"\nauth_unix_rw=\"none\"\n" > /etc/libvirt/libvirtd.conf
exec libvirtd --config /etc/libvirt/libvirtd.conf --pid-file /tmp/second/pid'`,
		"mkdir -p /tmp/session && chown stranger /tmp/session && exec setpriv --reuid stranger --regid stranger --clear-groups env HOME=/tmp/session XDG_RUNTIME_DIR=/tmp/session libvirtd",
	} {
		cmd := s.host.Command(ctx, "sh", "-c", script)
		log := must[*os.File](t)(os.CreateTemp(t.TempDir(), "service"))
		cmd.Stdout, cmd.Stderr = log, log
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if t.Failed() {
				text, err := os.ReadFile(log.Name())
				t.Logf("%.60s…: %v: %s", script, err, text)
			}
			cmd.Process.Kill() //nolint:errcheck // it may have ended
			cmd.Wait()         //nolint:errcheck // it was killed
		})
	}
	device := "<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='/tmp/extra.img'/><target dev='vdy' bus='virtio'/></disk>"
	if err := os.WriteFile(s.host.Path("/tmp/device.xml"), []byte(device), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, ready := range []string{"test -S /run/troth-reaper/socket && chown troth /run/troth-reaper/socket", second + "version", session + "version"} {
		s.until(ctx, t, ready)
	}
}

// until runs a script until it succeeds.
func (s *stage) until(ctx context.Context, t *testing.T, script string) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); ; {
		out, err := s.host.Exec(ctx, "sh", "-c", script)
		if err == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatal(out, err)
		}
	}
}

// raw makes a domain with a plain disk, launched or registered.
func (s *stage) raw(ctx context.Context, t *testing.T, name string, n int, verb string) target {
	t.Helper()
	g := target{name: name, uuid: fmt.Sprintf("10000000-0000-4000-8000-%012x", n), disk: images + name + ".raw"}
	s.sh(ctx, t, "truncate -s 1M "+g.disk)
	s.trusted(ctx, t, &g, verb, lab.Domain{Disks: []lab.Disk{{Source: g.disk, Format: "raw"}}}, "--disk", "vda=initial:empty.raw")
	return g
}

// luks makes the domain with a sealed disk, proves it, and stops it.
func (s *stage) luks(ctx context.Context, t *testing.T) target {
	t.Helper()
	g := target{name: "sealed", uuid: "10000000-0000-4000-8000-0000000000a3", disk: images + "sealed.luks"}
	if err := os.WriteFile(s.tenant.Path("guest.secret"), []byte("my-very-own-secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	s.do(ctx, t, s.tenant, nil, "token", "disk-key", "--secret-file", "guest.secret", "--disk", "vda", "--out", "vda.pass")
	pass, volume := s.tenant.Path("vda.pass"), s.host.Path(g.disk)
	if out, err := s.lab.Command(ctx, "qemu-img", "create", "-q", "--object", "secret,id=k,file="+pass, "-f", "luks", "-o", "key-secret=k,hash-alg=sha512,iter-time=10", volume, "4M").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	extra := "<disk type='file'><driver type='raw'/><source file='" + g.disk + "'><encryption format='luks'/></source><target dev='vda'/></disk>\n"
	s.trusted(ctx, t, &g, "launch", lab.Domain{Extra: extra}, "--secret-file", "guest.secret", "--disk", "vda=sealed:"+volume)
	if out := s.sh(ctx, t, "virsh qemu-monitor-command sealed --hmp info block"); !strings.Contains(out, "luks, encrypted") {
		t.Fatalf("a proven launch has not the key: %s", out)
	}
	s.do(ctx, t, s.engine, nil, "domain", "stop", g.uuid)
	return g
}

// trusted makes the token and the definition, launches or registers the domain, and keeps what scripts need.
func (s *stage) trusted(ctx context.Context, t *testing.T, g *target, verb string, d lab.Domain, token ...string) {
	t.Helper()
	k := s.lab.Guest
	s.do(ctx, t, s.tenant, nil, append([]string{"token", "new", "--trust", "trust.json", "--profile", s.profile, "--kernel", filepath.Join(k.Outside, "vmlinuz"),
		"--initrd", filepath.Join(k.Outside, "initrd"), "--cmdline", k.CommandLine, "--interactive", "no", "--key-out", g.name + ".key", "--token-out", g.name + ".token"}, token...)...)
	d.Name, d.UUID = g.name, g.uuid
	file := s.tenant.Path(g.name + ".xml")
	if err := os.WriteFile(file, []byte(k.XML(d)), 0o644); err != nil {
		t.Fatal(err)
	}
	args := []string{"domain", verb, "--token", g.name + ".token", "--domain", file}
	if verb == "launch" {
		args = append(args, "--proof-out", g.name+".proof")
	}
	s.do(ctx, t, s.engine, nil, args...)
	dump := must[string](t)(s.host.Virsh(ctx, "dumpxml", "--inactive", g.name))
	bare := withoutSecret.ReplaceAllString(dump, "")
	for _, f := range []struct {
		to         *string
		what, text string
	}{{&g.dump, "dump", dump}, {&g.bare, "bare", bare}, {&g.stripped, "stripped", mark.ReplaceAllString(bare, "")}} {
		*f.to = fmt.Sprintf("/tmp/%s.%s.xml", g.name, f.what)
		if err := os.WriteFile(s.host.Path(*f.to), []byte(f.text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

var (
	// What only hostd can provide is taken out, or libvirt would not even start QEMU.
	withoutSecret = regexp.MustCompile(`(?s) *<sysinfo.*?</sysinfo>\n| *<smbios [^>]*/>\n| *<channel.*?</channel>\n`)
	mark          = regexp.MustCompile(`(?s) *<metadata>.*?</metadata>\n`)
)

// script fills in a way's script for a domain.
func (s *stage) script(text, own string, n int, g target) string {
	return strings.NewReplacer("@NAME@", g.name, "@UUID@", g.uuid, "@DISK@", g.disk, "@DUMP@", g.dump, "@BARE@", g.bare, "@STRIPPED@", g.stripped,
		"@SEALED@", s.sealed.disk, "@PLAIN@", plainName(g), "@OWNUUID@", fmt.Sprintf("10000000-0000-4000-8000-%012x", 0xd0000+n), "@OWN@", own).Replace(text)
}

// plainName is another name of the same length.
func plainName(g target) string { return "x" + g.name[1:] }
