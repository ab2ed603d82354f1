package lab

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// libvirt asks each QEMU of the machine what it can do (some hundred questions, seconds) and keeps the answers, with what they
// depend on: versions, times of change, kernel, processor. So hosts may hand them on: libvirt asks again when they do not fit.
const capabilitiesDir = "/var/cache/libvirt/qemu/capabilities"

func (l *Lab) capabilities() string { return filepath.Join(l.options.Cache, "capabilities") }

// takeCapabilities gives the host's libvirt what an earlier host's has found out.
func (h *Host) takeCapabilities() error {
	return copyNew(h.lab.capabilities(), h.Path(capabilitiesDir))
}

// leaveCapabilities keeps what the host's libvirt has found out for hosts to come.
func (h *Host) leaveCapabilities() error {
	return copyNew(h.Path(capabilitiesDir), h.lab.capabilities())
}

// copyNew copies files that are not there or differ, each whole or not at all.
func copyNew(from, to string) error {
	files, err := filepath.Glob(filepath.Join(from, "*.xml"))
	if err != nil {
		return fmt.Errorf("cannot list QEMU's capabilities: %w", err)
	}
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			return fmt.Errorf("cannot read QEMU's capabilities: %w", err)
		}
		name := filepath.Join(to, filepath.Base(f))
		if there, err := os.ReadFile(name); err == nil && bytes.Equal(there, data) {
			continue
		}
		if err := replace(name, data); err != nil {
			return fmt.Errorf("cannot keep QEMU's capabilities: %w", err)
		}
	}
	return nil
}

// replace writes beside a file and gives that the file's name: labs of one program may end at the same moment.
func replace(name string, data []byte) error {
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	fresh, err := os.CreateTemp(filepath.Dir(name), "capabilities-*")
	if err != nil {
		return err
	}
	_, err = fresh.Write(data)
	if err = errors.Join(err, fresh.Close()); err == nil {
		err = os.Rename(fresh.Name(), name)
	}
	if err != nil {
		return errors.Join(err, os.Remove(fresh.Name()))
	}
	return nil
}
