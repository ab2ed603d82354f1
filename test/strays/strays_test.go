package strays

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"troth/proof"
	"troth/test/cast"
	"troth/test/lab"
)

// Limits of docs/reconcile.md, and what the measuring itself may take.
const (
	byScan  = 10 * time.Second
	byEvent = 2 * time.Second
)

// stage is a lab with one host: a proved guest with a disk and an untrusted one run on it, and have to run on.
type stage struct {
	lab            *lab.Lab
	host           *lab.Host
	tenant, engine *cast.Person
	profile        string
	n              int
}

const (
	goodUUID      = "10000000-0000-4000-8000-00000000a001"
	restingUUID   = "10000000-0000-4000-8000-00000000a002" // registered, and stopped
	untrustedUUID = "10000000-0000-4000-8000-00000000a003"
	goodDisk      = "/var/lib/libvirt/images/good.raw"
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

	s.launch(ctx, t, "good", goodUUID, proof.TrustLostReport, goodDisk)
	s.launch(ctx, t, "resting", restingUUID, proof.TrustLostReport)
	s.do(ctx, t, s.engine, nil, "domain", "stop", restingUUID)
	s.create(ctx, t, s.xml(lab.Domain{Name: "untrusted", UUID: untrustedUUID}))
	return s
}

func (s *stage) do(ctx context.Context, t *testing.T, p *cast.Person, v any, args ...string) {
	t.Helper()
	if err := p.Do(ctx, s.host, v, args...); err != nil {
		t.Fatal(err)
	}
}

// xml writes a domain.
func (s *stage) xml(d lab.Domain) string { return s.lab.Guest.XML(d) }

// file puts a text where the host sees it and returns its path there.
func (s *stage) file(t *testing.T, text string) string {
	t.Helper()
	s.n++
	inside := fmt.Sprintf("/var/lib/libvirt/images/file%d.xml", s.n)
	if err := os.WriteFile(s.host.Path(inside), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return inside
}

func (s *stage) create(ctx context.Context, t *testing.T, xml string) {
	t.Helper()
	must[string](t)(s.host.Virsh(ctx, "create", s.file(t, xml)))
}

// freeSlot is a port into which a device can be plugged while the guest runs.
const freeSlot = `    <controller type='pci' index='1' model='pcie-root-port'>
      <model name='pcie-root-port'/>
      <target chassis='1' port='0x8'/>
      <address type='pci' domain='0x0000' bus='0x00' slot='0x08' function='0x0'/>
    </controller>
`

// launch launches a guest with disks of 1 MiB.
func (s *stage) launch(ctx context.Context, t *testing.T, name, uuid, reaction string, disks ...string) {
	t.Helper()
	d := lab.Domain{Name: name, UUID: uuid, Extra: freeSlot}
	for _, disk := range disks {
		must[string](t)(s.host.Exec(ctx, "sh", "-c", "mkdir -p /var/lib/libvirt/images && chmod 755 /var/lib/libvirt/images && truncate -s 1M "+disk))
		d.Disks = append(d.Disks, lab.Disk{Source: disk, Format: "raw"})
	}
	g := s.lab.Guest
	args := []string{"token", "new", "--trust", "trust.json", "--profile", s.profile, "--kernel", filepath.Join(g.Outside, "vmlinuz"), "--initrd", filepath.Join(g.Outside, "initrd"),
		"--cmdline", g.CommandLine, "--interactive", "no", "--on-trust-lost", reaction, "--key-out", name + ".key", "--token-out", name + ".token"}
	if len(disks) > 0 {
		if err := os.WriteFile(s.tenant.Path("empty.raw"), make([]byte, 1<<20), 0o644); err != nil {
			t.Fatal(err)
		}
		args = append(args, "--disk", "vda=initial:empty.raw")
	}
	s.do(ctx, t, s.tenant, nil, args...)
	file := filepath.Join(s.tenant.Dir, name+".xml")
	if err := os.WriteFile(file, []byte(s.xml(d)), 0o644); err != nil {
		t.Fatal(err)
	}
	s.do(ctx, t, s.engine, nil, "domain", "launch", "--token", name+".token", "--domain", file, "--proof-out", name+".proof")
}

// logged is hostd's log from an offset on.
func (s *stage) logged(t *testing.T, from int) string {
	t.Helper()
	b := must[[]byte](t)(os.ReadFile(s.host.Log("hostd")))
	return string(b[min(from, len(b)):])
}

// within waits until try says "" and returns how long that took.
func within(t *testing.T, limit time.Duration, begun time.Time, try func() string) time.Duration {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		why := try()
		took := time.Since(begun)
		if why == "" {
			if took > limit {
				t.Errorf("it took %v, more than %v", took.Round(time.Millisecond), limit)
			}
			return took
		}
		if took > 3*limit {
			t.Fatalf("%v: %s", took.Round(time.Millisecond), why)
		}
		<-tick.C
	}
}

// untouched demands that the honest guest and the untrusted one run on.
func (s *stage) untouched(ctx context.Context, t *testing.T) {
	t.Helper()
	var d struct{ State string }
	s.do(ctx, t, s.engine, &d, "domain", "show", goodUUID)
	if d.State != "proved" {
		t.Errorf("the honest guest is %s", d.State)
	}
	for _, name := range []string{"good", "untrusted"} {
		if state := strings.TrimSpace(must[string](t)(s.host.Virsh(ctx, "domstate", name))); state != "running" {
			t.Errorf("%s is %s", name, state)
		}
	}
}

// ended starts a stray by a shell script on the host and waits until hostd has found it for the reason and it is gone. The stray is what has tag
// on its command line.
func (s *stage) ended(ctx context.Context, t *testing.T, reason, tag, script string) {
	t.Helper()
	from := len(s.logged(t, 0))
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	cmd := s.host.Command(ctx, "sh", "-c", script)
	said := must[*os.File](t)(os.Create(filepath.Join(t.TempDir(), "said")))
	defer said.Close()
	cmd.Stdout, cmd.Stderr = said, said
	out := func() string { return string(must[[]byte](t)(os.ReadFile(said.Name()))) }
	begun := time.Now()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	took := within(t, byScan, begun, func() string {
		if !strings.Contains(s.logged(t, from), "trusted_by="+reason) {
			return "not found yet: " + s.logged(t, from) + out()
		}
		if left, err := s.host.Exec(ctx, "pgrep", "-f", "qemu-system.*"+tag); err == nil {
			return "found, and it still runs: " + left
		}
		return ""
	})
	cancel()
	if err := cmd.Wait(); err != nil {
		t.Logf("the script ended: %v: %s", err, out())
	}
	t.Logf("gone %v after it was asked for", took.Round(time.Millisecond))
	s.untouched(t.Context(), t)
}

// private runs a script on the host in a mount namespace where libvirt's folders are empty: another libvirt, without our hook.
func private(script string) string {
	return "unshare -m sh -c '" + `set -e
for d in /run/libvirt /var/lib/libvirt /var/cache/libvirt /var/log/libvirt /etc/libvirt; do mkdir -p $d; mount -t tmpfs none $d; done
mkdir -p /var/log/libvirt/qemu
printf "security_driver=\"none\"\ncgroup_controllers=[]\nnamespaces=[]\nstdio_handler=\"file\"\nuser=\"root\"\ngroup=\"root\"\ndynamic_ownership=0\n" > /etc/libvirt/qemu.conf
` + script + "'"
}

func TestAttack(t *testing.T) {
	if testing.Short() {
		t.Skip("needs the lab: make test")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
	defer cancel()
	s := newStage(ctx, t)
	t.Run("L-RECONCILE", func(t *testing.T) { s.reconcile(ctx, t) })
	t.Run("L-MARK", func(t *testing.T) { s.mark(ctx, t) })
	t.Run("L-HOTPLUG", func(t *testing.T) { s.hotplug(ctx, t) })
	t.Run("L-QMP", func(t *testing.T) { s.monitor(ctx, t) })
}

const byHand = "exec qemu-system-x86_64 -S -nodefaults -display none -machine q35,accel=tcg -m 64 "

func (s *stage) reconcile(ctx context.Context, t *testing.T) {
	t.Run("by hand, twin of a running guest", func(t *testing.T) { s.ended(ctx, t, "uuid", "-name twin", byHand+"-name twin -uuid "+goodUUID) })
	t.Run("by hand, its disk", func(t *testing.T) {
		s.ended(ctx, t, "volume", "-name thief", byHand+"-name thief -drive if=none,format=raw,file.filename="+goodDisk+",file.locking=off")
	})
	t.Run("by hand, renamed and removed", func(t *testing.T) {
		s.ended(ctx, t, "uuid", "-name renamed", "cp /usr/bin/qemu-system-x86_64 /tmp/qemu-system-other; (sleep 1; rm /tmp/qemu-system-other) & cd /tmp; "+
			strings.Replace(byHand, "qemu-system-x86_64", "/tmp/qemu-system-other", 1)+"-L /usr/share/qemu -L /usr/share/seabios -name renamed --uuid "+restingUUID)
	})
	resting := s.file(t, s.xml(lab.Domain{Name: "resting", UUID: restingUUID}))
	// The definition is read before libvirt's folders are hidden.
	seen := "/tmp/resting.xml"
	must[string](t)(s.host.Exec(ctx, "cp", resting, seen))
	t.Run("virt-qemu-run", func(t *testing.T) {
		s.ended(ctx, t, "uuid", "guest=resting", private("mkdir -p /tmp/embedded/etc; cp /etc/libvirt/qemu.conf /tmp/embedded/etc/; exec virt-qemu-run -r /tmp/embedded "+seen))
	})
	t.Run("second libvirtd", func(t *testing.T) {
		s.ended(ctx, t, "uuid", "guest=resting", private("libvirtd --pid-file /run/libvirt/second.pid & until virsh -q -c qemu:///system version; do sleep 0.1; done; virsh -q -c qemu:///system create "+seen+"; wait"))
	})
	t.Run("session daemon", func(t *testing.T) {
		s.ended(ctx, t, "uuid", "guest=resting", private("mkdir /run/libvirt/x; chmod 777 /run/libvirt/x /var/log/libvirt/qemu; export HOME=/run/libvirt/x XDG_RUNTIME_DIR=/run/libvirt/x; "+
			"exec setpriv --reuid nobody --regid nogroup --clear-groups sh -c \"libvirtd & until virsh -q -c qemu:///session version; do sleep 0.1; done; virsh -q -c qemu:///session create "+seen+"; wait\""))
	})
	t.Run("by the reaper", func(t *testing.T) {
		must[string](t)(s.host.Exec(ctx, "mkdir", "-p", "/run/troth-reaper"))
		service, stop := context.WithCancel(ctx)
		defer stop()
		var log strings.Builder
		reaper := s.host.Command(service, "/usr/lib/troth/troth-hostd", "reap", "--user", "root", "--socket", "/run/troth-reaper/socket")
		reaper.Stderr = &log
		if bin := must[string](t)(s.host.Exec(ctx, "sh", "-c", "command -v troth-hostd")); bin != "" {
			reaper.Args[2] = strings.TrimSpace(bin)
		}
		if err := reaper.Start(); err != nil {
			t.Fatal(err)
		}
		within(t, byScan, time.Now(), func() string {
			_, err := os.Stat(s.host.Path("/run/troth-reaper/socket"))
			if err != nil {
				return err.Error()
			}
			return ""
		})
		s.ended(ctx, t, "uuid", "-name reaped", byHand+"-name reaped -uuid "+restingUUID)
		stop()
		if err := reaper.Wait(); err != nil {
			t.Log(err)
		}
		if !strings.Contains(log.String(), "signalled a foreign emulator") {
			t.Errorf("the reaper did nothing: %s", log.String())
		}
		must[string](t)(s.host.Exec(ctx, "rm", "/run/troth-reaper/socket"))
	})
}

// mark takes the hook away, which is a permit for libvirt, and starts in our own libvirt what ought not to start.
func (s *stage) mark(ctx context.Context, t *testing.T) {
	s.launch(ctx, t, "owner", "10000000-0000-4000-8000-00000000b003", proof.TrustLostReport, "/var/lib/libvirt/images/owned.raw")
	s.do(ctx, t, s.engine, nil, "domain", "stop", "10000000-0000-4000-8000-00000000b003")
	must[string](t)(s.host.Exec(ctx, "ln", "/var/lib/libvirt/images/owned.raw", "/var/lib/libvirt/images/hard.raw"))
	must[string](t)(s.host.Exec(ctx, "mv", "/etc/libvirt/hooks/qemu", "/etc/libvirt/hooks/away"))
	defer func() {
		must[string](t)(s.host.Exec(ctx, "mv", "/etc/libvirt/hooks/away", "/etc/libvirt/hooks/qemu"))
		if err := s.host.AwaitReady(ctx); err != nil {
			t.Error(err)
		}
	}()
	create := func(d lab.Domain) string {
		return "virsh -q -c qemu:///system create " + s.file(t, s.xml(d))
	}
	t.Run("mark stripped", func(t *testing.T) {
		s.ended(ctx, t, "uuid", "guest=resting", create(lab.Domain{Name: "resting", UUID: restingUUID}))
	})
	t.Run("UUID changed", func(t *testing.T) {
		s.ended(ctx, t, "mark", "guest=marked", create(lab.Domain{Name: "marked", UUID: "10000000-0000-4000-8000-00000000b001",
			MetadataText: `<troth:launch xmlns:troth="urn:troth:launch:v1"/>`}))
	})
	t.Run("volume by another path", func(t *testing.T) {
		s.ended(ctx, t, "volume", "guest=thief", create(lab.Domain{Name: "thief", UUID: "10000000-0000-4000-8000-00000000b002",
			Disks: []lab.Disk{{Source: "/var/lib/libvirt/images/hard.raw", Format: "raw"}}}))
	})
}

// breaks does something to a fresh guest and waits until its proof is broken; it returns what `troth domain why` tells.
func (s *stage) breaks(ctx context.Context, t *testing.T, reaction, says string, strike ...string) {
	t.Helper()
	s.n++
	name, uuid := fmt.Sprintf("drift%d", s.n), fmt.Sprintf("10000000-0000-4000-8000-%012x", 0xc000+s.n)
	disk := "/var/lib/libvirt/images/" + name + ".raw"
	s.launch(ctx, t, name, uuid, reaction, disk)
	for i := range strike {
		strike[i] = strings.NewReplacer("@NAME@", name, "@DISK@", disk).Replace(strike[i])
	}
	begun := time.Now()
	must[string](t)(s.host.Exec(ctx, "sh", "-c", strings.Join(strike, " ")))
	struck := time.Since(begun)
	var d struct {
		State, Token, Link string
		TrustLost          string `json:"trust_lost"`
		Refusal            struct{ Code, Detail string }
	}
	took := within(t, byEvent+struck, begun, func() string {
		s.do(ctx, t, s.engine, &d, "domain", "show", uuid)
		if d.TrustLost == "" {
			return "the domain is " + d.State
		}
		return ""
	})
	t.Logf("broken %v after it was asked for (the command itself took %v): %s", took.Round(time.Millisecond), struck.Round(time.Millisecond), d.Refusal.Detail)
	lost := must[*proof.TrustLost](t)(proof.ParseTrustLost(must[[]byte](t)(base64.RawURLEncoding.DecodeString(d.TrustLost)), s.confirmation(t)))
	if lost.UUID != uuid || lost.Link.String() != d.Link || lost.Token.String() != d.Token || lost.Reaction != reaction {
		t.Errorf("the report is %+v, the domain %+v", lost, d)
	}
	if !strings.Contains(proof.Refuse(lost.Code, lost.Sentence, lost.Facts...).Error(), strings.ReplaceAll(says, "@NAME@", name)) {
		t.Errorf("the report says %q %+v", lost.Sentence, lost.Facts)
	}
	want := map[string]string{proof.TrustLostReport: "running", proof.TrustLostPause: "paused", proof.TrustLostDestroy: "shut off"}[reaction]
	within(t, byEvent, time.Now(), func() string {
		if state := strings.TrimSpace(must[string](t)(s.host.Virsh(ctx, "domstate", name))); state != want {
			return "the guest is " + state + ", want " + want
		}
		return ""
	})
	// Stopped, it is launched anew with the same token: the verifier has heard that the link was broken, and closed.
	if reaction != proof.TrustLostDestroy {
		s.do(ctx, t, s.engine, nil, "domain", "stop", uuid)
	}
	within(t, byScan, time.Now(), func() string {
		if err := s.engine.Do(ctx, s.host, nil, "domain", "start", "--wait", uuid); err != nil {
			return err.Error()
		}
		return ""
	})
	s.do(ctx, t, s.engine, &d, "domain", "show", uuid)
	if d.State != "proved" {
		t.Errorf("launched anew, it is %s", d.State)
	}
	s.do(ctx, t, s.engine, nil, "domain", "stop", uuid)
	s.untouched(ctx, t)
}

// confirmation is what verdicts name of the host's TLS key.
func (s *stage) confirmation(t *testing.T) proof.Digest {
	t.Helper()
	block, _ := pem.Decode(must[[]byte](t)(os.ReadFile(s.host.Path("/etc/troth/hostd.pem"))))
	if block == nil {
		t.Fatal("the host has no certificate")
	}
	return sha256.Sum256(must[*x509.Certificate](t)(x509.ParseCertificate(block.Bytes)).RawSubjectPublicKeyInfo)
}

const virsh = "virsh -q -c qemu:///system "

func (s *stage) hotplug(ctx context.Context, t *testing.T) {
	for name, c := range map[string]struct{ says, strike string }{
		"attach-device": {"vdb", "truncate -s 1M @DISK@.more; " + virsh + "attach-disk @NAME@ @DISK@.more vdb --subdriver raw --live"},
		"snapshot":      {"snap.qcow2", virsh + "snapshot-create-as @NAME@ --disk-only --no-metadata --diskspec vda,file=@DISK@.snap.qcow2"},
		"block copy":    {"", virsh + "blockcopy @NAME@ vda @DISK@.copy --transient-job --format raw --wait"},
		"metadata":      {"mark", virsh + "metadata @NAME@ --uri urn:troth:launch:v1 --remove --live"},
	} {
		t.Run(name, func(t *testing.T) { s.breaks(ctx, t, proof.TrustLostReport, c.says, c.strike) })
	}
}

func (s *stage) monitor(ctx context.Context, t *testing.T) {
	for _, reaction := range []string{proof.TrustLostReport, proof.TrustLostPause, proof.TrustLostDestroy} {
		t.Run(reaction, func(t *testing.T) {
			s.breaks(ctx, t, reaction, "monitor", virsh+"qemu-monitor-command @NAME@ --hmp info version")
		})
	}
}
