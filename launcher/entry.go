package launcher

import "troth/proof"

// What an entry says. A launch writes intent, granted, proved, running in this order, or ends at any of them with refused.
// An armed domain's launches write the same, when another libvirt client starts it.
const (
	WroteIntent    = "intent"    // a release is about to be asked for: the chain may move from here on
	WroteGranted   = "granted"   // Decide permitted it: libvirt may hear of the domain from here on
	WroteProved    = "proved"    // the proof is made: the guest may run from here on
	WroteRunning   = "running"   // the guest was resumed
	WroteFailed    = "failed"    // the launch is being undone, and why
	WroteRefused   = "refused"   // the launch ended, and everything is as it was before
	WroteArmed     = "armed"     // the domain is registered, and any libvirt client may start it
	WroteDefined   = "defined"   // libvirt has the definition of the armed domain
	WroteDisarmed  = "disarmed"  // it could not be defined after all
	WroteSaved     = "saved"     // the guest ended, and its memory is in a file
	WroteStopped   = "stopped"   // the guest ended, on request or by itself
	WroteForgotten = "forgotten" // the domain is no longer registered
	WroteBroken    = "broken"    // what runs is not what was proved any more
	WroteStray     = "stray"     // a guest of this domain was found that has no grant, and what was done
	WroteEvent     = "event"     // a chain event is owed to the verifier
	WroteSnapshot  = "snapshot"  // a part of the book as it was when the journal was made shorter
	WroteTold      = "told"      // an owed chain event was taken
)

// Entry is one line of the journal. Fields that an entry of its kind does not need are empty. It holds no secret: the token is
// encrypted to the verifier, and the previous definition is what libvirt shows to anyone who may define domains here.
type Entry struct {
	What   string `json:"what"`
	At     int64  `json:"at"` // unix seconds
	Launch string `json:"launch,omitempty"`
	UUID   string `json:"uuid,omitempty"`

	// intent
	Name          string        `json:"name,omitempty"`
	Request       []byte        `json:"request,omitempty"` // the domain's XML that was asked for, in full explicit form
	Asked         string        `json:"asked,omitempty"`   // digest of the API request, for its idempotency key
	TokenText     string        `json:"token_text,omitempty"`
	Token         *proof.Digest `json:"token,omitempty"`
	Configuration *proof.Digest `json:"configuration,omitempty"`
	Link          *proof.Digest `json:"link,omitempty"`
	Attempt       uint32        `json:"attempt,omitempty"`

	// saved, and the intent of a restore: of the save image
	Image *proof.Digest `json:"image,omitempty"`

	// granted: what to put back if the launch does not end well; empty when nothing was defined
	Mode     string   `json:"mode,omitempty"` // proof.ModeHook: the definition is not the launch's to put back
	Previous []byte   `json:"previous,omitempty"`
	Volumes  []Volume `json:"volumes,omitempty"`

	Proof   []byte         `json:"proof,omitempty"`   // proved
	Grant   *Grant         `json:"grant,omitempty"`   // proved
	Report  []byte         `json:"report,omitempty"`  // broken: the signed report (proof.TrustLost)
	Refusal *proof.Refusal `json:"refusal,omitempty"` // failed, refused, stopped, broken, stray
	Unmoved bool           `json:"unmoved,omitempty"` // refused: the verifier said no, so the token's chain did not move
	Used    bool           `json:"used,omitempty"`    // refused: the guest of a restore may have run, so that its image is not gone on from again
	Event   *ChainEvent    `json:"event,omitempty"`   // event, told

	Snapshot *Snapshot `json:"snapshot,omitempty"` // snapshot
}

// Snapshot is one part of a book: one of its fields is set.
type Snapshot struct {
	Domain *Domain     `json:"domain,omitempty"`
	Launch *Record     `json:"launch,omitempty"`
	Chain  *ChainPlace `json:"chain,omitempty"`
	Owed   *ChainEvent `json:"owed,omitempty"`
}

// ChainPlace is where a token's chain stands as far as this host moved it.
type ChainPlace struct {
	Token   proof.Digest  `json:"token"`
	Head    *proof.Digest `json:"head,omitempty"`
	Attempt uint32        `json:"attempt"`
}

// Volume is a file that belongs to a registered domain alone.
type Volume struct {
	Path string `json:"path"`
	Dev  uint64 `json:"dev"`
	Ino  uint64 `json:"ino"`
}
