package launcher

import (
	"crypto/rand"
	"encoding/hex"

	"troth/launcher/domain"
	"troth/proof"
)

// Elsewhere refuses a trusted domain whose memory is to come from a save image (libvirt's restore, and every start while a managed save image lies there) or
// from another host: what that memory holds was judged by nobody. A restore or a migration of our own is announced, and does not come here. The reason is
// kept for `troth domain why`; the hook prints the code alone.
func (l *Launcher) Elsewhere(id domain.UUID, op string) *proof.Refusal {
	sentence := "a trusted domain's memory comes from a save image: remove it (virsh managedsave-remove), and the domain starts afresh"
	if op == "migrate" {
		sentence = "a trusted domain comes in from another host behind hostd's back"
	}
	why := proof.Refuse(proof.GrantMissing, sentence, proof.Fact{Name: "uuid", Value: id.String()}, proof.Fact{Name: "operation", Value: op})
	if d := l.Book.Domain(id.String()); d != nil && d.Live() == nil {
		var nonce [16]byte
		rand.Read(nonce[:])
		// The hook need not wait for the disk.
		l.beside(func() {
			entry := &Entry{What: WroteRefused, Launch: "hook-" + hex.EncodeToString(nonce[:]), UUID: id.String(), Name: d.Name, Refusal: why}
			if err := l.Book.Write(entry); err != nil {
				l.Log.Error("cannot keep the reason of a refusal", "uuid", id.String(), "error", err.Error())
			}
		})
	}
	return why
}
