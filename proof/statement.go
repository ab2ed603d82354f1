package proof

import (
	"fmt"
	"strings"

	"troth/proof/strict"
	"troth/tpm"
)

// StatementVersion stands in every statement.
const StatementVersion = "troth-statement/v1"

// Actions of a link, and the modes in which the domain came to run.
const (
	ActionStart      = "start"
	ActionRestore    = "restore"
	ActionMigrateIn  = "migrate-in"
	ActionMigrateOut = "migrate-out"
	ActionRecover    = "recover"

	ModePaused = "paused" // hostd created it paused
	ModeHook   = "hook"   // another libvirt client started an armed domain
)

// Measurements are digests of what the domain boots; absent: there is no such image.
type Measurements struct {
	Firmware    *Digest `json:"firmware,omitempty"`
	Kernel      *Digest `json:"kernel,omitempty"`
	Initrd      *Digest `json:"initrd,omitempty"`
	CommandLine *Digest `json:"command_line,omitempty"`
}

// StatementDisk is one disk as it was found.
type StatementDisk struct {
	Target   string  `json:"target"`
	Mode     string  `json:"mode"` // immutable | initial | sealed | unpinned
	ReadOnly bool    `json:"read_only"`
	Digest   *Digest `json:"digest,omitempty"`  // of the content, layers below included (ChainDigest); sealed: of the LUKS header
	Backing  *Digest `json:"backing,omitempty"` // initial only: of the layers below, which the guest cannot write to
}

// Statement says what a host runs: one link of a token's chain.
type Statement struct {
	Version       string          `json:"version"`
	UUID          string          `json:"uuid"`
	Name          string          `json:"name"`
	Action        string          `json:"action"`
	Mode          string          `json:"mode"`
	Configuration Digest          `json:"configuration"`
	Measurements  Measurements    `json:"measurements"`
	Disks         []StatementDisk `json:"disks,omitempty"`
	Interactive   string          `json:"interactive"` // no | yes
	Token         Digest          `json:"token"`
	Host          tpm.Name        `json:"host"` // Name of the AK
	Verdict       Digest          `json:"verdict"`
	Previous      *Digest         `json:"previous,omitempty"`    // link before this one
	SavedImage    *Digest         `json:"saved_image,omitempty"` // restore only: of the save image that the guest's memory came from
	Attempt       uint32          `json:"attempt"`
	Blinder       Digest          `json:"blinder"` // 32 random bytes, fresh for each attempt
}

// NewBlinder draws a blinder.
func NewBlinder() Digest { return Digest(RandomSecret(32).raw()) }

func (s *Statement) check() error {
	err := firstError(
		checkVersion(s.Version, StatementVersion),
		checkUUID("uuid", s.UUID),
		checkName("name", s.Name),
		checkOneOf("action", s.Action, ActionStart, ActionRestore, ActionMigrateIn, ActionMigrateOut, ActionRecover),
		checkOneOf("mode", s.Mode, ModePaused, ModeHook),
		checkOneOf("interactive", s.Interactive, InteractiveNo, InteractiveYes),
	)
	if err != nil {
		return err
	}
	if (s.Action == ActionRestore) != (s.SavedImage != nil) {
		return fmt.Errorf("saved_image: a restore has one, and nothing else")
	}
	if s.Attempt == 0 {
		return fmt.Errorf("attempt: attempts are counted from 1")
	}
	if s.Blinder.IsZero() {
		return fmt.Errorf("blinder: it is zero")
	}
	if len(s.Disks) > MaxDisks {
		return fmt.Errorf("disks: more than %d", MaxDisks)
	}
	for i, d := range s.Disks {
		field := fmt.Sprintf("disks[%d]", i)
		err := firstError(checkID(field+".target", d.Target),
			checkOneOf(field+".mode", d.Mode, DiskImmutable, DiskInitial, DiskSealed, DiskUnpinned))
		if err != nil {
			return err
		}
		if d.Backing != nil && d.Mode != DiskInitial {
			return fmt.Errorf("%s.backing: only a disk of mode %s has one", field, DiskInitial)
		}
		if i > 0 && strings.Compare(s.Disks[i-1].Target, d.Target) >= 0 {
			return fmt.Errorf("%s.target: disks stand in the order of their targets, each once", field)
		}
	}
	return nil
}

// Encode writes the bytes that are hashed and travel. Version is filled in.
func (s *Statement) Encode() ([]byte, error) {
	s.Version = StatementVersion
	if err := s.check(); err != nil {
		return nil, fmt.Errorf("cannot write statement: %w", err)
	}
	return strict.Encode(s)
}

// ParseStatement reads what Encode writes and nothing else.
func ParseStatement(b []byte) (*Statement, error) {
	var s Statement
	if err := strict.Document(b, MaxStatement, &s); err != nil {
		return nil, fmt.Errorf("cannot read statement: %w", err)
	}
	if err := s.check(); err != nil {
		return nil, fmt.Errorf("cannot read statement: %w", err)
	}
	return &s, nil
}

// Link is the digest of a statement's exact bytes: its name in chain, receipt
// and Merkle tree.
func Link(statement []byte) Digest { return Hash(LabelStatement, statement) }
