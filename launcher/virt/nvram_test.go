package virt_test

import (
	"bytes"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"troth/launcher/virt"
)

// TestVariableStore: of a guest that stands paused QEMU tells which file its firmware's variables are in, and has it open for writing, and neither libvirt
// nor QEMU has written to it: so it is compared, and hashed again, like a disk.
func TestVariableStore(t *testing.T) {
	n := newNode(t)
	code, err := os.ReadFile("/usr/share/seabios/bios-256k.bin")
	must(t, err)
	firmware, store := filepath.Join(scratch, "code.fd"), filepath.Join(scratch, "vars.fd")
	variables := bytes.Repeat([]byte("variable"), 128<<10/8)
	must(t, os.WriteFile(firmware, code, 0o600))
	must(t, os.WriteFile(store, variables, 0o600))
	xml := bytes.Replace(n.xml(mark), []byte("</os>"), []byte("<loader readonly='yes' type='pflash'>"+firmware+"</loader><nvram template='"+n.disk+"'>"+store+"</nvram></os><features><acpi/></features>"), 1)
	must(t, n.virt.CreatePaused(n.deadline(), xml))
	p, err := virt.FindProcess(t.Context(), uuid, nil)
	must(t, err)
	var st syscall.Stat_t
	must(t, syscall.Stat(store, &st))
	named, open := false, false
	for _, f := range p.Named {
		named = named || f.Path == store && f.Dev == st.Dev && f.Ino == st.Ino
	}
	for _, f := range p.Open {
		open = open || f.Writable && f.Dev == st.Dev && f.Ino == st.Ino
	}
	if !named || !open {
		t.Errorf("of the store: named %v, open for writing %v: %+v", named, open, p)
	}
	now, err := os.ReadFile(store)
	must(t, err)
	if !bytes.Equal(now, variables) {
		t.Error("the store was written to before the guest ran")
	}
}
