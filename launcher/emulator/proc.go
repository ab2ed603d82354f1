package emulator

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// Named says whether an executable, as /proc/PID/exe links to it, is called like an emulator.
func Named(exe string) bool {
	name := filepath.Base(strings.TrimSuffix(exe, " (deleted)"))
	return strings.HasPrefix(name, "qemu-system-") || name == "qemu-kvm"
}

// Gone says of an error of reading /proc that the process ended while we looked, or is a kernel thread.
func Gone(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ESRCH)
}

// StartTime reads field 22 of /proc/PID/stat, in clock ticks after boot, from the process's directory.
func StartTime(dir string) (uint64, error) {
	f, err := stat(dir)
	if err != nil {
		return 0, err
	}
	return strconv.ParseUint(f[19], 10, 64)
}

// Over says whether the process has ended and is a number only, until its parent asks how it ended (proc(5), stat, field 3).
func Over(dir string) (bool, error) {
	f, err := stat(dir)
	return err == nil && (f[0] == "Z" || f[0] == "X" || f[0] == "x"), err
}

// stat reads the fields of /proc/PID/stat from the third on; the name in field 2 may hold spaces and parentheses.
func stat(dir string) ([]string, error) {
	b, err := os.ReadFile(filepath.Join(dir, "stat"))
	if err != nil {
		return nil, err
	}
	i := bytes.LastIndexByte(b, ')')
	f := strings.Fields(string(b[i+1:]))
	if i < 0 || len(f) < 20 {
		return nil, errors.New("stat is too short")
	}
	return f, nil
}
