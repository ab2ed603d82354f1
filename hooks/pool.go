package hooks

import (
	"encoding/xml"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// PoolDir is where libvirt's storage driver keeps what pools are active, a file for each (storage_driver.c, stateDir).
const PoolDir = "/run/libvirt/storage"

// maxPool bounds a pool's file.
const maxPool = 256 << 10

// path gives the volume's path, if the pool is active and has a file of this name. Network pools have no paths.
func (v volume) path() (string, bool) {
	if v.pool == "" || v.pool == ".." || v.pool == "." || strings.ContainsAny(v.pool, "/\x00") {
		return "", false
	}
	f, err := os.Open(filepath.Join(PoolDir, v.pool+".xml"))
	if err != nil {
		return "", false
	}
	defer f.Close()
	var state struct {
		Target string `xml:"pool>target>path"`
	}
	if err := xml.NewDecoder(io.LimitReader(f, maxPool)).Decode(&state); err != nil || !filepath.IsAbs(state.Target) {
		return "", false
	}
	p := filepath.Join(state.Target, v.name)
	if _, err := os.Stat(p); err != nil {
		return "", false
	}
	return p, true
}
