package main

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"strings"

	"troth/proof"
)

// measure gives the SHA-256 of a file's whole content, as a host measures images
// (a qcow2 file is measured as a file). sha256:HEX is a digest that is known.
func (a *app) measure(ctx context.Context, file string) (proof.Digest, error) {
	if hex, ok := strings.CutPrefix(file, "sha256:"); ok {
		return proof.ParseDigest(hex)
	}
	f, err := os.Open(file)
	if err != nil {
		return proof.Digest{}, fmt.Errorf("cannot measure: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return proof.Digest{}, fmt.Errorf("cannot measure: %w", err)
	}
	if info.IsDir() {
		return proof.Digest{}, fmt.Errorf("cannot measure %s: it is a folder", file)
	}
	w := a.progress("measuring " + file)
	defer w.stop()
	h := sha256.New()
	buf := make([]byte, 1<<20)
	var done int64
	for {
		if err := ctx.Err(); err != nil {
			return proof.Digest{}, undecidedf("interrupted while measuring %s", file)
		}
		n, err := f.Read(buf)
		h.Write(buf[:n])
		done += int64(n)
		w.set("measuring %s, %s of %s", file, size(done), size(info.Size()))
		if err == io.EOF {
			return proof.Digest(h.Sum(nil)), nil
		}
		if err != nil {
			return proof.Digest{}, fmt.Errorf("cannot measure: %w", err)
		}
	}
}

// sha256Text measures a text, as a host measures the kernel's command line.
func sha256Text(s string) proof.Digest { return sha256.Sum256([]byte(s)) }
