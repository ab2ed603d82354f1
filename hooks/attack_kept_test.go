package hooks_test

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"troth/hooks"
	"troth/hooks/ask"
)

const secretOf = "/run/troth/guest/" + uuidText + ".secret"

// own lays out what of the gate the tests' own /run can hold, and ways to it that do not show where they lead.
func own(t *testing.T) (dir string) {
	t.Helper()
	dir = t.TempDir()
	for _, d := range []string{"/run/troth/guest/" + uuidText, filepath.Join(dir, "far"), filepath.Join(dir, "farther")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(secretOf, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, to := range map[string]string{"link": secretOf, "folder": "/run/troth/guest", "inner": "/run/troth/guest/" + uuidText, "chip": "/dev/tpmrm0",
		"later": "folder/" + otherID + ".secret"} {
		if err := os.Symlink(to, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(dir+"/nothing", "/run/troth/out"); err != nil {
		t.Fatal(err)
	}
	for from, to := range map[string]string{"/run/troth": "far", "/run": "farther"} {
		to = filepath.Join(dir, to)
		if err := syscall.Mount(from, to, "", syscall.MS_BIND, ""); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := syscall.Unmount(to, 0); err != nil {
				t.Error(err)
			}
		})
	}
	return dir
}

func shared(dir string) string {
	return `<filesystem type='mount'><source dir='` + dir + `'/><target dir='x'/></filesystem>`
}

// attackOwn: an untrusted domain that names what the gate stands on: secrets of guests, keys, journal, hook, chip. With a registry or none, hostd up or down.
func attackOwn(t *testing.T) {
	h := newHost(t)
	dir := own(t)
	pool(t, "guests", "/run/troth/guest")
	ways := map[string]string{
		"secret as a disk":      disk(secretOf),
		"secret not there yet":  disk("/run/troth/guest/" + otherID + ".secret"),
		"the same by a link":    disk(dir + "/folder/" + otherID + ".secret"),
		"the same by two links": disk(dir + "/later"),
		"the same by dots":      disk(dir + "/inner/../" + otherID + ".secret"),
		"secret by a link":      disk(dir + "/link"),
		"secret, other mount":   disk(dir + "/far/guest/" + uuidText + ".secret"),
		"secret of a pool":      `<disk type='volume'><source pool='guests' volume='` + uuidText + `.secret'/></disk>`,
		"secret in an argument": `<qemu:arg value='name=opt/x,file=` + secretOf + `'/>`,
		"secret in json":        `<disk><source file='json:{&quot;file&quot;:{&quot;filename&quot;:&quot;` + secretOf + `&quot;}}'/></disk>`,
		"a link of the gate's":  disk("/run/troth/out"),
		"key":                   disk("/etc/troth/hostd.key"),
		"hook":                  disk("/etc/libvirt/hooks/qemu"),
		"libvirt's settings":    disk("/etc/libvirt/libvirtd.conf"),
		"journal":               disk("/var/lib/troth/journal/launches"),
		"memory of a guest":     disk("/var/lib/troth/saved/" + uuidText),
		"helper":                disk("/usr/libexec/troth/troth-registered"),
		"chip":                  `<tpm model='tpm-tis'><backend type='passthrough'><device path='/dev/tpmrm0'/></backend></tpm>`,
		"chip, its other node":  `<tpm model='tpm-tis'><backend type='passthrough'><device path='/dev/tpm0'/></backend></tpm>`,
		"second chip":           `<tpm model='tpm-tis'><backend type='passthrough'><device path='/dev/tpmrm1'/></backend></tpm>`,
		"chip by a link":        `<tpm model='tpm-tis'><backend type='passthrough'><device path='` + dir + `/chip'/></backend></tpm>`,
		"folder":                shared("/run/troth/guest"),
		"folder above":          shared("/run"),
		"folder above, bound":   shared(dir + "/farther"),
		"all folders":           shared("/"),
		"settings":              shared("/etc"),
		"state":                 shared("/var/lib"),
		"devices":               shared("/dev"),
	}
	refused := func(t *testing.T, code string) {
		for name, d := range ways {
			t.Run(name, func(t *testing.T) {
				run(t, domain(otherID, "", d), "guest", "prepare", "begin", "-").wantRefused(t, code)
			})
		}
		fwcfg := strings.Replace(domain(otherID, "", ""), "<devices>", "<sysinfo type='fwcfg'><entry name='opt/x' file='"+secretOf+"'/></sysinfo><devices>", 1)
		run(t, fwcfg, "guest", "start", "begin", "-").wantRefused(t, code)
	}
	t.Run("no registry", func(t *testing.T) { refused(t, "hostd-unreachable") })
	h.register(t, ask.Registry{UUIDs: [][16]byte{uuidOf(t, uuidText)}})
	t.Run("a registry", func(t *testing.T) { refused(t, "hostd-unreachable") })
	t.Run("honest", func(t *testing.T) { honest(t, dir) })
	h.serve(t, func(ask.Question) ask.Answer { return ask.Deny(ask.GrantMissing) })
	t.Run("hostd up", func(t *testing.T) { refused(t, "grant-missing") })
	h.serve(t, permit)
	run(t, domain(uuidText, mark, `<x file='`+secretOf+`'/>`), "guest", "prepare", "begin", "-").wantPermitted(t) // a launch of our own
}

// honest domains name their neighbours, and pass with hostd down.
func honest(t *testing.T, dir string) {
	for _, d := range []string{"/run/user/1000", "/var/lib/libvirt/images", "/run/trothless"} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, d := range map[string]string{
		"image":             disk("/var/lib/libvirt/images/web.img"),
		"user's image":      disk("/run/user/1000/web.img"),
		"by its beginning":  disk("/run/trothless/web.img"),
		"emulated TPM":      `<tpm model='tpm-crb'><backend type='emulator' version='2.0'><source type='dir' path='/var/lib/libvirt/swtpm/x'/></backend></tpm>`,
		"folder":            shared("/var/lib/libvirt/images"),
		"folder of a guest": shared(dir + "/nothing"),
		"random numbers":    `<rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>`,
		"channel":           `<channel type='unix'><source mode='bind' path='/run/libvirt/qemu/channel/1-web/org.qemu.guest_agent.0'/></channel>`,
	} {
		t.Run(name, func(t *testing.T) {
			run(t, domain(otherID, "", d), "guest", "prepare", "begin", "-").wantPermitted(t)
		})
	}
	cmdline := strings.Replace(domain(otherID, "", ""), "</kernel>", "</kernel><cmdline>root=LABEL=/ x=/etc/troth</cmdline>", 1)
	run(t, cmdline, "guest", "prepare", "begin", "-").wantPermitted(t)
}

// TestKeeps: hostd asks the same about images, and about folders of its own that stand elsewhere.
func TestKeeps(t *testing.T) {
	newHost(t)
	dir := own(t)
	for path, want := range map[string]bool{
		secretOf: true, dir + "/link": true, "/etc/troth": true, dir + "/elsewhere/x": true, dir: true,
		"/srv/web.img": false, dir + "/nothing": false, "/etc/trothless": false,
	} {
		if got := hooks.Keeps(path, dir+"/elsewhere"); got != want {
			t.Errorf("%s: %v", path, got)
		}
	}
}

// TestFolderInRegistry: a folder of hostd's that stands elsewhere covers what is below it.
func TestFolderInRegistry(t *testing.T) {
	newHost(t).register(t, ask.Registry{Volumes: []ask.Volume{{Path: "/srv/troth-run"}}})
	run(t, domain(otherID, "", disk("/srv/troth-run/guest/x.secret")), "guest", "prepare", "begin", "-").wantRefused(t, "hostd-unreachable")
	run(t, domain(otherID, "", disk("/srv/troth-runs/x")), "guest", "prepare", "begin", "-").wantPermitted(t)
}
