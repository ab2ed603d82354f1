package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"troth/proof"
	"troth/verifier"
)

// keysCommand is about the keys after init. It works on the files; a service that runs takes them by SIGHUP.
func keysCommand(file *string) *cobra.Command {
	keys := noun(&cobra.Command{Use: "keys", Short: "The keys that the root signed: show, renew, revoke"})
	keys.AddCommand(
		&cobra.Command{Use: "show", Short: "Show the key set: the first key of each kind is the one in use", Args: cobra.NoArgs,
			RunE: func(cmd *cobra.Command, _ []string) error {
				c, err := load(*file)
				if err != nil {
					return err
				}
				set, err := verifier.ReadKeySet(c.keys())
				if err != nil {
					return err
				}
				return tellKeys(cmd.OutOrStdout(), set)
			}},
		rotateCommand(file), revokeCommand(file))
	return keys
}

func rotateCommand(file *string) *cobra.Command {
	var root, only string
	c := &cobra.Command{Use: "rotate --root FILE", Args: cobra.NoArgs,
		Short: "Make a new verdict key and a new token key, and have the root sign the set",
		Long: `Make a new verdict key and a new token key, and have the root sign the set. The old ones stay in it: proofs that were made with them go on to be
good, and so do tokens and their chains. It also renews the validity of the set.

Afterwards: systemctl reload troth-verifierd, and tell tenants to renew: troth trust fetch --root trust.json --out trust.json --force.`,
		Example: "  troth-verifierd keys rotate --root /media/usb/root.pem && systemctl reload troth-verifierd",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if only != "" && only != "verdict" && only != "token" {
				return misuse{fmt.Errorf("--only: %q is neither verdict nor token", only)}
			}
			return rotate(cmd, *file, root, verifier.Rotation{Verdict: only != "token", Token: only != "verdict"})
		}}
	c.Flags().StringVar(&root, "root", "", "file with the root's private key (root.pem of init)")
	c.Flags().StringVar(&only, "only", "", "renew this kind of key alone: verdict or token")
	must(c.MarkFlagRequired("root"))
	return c
}

func revokeCommand(file *string) *cobra.Command {
	var root string
	c := &cobra.Command{Use: "revoke --root FILE -- KEYID...", Args: cobra.MinimumNArgs(1),
		Short: "Take keys out of the set for good, as after a compromise; one that is in use is replaced",
		Long: `Take keys out of the set for good, as after a compromise, and remove their files; one that is in use is replaced by a new one.

A verdict key: hosts get new verdicts within an epoch, and tenants who renew their trust file find every proof that was made with the key not genuine
any more, also honest ones. A token key: tokens that were made for it are refused, and their chains end; tenants make new tokens.
Who does not renew the trust file goes on to believe the key: tell tenants.`,
		Example: "  troth-verifierd keys revoke --root /media/usb/root.pem -- 7Jw… && systemctl reload troth-verifierd",
		RunE: func(cmd *cobra.Command, args []string) error {
			return rotate(cmd, *file, root, verifier.Rotation{Revoke: args})
		}}
	c.Flags().StringVar(&root, "root", "", "file with the root's private key (root.pem of init)")
	must(c.MarkFlagRequired("root"))
	return c
}

func rotate(cmd *cobra.Command, file, root string, r verifier.Rotation) error {
	c, err := load(file)
	if err != nil {
		return err
	}
	b, err := os.ReadFile(root)
	if err != nil {
		return fmt.Errorf("--root: %w", err)
	}
	key, err := proof.ParseSigningKey(b)
	clear(b)
	if err != nil {
		return fmt.Errorf("--root: %s: %w", root, err)
	}
	set, err := verifier.RotateKeys(c.keys(), key, r, time.Now())
	if err != nil {
		return err
	}
	if err := tellKeys(cmd.OutOrStdout(), set); err != nil {
		return err
	}
	_, err = fmt.Fprintf(cmd.OutOrStdout(), "next: let the service take them (systemctl reload troth-verifierd), and give tenants the new %s\n", filepath.Join(c.keys(), "trust.json"))
	return err
}

func tellKeys(w io.Writer, set *proof.KeySet) error {
	day := func(t int64) string { return time.Unix(t, 0).UTC().Format(time.RFC3339) }
	_, err := fmt.Fprintf(w, "key set of %s, signed %s, valid until %s\n", set.Issuer, day(set.IssuedAt), day(set.NotAfter))
	tell := func(kind string, i int, keyID string) {
		use := "good, not used for new ones"
		if i == 0 {
			use = "in use"
		}
		if err == nil {
			_, err = fmt.Fprintf(w, "%-12s %s  %s\n", kind, keyID, use)
		}
	}
	for i, j := range set.VerdictKeys {
		tell("verdict key", i, j.KeyID)
	}
	for i, t := range set.TokenKeys {
		tell("token key", i, t.KeyID)
	}
	return err
}

func must(err error) {
	if err != nil {
		panic(err) // a flag that this program does not have
	}
}
