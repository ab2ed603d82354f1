package image

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"troth/proof"
)

// CheckFormat says whether the content is what the domain says of it: for "raw" anything; for "qcow2" an image that is
// whole in this file (backing is empty), or stands on exactly the file and format that the domain names below it. Whatever
// an image points at beyond that would be opened by QEMU and measured by nobody. The caller walks a chain from the top,
// a call for each layer, so that its depth is that of the domain's own list and never the images'.
// Error: *proof.Refusal with code image-not-measured.
func (h *Held) CheckFormat(format, backing, backingFormat string) error {
	switch format {
	case "raw":
		if backing != "" {
			return notMeasured(h.Path, "a raw image stands on no other file")
		}
		return nil
	case "qcow2":
	default:
		return notMeasured(h.Path, fmt.Sprintf("format %q is not known", format))
	}
	q, err := ParseQCOW2(h.file, h.Size)
	if err != nil {
		return notMeasured(h.Path, err.Error())
	}
	switch {
	case q.DataFile:
		return notMeasured(h.Path, "its content is in another file (data-file)")
	case q.Encryption != "":
		return notMeasured(h.Path, "it is encrypted ("+q.Encryption+")")
	case q.Corrupt:
		return notMeasured(h.Path, "it is marked corrupt")
	case q.Backing == "" && backing == "":
		return nil
	case q.Backing != "" && backing == "":
		return notMeasured(h.Path, fmt.Sprintf("it stands on another file, %q, that the domain does not name", q.Backing))
	case q.Backing == "":
		return h.standsOn("backing", backing, "none")
	}
	pointed, err := below(h.Path, q.Backing)
	switch {
	case err != nil:
		return notMeasured(h.Path, err.Error())
	case pointed != backing:
		return h.standsOn("backing", backing, q.Backing)
	case q.BackingFormat != backingFormat:
		return h.standsOn("backing format", backingFormat, q.BackingFormat)
	}
	return nil
}

func (h *Held) standsOn(what, want, got string) error {
	r := notMeasured(h.Path, "it stands on another file than the domain says")
	r.Facts = append(r.Facts, proof.Fact{Name: what, Want: want, Got: got})
	return r
}

// below gives the file that an image at path means by the name of its backing file: an absolute path as it is, another one from the image's
// folder on (QEMU, util/block: path_combine). A name with a colon before its first slash is QEMU's for a protocol: json:, nbd:, http:, and file:.
func below(path, name string) (string, error) {
	if protocol, _, ok := strings.Cut(name, ":"); ok && !strings.Contains(protocol, "/") {
		return "", fmt.Errorf("it stands on %q, which is no file but a protocol of QEMU's", name)
	}
	if filepath.IsAbs(name) {
		return name, nil
	}
	// No ".." behind another name: where that one leads, if it is a link, only the kernel knows.
	if clean := filepath.Clean(name); clean != strings.TrimPrefix(name, "./") {
		return "", errors.New("it names the file below by a path that is not clean")
	}
	return filepath.Join(filepath.Dir(path), name), nil
}
