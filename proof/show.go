package proof

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"troth/tpm"
)

// clock writes a unix time for people; it reads no clock.
func clock(t int64) string { return time.Unix(t, 0).UTC().Format("2006-01-02 15:04:05 UTC") }

// Sentences says in plain words what a verified proof says, for `troth proof show`.
func (p *Public) Sentences() []string {
	s, v := p.Statement, p.Verdict
	out := []string{
		fmt.Sprintf("Domain %q (%s) was %s by the host with AK %s.", s.Name, s.UUID, past(s.Action), p.AK),
		fmt.Sprintf("Verifier %q released for it at %s; the launch took place between then and %s.", p.Receipt.Issuer, clock(p.Window.From), clock(p.Window.To)),
		fmt.Sprintf("It is link %d of token %s, attempt %d.", p.Receipt.Link, s.Token, s.Attempt),
		modeSentence(s.Mode),
		fmt.Sprintf("Its configuration has the digest %s.", s.Configuration),
	}
	for _, m := range []struct {
		name   string
		digest *Digest
	}{{"firmware", s.Measurements.Firmware}, {"kernel", s.Measurements.Kernel}, {"initrd", s.Measurements.Initrd}, {"command line", s.Measurements.CommandLine}} {
		if m.digest != nil {
			out = append(out, fmt.Sprintf("Its %s was measured as %s.", m.name, m.digest))
		}
	}
	if s.SavedImage != nil {
		out = append(out, fmt.Sprintf("Its memory came from the save image %s, which this host had saved; what it boots was measured, and not booted again.", s.SavedImage))
	}
	for _, d := range s.Disks {
		out = append(out, diskSentence(d))
	}
	if s.Interactive == InteractiveNo {
		out = append(out, "It has no graphics and no console input.")
	} else {
		out = append(out, "It has a graphics device or a console that takes input.")
	}
	for _, q := range v.Profiles {
		out = append(out, fmt.Sprintf("The host met profile %q, digest %s.", q.Name, q.Digest))
	}
	for _, q := range p.Proof.PCRs {
		out = append(out, fmt.Sprintf("PCR %d was %s.", q.Index, q.Value))
	}
	if v.Class == tpm.Software {
		out = append(out, "The host's TPM is a software TPM: whoever runs it can make it say anything.")
	}
	return append(out, policySentence(p.Receipt.Policy))
}

func modeSentence(mode string) string {
	if mode == ModeHook {
		return "Another libvirt client started it (mode: hook): the host judged it before it started, and compared it while it was running already."
	}
	return "The host created it paused (mode: paused), and let it run when it had compared it."
}

func past(action string) string {
	switch action {
	case ActionStart:
		return "started"
	case ActionRestore:
		return "restored"
	case ActionMigrateIn:
		return "received by migration"
	case ActionMigrateOut:
		return "sent by migration"
	case ActionRecover:
		return "recovered"
	}
	panic("unknown action " + action) // ParseStatement admits no other
}

func diskSentence(d StatementDisk) string {
	access := "writable"
	if d.ReadOnly {
		access = "read-only"
	}
	switch {
	case d.Target == VariableStore && d.Digest != nil:
		return fmt.Sprintf("Its firmware's variables (whether it demands signatures, whose, and what it boots) were measured as %s; the guest may write to them.", d.Digest)
	case d.Backing != nil && d.Digest == nil:
		return fmt.Sprintf("Its disk %s (%s) was not measured; the layers below it were, as %s.", d.Target, access, d.Backing)
	case d.Backing != nil:
		return fmt.Sprintf("Its disk %s (%s, %s) was measured as %s, the layers below it as %s.", d.Target, access, d.Mode, d.Digest, d.Backing)
	case d.Digest == nil:
		return fmt.Sprintf("Its disk %s (%s) was not measured.", d.Target, access)
	case d.Mode == DiskSealed:
		return fmt.Sprintf("Its disk %s (%s, sealed) has a LUKS header of digest %s.", d.Target, access, d.Digest)
	}
	return fmt.Sprintf("Its disk %s (%s, %s) was measured as %s.", d.Target, access, d.Mode, d.Digest)
}

func policySentence(p Policy) string {
	words := []string{"migration: " + p.Migration, "further launches: " + p.Restarts, "when trust is lost: " + p.OnTrustLost}
	if p.Saves != "" {
		words = append(words, "saving to a file: "+p.Saves)
	}
	if p.MaxUnproven > 0 {
		words = append(words, fmt.Sprintf("at most %d s without a verdict", p.MaxUnproven))
	}
	return "The token allows: " + strings.Join(words, "; ") + "."
}

// NotSaid is what no proof says; the same for all but migrations.
func (p *Public) NotSaid() []string {
	out := []string{
		"It does not say that the domain runs now: it is about the launch window.",
		"It does not say that root on the host could not read the guest: the measured configuration has to leave no such root.",
		"It does not say that the verifier's operator is honest: whoever runs the verifier knows the nonces.",
		"It does not say whether verdict, receipt or key were revoked since, or the chain closed or broken: ask the verifier.",
		"It does not say anything about the platform beyond what its TPM signed.",
	}
	if s := p.Statement; s.Measurements.Firmware != nil {
		at := slices.IndexFunc(s.Disks, func(d StatementDisk) bool { return d.Target == VariableStore })
		switch {
		case at < 0 || s.Disks[at].Digest == nil:
			out = append(out, "It does not say what the firmware's variables were, if it keeps any: whether it demands signatures, whose, and what it boots.")
		case s.Previous != nil:
			out = append(out, "It does not say that the firmware's variables are as the guest left them: the token pins what they were at the first link.")
		}
	}
	if p.Statement.Action == ActionMigrateIn {
		out = append(out, "It does not say that the migration arrived: ask the verifier for the chain's `arrived`.")
	}
	return out
}

// PublicOnly is what VerifyPublic adds to NotSaid.
const PublicOnly = "Without the tenant's key it does not say that the token's nonce was there, nor that nothing in the proof was changed: the MAC was not checked."
