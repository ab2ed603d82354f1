package strays

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"troth/proof"
	"troth/test/lab"
	"troth/test/scene"
)

// Limits of docs/reconcile.md, and what the measuring itself may take.
const (
	byScan  = 10 * time.Second
	byEvent = 2 * time.Second // on a host with time to spare; a test waits twice as long
)

// stage is a lab with one host: a proved guest with a disk and an untrusted one run on it, and have to run on.
type stage struct {
	*scene.Scene
	n int
}

const (
	goodUUID      = "10000000-0000-4000-8000-00000000a001"
	restingUUID   = "10000000-0000-4000-8000-00000000a002" // registered, and stopped
	untrustedUUID = "10000000-0000-4000-8000-00000000a003"
	images        = "/var/lib/libvirt/images/"
	goodDisk      = images + "good.raw"
)

func newStage(ctx context.Context, t *testing.T) *stage {
	s := &stage{Scene: scene.New(ctx, t, lab.Options{})}
	s.Sh(ctx, t, "mkdir -p "+images+" && chmod 755 "+images)
	scene.Write(t, s.Tenant.Path("empty.raw"), string(make([]byte, 1<<20)))
	s.launch(ctx, t, "good", goodUUID, proof.TrustLostReport, goodDisk)
	s.launch(ctx, t, "resting", restingUUID, proof.TrustLostReport)
	s.Do(ctx, t, s.Engine, nil, "domain", "stop", restingUUID)
	s.create(ctx, t, s.xml(lab.Domain{Name: "untrusted", UUID: untrustedUUID}))
	return s
}

// xml writes a domain.
func (s *stage) xml(d lab.Domain) string { return s.Lab.Guest.XML(d) }

func (s *stage) create(ctx context.Context, t *testing.T, xml string) {
	t.Helper()
	scene.Must[string](t)(s.Host.Virsh(ctx, "create", s.File(t, xml)))
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
	token := []string{"--on-trust-lost", reaction}
	for i, disk := range disks {
		s.Sh(ctx, t, "truncate -s 1M "+disk)
		d.Disks = append(d.Disks, lab.Disk{Source: disk, Format: "raw"})
		token = append(token, "--disk", fmt.Sprintf("vd%c=initial:empty.raw", 'a'+i))
	}
	s.Ask(ctx, t, "launch", d, token...)
}

// untouched demands that the honest guest and the untrusted one run on; where they do not, it tells all that anybody said of them since.
func (s *stage) untouched(ctx context.Context, t *testing.T, from int) {
	t.Helper()
	wrong := false
	var d struct{ State string }
	s.Do(ctx, t, s.Engine, &d, "domain", "show", goodUUID)
	if d.State != "proved" {
		wrong = true
		t.Errorf("the honest guest is %s", d.State)
	}
	for _, name := range []string{"good", "untrusted"} {
		if state := strings.TrimSpace(scene.Must[string](t)(s.Host.Virsh(ctx, "domstate", name))); state != "running" {
			wrong = true
			t.Errorf("%s is %s", name, state)
		}
	}
	if !wrong {
		return
	}
	for _, ask := range []string{"show", "why"} {
		answer, err := s.Engine.Text(ctx, s.Host, "domain", ask, goodUUID)
		t.Logf("domain %s: %+v, %v", ask, answer, err)
	}
	t.Logf("hostd said since: %s", s.Logged(t, from))
	for _, name := range []string{"good", "untrusted"} {
		out, err := s.Host.Exec(ctx, "tail", "-c", "4000", "/var/log/libvirt/qemu/"+name+".log")
		t.Logf("QEMU's log of %s: %s%v", name, out, err)
	}
}

// stray is a guest that goes round the gate.
type stray struct {
	reason string // why hostd takes it for a trusted one
	who    string // what hostd's log says of it and of no other guest; empty: the number of its process, which the script prints (byHand)
	tag    string // on its command line
	script string
}

// foundIn says whether the log tells of this stray.
func (r *stray) foundIn(log, said string) bool {
	who := r.who
	if m := regexp.MustCompile(`(?m)^stray is (\d+)$`).FindStringSubmatch(said); who == "" && m != nil {
		who = `where="process ` + m[1] + "/"
	}
	for line := range strings.Lines(log) {
		if who != "" && strings.Contains(line, who) && strings.Contains(line, "trusted_by="+r.reason) {
			return true
		}
	}
	return false
}

// ended starts a stray by a shell script on the host and waits until hostd has found it for the reason and it is gone.
func (s *stage) ended(ctx context.Context, t *testing.T, r stray) {
	t.Helper()
	from := len(s.Logged(t, 0))
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	cmd := s.Host.Command(ctx, "sh", "-c", r.script)
	said := scene.Must[*os.File](t)(os.Create(filepath.Join(t.TempDir(), "said")))
	defer said.Close()
	cmd.Stdout, cmd.Stderr = said, said
	out := func() string { return string(scene.Must[[]byte](t)(os.ReadFile(said.Name()))) }
	begun := time.Now()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	took := scene.Within(t, byScan, begun, func() error {
		if !r.foundIn(s.Logged(t, from), out()) {
			return errors.New("not found yet: " + s.Logged(t, from) + out())
		}
		if left, err := s.Host.Exec(ctx, "pgrep", "-f", "qemu-system.*"+r.tag); err == nil {
			return errors.New("found, and it still runs: " + left)
		}
		return nil
	})
	cancel()
	if err := cmd.Wait(); err != nil {
		t.Logf("the script ended: %v: %s", err, out())
	}
	t.Logf("gone %v after it was asked for", took.Round(time.Millisecond))
	s.untouched(t.Context(), t, from)
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
		t.Skip("needs the lab: make test-gate")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
	defer cancel()
	s := newStage(ctx, t)
	t.Run("L-RECONCILE", func(t *testing.T) { s.reconcile(ctx, t) })
	t.Run("L-VOLUME", func(t *testing.T) { s.volume(ctx, t) })
	t.Run("L-MARK", func(t *testing.T) { s.mark(ctx, t) })
	t.Run("L-HOTPLUG", func(t *testing.T) { s.hotplug(ctx, t) })
	t.Run("L-QMP", func(t *testing.T) { s.monitor(ctx, t) })
}

// byHand becomes QEMU, so that the shell's number is QEMU's.
const byHand = "echo stray is $$; exec qemu-system-x86_64 -S -nodefaults -display none -machine q35,accel=tcg -m 64 "

func (s *stage) reconcile(ctx context.Context, t *testing.T) {
	t.Run("by hand, twin of a running guest", func(t *testing.T) {
		s.ended(ctx, t, stray{"uuid", "", "-name twin", byHand + "-name twin -uuid " + goodUUID})
	})
	t.Run("twin of another user, started again and again", func(t *testing.T) { s.respawned(ctx, t) })
	t.Run("by hand, its disk", func(t *testing.T) {
		s.ended(ctx, t, stray{"volume", "", "-name thief", byHand + "-name thief -drive if=none,format=raw,file.filename=" + goodDisk + ",file.locking=off"})
	})
	t.Run("by hand, renamed and removed", func(t *testing.T) {
		s.ended(ctx, t, stray{"uuid", "", "-name renamed", "cp /usr/bin/qemu-system-x86_64 /tmp/qemu-system-other; (sleep 1; rm /tmp/qemu-system-other) & cd /tmp; " +
			strings.Replace(byHand, "qemu-system-x86_64", "/tmp/qemu-system-other", 1) + "-L /usr/share/qemu -L /usr/share/seabios -name renamed --uuid " + restingUUID})
	})
	t.Run("by hand, while libvirt hangs", func(t *testing.T) {
		s.ended(ctx, t, stray{"uuid", "", "-name hung", "kill -STOP $(pidof libvirtd); setsid sh -c 'sleep 15; kill -CONT $(pidof libvirtd)' & " + byHand + "-name hung -uuid " + restingUUID})
		if err := s.Host.AwaitReady(ctx); err != nil {
			t.Error(err)
		}
	})
	resting := s.File(t, s.xml(lab.Domain{Name: "resting", UUID: restingUUID}))
	t.Run("virt-qemu-run", func(t *testing.T) {
		s.ended(ctx, t, stray{"uuid", restingUUID, "guest=resting", private("mkdir -p /tmp/embedded/etc; cp /etc/libvirt/qemu.conf /tmp/embedded/etc/; exec virt-qemu-run -r /tmp/embedded " + resting)})
	})
	t.Run("second libvirtd", func(t *testing.T) {
		s.ended(ctx, t, stray{"uuid", restingUUID, "guest=resting", private("libvirtd --pid-file /run/libvirt/second.pid & until virsh -q -c qemu:///system version; do sleep 0.1; done; virsh -q -c qemu:///system create " + resting + "; wait")})
	})
	t.Run("session daemon", func(t *testing.T) {
		s.ended(ctx, t, stray{"uuid", restingUUID, "guest=resting", private("mkdir /run/libvirt/x; chmod 777 /run/libvirt/x /var/log/libvirt/qemu; export HOME=/run/libvirt/x XDG_RUNTIME_DIR=/run/libvirt/x; " +
			"exec setpriv --reuid nobody --regid nogroup --clear-groups sh -c \"libvirtd & until virsh -q -c qemu:///session version; do sleep 0.1; done; virsh -q -c qemu:///session create " + resting + "; wait\"")})
	})
	t.Run("by the reaper", func(t *testing.T) {
		s.Sh(ctx, t, "mkdir -p /run/troth-reaper")
		service, stop := context.WithCancel(ctx)
		defer stop()
		var log strings.Builder
		reaper := s.Host.Command(service, "/usr/lib/troth/troth-hostd", "reap", "--user", "root", "--socket", "/run/troth-reaper/socket")
		reaper.Stderr = &log
		if bin := s.Sh(ctx, t, "command -v troth-hostd"); bin != "" {
			reaper.Args[2] = strings.TrimSpace(bin)
		}
		if err := reaper.Start(); err != nil {
			t.Fatal(err)
		}
		scene.Within(t, byScan, time.Now(), func() error {
			_, err := os.Stat(s.Host.Path("/run/troth-reaper/socket"))
			return err
		})
		s.ended(ctx, t, stray{"uuid", "", "-name reaped", byHand + "-name reaped -uuid " + restingUUID})
		stop()
		if err := reaper.Wait(); err != nil {
			t.Log(err)
		}
		if !strings.Contains(log.String(), "signalled a foreign emulator") {
			t.Errorf("the reaper did nothing: %s", log.String())
		}
		s.Sh(ctx, t, "rm /run/troth-reaper/socket")
	})
}

// mark takes the hook away, which is a permit for libvirt, and starts in our own libvirt what ought not to start.
func (s *stage) mark(ctx context.Context, t *testing.T) {
	s.launch(ctx, t, "owner", "10000000-0000-4000-8000-00000000b003", proof.TrustLostReport, images+"owned.raw")
	s.Do(ctx, t, s.Engine, nil, "domain", "stop", "10000000-0000-4000-8000-00000000b003")
	s.Sh(ctx, t, "cd "+images+" && ln owned.raw hard.raw")
	s.Sh(ctx, t, "cd /etc/libvirt/hooks && mv qemu away")
	defer func() {
		s.Sh(ctx, t, "cd /etc/libvirt/hooks && mv away qemu")
		if err := s.Host.AwaitReady(ctx); err != nil {
			t.Error(err)
		}
	}()
	create := func(d lab.Domain) string {
		return "virsh -q -c qemu:///system create " + s.File(t, s.xml(d))
	}
	t.Run("mark stripped", func(t *testing.T) {
		s.ended(ctx, t, stray{"uuid", restingUUID, "guest=resting", create(lab.Domain{Name: "resting", UUID: restingUUID})})
	})
	t.Run("UUID changed", func(t *testing.T) {
		s.ended(ctx, t, stray{"mark", "10000000-0000-4000-8000-00000000b001", "guest=marked", create(lab.Domain{Name: "marked", UUID: "10000000-0000-4000-8000-00000000b001",
			MetadataText: `<troth:launch xmlns:troth="urn:troth:launch:v1"/>`})})
	})
	t.Run("volume by another path", func(t *testing.T) {
		s.ended(ctx, t, stray{"volume", images + "owned.raw (pid ", "guest=thief", create(lab.Domain{Name: "thief", UUID: "10000000-0000-4000-8000-00000000b002",
			Disks: []lab.Disk{{Source: images + "hard.raw", Format: "raw"}}})})
	})
	t.Run("volume put back from a backup", func(t *testing.T) {
		// By a name of its own: libvirt may still be giving the last one's owner back, by its path.
		s.Sh(ctx, t, "cd "+images+" && cp owned.raw back.raw && mv back.raw owned.raw && ln owned.raw heir.raw")
		s.ended(ctx, t, stray{"volume", images + "owned.raw (pid ", "guest=heir", create(lab.Domain{Name: "heir", UUID: "10000000-0000-4000-8000-00000000b004",
			Disks: []lab.Disk{{Source: images + "heir.raw", Format: "raw"}}})})
	})
}

// breaks does something to a fresh guest and waits until its proof is broken, with a report that matches what it says.
func (s *stage) breaks(ctx context.Context, t *testing.T, reaction, says, strike string) {
	t.Helper()
	s.n++
	name, uuid := fmt.Sprintf("drift%d", s.n), fmt.Sprintf("10000000-0000-4000-8000-%012x", 0xc000+s.n)
	disk := images + name + ".raw"
	s.launch(ctx, t, name, uuid, reaction, disk)
	from, begun := len(s.Logged(t, 0)), time.Now()
	s.Sh(ctx, t, strings.NewReplacer("@NAME@", name, "@DISK@", disk).Replace(strike))
	struck := time.Since(begun)
	var d struct {
		State, Token, Link string
		TrustLost          string `json:"trust_lost"`
		Refusal            struct{ Code, Detail string }
	}
	limit := 2 * byEvent
	if says == "monitor" || strings.Contains(strike, "snapshot-create") {
		limit = 5*time.Second + byEvent // no event tells of it: the next look (docs/reconcile.md)
	}
	took := scene.Within(t, limit+struck, begun, func() error {
		s.Do(ctx, t, s.Engine, &d, "domain", "show", uuid)
		if d.TrustLost == "" {
			return errors.New("the domain is " + d.State)
		}
		return nil
	})
	t.Logf("broken %v after it was asked for (the command itself took %v): %s", took.Round(time.Millisecond), struck.Round(time.Millisecond), d.Refusal.Detail)
	lost := scene.Must[*proof.TrustLost](t)(proof.ParseTrustLost(scene.Must[[]byte](t)(base64.RawURLEncoding.DecodeString(d.TrustLost)), s.confirmation(t)))
	if lost.UUID != uuid || lost.Link.String() != d.Link || lost.Token.String() != d.Token || lost.Reaction != reaction {
		t.Errorf("the report is %+v, the domain %+v", lost, d)
	}
	if !regexp.MustCompile(says).MatchString(proof.Refuse(lost.Code, lost.Sentence, lost.Facts...).Error()) {
		t.Errorf("the report says %q %+v", lost.Sentence, lost.Facts)
	}
	want := map[string]string{proof.TrustLostReport: "running", proof.TrustLostPause: "paused", proof.TrustLostDestroy: "shut off"}[reaction]
	scene.Within(t, 2*byEvent, time.Now(), func() error {
		if state := strings.TrimSpace(scene.Must[string](t)(s.Host.Virsh(ctx, "domstate", name))); state != want {
			return errors.New("the guest is " + state + ", want " + want)
		}
		return nil
	})
	// Stopped, it is launched anew with the same token: the verifier has heard that the link was broken, and closed.
	if reaction != proof.TrustLostDestroy {
		s.Do(ctx, t, s.Engine, nil, "domain", "stop", uuid)
	}
	scene.Within(t, byScan, time.Now(), func() error { return s.Engine.Do(ctx, s.Host, nil, "domain", "start", "--wait", uuid) })
	s.Do(ctx, t, s.Engine, &d, "domain", "show", uuid)
	if d.State != "proved" {
		t.Errorf("launched anew, it is %s", d.State)
	}
	s.Do(ctx, t, s.Engine, nil, "domain", "stop", uuid)
	s.untouched(ctx, t, from)
}

// confirmation is what verdicts name of the host's TLS key.
func (s *stage) confirmation(t *testing.T) proof.Digest {
	t.Helper()
	block, _ := pem.Decode(scene.Must[[]byte](t)(os.ReadFile(s.Host.Path("/etc/troth/hostd.pem"))))
	if block == nil {
		t.Fatal("the host has no certificate")
	}
	return sha256.Sum256(scene.Must[*x509.Certificate](t)(x509.ParseCertificate(block.Bytes)).RawSubjectPublicKeyInfo)
}

const virsh = "virsh -q -c qemu:///system "

func (s *stage) hotplug(ctx context.Context, t *testing.T) {
	for name, c := range map[string]struct{ says, strike string }{
		"attach-device": {`vdb|\.raw\.more`, // whichever hostd meets first: the device in the definition, or the file in QEMU
			"truncate -s 1M @DISK@.more; " + virsh + "attach-disk @NAME@ @DISK@.more vdb --subdriver raw --live"},
		"snapshot":   {`snap\.qcow2`, virsh + "snapshot-create-as @NAME@ --disk-only --no-metadata --diskspec vda,file=@DISK@.snap.qcow2"},
		"block copy": {"", virsh + "blockcopy @NAME@ vda @DISK@.copy --transient-job --format raw --wait"},
		"metadata":   {"mark", virsh + "metadata @NAME@ --uri urn:troth:launch:v1 --remove --live"},
	} {
		t.Run(name, func(t *testing.T) { s.breaks(ctx, t, proof.TrustLostReport, c.says, c.strike) })
	}
}

func (s *stage) monitor(ctx context.Context, t *testing.T) {
	t.Run("while it is launched", func(t *testing.T) { s.whileLaunched(ctx, t) })
	t.Run("while another client starts it", func(t *testing.T) { s.whileStarted(ctx, t) })
	for _, reaction := range []string{proof.TrustLostReport, proof.TrustLostPause, proof.TrustLostDestroy} {
		t.Run(reaction, func(t *testing.T) {
			s.breaks(ctx, t, reaction, "monitor", virsh+"qemu-monitor-command @NAME@ --hmp info version")
		})
	}
}
