package serve

import (
	"context"
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
	d := h.find(w, uuid)
	if d == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), saveWithin)
	defer cancel()
	if refusal := h.Daemon.Launcher.Save(ctx, d.UUID); refusal != nil {
		h.refuse(w, refusal)
		return
	}
	if d = h.find(w, uuid); d != nil {
		h.answer(w, http.StatusOK, domainView(d))
	}
}

// RestoreDomain lets a saved guest go on.
func (h handlers) RestoreDomain(w http.ResponseWriter, r *http.Request, uuid api.UUID, params api.RestoreDomainParams) {
	var req api.RestoreRequest
	body, refusal := read(r, &req)
	if refusal == nil {
		refusal = key(params.IdempotencyKey)
	}
	if refusal != nil {
		h.refuse(w, refusal)
		return
	}
	d := h.find(w, uuid)
	if d == nil {
		return
	}
	if d.Request == nil {
		h.refuse(w, proof.Refuse(proof.NotRegistered, "the domain is not saved here: only a saved domain is restored", proof.Fact{Name: "state", Value: d.State}))
		return
	}
	h.submit(w, r, params.IdempotencyKey, body, launcher.Request{Token: d.TokenText, Domain: d.Request, Action: proof.ActionRestore, DryRun: req.DryRun != nil && *req.DryRun})
}
