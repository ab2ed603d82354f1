package matrix

import (
	"context"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"troth/test/lab"
	"troth/test/scene"
)

// target is a trusted domain, and what scripts need of it.
type target struct{ name, uuid, disk, dump, bare, stripped string }

// stage is a host as it is installed, with its guests: one proved that runs, one untrusted that runs, one proved and stopped, one with a sealed disk, proved and
// stopped, and an armed one for each way.
type stage struct {
	*scene.Scene
	live, resting, sealed target
	armed                 []target
	emulators             *emulators
}

const (
	images  = "/var/lib/libvirt/images/"
	witness = "10000000-0000-4000-8000-00000000ee01"
)

func newStage(ctx context.Context, t *testing.T, ways int) *stage {
	s := &stage{Scene: scene.New(ctx, t, lab.Options{Polkit: true})}
	s.emulators = &emulators{init: s.Host.PID()}
	s.Sh(ctx, t, "mkdir -p "+images+" && chmod 755 "+images)
	scene.Write(t, s.Tenant.Path("empty.raw"), string(make([]byte, 1<<20)))
	s.services(ctx, t)

	s.live = s.raw(ctx, t, "live", 0xa1, "launch")
	s.resting = s.raw(ctx, t, "resting", 0xa2, "launch")
	s.Do(ctx, t, s.Engine, nil, "domain", "stop", s.resting.uuid)
	s.sealed = s.luks(ctx, t)
	for i := range ways {
		s.armed = append(s.armed, s.raw(ctx, t, fmt.Sprintf("armed%02d", i), 0xb00+i, "register"))
	}
	s.Sh(ctx, t, "virsh -q create "+s.File(t, s.Lab.Guest.XML(lab.Domain{Name: "witness", UUID: witness})))
	return s
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
		cmd := s.Host.Command(ctx, "sh", "-c", script)
		log := scene.Must[*os.File](t)(os.CreateTemp(t.TempDir(), "service"))
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
	scene.Write(t, s.Host.Path("/tmp/device.xml"), "<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='/tmp/extra.img'/><target dev='vdy' bus='virtio'/></disk>")
	for _, ready := range []string{"test -S /run/troth-reaper/socket && chown troth /run/troth-reaper/socket", second + "version", session + "version"} {
		s.until(ctx, t, ready)
	}
}

// until runs a script until it succeeds.
func (s *stage) until(ctx context.Context, t *testing.T, script string) {
	t.Helper()
	scene.Until(t, 20*time.Second, func() error {
		out, err := s.Host.Exec(ctx, "sh", "-c", script)
		if err != nil {
			return fmt.Errorf("%s%w", out, err)
		}
		return nil
	})
}

// raw makes a domain with a plain disk, launched or registered.
func (s *stage) raw(ctx context.Context, t *testing.T, name string, n int, verb string) target {
	t.Helper()
	g := target{name: name, uuid: fmt.Sprintf("10000000-0000-4000-8000-%012x", n), disk: images + name + ".raw"}
	s.Sh(ctx, t, "truncate -s 1M "+g.disk)
	s.trusted(ctx, t, &g, verb, lab.Domain{Disks: []lab.Disk{{Source: g.disk, Format: "raw"}}}, "--disk", "vda=initial:empty.raw")
	return g
}

// luks makes the domain with a sealed disk, proves it, and stops it.
func (s *stage) luks(ctx context.Context, t *testing.T) target {
	t.Helper()
	g := target{name: "sealed", uuid: "10000000-0000-4000-8000-0000000000a3", disk: images + "sealed.luks"}
	if err := os.WriteFile(s.Tenant.Path("guest.secret"), []byte("my-very-own-secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	s.Do(ctx, t, s.Tenant, nil, "token", "disk-key", "--secret-file", "guest.secret", "--disk", "vda", "--out", "vda.pass")
	pass, volume := s.Tenant.Path("vda.pass"), s.Host.Path(g.disk)
	if out, err := s.Lab.Command(ctx, "qemu-img", "create", "-q", "--object", "secret,id=k,file="+pass, "-f", "luks", "-o", "key-secret=k,hash-alg=sha512,iter-time=10", volume, "4M").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	extra := "<disk type='file'><driver type='raw'/><source file='" + g.disk + "'><encryption format='luks'/></source><target dev='vda'/></disk>\n"
	s.trusted(ctx, t, &g, "launch", lab.Domain{Extra: extra}, "--secret-file", "guest.secret", "--disk", "vda=sealed:"+volume)
	if out := s.Sh(ctx, t, "virsh qemu-monitor-command sealed --hmp info block"); !strings.Contains(out, "luks, encrypted") {
		t.Fatalf("a proven launch has not the key: %s", out)
	}
	s.Do(ctx, t, s.Engine, nil, "domain", "stop", g.uuid)
	return g
}

// trusted makes the token and the definition, launches or registers the domain, and keeps what scripts need.
func (s *stage) trusted(ctx context.Context, t *testing.T, g *target, verb string, d lab.Domain, token ...string) {
	t.Helper()
	d.Name, d.UUID = g.name, g.uuid
	s.Ask(ctx, t, verb, d, token...)
	dump := scene.Must[string](t)(s.Host.Virsh(ctx, "dumpxml", "--inactive", g.name))
	bare := withoutSecret.ReplaceAllString(dump, "")
	for _, f := range []struct {
		to         *string
		what, text string
	}{{&g.dump, "dump", dump}, {&g.bare, "bare", bare}, {&g.stripped, "stripped", mark.ReplaceAllString(bare, "")}} {
		*f.to = fmt.Sprintf("/tmp/%s.%s.xml", g.name, f.what)
		scene.Write(t, s.Host.Path(*f.to), f.text)
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
