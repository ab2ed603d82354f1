package main

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"

	"github.com/spf13/cobra"

	"troth/proof"
)

var diskTarget = regexp.MustCompile(`^(vd|sd|hd)[a-z]{1,2}$`)

type diskKeyAnswer struct {
	Disk string `json:"disk"`
	File string `json:"file"`
}

func (a *app) tokenDiskKey() *cobra.Command {
	var secretFile, target, out string
	var force bool
	c := &cobra.Command{
		Use:   "disk-key --secret-file S --disk TARGET --out F",
		Short: "Make the passphrase of a sealed disk, offline",
		Long: `Derive the passphrase of one sealed disk from the secret that the token will have, and write it to a
file of yours, without a newline. Make the volume with it (LUKS1), then the token with the same
--secret-file: a host that is proven hands the passphrase to QEMU for the moment in which it opens
the volume, and to nobody else. Each target has a passphrase of its own. SHA-512 is for qemu-img: its
measure of how fast SHA-256 is fails on some processors ("Unable to get accurate CPU usage").`,
		Example: `  troth token disk-key --secret-file guest.secret --disk vdb --out vdb.pass
  qemu-img create --object secret,id=k,file=vdb.pass -f luks -o key-secret=k,hash-alg=sha512 data.luks 10G
  troth token new --trust trust.json --profile gold@5f3a… --kernel vmlinuz --initrd initrd.img --cmdline quiet \
      --interactive no --secret-file guest.secret --disk vdb=sealed:data.luks --key-out nonce.key --token-out token`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if !diskTarget.MatchString(target) {
				return usagef("--disk %q is no name of a disk, such as vda", target)
			}
			if err := absent(force, out); err != nil {
				return err
			}
			b, err := a.readFile(secretFile)
			if err != nil {
				return usagef("--secret-file: %w", err)
			}
			if len(b) == 0 {
				return usagef("--secret-file: %s is empty", secretFile)
			}
			key := proof.DiskKey(proof.NewSecret(b), target)
			defer key.Forget()
			if err := writeFile(out, key.Reveal(), private, force); err != nil {
				return err
			}
			v := diskKeyAnswer{target, out}
			return a.answer(v, func(p *printer) { p.line("The passphrase of %s is in %s.", target, out) })
		},
	}
	f := c.Flags()
	f.StringVar(&secretFile, "secret-file", "", "file with the token's secret")
	f.StringVar(&target, "disk", "", "target of the disk in the domain's XML, such as vdb")
	f.StringVar(&out, "out", "", "write the passphrase here")
	f.BoolVar(&force, "force", false, "overwrite the file")
	must(c.MarkFlagRequired("secret-file"))
	must(c.MarkFlagRequired("disk"))
	must(c.MarkFlagRequired("out"))
	return c
}

// measureSealed gives the SHA-256 of a LUKS volume's header, as a host measures a sealed disk: of the volume itself, or of as much of its
// beginning as the header takes.
func (a *app) measureSealed(ctx context.Context, file string) (proof.Digest, error) {
	if strings.HasPrefix(file, "sha256:") {
		return a.measure(ctx, file)
	}
	f, err := os.Open(file)
	if err != nil {
		return proof.Digest{}, fmt.Errorf("cannot measure: %w", err)
	}
	defer f.Close()
	head := make([]byte, proof.LUKSHead)
	n, err := io.ReadFull(f, head)
	if err != nil && n == 0 {
		return proof.Digest{}, fmt.Errorf("cannot measure: %w", err)
	}
	size, err := proof.LUKSHeaderSize(head[:n])
	if err != nil {
		return proof.Digest{}, err
	}
	h := sha256.New()
	got, err := io.Copy(h, io.NewSectionReader(f, 0, size))
	if err != nil {
		return proof.Digest{}, fmt.Errorf("cannot measure: %w", err)
	}
	if got != size {
		return proof.Digest{}, fmt.Errorf("cannot measure %s: it ends before its LUKS header does", file)
	}
	return proof.Digest(h.Sum(nil)), nil
}
