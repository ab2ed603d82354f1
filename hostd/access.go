package hostd

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"troth/systemd/polkit"
)

// Access looks at what binds libvirt's other clients: libvirt asks polkit, polkit has Troth's rule and no rule before it answers,
// and nobody reaches libvirt over the network, where polkit cannot tell who calls. It reads files and /proc; it asks nobody and changes nothing.
type Access struct {
	Root string // put before every path; empty on a real host
}

const (
	nameAccess  = "libvirt-access"
	nameRule    = "polkit-rule"
	nameNetwork = "libvirt-network"
)

// Findings returns one finding each for libvirt's access control, for polkit's rule, and for libvirt's listeners.
func (a Access) Findings() []Finding {
	daemons, err := a.daemons()
	if err != nil {
		look := func(name string) Finding { return unknown(name, "Run doctor as root.", "%v", err) }
		return []Finding{look(nameAccess), look(nameRule), look(nameNetwork)}
	}
	if closed := a.onlyRoot(); closed != "" {
		return []Finding{good(nameAccess, "%s", closed), good(nameRule, "not needed: %s", closed), a.network(daemons)}
	}
	return []Finding{a.access(daemons), a.rule(), a.network(daemons)}
}

// guarded are the daemons whose objects Troth's rule guards, each with its sockets below /run/libvirt and its configuration in /etc/libvirt: libvirtd,
// or the modular ones for domains, for keys of sealed disks, and for images. Where virtproxyd stands at libvirtd's sockets it only carries.
var guarded = []struct{ name, socket string }{
	{"libvirtd", "libvirt-sock"}, {"virtqemud", "virtqemud-sock"}, {"virtsecretd", "virtsecretd-sock"}, {"virtstoraged", "virtstoraged-sock"},
}

func socketPath(name string) string { return "/run/libvirt/" + name }

func configPath(daemon string) string { return "/etc/libvirt/" + daemon + ".conf" }

// guards says whether a process of this name is one of them.
func guards(name string) bool {
	return slices.ContainsFunc(guarded, func(g struct{ name, socket string }) bool { return g.name == name })
}

// onlyRoot says so when no user but root can open any of libvirt's sockets: then there is no client to bind.
func (a Access) onlyRoot() string {
	found := 0
	var all []string
	for _, g := range guarded {
		all = append(all, socketPath(g.socket), socketPath(g.socket+"-ro"))
	}
	for _, s := range all {
		info, err := os.Stat(a.Root + s)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil || info.Mode().Perm()&0o077 != 0 || owner(info) != 0 {
			return ""
		}
		found++
	}
	if found == 0 {
		return ""
	}
	return "libvirt's sockets are root's alone"
}

// access looks at access_drivers of each daemon that runs; one that is started when it is first called will read its default file.
func (a Access) access(daemons []libvirtDaemon) Finding {
	const remedy = `Set access_drivers = [ "polkit" ] in %s and restart the daemon; guests run on. See docs/polkit.md.`
	var said []string
	for _, d := range a.configured(daemons) {
		info, err := os.Stat(a.Root + d.config)
		if err != nil {
			return bad(nameAccess, fmt.Sprintf(remedy, d.config), "%s has no configuration: %v", d.name, err)
		}
		text, err := os.ReadFile(a.Root + d.config)
		if err != nil {
			return unknown(nameAccess, "Run doctor as root.", "%v", err)
		}
		drivers, err := accessDrivers(string(text))
		switch {
		case err != nil:
			return bad(nameAccess, fmt.Sprintf(remedy, d.config), "%s: %v", d.config, err)
		case !slices.Contains(drivers, "polkit"):
			return bad(nameAccess, fmt.Sprintf(remedy, d.config), "%s sets access_drivers to %q: whoever may open libvirt's socket may change trusted domains", d.config, drivers)
		case !d.started.IsZero() && info.ModTime().After(d.started.Add(time.Second)):
			return bad(nameAccess, "Restart "+d.name+"; guests run on.", "%s was changed at %s, %s has run since %s",
				d.config, info.ModTime().UTC().Format(time.DateTime), d.name, d.started.UTC().Format(time.DateTime))
		}
		said = append(said, fmt.Sprintf("%s asks polkit (%s)", d.name, d.config))
	}
	return good(nameAccess, "%s", strings.Join(said, "; "))
}

// configured adds to the daemons that run those that do not, and that systemd starts when somebody calls at their sockets: modular daemons end when
// nobody needs them. Whoever serves QEMU is always among them: virtqemud where its socket is (as libvirt's clients choose), else libvirtd.
func (a Access) configured(daemons []libvirtDaemon) []libvirtDaemon {
	var out []libvirtDaemon
	for _, d := range daemons {
		if d.config != "" {
			out = append(out, d)
		}
	}
	has := func(name string) bool {
		return slices.ContainsFunc(out, func(d libvirtDaemon) bool { return d.name == name })
	}
	for _, g := range guarded[1:] {
		if _, err := os.Lstat(a.Root + socketPath(g.socket)); err == nil && !has(g.name) {
			out = append(out, libvirtDaemon{name: g.name, config: configPath(g.name)})
		}
	}
	if !has("libvirtd") && !has("virtqemud") {
		out = append(out, libvirtDaemon{name: "libvirtd", config: configPath("libvirtd")})
	}
	return out
}

var (
	confComment = regexp.MustCompile(`(?m)^\s*#.*$`)
	confDrivers = regexp.MustCompile(`(?m)^\s*access_drivers\s*=\s*\[([^\]]*)\]`)
	confString  = regexp.MustCompile(`"([^"]*)"|'([^']*)'`)
)

// accessDrivers reads the setting as libvirt does (virConf), and takes no file that sets it twice.
func accessDrivers(text string) ([]string, error) {
	text = confComment.ReplaceAllString(text, "")
	all := confDrivers.FindAllStringSubmatch(text, -1)
	if len(all) > 1 {
		return nil, errors.New("access_drivers is set more than once")
	}
	var drivers []string
	for _, m := range all {
		for _, s := range confString.FindAllStringSubmatch(m[1], -1) {
			drivers = append(drivers, s[1]+s[2])
		}
	}
	return drivers, nil
}

// ruleDirs are polkit's, in the order in which it takes rules of the same name (polkit(8)).
var ruleDirs = []string{"/etc/polkit-1/rules.d", "/run/polkit-1/rules.d", "/usr/local/share/polkit-1/rules.d", "/usr/share/polkit-1/rules.d"}

// rule looks for our rule, for what answers before it, and for what it runs.
func (a Access) rule() Finding {
	const remedy = "Install " + polkit.Name + " of this version in /usr/share/polkit-1/rules.d; polkit takes it up by itself."
	found := ""
	for _, dir := range ruleDirs {
		entries, err := os.ReadDir(a.Root + dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return unknown(nameRule, "Run doctor as root.", "%v", err)
		}
		for _, e := range entries {
			path := filepath.Join(dir, e.Name())
			switch {
			case !strings.HasSuffix(e.Name(), ".rules") || e.Name() > polkit.Name:
			case e.Name() < polkit.Name:
				return bad(nameRule, "Give "+path+" a name that sorts after "+polkit.Name+": polkit takes the first rule that answers.", "%s is asked before Troth's rule", path)
			default:
				text, err := os.ReadFile(a.Root + path)
				if err != nil {
					return unknown(nameRule, "Run doctor as root.", "%v", err)
				}
				if !bytes.Equal(text, polkit.Rules) {
					return bad(nameRule, remedy, "%s has SHA-256 %x, this program's rule has %x", path, sha256.Sum256(text), sha256.Sum256(polkit.Rules))
				}
				found = path
			}
		}
	}
	if found == "" {
		return bad(nameRule, remedy, "polkit has no %s", polkit.Name)
	}
	info, err := os.Stat(a.Root + polkit.Helper)
	if err != nil || !info.Mode().IsRegular() || info.Mode().Perm()&0o001 == 0 || info.Mode().Perm()&0o022 != 0 {
		// Without it every domain counts as registered, so that nobody can work with any.
		return bad(nameRule, "Install troth-registered as "+polkit.Helper+", root's, mode 0755.", "%s cannot run %s: %v", found, polkit.Helper, err)
	}
	return good(nameRule, "%s, SHA-256 %x, is asked first", found, sha256.Sum256(polkit.Rules))
}
