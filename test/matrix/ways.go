// Package matrix tries every way that we know to run a trusted guest, or to reach one that runs, past the gate: with the hook alive or gone, and hostd up or
// down. Its table is what `make test-bypass` prints, and leaves in build/bypass.txt.
//
// A way is a shell script that runs on a real host, with real libvirtd, polkit and QEMU. It promises that a row is good only for a reason that was seen: the
// words of who refused, or the process that ran and is gone. A script that fails for another reason is a bad row.
package matrix

// Way is one way to run a trusted guest.
type Way struct {
	Name string
	// Guard is who stands on this path: "hook", "polkit", or "scan" where libvirt asks nobody.
	Guard string
	// Do runs as root; see the variables in stage.vars.
	Do string
	// Undo puts back what Do changed.
	Undo string
	// Sealed: tried with the domain that has a sealed disk as well.
	Sealed bool
	// Refused are words of libvirt or QEMU that refuse too, besides those of the gate.
	Refused string
	// Moved: libvirtd is started anew after Do, as at the boot of a host.
	Moved bool
}

const (
	// strip takes the mark out of a definition.
	strip = "sed '/<metadata>/,/<.metadata>/d' "
	// other gives a definition the way's own name and UUID.
	other = "sed 's#<name>.*</name>#<name>@OWN@</name>#; s#@UUID@#@OWNUUID@#; s#@NAME@-console.log#@OWN@-console.log#' "
	// emulator is QEMU by hand, which holds still.
	emulator = "qemu-system-x86_64 -S -nodefaults -display none -machine q35,accel=tcg -m 64 -name @OWN@ "
	// back runs the rest in the background.
	back = "setsid "
	off  = " </dev/null >/tmp/@OWN@.out 2>&1 &"
	// second is a libvirtd of somebody's own, with folders of its own and without a hook.
	second = "virsh -q -c 'qemu:///system?socket=/tmp/second/libvirt-sock' "
	// session is one that belongs to a user whom nobody gave anything.
	session = "setpriv --reuid stranger --regid stranger --clear-groups env HOME=/tmp/session XDG_RUNTIME_DIR=/tmp/session virsh -q -c qemu:///session "
	user    = "setpriv --reuid manager --regid manager --init-groups --inh-caps=-all --bounding-set=-all --no-new-privs -- "
)

func hook(name, do, undo string) Way {
	return Way{Name: name, Guard: "hook", Do: do, Undo: undo, Sealed: true}
}
func scan(name, do string) Way   { return Way{Name: name, Guard: "scan", Do: do} }
func polkit(name, do string) Way { return Way{Name: name, Guard: "polkit", Do: user + do} }

func plain(w Way) Way {
	w.Sealed = false
	return w
}

const (
	redefine = "virsh -q define @DUMP@"
	undefine = "virsh -q undefine @NAME@ --managed-save --snapshots-metadata || true; " + redefine
	// saved makes a save file of an untrusted guest that says it is the trusted one: names and UUIDs of equal length, exchanged in its header.
	saved = "sed 's#<name>@NAME@</name>#<name>@PLAIN@</name>#; s#@UUID@#@OWNUUID@#; /<metadata>/,/<.metadata>/d; /<disk/,/<.disk>/d' @BARE@ > /tmp/@OWN@.xml && " +
		"virsh -q create --paused /tmp/@OWN@.xml && virsh -q save @PLAIN@ /tmp/@OWN@.save && " +
		"sed -i 's#@OWNUUID@#@UUID@#g; s#<name>@PLAIN@</name>#<name>@NAME@</name>#g' /tmp/@OWN@.save && "
	// moved runs the guest under the second libvirtd, from where it comes in.
	moved = strip + "@BARE@ | sed '/<disk/,/<.disk>/d; s#/var/log/libvirt/qemu/[^<]*console.log#/tmp/@OWN@.console#' > /tmp/@OWN@.xml && " + second
)

// Starts are the ways to run a trusted guest that does not run.
func Starts() []Way {
	return []Way{
		hook("start", "virsh -q start @NAME@", ""),
		hook("start --paused, resume", "virsh -q start --paused @NAME@ && virsh -q resume @NAME@", ""),
		hook("start --force-boot", "virsh -q start --force-boot @NAME@", ""),
		hook("create from the dumped definition", "virsh -q create @DUMP@", ""),
		hook("create from a definition of one's own", "virsh -q create @BARE@", ""),
		hook("create --paused, resume", "virsh -q create --paused @BARE@ && virsh -q resume @NAME@", ""),
		hook("create, mark stripped", strip+"@BARE@ > /tmp/@OWN@.xml && virsh -q create /tmp/@OWN@.xml", ""),
		hook("undefine, create by another name", "virsh -q undefine @NAME@ --managed-save && sed 's#<name>.*</name>#<name>@OWN@</name>#' @BARE@ > /tmp/@OWN@.xml && virsh -q create /tmp/@OWN@.xml", redefine),
		hook("create, another UUID, mark kept", other+"@BARE@ > /tmp/@OWN@.xml && virsh -q create /tmp/@OWN@.xml", ""),
		hook("create, another UUID and no mark, its volume", other+"@BARE@ | "+strip+"> /tmp/@OWN@.xml && virsh -q create /tmp/@OWN@.xml", ""),
		hook("the same by a hard link", "ln @DISK@ @DISK@.hard && "+other+"@BARE@ | "+strip+"| sed 's#@DISK@#@DISK@.hard#' > /tmp/@OWN@.xml && virsh -q create /tmp/@OWN@.xml", "rm -f @DISK@.hard"),
		hook("the same by a symbolic link", "ln -s @DISK@ @DISK@.soft && "+other+"@BARE@ | "+strip+"| sed 's#@DISK@#@DISK@.soft#' > /tmp/@OWN@.xml && virsh -q create /tmp/@OWN@.xml", "rm -f @DISK@.soft"),
		hook("the same by a bind mount", "touch @DISK@.bind && mount --bind @DISK@ @DISK@.bind && "+other+"@BARE@ | "+strip+"| sed 's#@DISK@#@DISK@.bind#' > /tmp/@OWN@.xml && virsh -q create /tmp/@OWN@.xml", "umount @DISK@.bind; rm -f @DISK@.bind"),
		hook("the same by a path with dots", other+"@BARE@ | "+strip+"| sed 's#@DISK@#/var/../@DISK@#' > /tmp/@OWN@.xml && virsh -q create /tmp/@OWN@.xml", ""),
		Way{Name: "the same as another disk's backing file", Guard: "scan", Do: "qemu-img create -q -f qcow2 -F raw -b @DISK@ /tmp/@OWN@.qcow2 && chmod 666 /tmp/@OWN@.qcow2 && " + other + "@BARE@ | " + strip + "| sed \"s#@DISK@#/tmp/@OWN@.qcow2#; s#type='raw'#type='qcow2'#\" > /tmp/@OWN@.xml && virsh -q create /tmp/@OWN@.xml", Undo: "rm -f /tmp/@OWN@.qcow2"},
		hook("define without the mark, start", strip+"@BARE@ > /tmp/@OWN@.xml && virsh -q define /tmp/@OWN@.xml && virsh -q start @NAME@", redefine),
		hook("define with another command line, start", "sed 's#<cmdline>.*</cmdline>#<cmdline>init=/bin/sh</cmdline>#' @BARE@ > /tmp/@OWN@.xml && virsh -q define /tmp/@OWN@.xml && virsh -q start @NAME@", redefine),
		hook("undefine, define without the mark, start", "virsh -q undefine @NAME@ --managed-save && "+strip+"@BARE@ > /tmp/@OWN@.xml && virsh -q define /tmp/@OWN@.xml && virsh -q start @NAME@", redefine),
		hook("rename, start", "virsh -q define @BARE@ && virsh -q domrename @NAME@ @OWN@ && virsh -q start @OWN@", "virsh -q domrename @OWN@ @NAME@; "+redefine),
		hook("metadata: mark removed, start", "virsh -q define @BARE@ && virsh -q metadata @NAME@ --uri urn:troth:launch:v1 --remove --config && virsh -q start @NAME@", redefine),
		hook("edit (an editor that strips the mark), start", "printf '#!/bin/sh\\nsed -i \"/<metadata>/,/<.metadata>/d\" $1\\n' > /tmp/@OWN@.sh && chmod +x /tmp/@OWN@.sh && virsh -q define @BARE@ && EDITOR=/tmp/@OWN@.sh virsh -q edit @NAME@ && virsh -q start @NAME@", redefine),
		plain(hook("more memory and CPUs (setmaxmem, setvcpus), start", "virsh -q define @BARE@ && virsh -q setmaxmem @NAME@ 300M --config && virsh -q setvcpus @NAME@ 1 --config && virsh -q start @NAME@", redefine)),
		plain(hook("attach-disk --config, start", "virsh -q define @BARE@ && truncate -s 1M /tmp/@OWN@.img && chmod 666 /tmp/@OWN@.img && virsh -q attach-disk @NAME@ /tmp/@OWN@.img vdz --subdriver raw --config && virsh -q start @NAME@", redefine)),
		plain(hook("restore from a save file that says it is the guest", saved+"virsh -q restore /tmp/@OWN@.save --paused && virsh -q resume @NAME@", "rm -f /tmp/@OWN@.save")),
		plain(hook("start from a managed save put there", saved+"mkdir -p /var/lib/libvirt/qemu/save && cp /tmp/@OWN@.save /var/lib/libvirt/qemu/save/@NAME@.save && virsh -q start @NAME@ --paused", "rm -f /tmp/@OWN@.save /var/lib/libvirt/qemu/save/@NAME@.save; virsh -q managedsave-remove @NAME@ || true")),
		plain(hook("snapshot-revert --running", "qemu-img create -q -f qcow2 /tmp/@OWN@.qcow2 1M && chmod 666 /tmp/@OWN@.qcow2 && "+strip+"@BARE@ | sed \"s#@DISK@#/tmp/@OWN@.qcow2#; s#type='raw'#type='qcow2'#\" > /tmp/@OWN@.xml && virsh -q define /tmp/@OWN@.xml && virsh -q snapshot-create-as @NAME@ @OWN@ && virsh -q snapshot-revert @NAME@ @OWN@ --running", "virsh -q snapshot-delete @NAME@ @OWN@ --metadata || true; "+redefine)),
		plain(hook("migrate in, live", moved+"create --paused /tmp/@OWN@.xml && "+second+"migrate --live --migrateuri unix:///tmp/@OWN@.mig @NAME@ 'qemu+unix:///system'", second+"destroy @NAME@ || true")),
		plain(hook("migrate in, peer to peer", moved+"create --paused /tmp/@OWN@.xml && "+second+"migrate --live --p2p --migrateuri unix:///tmp/@OWN@.mig @NAME@ 'qemu+unix:///system?socket=/tmp/main/libvirt-sock'", second+"destroy @NAME@ || true")),
		plain(hook("migrate in, offline, start", moved+"define /tmp/@OWN@.xml && virsh -q undefine @NAME@ --managed-save && "+second+"migrate --offline --persistent @NAME@ 'qemu+unix:///system' && virsh -q start @NAME@", second+"undefine @NAME@ || true; "+redefine)),
		{Name: "autostart, at the boot of libvirtd", Guard: "hook", Do: "virsh -q define @BARE@ && virsh -q autostart @NAME@ && rm -f /run/libvirt/qemu/autostarted", Undo: "virsh -q autostart --disable @NAME@; " + redefine, Moved: true},

		scan("virt-qemu-run", strip+"@BARE@ | sed '/<disk/,/<.disk>/d; s#/var/log/libvirt/qemu/[^<]*console.log#/tmp/@OWN@.console#' > /tmp/@OWN@.xml && mkdir -p /tmp/@OWN@/etc && cp /etc/libvirt/qemu.conf /tmp/@OWN@/etc/qemu.conf && "+back+"virt-qemu-run -r /tmp/@OWN@ /tmp/@OWN@.xml"+off),
		scan("second libvirtd, create", moved+"create --paused /tmp/@OWN@.xml"),
		scan("second libvirtd, define and start", moved+"define /tmp/@OWN@.xml && "+second+"start @NAME@ && "+second+"undefine @NAME@"),
		scan("session daemon of a user", strip+"@BARE@ | sed '/<disk/,/<.disk>/d; s#/var/log/libvirt/qemu/[^<]*console.log#/tmp/session/@OWN@.console#' > /tmp/@OWN@.xml && "+session+"create --paused /tmp/@OWN@.xml"),
		scan("QEMU by hand, its UUID", back+emulator+"-uuid @UUID@"+off),
		scan("QEMU by hand, its UUID in SMBIOS", back+emulator+"-smbios type=1,uuid=@UUID@"+off),
		scan("QEMU by hand, its volume", back+emulator+"-drive if=none,format=raw,file.filename=@DISK@,file.locking=off"+off),
		scan("QEMU by hand, the sealed volume", back+emulator+"-drive if=none,format=raw,file.filename=@SEALED@,file.locking=off"+off),
		scan("QEMU by hand, the guest's channel", back+emulator+"-device virtio-serial-pci -chardev null,id=c -device virtserialport,chardev=c,name=troth.guest.0"+off),
		scan("QEMU by hand, by another name", "cp /usr/bin/qemu-system-x86_64 /tmp/qemu-system-@OWN@ && cd /usr/share/qemu && "+back+"/tmp/"+"qemu-system-@OWN@ "+emulator[len("qemu-system-x86_64 "):]+"-L /usr/share/qemu -L /usr/share/seabios -uuid @UUID@"+off),
		scan("QEMU by hand, from a removed file", "cp /usr/bin/qemu-system-x86_64 /tmp/qemu-system-@OWN@ && cd /usr/share/qemu && "+back+"/tmp/"+"qemu-system-@OWN@ "+emulator[len("qemu-system-x86_64 "):]+"-L /usr/share/qemu -L /usr/share/seabios -uuid @UUID@"+off+" until readlink /proc/$!/exe | grep -q @OWN@; do sleep 0.02; done; rm /tmp/qemu-system-@OWN@"),
		scan("QEMU by hand, as an unprivileged user", user+back+emulator+"-uuid @UUID@"+off),
		scan("QEMU by hand, then qemu-attach", back+emulator+"-uuid @UUID@ -monitor unix:/tmp/@OWN@.mon,server=on,wait=off"+off+" virsh -q qemu-attach $! || true"),
		scan("QEMU by hand, waiting for a migration", back+emulator+"-uuid @UUID@ -incoming unix:/tmp/@OWN@.in"+off),
		scan("untrusted domain, UUID through qemu:commandline", foreign("<qemu:arg value='-uuid'/><qemu:arg value='@UUID@'/>")),
		scan("untrusted domain, UUID through qemu:commandline -smbios", foreign("<qemu:arg value='-smbios'/><qemu:arg value='type=1,uuid=@UUID@'/>")),
		{Name: "untrusted domain, volume through qemu:commandline", Guard: "hook", Do: foreign("<qemu:arg value='-drive'/><qemu:arg value='if=none,format=raw,file.locking=off,file.filename=@DISK@'/>")},

		polkit("operator: start", "virsh -q -c qemu:///system start @NAME@"),
		polkit("operator: create", "virsh -q -c qemu:///system create @BARE@"),
		polkit("operator: define, mark stripped", "virsh -q -c qemu:///system define @STRIPPED@"),
		polkit("operator: undefine", "virsh -q -c qemu:///system undefine @NAME@"),
		polkit("operator: autostart", "virsh -q -c qemu:///system autostart @NAME@"),
		polkit("operator: rename", "virsh -q -c qemu:///system domrename @NAME@ @OWN@"),
	}
}

// foreign is an untrusted domain to whose QEMU libvirt passes arguments unread.
func foreign(args string) string {
	return "sed \"s#<domain type#<domain xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0' type#; s#<name>.*</name>#<name>@OWN@</name>#; s#@UUID@#@OWNUUID@#; /<metadata>/,/<.metadata>/d; /<disk/,/<.disk>/d; " +
		"s#</domain>#<qemu:commandline>" + args + "</qemu:commandline></domain>#\" @BARE@ > /tmp/@OWN@.xml && virsh -q create --paused /tmp/@OWN@.xml"
}
