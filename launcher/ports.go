package launcher

import (
	"context"
	"time"

	"troth/launcher/domain"
	"troth/proof"
	"troth/tpm"
	"troth/tpm/pcr"
)

// Verifier releases nonces and keeps the chains of tokens. Every call goes over the TLS key that the verdict names.
// A refusal of the verifier is a *proof.Refusal; no answer at all is one with proof.VerifierUnreachable.
type Verifier interface {
	// Release asks for what the token holds. The same statement may be asked for again and gets the same answer.
	Release(ctx context.Context, token string, statement []byte) (Release, error)
	// Report tells what became of a link.
	Report(ctx context.Context, e ChainEvent) error
}

// Release is the verifier's answer: a receipt, and what was released, sealed to the release key of the verdict.
type Release struct {
	Receipt string
	Sealed  proof.Bytes
}

// ChainEvent is what became of a link: open, aborted, saved, closed or broken.
type ChainEvent struct {
	Token   proof.Digest `json:"token"`
	Link    proof.Digest `json:"link"`
	Event   string       `json:"event"`
	Attempt uint32       `json:"attempt"`
	Detail  string       `json:"detail,omitempty"`
	Image   proof.Digest `json:"image,omitzero"` // saved: of the save image
}

// Epochs gives the newest verdict about this host.
type Epochs interface {
	// Hold returns the newest epoch and keeps its release key in the TPM until done is called. Without a verdict it returns why.
	Hold(ctx context.Context) (e *Epoch, done func(), err error)
	// Renew attests now, and returns when there is a newer verdict or why there is none.
	Renew(ctx context.Context) error
	// Proven says until when (on CLOCK_BOOTTIME) an affirming verdict about this host has counted, or will.
	Proven() time.Duration
}

// Epoch is one verdict with what this host knows about it by itself. It does not change.
type Epoch struct {
	Verdict  *proof.Verdict
	Text     string             // the JWS, as it came
	Keys     *proof.VerdictKeys // of the verifier that gave it
	Digest   proof.Digest
	AK       tpm.Name       // of the key in our TPM
	AKPublic []byte         // TPMT_PUBLIC
	SPKI     proof.Digest   // of our TLS key
	Sent     time.Duration  // when the evidence was sent, on CLOCK_BOOTTIME
	PCRs     pcr.Values     // what was quoted in the evidence
	Counters tpm.Counters   // what our TPM said in the evidence
	Quoted   uint64         // the TPM's clock in the evidence, in milliseconds; zero where it does not matter
	Against  *proof.Refusal // what the verifier found against this host, with facts; nil for an affirming verdict
}

// Lifetime is how long the verdict counts.
func (e *Epoch) Lifetime() time.Duration {
	return time.Duration(e.Verdict.Expires-e.Verdict.IssuedAt) * time.Second
}

// Chip unseals the release key's seed and quotes. Its errors are typed by tpm/chip; Refusal turns them into refusals.
type Chip interface {
	Unseal(ctx context.Context) ([]byte, error)
	Quote(ctx context.Context, sel pcr.Selection, extraData []byte) (tpm.Quote, error)
}

// Virt is libvirt.
type Virt interface {
	// Inactive returns the persistent definition, nil when there is none.
	Inactive(ctx context.Context, id domain.UUID) ([]byte, error)
	// Live returns the definition of the running or paused domain, nil when it does not run.
	Live(ctx context.Context, id domain.UUID) ([]byte, error)
	// Named returns the UUID of the domain that has this name, running or defined; zero when there is none.
	Named(ctx context.Context, name string) (domain.UUID, error)
	// Define makes or replaces the persistent definition.
	Define(ctx context.Context, xml []byte) error
	// Undefine removes the persistent definition; it is no error when there is none.
	Undefine(ctx context.Context, id domain.UUID) error
	// CreatePaused starts the domain with the CPUs stopped.
	CreatePaused(ctx context.Context, xml []byte) error
	// Save writes the guest's memory to a file and ends it.
	Save(ctx context.Context, id domain.UUID, path string) error
	// RestorePaused starts the domain from a save image, as xml says, with the CPUs stopped.
	RestorePaused(ctx context.Context, path string, xml []byte) error
	// Resume lets the CPUs run.
	Resume(ctx context.Context, id domain.UUID) error
	// Destroy ends QEMU; it is no error when it does not run.
	Destroy(ctx context.Context, id domain.UUID) error
	// Runs says whether a QEMU of this user, nil: of anybody, runs for the domain. It asks the kernel alone, never libvirt.
	Runs(ctx context.Context, id domain.UUID, user *uint32) (bool, error)
	// Process returns the one QEMU process of the domain that this user has, nil: that anybody has. If the user has none, another's is returned.
	Process(ctx context.Context, id domain.UUID, user *uint32) (*Process, error)
	// ProcessAt returns the QEMU process with this number and start time, nil when it has ended.
	ProcessAt(ctx context.Context, pid int, start uint64) (*Process, error)
	// Taints returns libvirt's words on what was done to the running domain behind its back, nil when it does not run.
	Taints(ctx context.Context, id domain.UUID) ([]string, error)
	// Pause stops the CPUs; it is no error when it does not run.
	Pause(ctx context.Context, id domain.UUID) error
}

// Emulators are the guests' processes of the whole machine, whoever started them.
type Emulators interface {
	// Holding lists those that have one of the files open. It asks the kernel alone, never libvirt.
	Holding(ctx context.Context, files []Volume) ([]Holder, error)
}

// Holder is an emulator that has a file open.
type Holder struct {
	PID   int
	Start uint64 // clock ticks after boot
	Exe   string
	UUIDs []domain.UUID // that its arguments give the guest
	Path  string        // of the file, as it was asked for
}

// Process is what the kernel tells of a domain's QEMU.
type Process struct {
	PID   int
	Start uint64 // clock ticks after boot: tells a number that was used again
	UID   uint32
	Exe   string
	Open  []File // regular files and block devices behind its descriptors
	Named []File // files that its arguments name
	Loads string // the option that has it take the guest's memory from elsewhere, "-incoming" or "-loadvm"; empty: the guest booted
}

// File is a file that QEMU has open or was told to read.
type File struct {
	Path     string `json:"path"`
	Dev, Ino uint64
	Writable bool   `json:"writable,omitempty"`
	Option   string `json:"option,omitempty"` // "-kernel", "-blockdev", …; empty for an open descriptor
}

// Images measures files through open descriptors.
type Images interface {
	// Measure hashes one file; progress hears how far it is. A *proof.Refusal says why it cannot.
	Measure(ctx context.Context, path string, progress func(done, total int64)) (Image, error)
	// Open holds a file that the guest writes to, without hashing it.
	Open(path string) (Image, error)
}

// Image is a measured file that is still held open.
type Image interface {
	Digest() proof.Digest
	// Hash reads the content once more, as it is now, through the descriptor that is held.
	Hash(ctx context.Context) (proof.Digest, error)
	// HashSealed reads the LUKS header of a sealed disk through the descriptor that is held, as it is now.
	HashSealed(ctx context.Context) (proof.Digest, error)
	// File is what the path led to. Device says that it is a block device, whose node may be another one inside QEMU's namespace.
	File() (f File, device bool)
	// CheckFormat returns a *proof.Refusal when the content points at other files, which QEMU would open and nobody has measured.
	// backing and its format are the next layer of the domain's own list, empty for the last.
	CheckFormat(format, backing, backingFormat string) error
	// Recheck returns a *proof.Refusal when the path leads elsewhere now, or measured content may have changed.
	Recheck() error
	Close() error
}

// Hook tells whether libvirt really calls the hook.
type Hook interface {
	// Ready says why the hook cannot answer now; nil means that it can.
	Ready() error
	// Expect announces a start of our own: hook calls for this UUID that carry this launch id are allowed, each operation once.
	// restore says that it goes on from a save image: then libvirt asks about that first.
	Expect(uuid domain.UUID, launchID [32]byte, restore bool) Expected
}

// Expected is one announced start.
type Expected interface {
	// Called says whether the hook has asked at prepare, start and started, and before them at restore if it is one: libvirt runs all three before CreatePaused returns.
	Called() bool
	// Done ends the announcement.
	Done()
}

// Secrets puts guest secrets where QEMU reads them, and where the guest's channel is. UUIDs are in libvirt's text form.
type Secrets interface {
	// Channel prepares the folder of the domain's channel and returns the socket's path.
	Channel(uuid string) (string, error)
	// ChannelPath is that path.
	ChannelPath(uuid string) string
	// File returns where the guest secret of the domain stands or would stand.
	File(uuid string) string
	// Put writes the file, readable by its owner alone.
	Put(uuid string, content proof.Secret) error
	// Remove removes the file; it is no error when there is none.
	Remove(uuid string) error
	// Forget removes everything of the domain.
	Forget(uuid string) error
}

// Keys hands keys of sealed disks to libvirt, as secrets that it keeps in memory and shows to nobody.
type Keys interface {
	// PutKey makes or replaces the key of one disk.
	PutKey(ctx context.Context, id domain.UUID, target string, key proof.Secret) error
	// RemoveKeys removes the keys of all of a domain's disks; it is no error when there is none.
	RemoveKeys(ctx context.Context, id domain.UUID) error
	// SweepKeys removes the keys of all domains that it may take; take answers nil for one that is at work, else what to call when its key is gone.
	SweepKeys(ctx context.Context, take func(domain.UUID) (release func())) error
}

// Journal keeps entries on the disk, in order; Append returns when the entry is there.
type Journal interface {
	Append(e *Entry) error
}

// Clock is time as the launcher needs it. Now dates entries for people; Boot counts through suspend and cannot be set.
type Clock interface {
	Now() time.Time
	Boot() time.Duration
}
