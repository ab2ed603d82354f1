package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"troth/launcher/domain"
	"troth/proof"
)

// tokenOptions are the flags of token new.
type tokenOptions struct {
	trust, profile, id                string
	kernel, initrd, firmware, cmdline string
	domainXML, uuid, interactive      string
	disks, backing                    []string
	expiry, chainExpiry, maxUnproven  string
	secretFile, keyOut, tokenOut      string
	migration, restarts, onTrustLost  string
	saves                             string
	hasCmdline, force                 bool
}

type tokenNewAnswer struct {
	Token     proof.Digest `json:"token"`
	Header    proof.Header `json:"header"`
	Pins      *proof.Pins  `json:"pins,omitempty"`
	Policy    proof.Policy `json:"policy"`
	Guest     bool         `json:"guest"`              // the guest gets its secret
	Unpinned  []string     `json:"unpinned,omitempty"` // what would have to be pinned for that
	HasSecret bool         `json:"has_secret"`
	TokenFile string       `json:"token_file"`
	KeyFile   string       `json:"key_file"`
}

func (a *app) tokenNew() *cobra.Command {
	var o tokenOptions
	c := &cobra.Command{
		Use:   "new --trust T --profile NAME@DIGEST --key-out K --token-out F",
		Short: "Make a token, offline",
		Long: `Draw a nonce and encrypt it, with what may run, to the verifier of trust.json. Two files come out:
the token, which you give to the engine, and nonce.key, which stays with you: without it nobody can
check the proof's MAC or challenge the guest. Files are measured here by SHA-256; in place of a
file sha256:HEX gives a digest that you already have.

A guest gets its secret only if the token pins all that it boots (kernel, initrd and command line,
or firmware and disks), every disk, and --interactive no. The variables of a UEFI firmware count as a
disk: --disk nvram=initial:F, with F the store as it lies at the path of <nvram> before the first start. A token with --secret-file is refused
without these pins; without a secret and without these pins the host proves the launch and the
guest gets nothing.`,
		Example: `  troth token new --trust trust.json --profile gold@5f3a… --kernel vmlinuz --initrd initrd.img \
      --cmdline "console=ttyS0 quiet" --domain-xml guest.xml --interactive no --expiry 1h \
      --chain-expiry 30d --key-out nonce.key --token-out token
  troth token new --trust trust.json --profile gold.json --firmware OVMF_CODE.fd \
      --disk nvram=initial:OVMF_VARS.fd --disk vda=immutable:root.img --interactive no --secret-file disk.key --key-out nonce.key --token-out token`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			o.hasCmdline = c.Flags().Changed("cmdline")
			return a.newToken(c.Context(), o)
		},
	}
	f := c.Flags()
	f.StringVar(&o.trust, "trust", "", "trust file: whose key the token is encrypted to")
	f.StringVar(&o.profile, "profile", "", "NAME@DIGEST, or a file that profile show -o json wrote")
	f.StringVar(&o.id, "id", "", "name of the token (default: random)")
	f.StringVar(&o.kernel, "kernel", "", "pin the kernel: a file, or sha256:HEX")
	f.StringVar(&o.initrd, "initrd", "", "pin the initrd: a file, or sha256:HEX")
	f.StringVar(&o.cmdline, "cmdline", "", "pin the kernel's command line")
	f.StringVar(&o.firmware, "firmware", "", "pin the firmware: a file, or sha256:HEX")
	f.StringArrayVar(&o.disks, "disk", nil, "pin a disk: TARGET=immutable:F, =initial:F, or =sealed:F with F the LUKS volume; once for each disk, TARGET nvram for the firmware's variable store")
	f.StringArrayVar(&o.backing, "backing", nil, "the next layer below a disk: TARGET=F; once for each layer, from the top down")
	f.StringVar(&o.domainXML, "domain-xml", "", "pin the configuration of this domain XML")
	f.StringVar(&o.uuid, "uuid", "", "pin the domain's UUID")
	f.StringVar(&o.interactive, "interactive", "", "no: neither graphics nor console input")
	f.StringVar(&o.expiry, "expiry", "1h", "how long the first launch may wait (30m, 12h, 7d)")
	f.StringVar(&o.chainExpiry, "chain-expiry", "30d", "how long restarts and migrations are released")
	f.StringVar(&o.secretFile, "secret-file", "", "file whose content the guest gets; needs complete pins")
	f.StringVar(&o.migration, "migration", proof.MigrationDeny, "allow or deny")
	f.StringVar(&o.restarts, "restarts", proof.RestartsClosedFirst, "closed-first, any, or 0")
	f.StringVar(&o.onTrustLost, "on-trust-lost", proof.TrustLostReport, "report, pause or destroy")
	f.StringVar(&o.saves, "saves", "", "allow: the host may save the guest to a file, which holds its memory and every secret in it in clear")
	f.StringVar(&o.maxUnproven, "max-unproven", "0s", "how long the host may be without a verdict until --on-trust-lost; 0s: no limit")
	f.StringVar(&o.keyOut, "key-out", "", "write your own record here: it holds the nonce")
	f.StringVar(&o.tokenOut, "token-out", "", "write the token here")
	f.BoolVar(&o.force, "force", false, "overwrite the two files")
	must(c.MarkFlagRequired("profile"))
	must(c.MarkFlagRequired("key-out"))
	must(c.MarkFlagRequired("token-out"))
	return c
}

// newToken makes both files. The record with the nonce is written first: a token
// without its record could be used and never be checked.
func (a *app) newToken(ctx context.Context, o tokenOptions) error {
	if o.keyOut == o.tokenOut {
		return usagef("--key-out and --token-out name one file: the token is given away, the key is not")
	}
	if err := absent(o.force, o.keyOut, o.tokenOut); err != nil {
		return err
	}
	trust, err := a.readTrust(o.trust)
	if err != nil {
		return err
	}
	to, err := a.tokenKey(trust)
	if err != nil {
		return err
	}
	t, err := a.draft(ctx, o)
	if err != nil {
		return err
	}
	missing := unpinned(t.Pins)
	if !t.Secret.IsZero() && len(missing) > 0 {
		return proof.Refuse(proof.TokenConstraint, "a token with a secret pins all that the guest boots, its disks and that it is not interactive",
			proof.Fact{Name: "not pinned", Value: strings.Join(missing, ", ")})
	}
	if t.Pins != nil && t.Secret.IsZero() && slices.ContainsFunc(t.Pins.Disks, func(d proof.Disk) bool { return d.Mode == proof.DiskSealed }) {
		return proof.Refuse(proof.TokenConstraint, "a sealed disk opens with the token's secret: name it by --secret-file")
	}
	text, err := proof.NewToken(t, to)
	if err != nil {
		return usagef("%w", err)
	}
	record, err := proof.NewKey(t, text).EncodePrivate()
	if err != nil {
		return err
	}
	if err := writeFile(o.keyOut, record, private, o.force); err != nil {
		return err
	}
	if err := writeFile(o.tokenOut, []byte(text), private, o.force); err != nil {
		return err
	}
	v := tokenNewAnswer{
		Token: proof.TokenDigest(text), Header: t.Header, Pins: t.Pins, Policy: t.Policy(), Guest: t.GuestAllowed(),
		Unpinned: missing, HasSecret: !t.Secret.IsZero(), TokenFile: o.tokenOut, KeyFile: o.keyOut,
	}
	return a.answer(v, func(p *printer) { p.newToken(v) })
}

func (p *printer) newToken(v tokenNewAnswer) {
	p.tokenHeader(v.Header, v.Token)
	p.pins(v.Pins)
	p.field("migration", v.Policy.Migration)
	p.field("restarts", v.Policy.Restarts)
	p.field("on trust lost", v.Policy.OnTrustLost)
	if v.Policy.Saves != "" {
		p.field("saves", v.Policy.Saves)
	}
	switch {
	case v.HasSecret:
		p.field("secret", "given to the guest that is pinned above, and to no other")
	case v.Guest:
		p.field("secret", "none of your own; the guest gets what it needs to answer a challenge")
	default:
		p.field("secret", "none: the guest gets nothing and cannot be challenged, since not everything that it boots is pinned")
		p.field("not pinned", strings.Join(v.Unpinned, ", "))
	}
	p.field("token", v.TokenFile+" (give it to the engine)")
	p.field("key", v.KeyFile+" (keep it; it checks the proof)")
}

// draft reads flags and files into a token that is not yet encrypted.
func (a *app) draft(ctx context.Context, o tokenOptions) (*proof.Token, error) {
	now := a.now()
	t := &proof.Token{Migration: o.migration, Restarts: o.restarts, OnTrustLost: o.onTrustLost, Saves: o.saves}
	t.ID = o.id
	var err error
	if t.Profile, err = a.profileRef(o.profile); err != nil {
		return nil, err
	}
	spans := [...]struct {
		flag, text string
		set        func(time.Duration)
	}{
		{"expiry", o.expiry, func(d time.Duration) { t.Expiry = now.Add(d).Unix() }},
		{"chain-expiry", o.chainExpiry, func(d time.Duration) { t.ChainExpiry = now.Add(d).Unix() }},
		{"max-unproven", o.maxUnproven, func(d time.Duration) { t.MaxUnproven = int64(d / time.Second) }},
	}
	for _, s := range spans {
		d, err := span(s.text)
		if err != nil {
			return nil, usagef("--%s: %w", s.flag, err)
		}
		s.set(d)
	}
	if o.secretFile != "" {
		b, err := a.readFile(o.secretFile)
		if err != nil {
			return nil, usagef("--secret-file: %w", err)
		}
		if len(b) == 0 {
			return nil, usagef("--secret-file: %s is empty", o.secretFile)
		}
		t.Secret = proof.NewSecret(b)
	}
	t.Pins, err = a.readPins(ctx, o)
	return t, err
}

// readPins measures what the flags name. No pin at all is nil.
func (a *app) readPins(ctx context.Context, o tokenOptions) (*proof.Pins, error) {
	if o.interactive != "" && o.interactive != proof.InteractiveNo {
		return nil, usagef("--interactive %q: only \"no\" can be pinned", o.interactive)
	}
	p := proof.Pins{Interactive: o.interactive}
	if o.uuid != "" {
		u, err := domain.ParseUUID(o.uuid)
		if err != nil {
			return nil, usagef("--uuid: %w", err)
		}
		p.Domain = u.String()
	}
	images := [...]struct {
		flag, value string
		pin         **proof.Digest
	}{{"kernel", o.kernel, &p.Kernel}, {"initrd", o.initrd, &p.Initrd}, {"firmware", o.firmware, &p.Firmware}}
	for _, i := range images {
		if i.value == "" {
			continue
		}
		d, err := a.measure(ctx, i.value)
		if err != nil {
			return nil, usagef("--%s: %w", i.flag, err)
		}
		*i.pin = &d
	}
	if o.hasCmdline {
		d := sha256Text(o.cmdline)
		p.CommandLine = &d
	}
	var err error
	if p.Disks, err = a.readDisks(ctx, o.disks, o.backing); err != nil {
		return nil, err
	}
	if o.domainXML != "" {
		c, err := a.readDomain(o.domainXML)
		if err != nil {
			return nil, err
		}
		if err := agrees(c, &p, o.cmdline); err != nil {
			return nil, err
		}
		d := c.Digest()
		p.Configuration = &d
	}
	if p.Domain == "" && p.Configuration == nil && p.Firmware == nil && p.Kernel == nil && p.Initrd == nil &&
		p.CommandLine == nil && len(p.Disks) == 0 && p.Interactive == "" {
		return nil, nil
	}
	return &p, nil
}

var spanPattern = regexp.MustCompile(`^([0-9]{1,6})d$`)

// span reads a duration; days are what time.ParseDuration lacks.
func span(text string) (time.Duration, error) {
	if m := spanPattern.FindStringSubmatch(text); m != nil {
		days, err := strconv.Atoi(m[1])
		if err != nil {
			return 0, err
		}
		if days > 36500 {
			return 0, fmt.Errorf("%q is more than a hundred years", text)
		}
		return time.Duration(days) * 24 * time.Hour, nil
	}
	d, err := time.ParseDuration(text)
	if err != nil {
		return 0, fmt.Errorf("%q is not a duration such as 30m, 12h or 7d", text)
	}
	if d < 0 {
		return 0, fmt.Errorf("%q is negative", text)
	}
	return d, nil
}

// profileRef reads NAME@DIGEST or a file with name and digest.
func (a *app) profileRef(text string) (proof.ProfileRef, error) {
	if name, digest, ok := strings.Cut(text, "@"); ok {
		d, err := proof.ParseDigest(digest)
		if err == nil {
			return proof.ProfileRef{Name: name, Digest: d}, nil
		}
		if _, serr := os.Stat(text); serr != nil {
			return proof.ProfileRef{}, usagef("--profile %q: %w", text, err)
		}
	}
	b, err := a.readFile(text)
	if err != nil {
		return proof.ProfileRef{}, usagef("--profile %q is neither NAME@DIGEST nor a file: %w", text, err)
	}
	var ref proof.ProfileRef
	if err := json.Unmarshal(b, &ref); err != nil {
		return proof.ProfileRef{}, usagef("--profile: cannot read %s: %w", text, err)
	}
	return ref, nil
}
