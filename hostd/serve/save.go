package serve

import (
	"net/http"
	"time"

	"troth/hostd/api"
	"troth/launcher"
	"troth/proof"
)

// saveWithin is how long a guest's memory may take to the disk.
const saveWithin = 10 * time.Minute

// SaveDomain ends the guest and keeps its memory. It goes on when the caller goes away.
func (h handlers) SaveDomain(w http.ResponseWriter, r *http.Request, uuid api.UUID) {
	if h.carry(w, r, uuid, saveWithin, h.Daemon.Launcher.Save) {
		h.GetDomain(w, r, uuid)
	}
}

// RestoreDomain lets a saved guest go on.
func (h handlers) RestoreDomain(w http.ResponseWriter, r *http.Request, uuid api.UUID, params api.RestoreDomainParams) {
	var req api.RestoreRequest
	body, ok := h.order(w, r, params.IdempotencyKey, &req)
	if !ok {
		return
	}
	d := h.proved(w, uuid, "the domain is not saved here: only a saved domain is restored")
	if d == nil {
		return
	}
	h.submit(w, r, params.IdempotencyKey, body, launcher.Request{Token: d.TokenText, Domain: d.Request, Action: proof.ActionRestore, DryRun: req.DryRun != nil && *req.DryRun})
}
