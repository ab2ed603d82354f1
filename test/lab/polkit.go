package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"troth/systemd/polkit"
)

// The users of a host with Options.Polkit.
const (
	Hostd    = "troth"    // who troth-hostd runs as
	Operator = "manager"  // may do everything with libvirt, by an ordinary rule of polkit
	Stranger = "stranger" // a user of the host whom nobody gave anything
)

// users are added to a host's passwd; groups to its group file, with their members.
var (
	users  = []string{Hostd + ":x:64101:64101::/var/lib/troth:/usr/sbin/nologin", Operator + ":x:64102:64102::/tmp:/bin/sh", Stranger + ":x:64103:64103::/tmp:/bin/sh"}
	groups = []string{"troth:x:64101:", Operator + ":x:64102:", Stranger + ":x:64103:", "libvirt:x:64110:" + Operator, "tss:x:64111:"}
)

// libvirtdPolkitConf is libvirtd.conf as Debian has it, with the one line that docs/polkit.md asks for.
const libvirtdPolkitConf = `host_uuid = "%s"
unix_sock_group = "libvirt"
unix_sock_ro_perms = "0777"
unix_sock_rw_perms = "0770"
auth_unix_ro = "none"
auth_unix_rw = "none"
access_drivers = [ "polkit" ]
log_outputs = "2:stderr"
`

// operatorRule lets a group do everything with libvirt: what an administrator writes who trusts its operators. It sorts first among
// those that are not ours.
const operatorRule = `polkit.addRule(function (action, subject) {
    if (action.id.indexOf("org.libvirt.") === 0 && subject.isInGroup("libvirt")) {
        return polkit.Result.YES;
    }
});
`

// actionsPackage is Debian's package with libvirt's list of actions for polkit. Only that list is needed of it.
const actionsPackage = "libvirt-daemon-system"

// preparePolkit adds to a host's tree the users, the rules, and what the rule runs, and returns what has to be bound over the machine's.
func (l *Lab) preparePolkit(ctx context.Context, tree string) ([]bind, error) {
	etc := filepath.Join(tree, "etc")
	for file, lines := range map[string][]string{"passwd": users, "group": groups} {
		for _, line := range lines {
			if err := appendMissing(filepath.Join(etc, file), line); err != nil {
				return nil, fmt.Errorf("cannot add a user: %w", err)
			}
		}
	}
	rules, err := os.ReadDir(filepath.Join(etc, "polkit-1/rules.d"))
	if err != nil {
		return nil, fmt.Errorf("cannot find polkit's configuration: %w", err)
	}
	for _, r := range rules { // the machine's own are not this host's
		if err := os.Remove(filepath.Join(etc, "polkit-1/rules.d", r.Name())); err != nil {
			return nil, fmt.Errorf("cannot clear polkit's rules: %w", err)
		}
	}
	if err := writeFile(filepath.Join(etc, "polkit-1/rules.d/01-operators.rules"), operatorRule, 0o644); err != nil {
		return nil, err
	}
	actions, err := l.Actions(ctx)
	if err != nil {
		return nil, err
	}
	share := filepath.Join(tree, "share-polkit") // Host.Path finds it there
	if err := copyFile(actions, filepath.Join(share, "actions", filepath.Base(actions)), 0o644); err != nil {
		return nil, err
	}
	if err := writeFile(filepath.Join(share, "rules.d", polkit.Name), string(polkit.Rules), 0o644); err != nil {
		return nil, err
	}
	// The machine's /usr is read-only in a node, and has no folder of ours to bind over.
	libexec := filepath.Join(tree, "libexec")
	if err := copyFile(filepath.Join(l.options.Binaries, "troth-registered"), filepath.Join(libexec, "troth/troth-registered"), 0o755); err != nil {
		return nil, err
	}
	return []bind{
		{Source: filepath.Join(share, "actions"), Target: "/usr/share/polkit-1/actions"},
		{Source: filepath.Join(share, "rules.d"), Target: "/usr/share/polkit-1/rules.d"},
		{Source: libexec, Target: "/usr/libexec"},
	}, nil
}

// Actions is the file in which libvirt names every permission to polkit (org.libvirt.api.policy), in the cache. It is unpacked
// from Debian's package, which is not installed.
func (l *Lab) Actions(ctx context.Context) (string, error) {
	const name = "org.libvirt.api.policy"
	file := filepath.Join(l.options.Cache, "polkit", name)
	if _, err := os.Stat(file); err == nil {
		return file, nil
	}
	work, err := os.MkdirTemp(l.options.Cache, "polkit-*")
	if err != nil {
		return "", fmt.Errorf("cannot make room for libvirt's actions: %w", err)
	}
	defer func() {
		if rerr := os.RemoveAll(work); rerr != nil {
			l.say("cannot remove %s: %v", work, rerr)
		}
	}()
	if _, err := l.tool(ctx, work, nil, "apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", actionsPackage); err != nil {
		return "", fmt.Errorf("cannot download libvirt's actions: %w", err)
	}
	debs, err := filepath.Glob(filepath.Join(work, "*.deb"))
	if err != nil || len(debs) != 1 {
		return "", fmt.Errorf("cannot find libvirt's actions: %d packages downloaded", len(debs))
	}
	if _, err := l.tool(ctx, work, nil, "dpkg-deb", "-x", debs[0], filepath.Join(work, "root")); err != nil {
		return "", fmt.Errorf("cannot unpack libvirt's actions: %w", err)
	}
	out := filepath.Join(work, "out")
	if err := copyFile(filepath.Join(work, "root/usr/share/polkit-1/actions", name), filepath.Join(out, name), 0o644); err != nil {
		return "", err
	}
	// Whole or not at all, as the guest's kernel.
	if err := os.Rename(out, filepath.Dir(file)); err != nil && !errors.Is(err, unix.ENOTEMPTY) && !errors.Is(err, fs.ErrExist) {
		return "", fmt.Errorf("cannot keep libvirt's actions: %w", err)
	}
	return file, nil
}

// startPolkit starts the message bus and polkit, whom libvirtd asks.
func (h *Host) startPolkit(ctx context.Context) error {
	if s, err := h.Service(ctx, "polkitd"); err != nil || s.Running {
		return err
	}
	for dir, owner := range map[string]string{"/var/lib/troth": Hostd, "/run/troth": Hostd} {
		if _, err := h.Exec(ctx, "chown", owner+":"+owner, dir); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(h.Path("/run/dbus"), 0o755); err != nil {
		return fmt.Errorf("cannot make the bus's folder: %w", err)
	}
	if err := h.start(ctx, "dbus", "dbus-daemon", "--system", "--nofork", "--nopidfile"); err != nil {
		return err
	}
	err := h.await(ctx, "dbus", func() error {
		_, err := os.Stat(h.Path("/run/dbus/system_bus_socket"))
		return err
	})
	if err != nil {
		return err
	}
	if err := h.start(ctx, "polkitd", "/usr/lib/polkit-1/polkitd"); err != nil {
		return err
	}
	return h.await(ctx, "polkitd", func() error {
		// To ask it over the bus too early makes the bus start a second one, whose log nobody sees.
		log, err := os.ReadFile(h.Log("polkitd"))
		if err == nil && !strings.Contains(string(log), "Acquired the name") {
			err = errors.New("polkitd is not on the bus yet")
		}
		return err
	})
}

// As prepares the words that run a command as a user of the host, with the groups that its group file says and no capability.
func As(user string, argv ...string) []string {
	return append([]string{"setpriv", "--reuid", user, "--regid", user, "--init-groups", "--inh-caps=-all", "--bounding-set=-all", "--no-new-privs", "--"}, argv...)
}

// VirshAs runs virsh as a user of the host.
func (h *Host) VirshAs(ctx context.Context, user string, args ...string) (string, error) {
	return h.Exec(ctx, As(user, append([]string{"virsh", "-q", "-c", "qemu:///system"}, args...)...)...)
}

// unit is troth-hostd's unit file, of which hostdCommand takes environment, user, groups and capabilities.
const unit = "systemd/troth-hostd.service"

// hostdCommand is how troth-hostd is run: with its unit's environment, as root, or with Options.Polkit as its unit says.
func (h *Host) hostdCommand(args ...string) ([]string, error) {
	root, err := moduleRoot()
	if err != nil {
		return nil, err
	}
	text, err := os.ReadFile(filepath.Join(root, unit))
	if err != nil {
		return nil, fmt.Errorf("cannot read the unit of troth-hostd: %w", err)
	}
	is := map[string]string{}
	for line := range strings.Lines(string(text)) {
		if key, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok {
			is[key] = value
		}
	}
	argv := []string{"env", is["Environment"]}
	if h.lab.options.Polkit {
		ambient, bounding := capabilities(is["AmbientCapabilities"]), capabilities(is["CapabilityBoundingSet"])
		argv = append(argv, "setpriv", "--reuid", is["User"], "--regid", is["Group"], "--groups",
			strings.Join(append([]string{is["Group"]}, strings.Fields(is["SupplementaryGroups"])...), ","),
			"--bounding-set="+bounding, "--inh-caps="+ambient, "--ambient-caps="+ambient, "--no-new-privs", "--")
	}
	return append(append(argv, binariesInside+"/troth-hostd"), args...), nil
}

// capabilities turns a unit's list into setpriv's.
func capabilities(list string) string {
	out := []string{"-all"}
	for _, c := range strings.Fields(list) {
		out = append(out, "+"+strings.ToLower(strings.TrimPrefix(c, "CAP_")))
	}
	return strings.Join(out, ",")
}

// give lets troth-hostd's user have what its package or udev would give it: the TPM's socket by the group tss, its own key.
func (h *Host) give(ctx context.Context, group, mode string, files ...string) error {
	if !h.lab.options.Polkit {
		return nil
	}
	if _, err := h.Exec(ctx, append([]string{"chgrp", group}, files...)...); err != nil {
		return err
	}
	_, err := h.Exec(ctx, append([]string{"chmod", mode}, files...)...)
	return err
}
