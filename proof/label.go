package proof

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
)

// A Label begins every message that is hashed, MACed, signed over or derived
// from, so that bytes made for one purpose serve no other.
type Label string

// Labels of hashes: SHA-256 over Frame(label, fields…).
const (
	LabelAttest        Label = "troth/attest/v1"        // extraData of an attest quote: challenge, H(SPKI)
	LabelEnrol         Label = "troth/enrol/v1"         // extraData of the SRK certification: challenge, H(SPKI)
	LabelEnrolment     Label = "troth/enrolment/v1"     // what the verifier keeps of a credential's secret: enrolment's id, secret
	LabelLaunchID      Label = "troth/launch-id/v1"     // id of a launch: caller, idempotency key
	LabelQuote         Label = "troth/quote/v1"         // extraData of a launch quote: root, count, verdict digest
	LabelToken         Label = "troth/token/v1"         // digest of a token's text
	LabelTokenKey      Label = "troth/token-key/v1"     // key id of a token key: HPKE public key
	LabelStatement     Label = "troth/statement/v1"     // link: digest of a statement's bytes
	LabelVerdict       Label = "troth/verdict/v1"       // digest of a verdict's text
	LabelReceipt       Label = "troth/receipt/v1"       // digest of a receipt's text
	LabelProof         Label = "troth/proof/v1"         // sum of a proof: every field but the sum
	LabelConfiguration Label = "troth/configuration/v1" // digest of a domain's canonical configuration
	LabelProfile       Label = "troth/profile/v1"       // digest of a profile with its reference values
	LabelIdentity      Label = "troth/identity/v1"      // a host's identity: TLS key and EK digest
	LabelAudit         Label = "troth/audit/v1"         // a line of a host's audit log
	LabelDiskSecret    Label = "troth/disk-secret/v1"   // name (UUID) of the libvirt secret of a sealed disk: domain UUID, target
	LabelChain         Label = "troth/chain/v1"         // digest of a disk with layers below: their contents' digests, top first
)

// Labels of keys (HKDF-SHA256 info) and of the MACs made with them.
const (
	LabelMAC       Label = "troth/mac/v1"       // nonce → MAC key of a proof: every field but MAC and sum
	LabelGuest     Label = "troth/guest/v1"     // nonce, link → guest secret
	LabelAnswer    Label = "troth/answer/v1"    // guest secret: challenge, link
	LabelConsent   Label = "troth/consent/v1"   // nonce → consent key: destination, link, random
	LabelChallenge Label = "troth/challenge/v1" // verifier's challenge key: time, random
	LabelDiskKey   Label = "troth/disk-key/v1"  // token secret, target → passphrase of a sealed disk
)

// Labels of messages that are signed: the signature is over Frame(label, message).
const (
	LabelTrustLost Label = "troth/trust-lost/v1" // host's TLS key: report of lost trust
)

// Labels of HPKE (RFC 9180 `info`).
const (
	LabelTokenSeal   Label = "troth/token-seal/v1"   // tenant → verifier
	LabelReleaseSeal Label = "troth/release-seal/v1" // verifier → host
)

// Labels is the table of all labels, in the order above.
func Labels() []Label {
	return []Label{
		LabelAttest, LabelEnrol, LabelEnrolment, LabelLaunchID, LabelQuote, LabelToken, LabelTokenKey, LabelStatement, LabelVerdict,
		LabelReceipt, LabelProof, LabelConfiguration, LabelProfile, LabelIdentity, LabelAudit, LabelChain, LabelDiskSecret,
		LabelMAC, LabelGuest, LabelAnswer, LabelConsent, LabelChallenge, LabelDiskKey, LabelTrustLost,
		LabelTokenSeal, LabelReleaseSeal,
	}
}

// Frame is the one way a message is put together: the label after its length
// in one byte, then every field after its length in four bytes, big-endian.
func Frame(l Label, fields ...[]byte) []byte {
	b := append([]byte{byte(len(l))}, l...)
	for _, f := range fields {
		b = binary.BigEndian.AppendUint32(b, uint32(len(f)))
		b = append(b, f...)
	}
	return b
}

// Hash is SHA-256 over Frame.
func Hash(l Label, fields ...[]byte) Digest { return sha256.Sum256(Frame(l, fields...)) }

// Derive gives a 32-byte key for one use: HKDF-SHA256 (RFC 5869) without salt,
// info = Frame(l, fields…). It is written out, since crypto/hkdf leaves secret
// and key in buffers that nobody can clear.
func Derive(s Secret, l Label, fields ...[]byte) Secret {
	prk := wipingMAC(make([]byte, sha256.Size), s.raw())
	defer clear(prk)
	return secretOf(wipingMAC(prk, append(Frame(l, fields...), 1)))
}

// wipingMAC is HMAC-SHA256. The state of a hash keeps the last bytes written, and
// Sum copies it to the stack: the same once more over zeros overwrites both.
func wipingMAC(key, message []byte) []byte {
	m := hmac.New(sha256.New, key)
	m.Write(message)
	out := m.Sum(nil)
	m.Reset()
	m.Write(make([]byte, sha256.BlockSize-1))
	m.Sum(nil)
	return out
}

// MAC is HMAC-SHA256 over Frame(l, fields…).
func MAC(key Secret, l Label, fields ...[]byte) Digest {
	m := hmac.New(sha256.New, key.raw())
	m.Write(Frame(l, fields...))
	return Digest(m.Sum(nil))
}
