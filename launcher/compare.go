package launcher

import (
	"fmt"
	"path/filepath"
	"strings"

	"troth/launcher/domain"
	"troth/proof"
)

// compareInactive says whether the definition that libvirt keeps is the one that we emitted.
func compareInactive(xml []byte, want *domain.Config, added domain.Additions) error {
	got, err := domain.Read(xml, domain.Inactive)
	if err != nil {
		return err
	}
	if err := domain.Compare(want, got); err != nil {
		return err
	}
	return compareAdded(got, added)
}

// compareLive says whether what runs is what was permitted.
func compareLive(xml []byte, want *domain.Config, added domain.Additions) error {
	got, err := domain.Read(xml, domain.Live)
	if err != nil {
		return err
	}
	if err := domain.Compare(want, got); err != nil {
		return err
	}
	return compareAdded(got, added)
}

func compareAdded(got *domain.Config, want domain.Additions) error {
	if !got.Mark {
		return proof.Refuse(proof.ConfigurationChanged, "the mark troth:launch is gone")
	}
	if got.Added.LaunchID != want.LaunchID {
		// Not printed: until the guest runs, the id is what tells our start from another's.
		return proof.Refuse(proof.ConfigurationChanged, "the launch id is another one")
	}
	if got.Added.GuestSecretFile != want.GuestSecretFile {
		return proof.Refuse(proof.ConfigurationChanged, "the guest's secret is another file",
			proof.Fact{Name: "fw_cfg", Want: want.GuestSecretFile, Got: got.Added.GuestSecretFile})
	}
	if got.Added.ChannelPath != want.ChannelPath {
		return proof.Refuse(proof.ConfigurationChanged, "the channel troth.guest.0 is another socket",
			proof.Fact{Name: "channel", Want: want.ChannelPath, Got: got.Added.ChannelPath})
	}
	return nil
}

// compareProcess says whether the process has what was measured: the kernel, initrd and firmware that it was told to read are those files,
// the disks that it holds open are those files, a read-only one not for writing, and it was told of no other image.
func compareProcess(p *Process, h *held, c *domain.Config, user *uint32, restored bool) error {
	differ := func(name string, want, got any) error {
		return proof.Refuse(proof.ConfigurationChanged, "the QEMU process is not what was permitted",
			proof.Fact{Name: "pid", Value: fmt.Sprint(p.PID)}, proof.Fact{Name: name, Want: fmt.Sprint(want), Got: fmt.Sprint(got)})
	}
	if exe := filepath.Base(strings.TrimSuffix(p.Exe, " (deleted)")); !strings.HasPrefix(exe, "qemu-system-") && exe != "qemu-kvm" {
		return differ("executable", "QEMU", p.Exe)
	}
	if user != nil && p.UID != *user {
		return differ("uid", *user, p.UID)
	}
	if refusal := compareLoads(p, restored); refusal != nil {
		return refusal
	}
	known := map[string]bool{}
	for _, i := range h.images {
		known[i.path] = true
		want, device := i.File()
		named := find(p.Named, func(f File) bool { return f.Path == i.path })
		if named == nil {
			return differ(i.role, i.path, "not in its arguments")
		}
		if !device && (named.Dev != want.Dev || named.Ino != want.Ino) {
			return proof.Refuse(proof.ImageChanged, "QEMU was given another file under the path of an image",
				proof.Fact{Name: "path", Value: i.path}, identity(want, *named))
		}
		if i.role != roleDisk || device {
			continue
		}
		open := find(p.Open, func(f File) bool { return f.Dev == want.Dev && f.Ino == want.Ino })
		if open == nil {
			return proof.Refuse(proof.ImageChanged, "QEMU does not have the measured disk open", proof.Fact{Name: "path", Value: i.path})
		}
		if !i.writes && find(p.Open, func(f File) bool { return f.Dev == want.Dev && f.Ino == want.Ino && f.Writable }) != nil {
			return differ("disk "+i.target, "open for reading", "open for writing")
		}
	}
	for _, f := range p.Named {
		if f.Option != "-fw_cfg" && !known[f.Path] {
			return differ(f.Option, "only measured images", f.Path)
		}
	}
	if f := find(p.Open, func(f File) bool { return !h.has(f) && !ownFile(f.Path, c) }); f != nil {
		return differ("open file", "only measured images", f.Path)
	}
	return nil
}

// compareLoads says whether the guest booted what was measured. One whose memory came from a save image, a snapshot or another host is a guest that
// nobody judged, whatever its definition says: a snapshot is reverted to by the hooks of a start, and a start is all that the hook sees of it.
// restored says that a save image was judged, which libvirt loads as an incoming migration.
func compareLoads(p *Process, restored bool) *proof.Refusal {
	if restored && p.Loads == "-incoming" || !restored && p.Loads == "" {
		return nil
	}
	if restored {
		return proof.Refuse(proof.ConfigurationChanged, "QEMU does not go on from the save image", proof.Fact{Name: "option", Want: "-incoming", Got: p.Loads})
	}
	return proof.Refuse(proof.GrantMissing, "the guest does not boot: QEMU takes its memory from elsewhere, and nobody has judged that",
		proof.Fact{Name: "pid", Value: fmt.Sprint(p.PID)}, proof.Fact{Name: "option", Want: "none", Got: p.Loads})
}

// has says that the open file is one of the images. The node of a block device may be another one inside QEMU's namespace.
func (h *held) has(f File) bool {
	for _, i := range h.images {
		if want, device := i.File(); f.Dev == want.Dev && f.Ino == want.Ino || device && f.Path == i.path {
			return true
		}
	}
	return false
}

// ownFile says that QEMU or libvirt has the file open for itself: the guest's memory, logs and the process id. Everything else
// is what an image pointed at behind our back.
func ownFile(path string, c *domain.Config) bool {
	for _, s := range c.Serials {
		if path == s.Path || path == s.Log {
			return true
		}
	}
	libvirts := strings.HasPrefix(path, "/var/log/libvirt/") && strings.HasSuffix(path, ".log") || strings.HasPrefix(path, "/run/libvirt/") && strings.HasSuffix(path, ".pid")
	return libvirts || strings.HasPrefix(path, "/memfd:")
}

func find(files []File, is func(File) bool) *File {
	for i := range files {
		if is(files[i]) {
			return &files[i]
		}
	}
	return nil
}

func identity(want, got File) proof.Fact {
	return proof.Fact{Name: "file", Want: fmt.Sprintf("device %d inode %d", want.Dev, want.Ino), Got: fmt.Sprintf("device %d inode %d", got.Dev, got.Ino)}
}
