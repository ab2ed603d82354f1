package launcher

import (
	"fmt"
	"time"

	"troth/launcher/domain"
	"troth/proof"
	"troth/tpm"
)

// Facts is everything that the decision rests on. A step that could not do its part leaves its field empty and its refusal in Failed;
// an empty field is never taken for a passed check.
type Facts struct {
	Failed []*proof.Refusal // of the steps before: strict reading, measuring, attesting, release, unseal

	Action      string         // what was asked for
	Mode        string         // how the domain comes to run: proof.ModePaused or proof.ModeHook
	Config      *domain.Config // what is to run, read strictly
	Token       proof.Digest   // of the token's text
	Header      *proof.Header  // of the token
	Measured    *Measured      // what the images held when they were hashed
	Saved       *SavedImage    // of a restore
	Recheck     []*proof.Refusal
	HookFailure string // why the hook cannot answer; empty when it can
	Ownership   *Ownership

	Epoch *Epoch        // the verdict
	AK    tpm.Name      // of the key in this TPM
	SPKI  proof.Digest  // of this daemon's TLS key
	Now   time.Duration // CLOCK_BOOTTIME

	Statement *proof.Statement
	Link      proof.Digest // of the statement's bytes, as they were sent
	Receipt   *proof.Receipt
	Released  *proof.Released
}

// Measured are the digests of what a domain boots and reads.
type Measured struct {
	Firmware, Kernel, Initrd, CommandLine *proof.Digest
	Disks                                 []proof.StatementDisk
}

func interactive(c *domain.Config) string {
	if c.Interactive() {
		return proof.InteractiveYes
	}
	return proof.InteractiveNo
}

func differ(c proof.Code, sentence, name string, want, got fmt.Stringer) *proof.Refusal {
	return proof.Refuse(c, sentence, proof.Fact{Name: name, Want: want.String(), Got: got.String()})
}

func numbers(name string, want, got uint32) proof.Fact {
	return proof.Fact{Name: name, Want: fmt.Sprint(want), Got: fmt.Sprint(got)}
}

func seconds(name string, until, at int64) proof.Fact {
	return proof.Fact{Name: name, Want: "at most " + time.Unix(until, 0).UTC().Format(time.RFC3339), Got: time.Unix(at, 0).UTC().Format(time.RFC3339)}
}

func text(d *proof.Digest) string {
	if d == nil {
		return "none"
	}
	return d.String()
}

func disks(all []proof.StatementDisk) string {
	s := ""
	for _, d := range all {
		s += fmt.Sprintf("%s %s read-only=%v %s on %s;", d.Target, d.Mode, d.ReadOnly, text(d.Digest), text(d.Backing))
	}
	return s
}

func missing(sentence string) *proof.Refusal { return proof.Refuse(proof.Internal, sentence) }

func unmeasured(path string) *proof.Refusal {
	return proof.Refuse(proof.ImageNotMeasured, "an image has no digest", proof.Fact{Name: "path", Value: path})
}

// Permit says that Decide saw no reason against this very launch. Only Decide makes one.
type Permit struct {
	uuid   domain.UUID
	link   proof.Digest
	config proof.Digest
}
