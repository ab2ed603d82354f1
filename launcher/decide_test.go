package launcher

import (
	"slices"
	"testing"
	"time"

	"troth/launcher/domain"
	"troth/proof"
	"troth/tpm/pcr"
)

// goodFacts are facts that permit; each call makes them anew.
func goodFacts(t *testing.T) Facts {
	t.Helper()
	w := newWorld(t)
	c, err := domain.Read(guestXML(t), domain.Request)
	if err != nil {
		t.Fatal(err)
	}
	token, err := proof.ParseToken(w.token())
	if err != nil {
		t.Fatal(err)
	}
	d := func(n byte) *proof.Digest { return &proof.Digest{n} }
	m := &Measured{Kernel: d(1), Initrd: d(2), CommandLine: d(3), Firmware: d(4), Disks: []proof.StatementDisk{{Target: "vda", Mode: proof.DiskImmutable, ReadOnly: true, Digest: d(5)}}}
	c.Disks = []domain.Disk{{Target: "vda", Source: "/images/vda", ReadOnly: true}}
	c.Boot.Firmware = "/images/firmware"
	e := *w.epoch
	v := *w.epoch.Verdict
	e.Verdict = &v
	s := &proof.Statement{UUID: c.UUID.String(), Name: c.Name, Action: proof.ActionStart, Mode: proof.ModePaused, Configuration: c.Digest(),
		Measurements: proof.Measurements{Kernel: d(1), Initrd: d(2), CommandLine: d(3), Firmware: d(4)}, Disks: m.Disks, Interactive: proof.InteractiveNo,
		Token: token.Digest(), Host: e.AK, Verdict: e.Digest, Attempt: 1}
	link := proof.Digest{9}
	return Facts{Action: proof.ActionStart, Mode: proof.ModePaused, Config: c, Token: token.Digest(), Header: &token.Header, Measured: m, Epoch: &e, AK: e.AK, SPKI: e.SPKI, Now: w.boot,
		Ownership: &Ownership{Files: []Volume{{Path: "/images/vda", Dev: 1, Ino: 5}}, Others: []Owned{{Volume{Path: "/images/other", Dev: 1, Ino: 6}, secondUUID}}},
		Statement: s, Link: link, Receipt: &proof.Receipt{IssuedAt: 1_800_000_010, Token: token.Digest(), Statement: link, Verdict: e.Digest, Link: 1, Attempt: 1},
		Released: &proof.Released{Nonce: proof.RandomSecret(32), Secret: proof.NewSecret([]byte("disk key")), GuestAllowed: true}}
}

// boots makes the guest boot otherwise, by its firmware.
func boots(f *Facts, b domain.Boot) {
	c := *f.Config
	c.Boot = b
	m := *f.Measured
	m.Kernel, m.Initrd, m.CommandLine = nil, nil, nil
	f.Config, f.Measured, f.Statement.Configuration = &c, &m, c.Digest()
	f.Statement.Measurements = proof.Measurements{Firmware: m.Firmware}
}

func TestDecidePermits(t *testing.T) {
	f := goodFacts(t)
	permit, refusal := Decide(f)
	if refusal != nil {
		t.Fatal(refusal)
	}
	if permit.uuid != f.Config.UUID || permit.link != f.Link || permit.config != f.Config.Digest() {
		t.Errorf("permit %+v", permit)
	}
	if r := Rehearse(f); r != nil {
		t.Error(r)
	}
	f.Ownership.Files = append(f.Ownership.Files, Volume{Path: "/images/not-there.log"}, Volume{Path: "/images/elsewhere", Dev: 2, Ino: 6})
	f.Ownership.Others = append(f.Ownership.Others, Owned{Volume{Path: "/images/nor-this"}, secondUUID})
	boots(&f, domain.Boot{Firmware: f.Config.Boot.Firmware, Devices: []string{"hd"}})
	if _, refusal := Decide(f); refusal != nil {
		t.Errorf("a firmware that boots from a disk: %v", refusal)
	}
	f.Released.GuestAllowed, f.Released.Secret = false, proof.Secret{}
	boots(&f, domain.Boot{Firmware: f.Config.Boot.Firmware, Devices: []string{"network"}})
	if _, refusal := Decide(f); refusal != nil {
		t.Errorf("a guest that gets nothing: %v", refusal)
	}
}

// restored makes the facts those of a restore.
func restored(f *Facts) {
	f.Action, f.Statement.Action = proof.ActionRestore, proof.ActionRestore
	f.Saved = &SavedImage{Kept: proof.Digest{7}, Found: proof.Digest{7}}
	f.Statement.SavedImage = &proof.Digest{7}
	f.Receipt.Policy.Saves = proof.SavesAllow
}

func TestDecidePermitsRestore(t *testing.T) {
	f := goodFacts(t)
	restored(&f)
	if _, refusal := Decide(f); refusal != nil {
		t.Fatal(refusal)
	}
	if r := Rehearse(f); r != nil {
		t.Error(r)
	}
}

// decideTable: one thing is wrong, and the code that must lead. Every check has a row that no other check would refuse.
var decideTable = []struct {
	name string
	code proof.Code
	do   func(f *Facts)
}{
	{"another action", proof.RequestInvalid, func(f *Facts) { f.Action, f.Statement.Action = "recover", "recover" }},
	{"another mode", proof.RequestInvalid, func(f *Facts) { f.Mode, f.Statement.Mode = "other", "other" }},
	{"restore by another client", proof.RequestInvalid, func(f *Facts) {
		restored(f)
		f.Mode, f.Statement.Mode = proof.ModeHook, proof.ModeHook
	}},
	{"restore that the token does not allow", proof.TokenConstraint, func(f *Facts) { restored(f); f.Receipt.Policy.Saves = "" }},
	{"restore without an image", proof.ImageChanged, func(f *Facts) { restored(f); f.Saved, f.Statement.SavedImage = nil, nil }},
	{"restore of an image that nobody measured", proof.ImageChanged, func(f *Facts) { restored(f); f.Saved = nil }},
	{"restore of a changed image", proof.ImageChanged, func(f *Facts) { restored(f); f.Saved.Kept[0] ^= 1 }},
	{"restore stated of another image", proof.ImageChanged, func(f *Facts) { restored(f); f.Statement.SavedImage = &proof.Digest{8} }},
	{"restore stated of no image", proof.ImageChanged, func(f *Facts) { restored(f); f.Statement.SavedImage = nil }},
	{"start that states an image", proof.ImageChanged, func(f *Facts) { f.Statement.SavedImage = &proof.Digest{8} }},
	{"statement of another action", proof.RequestInvalid, func(f *Facts) { f.Statement.Action = "restore" }},
	{"unknown mode", proof.RequestInvalid, func(f *Facts) { f.Mode, f.Statement.Mode = "other", "other" }},
	{"statement of another mode", proof.RequestInvalid, func(f *Facts) { f.Statement.Mode = proof.ModeHook }},
	{"statement of another UUID", proof.RequestInvalid, func(f *Facts) { f.Statement.UUID = "x" }},
	{"statement of another name", proof.RequestInvalid, func(f *Facts) { f.Statement.Name = "x" }},
	{"statement of another token", proof.TokenInvalid, func(f *Facts) { f.Statement.Token[0] ^= 1 }},
	{"receipt of another token", proof.TokenInvalid, func(f *Facts) { f.Receipt.Token[0] ^= 1 }},
	{"receipt of another statement", proof.EvidenceInvalid, func(f *Facts) { f.Receipt.Statement[0] ^= 1 }},
	{"receipt of another verdict", proof.EvidenceInvalid, func(f *Facts) { f.Receipt.Verdict[0] ^= 1 }},
	{"no configuration", proof.Internal, func(f *Facts) { f.Config = nil }},
	{"no header", proof.Internal, func(f *Facts) { f.Header = nil }},
	{"nothing measured", proof.Internal, func(f *Facts) { f.Measured = nil }},
	{"nobody asked whose the files are", proof.Internal, func(f *Facts) { f.Ownership = nil }},
	{"no statement", proof.Internal, func(f *Facts) { f.Statement = nil }},
	{"no receipt", proof.Internal, func(f *Facts) { f.Receipt = nil }},
	{"PCR 17 zero", proof.NoDynamicLaunch, func(f *Facts) {
		f.Epoch.PCRs = pcr.Values{17: {}, 18: {18}, 19: {19}}
		digest, err := f.Epoch.PCRs.Digest(f.Epoch.Verdict.Selection)
		if err != nil {
			panic(err)
		}
		f.Epoch.Verdict.PCRDigest = digest
	}},
	{"another boot", proof.HostRebooted, func(f *Facts) { f.Epoch.Counters.Reset++ }},
	{"another launch", proof.HostRelaunched, func(f *Facts) { f.Epoch.Counters.Restart++ }},
	{"other PCRs", proof.PCRMismatch, func(f *Facts) { f.Epoch.Verdict.PCRDigest[0] ^= 1 }},
	{"PCR not quoted", proof.PCRMismatch, func(f *Facts) {
		sel, err := pcr.Select(pcr.SHA256, 17, 18, 19, 20)
		if err != nil {
			panic(err)
		}
		// What no values have is no digest either: a verdict with an empty one does not get by.
		f.Epoch.Verdict.Selection, f.Epoch.Verdict.PCRDigest = sel, pcr.Digest{}
	}},
	{"profile of another name", proof.ProfileNotMet, func(f *Facts) { f.Header.Profile.Name = "gold" }},
	{"profile of another content", proof.ProfileNotMet, func(f *Facts) { f.Header.Profile.Digest[0] ^= 1 }},
	{"no epoch", proof.VerdictMissing, func(f *Facts) { f.Epoch = nil }},
	{"no verdict", proof.VerdictMissing, func(f *Facts) { f.Epoch.Verdict = nil }},
	{"old verdict", proof.VerdictStale, func(f *Facts) { f.Now += f.Epoch.Lifetime() }},
	{"verdict of the future", proof.VerdictStale, func(f *Facts) { f.Now = f.Epoch.Sent - time.Nanosecond }},
	{"another host's verdict", proof.VerdictForOtherHost, func(f *Facts) { f.Epoch.Verdict.Host[9] ^= 1 }},
	{"verdict over another key", proof.VerdictForOtherHost, func(f *Facts) { f.Epoch.Verdict.Confirmation[0] ^= 1 }},
	{"statement of another host", proof.VerdictForOtherHost, func(f *Facts) { f.Statement.Host[9] ^= 1 }},
	{"statement of another verdict", proof.VerdictForOtherHost, func(f *Facts) { f.Statement.Verdict[0] ^= 1 }},
	{"contraindicated", proof.VerdictContraindicated, func(f *Facts) {
		f.Epoch.Verdict.Status, f.Epoch.Verdict.Failed = proof.Contraindicated, []string{"pcr-mismatch"}
	}},
	{"found against", proof.PCRMismatch, func(f *Facts) { f.Epoch.Against = proof.Refuse(proof.PCRMismatch, "PCR 18 differs") }},
	{"nothing unsealed", proof.SealedToOtherState, func(f *Facts) { f.Released = nil }},
	{"short nonce", proof.SealedBlobDamaged, func(f *Facts) { f.Released.Nonce = proof.RandomSecret(31) }},
	{"token expired for a first release", proof.TokenExpired, func(f *Facts) { f.Receipt.IssuedAt = f.Header.Expiry + 1 }},
	{"chain expired", proof.TokenExpired, func(f *Facts) {
		f.Receipt.Link, f.Receipt.IssuedAt = 2, f.Header.ChainExpiry+1
	}},
	{"receipt follows another link", proof.TokenUsed, func(f *Facts) { f.Receipt.Previous = &proof.Digest{1} }},
	{"statement follows another link", proof.TokenUsed, func(f *Facts) { f.Statement.Previous = &proof.Digest{1} }},
	{"another attempt", proof.TokenUsed, func(f *Facts) { f.Receipt.Attempt++ }},
	{"a secret for a guest that may get none", proof.TokenConstraint, func(f *Facts) { f.Released.GuestAllowed = false }},
	{"interactive", proof.TokenConstraint, func(f *Facts) {
		f.Config.Graphics = []domain.Graphics{{Type: "vnc"}}
		f.Statement.Configuration, f.Statement.Interactive = f.Config.Digest(), proof.InteractiveYes
	}},
	{"BIOS boot with a guest secret", proof.TokenConstraint, func(f *Facts) {
		f.Config.Boot = domain.Boot{}
		f.Measured.Kernel, f.Measured.Initrd, f.Measured.CommandLine, f.Measured.Firmware = nil, nil, nil, nil
		f.Statement.Measurements, f.Statement.Configuration = proof.Measurements{}, f.Config.Digest()
	}},
	{"a firmware that boots from the network", proof.TokenConstraint, func(f *Facts) {
		boots(f, domain.Boot{Firmware: f.Config.Boot.Firmware, Devices: []string{"hd", "network"}})
	}},
	{"a firmware that boots from an interface", proof.TokenConstraint, func(f *Facts) {
		c := *f.Config
		f.Config, c.Interfaces = &c, []domain.Interface{{Type: "network", Source: "lan", MAC: "52:54:00:00:00:01", Boot: 1}}
		boots(f, domain.Boot{Firmware: f.Config.Boot.Firmware})
	}},
	{"OEM strings", proof.TokenConstraint, func(f *Facts) {
		c := *f.Config
		c.SMBIOS = domain.SMBIOS{Mode: "sysinfo", Entries: []domain.SMBIOSEntry{{Table: "oemStrings", Value: "io.systemd.credential:passwd.hashed-password.root="}}}
		f.Config, f.Statement.Configuration = &c, c.Digest()
	}},
	{"another domain's volume", proof.ConfigurationNotAllowed, func(f *Facts) { f.Ownership.Others[0].Path = "/images/vda" }},
	{"another domain's volume by another path", proof.ConfigurationNotAllowed, func(f *Facts) { f.Ownership.Others[0].Ino = 5 }},
	{"open in another guest", proof.ConfigurationNotAllowed, func(f *Facts) { f.Ownership.Holders = []Holder{{PID: 1, Path: "/images/vda"}} }},
	{"another configuration", proof.ConfigurationChanged, func(f *Facts) { f.Statement.Configuration[0] ^= 1 }},
	{"interactive otherwise", proof.ConfigurationChanged, func(f *Facts) { f.Statement.Interactive = proof.InteractiveYes }},
	{"firmware not measured", proof.ImageNotMeasured, func(f *Facts) { f.Measured.Firmware, f.Statement.Measurements.Firmware = nil, nil }},
	{"kernel not measured", proof.ImageNotMeasured, func(f *Facts) { f.Measured.Kernel, f.Statement.Measurements.Kernel = nil, nil }},
	{"command line not measured", proof.ImageNotMeasured, func(f *Facts) { f.Measured.CommandLine, f.Statement.Measurements.CommandLine = nil, nil }},
	{"initrd not measured", proof.ImageNotMeasured, func(f *Facts) { f.Measured.Initrd, f.Statement.Measurements.Initrd = nil, nil }},
	{"layers below a writable disk not measured", proof.ImageNotMeasured, func(f *Facts) {
		c := *f.Config
		c.Disks = append(slices.Clone(c.Disks), domain.Disk{Type: "file", Device: "disk", Source: "/images/top.qcow2", Format: "qcow2", Target: "vdz", Bus: "virtio",
			Backing: []domain.Backing{{Type: "file", Source: "/images/base", Format: "raw"}}})
		top := proof.StatementDisk{Target: "vdz", Mode: proof.DiskInitial, Digest: &proof.Digest{1}}
		f.Config, f.Statement.Configuration = &c, c.Digest()
		f.Measured.Disks = append(slices.Clone(f.Measured.Disks), top)
		f.Statement.Disks = f.Measured.Disks
	}},
	{"variable store not measured", proof.ImageNotMeasured, func(f *Facts) {
		c := *f.Config
		c.Boot.NVRAM = "/images/g1.fd"
		f.Config, f.Statement.Configuration = &c, c.Digest()
	}},
	{"disk not measured", proof.ImageNotMeasured, func(f *Facts) { f.Measured.Disks[0].Digest = nil }},
	{"statement of another kernel", proof.ImageChanged, func(f *Facts) { f.Statement.Measurements.Kernel = &proof.Digest{8} }},
	{"statement of other disks", proof.ImageChanged, func(f *Facts) { f.Statement.Disks = nil }},
	{"image changed", proof.ImageChanged, func(f *Facts) { f.Recheck = []*proof.Refusal{proof.Refuse(proof.ImageChanged, "changed")} }},
	{"hook does not answer", proof.HookNotLive, func(f *Facts) { f.HookFailure = "nobody listens" }},
}

func TestDecideRefuses(t *testing.T) {
	for _, row := range decideTable {
		t.Run(row.name, func(t *testing.T) {
			f := goodFacts(t)
			row.do(&f)
			permit, refusal := Decide(f)
			if refusal == nil || refusal.Code != row.code {
				t.Fatalf("got %v, want %s", refusal, row.code)
			}
			if permit != (Permit{}) {
				t.Error("a refusal with a permit")
			}
			if refusal.Sentence == "" || refusal.Remedy == "" {
				t.Errorf("%+v", refusal)
			}
		})
	}
}

// TestDecidePassesOn: whatever a step before found leads by its place in the order, for every code of the table.
func TestDecidePassesOn(t *testing.T) {
	for _, info := range proof.Codes() {
		f := goodFacts(t)
		f.Failed = []*proof.Refusal{proof.Refuse(info.Code, "found by a step")}
		f.Receipt, f.Released, f.Epoch = nil, nil, nil
		if _, refusal := Decide(f); refusal == nil || refusal.Code != info.Code || refusal.Sentence != "found by a step" {
			t.Errorf("%s: got %v", info.Code, refusal)
		}
		if r := Rehearse(f); r == nil || r.Code != info.Code {
			t.Errorf("%s: rehearsal says %v", info.Code, r)
		}
	}
}

func TestDecideTellsTheRest(t *testing.T) {
	f := goodFacts(t)
	f.HookFailure = "gone"
	f.Epoch.Counters.Restart++
	f.Receipt.Attempt++
	_, refusal := Decide(f)
	expect(t, refusal, proof.HostRelaunched)
	if len(refusal.Also) != 2 || refusal.Also[0] != proof.TokenUsed || refusal.Also[1] != proof.HookNotLive {
		t.Errorf("also %v", refusal.Also)
	}
}

// TestNothingIsNoPermit: no facts, and each single missing fact, permit nothing.
func TestNothingIsNoPermit(t *testing.T) {
	if p, r := Decide(Facts{}); r == nil || p != (Permit{}) {
		t.Error("no facts permit")
	}
}
