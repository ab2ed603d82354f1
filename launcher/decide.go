package launcher

import (
	"fmt"
	"strings"
	"time"

	"troth/proof"
)

// check is one reason to refuse.
type check func(f *Facts) *proof.Refusal

// checks run in this order, the order of the codes in PROTOCOL.md §9. All of them run: the first refusal leads, the others are named in Also.
var checks = []check{
	judged,             // whatever the verifier found, by its own code
	asked,              // request-invalid
	tokenNamed,         // token-invalid
	receiptNamed,       // evidence-invalid
	complete,           // internal: a step was left out
	dynamicLaunch,      // no-dynamic-launch
	notRebooted,        // host-rebooted
	notRelaunched,      // host-relaunched
	samePCRs,           // pcr-mismatch
	profileMet,         // profile-not-met
	verdictThere,       // verdict-missing
	verdictFresh,       // verdict-stale
	verdictOurs,        // verdict-for-other-host
	verdictAffirming,   // verdict-contraindicated
	unsealed,           // sealed-to-other-state
	nonceWhole,         // sealed-blob-damaged
	tokenInTime,        // token-expired
	linkOurs,           // token-used
	guestPinned,        // token-constraint
	keysReleased,       // token-constraint
	savesAllowed,       // token-constraint
	ofNobodyElse,       // configuration-not-allowed
	openNowhereElse,    // configuration-not-allowed
	configurationSame,  // configuration-changed
	everythingMeasured, // image-not-measured
	imagesSame,         // image-changed
	savedSame,          // image-changed
	hookLive,           // hook-not-live
}

// Decide permits a launch or says why not. It is pure: what it does not find in f does not count.
func Decide(f Facts) (Permit, *proof.Refusal) {
	refusals := append([]*proof.Refusal(nil), f.Failed...)
	for _, c := range checks {
		refusals = append(refusals, c(&f))
	}
	if first := proof.First(refusals); first != nil {
		return Permit{}, first
	}
	return Permit{uuid: f.Config.UUID, link: f.Link, config: f.Config.Digest()}, nil
}

// judged: what the verifier found against this host leads with its own code and facts.
func judged(f *Facts) *proof.Refusal {
	if f.Epoch != nil && f.Epoch.Against != nil {
		return f.Epoch.Against
	}
	return nil
}

// asked: only what was asked for is launched, under the identity of the configuration that was read.
func asked(f *Facts) *proof.Refusal {
	if f.Action != proof.ActionStart && f.Action != proof.ActionRestore {
		return proof.Refuse(proof.RequestInvalid, "this action is not known", proof.Fact{Name: "action", Want: proof.ActionStart + " or " + proof.ActionRestore, Got: f.Action})
	}
	if f.Action == proof.ActionRestore && f.Mode != proof.ModePaused {
		return proof.Refuse(proof.RequestInvalid, "hostd alone restores", proof.Fact{Name: "mode", Want: proof.ModePaused, Got: f.Mode})
	}
	if f.Mode != proof.ModePaused && f.Mode != proof.ModeHook {
		return proof.Refuse(proof.RequestInvalid, "this way to run a domain is not known", proof.Fact{Name: "mode", Want: proof.ModePaused + " or " + proof.ModeHook, Got: f.Mode})
	}
	s := f.Statement
	if s == nil || f.Config == nil {
		return nil
	}
	if s.Action != f.Action || s.Mode != f.Mode {
		return proof.Refuse(proof.RequestInvalid, "the statement says another action than the one asked for",
			proof.Fact{Name: "action", Want: f.Action + " " + f.Mode, Got: s.Action + " " + s.Mode})
	}
	if s.UUID != f.Config.UUID.String() || s.Name != f.Config.Name {
		return proof.Refuse(proof.RequestInvalid, "the statement names another domain",
			proof.Fact{Name: "domain", Want: f.Config.UUID.String() + " " + f.Config.Name, Got: s.UUID + " " + s.Name})
	}
	return nil
}

// tokenNamed: statement and receipt are about the token that was handed in.
func tokenNamed(f *Facts) *proof.Refusal {
	if f.Statement != nil && f.Statement.Token != f.Token {
		return differ(proof.TokenInvalid, "the statement names another token", "token", f.Token, f.Statement.Token)
	}
	if f.Receipt != nil && f.Receipt.Token != f.Token {
		return differ(proof.TokenInvalid, "the receipt names another token", "token", f.Token, f.Receipt.Token)
	}
	return nil
}

// receiptNamed: the receipt is about this statement and this verdict.
func receiptNamed(f *Facts) *proof.Refusal {
	if f.Receipt == nil {
		return nil
	}
	if f.Receipt.Statement != f.Link {
		return differ(proof.EvidenceInvalid, "the receipt names another statement", "statement", f.Link, f.Receipt.Statement)
	}
	if f.Epoch != nil && f.Receipt.Verdict != f.Epoch.Digest {
		return differ(proof.EvidenceInvalid, "the receipt names another verdict", "verdict", f.Epoch.Digest, f.Receipt.Verdict)
	}
	return nil
}

// complete: every step was done. A step that failed has said so in Failed.
func complete(f *Facts) *proof.Refusal {
	if len(f.Failed) > 0 {
		return nil
	}
	if f.Config == nil {
		return missing("the domain was not read")
	}
	if f.Header == nil {
		return missing("the token was not read")
	}
	if f.Measured == nil {
		return missing("nothing was measured")
	}
	if f.Ownership == nil {
		return missing("nobody asked whose the files are")
	}
	if f.Statement == nil {
		return missing("there is no statement")
	}
	if f.Receipt == nil {
		return missing("there is no receipt")
	}
	return nil
}

// dynamicLaunch: whatever the verifier found, PCRs of a host without a dynamic launch permit nothing.
func dynamicLaunch(f *Facts) *proof.Refusal {
	if f.Epoch == nil {
		return nil
	}
	if err := f.Epoch.PCRs.DynamicLaunch(); err != nil {
		return proof.Refuse(proof.NoDynamicLaunch, err.Error())
	}
	return nil
}

// ownVerdict: counters of another host's verdict say nothing of this one; verdictOurs refuses it.
func ownVerdict(f *Facts) bool {
	return f.Epoch != nil && f.Epoch.Verdict != nil && f.Epoch.Verdict.Host == f.AK
}

// notRebooted: the verdict is about this boot.
func notRebooted(f *Facts) *proof.Refusal {
	if !ownVerdict(f) {
		return nil
	}
	if want, got := f.Epoch.Verdict.Counters.Reset, f.Epoch.Counters.Reset; want != got {
		return proof.Refuse(proof.HostRebooted, "the TPM was reset since the verdict", numbers("resetCount", want, got))
	}
	return nil
}

// notRelaunched: the verdict is about this launch of this boot; a second identical one leaves the PCRs equal.
func notRelaunched(f *Facts) *proof.Refusal {
	if !ownVerdict(f) {
		return nil
	}
	if want, got := f.Epoch.Verdict.Counters.Restart, f.Epoch.Counters.Restart; want != got {
		return proof.Refuse(proof.HostRelaunched, "a dynamic launch or a resume took place since the verdict", numbers("restartCount", want, got))
	}
	return nil
}

// samePCRs: the verdict was made from the values that this TPM quoted.
func samePCRs(f *Facts) *proof.Refusal {
	if f.Epoch == nil || f.Epoch.Verdict == nil {
		return nil
	}
	got, err := f.Epoch.PCRs.Digest(f.Epoch.Verdict.Selection)
	if err != nil {
		return proof.Refuse(proof.PCRMismatch, "the verdict selects PCRs that were not quoted", proof.Fact{Name: "selection", Value: err.Error()})
	}
	if want := f.Epoch.Verdict.PCRDigest; got != want {
		return differ(proof.PCRMismatch, "the verdict was made from other PCR values", "pcr digest", want, proof.Digest(got))
	}
	return nil
}

// profileMet: the verdict says that this host meets the token's profile, by name and by content.
func profileMet(f *Facts) *proof.Refusal {
	if f.Header == nil || f.Epoch == nil || f.Epoch.Verdict == nil {
		return nil
	}
	if f.Epoch.Verdict.Status != proof.Affirming {
		return nil // such a verdict names no profile at all: verdictAffirming refuses it
	}
	want := f.Header.Profile
	got := "none of that name"
	for _, p := range f.Epoch.Verdict.Profiles {
		if p == want {
			return nil
		}
		if p.Name == want.Name {
			got = p.Digest.String()
		}
	}
	return proof.Refuse(proof.ProfileNotMet, fmt.Sprintf("this host does not meet the profile %q of the token", want.Name),
		proof.Fact{Name: "profile " + want.Name, Want: want.Digest.String(), Got: got})
}

// verdictThere: no verdict, no launch.
func verdictThere(f *Facts) *proof.Refusal {
	if f.Epoch == nil && len(f.Failed) == 0 {
		return proof.Refuse(proof.VerdictMissing, "this host has no verdict")
	}
	if f.Epoch != nil && f.Epoch.Verdict == nil {
		return proof.Refuse(proof.VerdictMissing, "this host has no verdict")
	}
	return nil
}

// verdictFresh: age counts from sending the evidence, on a clock that nobody sets.
func verdictFresh(f *Facts) *proof.Refusal {
	if f.Epoch == nil || f.Epoch.Verdict == nil {
		return nil
	}
	if age, life := f.Now-f.Epoch.Sent, f.Epoch.Lifetime(); age < 0 || age > life {
		return proof.Refuse(proof.VerdictStale, "the verdict is older than it may be",
			proof.Fact{Name: "age", Want: "at most " + life.String(), Got: age.Round(time.Millisecond).String()})
	}
	return nil
}

// verdictOurs: verdict and statement are about this TPM, this TLS key and each other.
func verdictOurs(f *Facts) *proof.Refusal {
	if f.Epoch == nil || f.Epoch.Verdict == nil {
		return nil
	}
	v := f.Epoch.Verdict
	if v.Host != f.AK {
		return differ(proof.VerdictForOtherHost, "the verdict is about another TPM key", "host", f.AK, v.Host)
	}
	if v.Confirmation != f.SPKI {
		return differ(proof.VerdictForOtherHost, "the verdict is bound to another TLS key", "cnf", f.SPKI, v.Confirmation)
	}
	s := f.Statement
	if s == nil {
		return nil
	}
	if s.Host != f.AK {
		return differ(proof.VerdictForOtherHost, "the statement names another host", "host", f.AK, s.Host)
	}
	if s.Verdict != f.Epoch.Digest {
		return differ(proof.VerdictForOtherHost, "the statement names another verdict", "verdict", f.Epoch.Digest, s.Verdict)
	}
	return nil
}

// verdictAffirming: the verifier found nothing against this host.
func verdictAffirming(f *Facts) *proof.Refusal {
	if f.Epoch == nil || f.Epoch.Verdict == nil {
		return nil
	}
	if v := f.Epoch.Verdict; v.Status != proof.Affirming {
		facts := []proof.Fact{{Name: "status", Want: proof.Affirming, Got: v.Status}}
		for _, failed := range v.Failed {
			facts = append(facts, proof.Fact{Name: "failed", Value: failed})
		}
		return proof.Refuse(proof.VerdictContraindicated, "the verifier found against this host", facts...)
	}
	return nil
}

// unsealed: a nonce came out of this TPM, now.
func unsealed(f *Facts) *proof.Refusal {
	if f.Released == nil && len(f.Failed) == 0 {
		return proof.Refuse(proof.SealedToOtherState, "no nonce was unsealed")
	}
	return nil
}

// nonceWhole: a short nonce would make a weak MAC.
func nonceWhole(f *Facts) *proof.Refusal {
	if f.Released == nil {
		return nil
	}
	if n := f.Released.Nonce.Len(); n != 32 {
		return proof.Refuse(proof.SealedBlobDamaged, "the nonce has a wrong length", numbers("bytes", 32, uint32(n)))
	}
	return nil
}

// tokenInTime: by the verifier's clock, which dated the receipt; the host's clock is never asked.
func tokenInTime(f *Facts) *proof.Refusal {
	if f.Header == nil || f.Receipt == nil {
		return nil
	}
	at := f.Receipt.IssuedAt
	if f.Receipt.Link <= 1 && at > f.Header.Expiry {
		return proof.Refuse(proof.TokenExpired, "the token's time for a first release is over", seconds("expiry", f.Header.Expiry, at))
	}
	if at > f.Header.ChainExpiry {
		return proof.Refuse(proof.TokenExpired, "the time of the token's chain is over", seconds("chain_expiry", f.Header.ChainExpiry, at))
	}
	return nil
}

// linkOurs: the receipt moved the chain by the link that was stated.
func linkOurs(f *Facts) *proof.Refusal {
	if f.Receipt == nil || f.Statement == nil {
		return nil
	}
	if want, got := text(f.Statement.Previous), text(f.Receipt.Previous); want != got {
		return proof.Refuse(proof.TokenUsed, "the receipt follows another link", proof.Fact{Name: "previous", Want: want, Got: got})
	}
	if want, got := f.Statement.Attempt, f.Receipt.Attempt; want != got {
		return proof.Refuse(proof.TokenUsed, "the receipt is for another attempt", numbers("attempt", want, got))
	}
	return nil
}

// guestPinned: what leaves hostd for the guest goes only to a guest of which everything that it boots is measured, and into which nobody types.
func guestPinned(f *Facts) *proof.Refusal {
	if f.Released == nil || f.Config == nil || f.Measured == nil {
		return nil
	}
	if !f.Released.GuestAllowed {
		if !f.Released.Secret.IsZero() {
			return proof.Refuse(proof.TokenConstraint, "a secret was released for a guest that may get none")
		}
		return nil
	}
	if f.Config.Interactive() {
		return proof.Refuse(proof.TokenConstraint, "the guest gets a secret, and its domain is interactive",
			proof.Fact{Name: "interactive", Want: "no", Got: "yes"})
	}
	if f.Measured.Firmware == nil && f.Measured.Kernel == nil {
		return proof.Refuse(proof.TokenConstraint, "the guest gets a secret, and neither its kernel nor its firmware was measured",
			proof.Fact{Name: "boots", Want: "kernel or firmware", Got: "the machine's BIOS from a disk"})
	}
	if open := f.Config.Unmeasured(); len(open) > 0 {
		return proof.Refuse(proof.TokenConstraint, "the guest gets a secret, and boots or obeys what no token pins",
			proof.Fact{Name: "not measured", Want: "none", Got: strings.Join(open, ", ")})
	}
	return nil
}

// configurationSame: the statement says the configuration that was read.
func configurationSame(f *Facts) *proof.Refusal {
	if f.Config == nil || f.Statement == nil {
		return nil
	}
	if want, got := f.Config.Digest(), f.Statement.Configuration; want != got {
		return differ(proof.ConfigurationChanged, "the statement says another configuration", "configuration", want, got)
	}
	if want, got := interactive(f.Config), f.Statement.Interactive; want != got {
		return proof.Refuse(proof.ConfigurationChanged, "the statement says otherwise whether the domain is interactive",
			proof.Fact{Name: "interactive", Want: want, Got: got})
	}
	return nil
}

// savedSame: a restore goes on from the image that was saved, and the statement says so; nothing else has one.
func savedSame(f *Facts) *proof.Refusal {
	want := "none"
	if f.Action == proof.ActionRestore {
		if f.Saved == nil {
			return proof.Refuse(proof.ImageChanged, "the save image was not measured")
		}
		if f.Saved.Kept != f.Saved.Found {
			return differ(proof.ImageChanged, "the save image is not what was saved", "saved image", f.Saved.Kept, f.Saved.Found)
		}
		want = f.Saved.Found.String()
	}
	if f.Statement == nil {
		return nil
	}
	if got := text(f.Statement.SavedImage); got != want {
		return proof.Refuse(proof.ImageChanged, "the statement says another save image", proof.Fact{Name: "saved image", Want: want, Got: got})
	}
	return nil
}

// savesAllowed: the tenant wants the guest to be saved. The verifier judges it too.
func savesAllowed(f *Facts) *proof.Refusal {
	if f.Action == proof.ActionRestore && f.Receipt != nil && f.Receipt.Policy.Saves != proof.SavesAllow {
		return proof.Refuse(proof.TokenConstraint, "the token does not allow the guest to be saved", proof.Fact{Name: "saves", Want: proof.SavesAllow, Got: "no"})
	}
	return nil
}

// hookLive: while nobody answers the hook the gate is shut, and our own start could not be told from another's.
func hookLive(f *Facts) *proof.Refusal {
	if f.HookFailure != "" {
		return proof.Refuse(proof.HookNotLive, "the hook cannot be answered", proof.Fact{Name: "hook", Value: f.HookFailure})
	}
	return nil
}
