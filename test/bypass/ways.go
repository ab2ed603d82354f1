// Package bypass lists the ways round the gate that libvirt itself offers: every call with which one of its clients can change,
// stop, read or hear a running domain without a hook being asked. Each way is a virsh command and the permission that libvirt asks
// polkit for (org.libvirt.api.domain.PERMISSION).
//
// It promises nothing by itself; its tests, and those of whoever else needs ways to try, run them against real libvirtd.
package bypass

import "fmt"

// Way is one way to reach a domain past the gate.
type Way struct {
	Permission string
	Name       string
	Args       []string // of virsh; $D is the domain's name, $X a file with its definition, $T a folder for files
	// Ends says that the domain does not run afterwards, or not as before.
	Ends bool
}

// For gives the arguments of virsh for a domain.
func (w Way) For(domain, definition, folder string) []string {
	out := make([]string, len(w.Args))
	for i, a := range w.Args {
		switch a {
		case "$D":
			a = domain
		case "$X":
			a = definition
		}
		if len(a) > 2 && a[:2] == "$T" {
			a = folder + a[2:]
		}
		out[i] = a
	}
	return out
}

func way(permission, name string, args ...string) Way {
	return Way{Permission: permission, Name: name, Args: args}
}

func ends(w Way) Way {
	w.Ends = true
	return w
}

// Held are the ways that belong to troth-hostd alone when the running domain is registered, those that leave it running first. To start
// one that does not run is held too (start).
func Held() []Way {
	return []Way{
		way("write", "redefine", "define", "$X"),
		way("write", "attach", "attach-disk", "$D", "/tmp/extra.img", "vdz", "--live"),
		way("write", "attach-device", "attach-device", "$D", "/tmp/device.xml", "--config"),
		way("write", "autostart", "autostart", "$D"),
		way("write", "memory", "setmem", "$D", "200M", "--live"),
		way("write", "metadata", "desc", "$D", "--config", "changed"),
		way("write", "QMP", "qemu-monitor-command", "$D", `{"execute":"query-status"}`),
		way("write", "QMP migrate", "qemu-monitor-command", "$D", `{"execute":"query-migrate"}`),
		way("write", "HMP", "qemu-monitor-command", "$D", "--hmp", "info version"),
		way("write", "agent", "qemu-agent-command", "$D", `{"execute":"guest-info"}`),
		way("write", "rename", "domrename", "$D", "another"),
		way("write", "throttle", "blkdeviotune", "$D", "vda", "--total-iops-sec", "1"),
		way("read-secure", "passwords", "dumpxml", "$D", "--security-info"),
		way("block-write", "block copy", "blockcopy", "$D", "vda", "$T/copy.img", "--transient-job"),
		way("block-write", "block resize", "blockresize", "$D", "vda", "4M"),
		way("block-write", "block commit", "blockcommit", "$D", "vda"),
		way("block-write", "block pull", "blockpull", "$D", "vda"),
		way("snapshot", "snapshot", "snapshot-create-as", "$D", "one", "--disk-only"),
		way("checkpoint", "checkpoint", "checkpoint-create-as", "$D", "one"),
		way("checkpoint", "backup", "backup-begin", "$D"),
		way("core-dump", "dump", "dump", "$D", "$T/core", "--memory-only", "--live"),
		way("screenshot", "screenshot", "screenshot", "$D", "$T/screen"),
		way("send-input", "send-key", "send-key", "$D", "KEY_A"),
		way("inject-nmi", "NMI", "inject-nmi", "$D"),
		way("set-time", "clock", "domtime", "$D", "--now"),
		way("set-password", "password", "set-user-password", "$D", "root", "secret"),
		way("fs-trim", "trim", "domfstrim", "$D"),
		way("fs-freeze", "freeze", "domfsfreeze", "$D"),
		way("pm-control", "suspend to memory", "dompmsuspend", "$D", "mem"),
		way("suspend", "pause", "suspend", "$D"),
		way("suspend", "resume", "resume", "$D"),
		way("reset", "reset", "reset", "$D"),
		way("migrate", "migrate", "migrate", "--live", "$D", "qemu+unix:///system", "unix:///tmp/nowhere"),
		ends(way("hibernate", "managed save", "managedsave", "$D")),
		ends(way("hibernate", "save", "save", "$D", "$T/saved")),
		ends(way("delete", "undefine", "undefine", "$D")),
	}
}

// String names the way in a test.
func (w Way) String() string { return fmt.Sprintf("%s (%s)", w.Name, w.Permission) }
