package serve

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"mime"
	"net/http"
	"time"

	"troth/hostd"
	"troth/hostd/api"
	"troth/launcher"
	"troth/proof"
	"troth/proof/strict"
)

// handlers implements the generated interface.
type handlers struct{ *Server }

// read reads a body strictly into v.
func read(r *http.Request, v any) ([]byte, *proof.Refusal) {
	if kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || kind != "application/json" {
		return nil, proof.Refuse(proof.RequestInvalid, "the body is not application/json", proof.Fact{Name: "content-type", Value: r.Header.Get("Content-Type")})
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, proof.Refuse(proof.RequestInvalid, "the body cannot be read: "+err.Error())
	}
	if err := strict.JSON(body, maxBody, v); err != nil {
		return nil, proof.Refuse(proof.RequestInvalid, err.Error())
	}
	return body, nil
}

// key checks an idempotency key.
func key(k string) *proof.Refusal {
	if len(k) < 8 || len(k) > 128 {
		return proof.Refuse(proof.RequestInvalid, "Idempotency-Key has 8 to 128 characters")
	}
	for _, c := range []byte(k) {
		if c <= ' ' || c > '~' {
			return proof.Refuse(proof.RequestInvalid, "Idempotency-Key has visible ASCII characters only")
		}
	}
	return nil
}

// order reads a request that is carried out once for its idempotency key, or has refused.
func (h handlers) order(w http.ResponseWriter, r *http.Request, idempotency string, v any) (body []byte, ok bool) {
	body, refusal := read(r, v)
	if refusal == nil {
		refusal = key(idempotency)
	}
	if refusal != nil {
		h.refuse(w, refusal)
	}
	return body, refusal == nil
}

// CreateLaunch takes a launch up.
func (h handlers) CreateLaunch(w http.ResponseWriter, r *http.Request, params api.CreateLaunchParams) {
	var req api.LaunchRequest
	body, ok := h.order(w, r, params.IdempotencyKey, &req)
	if !ok {
		return
	}
	if req.Action != proof.ActionStart {
		h.refuse(w, proof.Refuse(proof.RequestInvalid, "action: this action is not known", proof.Fact{Name: "action", Want: proof.ActionStart, Got: req.Action}))
		return
	}
	h.submit(w, r, params.IdempotencyKey, body, launcher.Request{Token: req.Token, Domain: []byte(req.Domain), Action: req.Action, DryRun: req.DryRun != nil && *req.DryRun})
}

func (h handlers) submit(w http.ResponseWriter, r *http.Request, idempotency string, body []byte, req launcher.Request) {
	sum := sha256.Sum256(append([]byte(r.URL.Path+"\n"), body...))
	req.ID, req.Asked = hostd.LaunchID(callerOf(r, h.Daemon.Time).ID, idempotency), hex.EncodeToString(sum[:])
	launch, refusal := h.Daemon.Launches.Submit(req)
	if refusal != nil {
		h.refuse(w, refusal)
		return
	}
	w.Header().Set("Location", "/v1/launches/"+req.ID)
	h.answer(w, http.StatusAccepted, launchView(launch.View()))
}

// RegisterDomain arms a domain.
func (h handlers) RegisterDomain(w http.ResponseWriter, r *http.Request, params api.RegisterDomainParams) {
	var req api.RegisterRequest
	body, ok := h.order(w, r, params.IdempotencyKey, &req)
	if !ok {
		return
	}
	h.submit(w, r, params.IdempotencyKey, body, launcher.Request{Token: req.Token, Domain: []byte(req.Domain), Action: proof.ActionStart, Arm: true})
}

// GetLaunch tells how far a launch is, at once or when it ends.
func (h handlers) GetLaunch(w http.ResponseWriter, r *http.Request, id string, params api.GetLaunchParams) {
	var wait time.Duration
	if params.Wait != nil {
		var err error
		if wait, err = time.ParseDuration(*params.Wait); err != nil || wait < 0 || wait > maxWait {
			h.refuse(w, proof.Refuse(proof.RequestInvalid, "wait: not a duration of at most 60s", proof.Fact{Name: "wait", Want: "0s to 60s", Got: *params.Wait}))
			return
		}
	}
	launch := h.Daemon.Launches.Get(id)
	if launch == nil {
		p := proof.Refuse(proof.NotRegistered, "there is no such launch").Problem()
		p.Status = http.StatusNotFound
		h.problem(w, p)
		return
	}
	if wait > 0 {
		timer := time.NewTimer(wait)
		defer timer.Stop()
		select {
		case <-launch.Done():
		case <-timer.C:
		case <-r.Context().Done():
			return
		}
	}
	h.answer(w, http.StatusOK, launchView(launch.View()))
}

// ListDomains lists every domain that is known here.
func (h handlers) ListDomains(w http.ResponseWriter, _ *http.Request) {
	list := api.DomainList{Domains: []api.Domain{}}
	for _, d := range h.Daemon.Launcher.Book.Domains() {
		list.Domains = append(list.Domains, domainView(d))
	}
	h.answer(w, http.StatusOK, list)
}

// find returns a domain that is known, or has refused.
func (h handlers) find(w http.ResponseWriter, uuid string) *launcher.Domain {
	id, refusal := launcher.Text(uuid)
	if refusal != nil {
		h.refuse(w, refusal)
		return nil
	}
	d := h.Daemon.Launcher.Book.Domain(id)
	if d == nil {
		h.refuse(w, proof.Refuse(proof.NotRegistered, "no such domain is known here", proof.Fact{Name: "uuid", Value: id}))
	}
	return d
}

// proved finds a domain that was proved here before and can be launched again, or has refused, with the sentence if it was not.
func (h handlers) proved(w http.ResponseWriter, uuid, sentence string) *launcher.Domain {
	d := h.find(w, uuid)
	if d != nil && d.Request == nil {
		h.refuse(w, proof.Refuse(proof.NotRegistered, sentence, proof.Fact{Name: "state", Value: d.State}))
		return nil
	}
	return d
}

// afterwards is for what comes after the time that something may take: undoing it if it failed, for up to a minute, and the answer.
const afterwards = 90 * time.Second

// carry does something to a domain that goes on when the caller goes away. It says whether it was done, or has refused: the connection waits for the answer
// longer than for others.
func (h handlers) carry(w http.ResponseWriter, r *http.Request, uuid string, within time.Duration, do func(context.Context, string) *proof.Refusal) bool {
	d := h.find(w, uuid)
	if d == nil {
		return false
	}
	if err := http.NewResponseController(w).SetWriteDeadline(time.Now().Add(within + afterwards)); err != nil {
		h.Log.Warn("an answer may come too late for its connection", "uuid", d.UUID, "error", err.Error())
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), within)
	defer cancel()
	refusal := do(ctx, d.UUID)
	if refusal != nil {
		h.refuse(w, refusal)
	}
	return refusal == nil
}

// GetDomain shows one domain.
func (h handlers) GetDomain(w http.ResponseWriter, _ *http.Request, uuid api.UUID) {
	if d := h.find(w, uuid); d != nil {
		h.answer(w, http.StatusOK, domainView(d))
	}
}

// DeleteDomain forgets a domain.
func (h handlers) DeleteDomain(w http.ResponseWriter, r *http.Request, uuid api.UUID) {
	if h.carry(w, r, uuid, time.Minute, h.Daemon.Launcher.Delete) {
		w.WriteHeader(http.StatusNoContent)
	}
}

// GetProof gives the proof's exact bytes.
func (h handlers) GetProof(w http.ResponseWriter, _ *http.Request, uuid api.UUID) {
	d := h.find(w, uuid)
	if d == nil {
		return
	}
	if d.Proof == nil || d.State == launcher.StateLaunching {
		h.refuse(w, proof.Refuse(proof.NotRegistered, "the domain has no proof", proof.Fact{Name: "state", Value: d.State}))
		return
	}
	w.Header().Set("Content-Type", "application/json")
	if _, err := w.Write(d.Proof); err != nil {
		h.Log.Debug("cannot send a proof", "error", err.Error())
	}
}

// WhyDomain tells the reasons.
func (h handlers) WhyDomain(w http.ResponseWriter, _ *http.Request, uuid api.UUID) {
	d := h.find(w, uuid)
	if d == nil {
		return
	}
	why := api.Why{Domain: domainView(d), Conditions: conditionViews(h.Daemon.Status.Conditions()), History: []api.HistoryEntry{}}
	for _, e := range d.History {
		entry := api.HistoryEntry{At: e.At, Launch: e.Launch, What: e.What}
		if e.Refusal != nil {
			code := string(e.Refusal.Code)
			entry.Code, entry.Sentence, entry.Facts = &code, &e.Refusal.Sentence, factViews(e.Refusal.Facts)
		}
		why.History = append(why.History, entry)
	}
	h.answer(w, http.StatusOK, why)
}

// StartDomain launches a domain again as it was proved.
func (h handlers) StartDomain(w http.ResponseWriter, r *http.Request, uuid api.UUID, params api.StartDomainParams) {
	var req api.StartRequest
	body, ok := h.order(w, r, params.IdempotencyKey, &req)
	if !ok {
		return
	}
	d := h.proved(w, uuid, "the domain was never proved here: launch it")
	if d == nil {
		return
	}
	token := d.TokenText
	if req.Token != nil {
		token = *req.Token
	}
	h.submit(w, r, params.IdempotencyKey, body, launcher.Request{Token: token, Domain: d.Request, Action: proof.ActionStart, DryRun: req.DryRun != nil && *req.DryRun})
}

// StopDomain ends the guest.
func (h handlers) StopDomain(w http.ResponseWriter, r *http.Request, uuid api.UUID) {
	if h.carry(w, r, uuid, time.Minute, h.Daemon.Launcher.Stop) {
		h.GetDomain(w, r, uuid)
	}
}

// ChallengeDomain carries a challenge to the guest. What comes back proves something to the tenant alone.
func (h handlers) ChallengeDomain(w http.ResponseWriter, r *http.Request, uuid api.UUID) {
	var req api.ChallengeRequest
	_, refusal := read(r, &req)
	if refusal != nil {
		h.refuse(w, refusal)
		return
	}
	challenge, err := strict.Base64(req.Challenge)
	if err != nil || len(challenge) < proof.MinGuestChallenge || len(challenge) > proof.MaxGuestChallenge {
		h.refuse(w, proof.Refuse(proof.RequestInvalid, "challenge: not 16 to 64 bytes in base64url without padding"))
		return
	}
	d := h.find(w, uuid)
	if d == nil {
		return
	}
	if d.State != launcher.StateProved {
		h.refuse(w, proof.Refuse(proof.NotRegistered, "the domain does not run", proof.Fact{Name: "state", Value: d.State}))
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), 20*time.Second)
	defer cancel()
	answer, link, err := h.Daemon.Challenge(ctx, d.UUID, challenge)
	if err != nil {
		sentence := "the challenge could not be carried to the guest"
		if errors.Is(err, hostd.ErrNoAnswer) {
			sentence = "the guest did not answer: it is not up yet, does not run `troth guest respond`, or was given no secret"
		}
		h.refuse(w, proof.Refuse(proof.Internal, sentence, proof.Fact{Name: "cause", Value: err.Error()}))
		return
	}
	h.answer(w, http.StatusOK, api.ChallengeAnswer{Answer: strict.EncodeBase64(answer), Link: link.String()})
}

// GetStatus tells the host's conditions.
func (h handlers) GetStatus(w http.ResponseWriter, _ *http.Request) {
	state := h.Daemon.Attester.State()
	s := api.Status{Name: h.Daemon.Config.Name, State: h.Daemon.Status.Host(), Conditions: conditionViews(h.Daemon.Status.Conditions()), Version: h.Version}
	if state.AK != (hostd.State{}).AK {
		s.Host = state.AK.String()
	}
	for _, d := range h.Daemon.Launcher.Book.Domains() {
		if d.Registered {
			s.Domains++
		}
	}
	if e := state.Epoch; e != nil {
		v := &api.VerdictState{Digest: e.Digest.String(), Class: string(e.Verdict.Class), Status: e.Verdict.Status, LifetimeSeconds: int64(e.Lifetime().Seconds()),
			AgeSeconds: int64((h.Daemon.Clock.Boot() - e.Sent).Seconds()), Profiles: []string{}, Failed: e.Verdict.Failed}
		if v.Failed == nil {
			v.Failed = []string{}
		}
		for _, p := range e.Verdict.Profiles {
			v.Profiles = append(v.Profiles, p.Name)
		}
		s.Verdict = v
	}
	h.answer(w, http.StatusOK, s)
}

// GetVerdict gives the newest verdict as it was signed.
func (h handlers) GetVerdict(w http.ResponseWriter, _ *http.Request) {
	state := h.Daemon.Attester.State()
	if state.Epoch == nil {
		refusal := state.Failure
		if refusal == nil {
			refusal = proof.Refuse(proof.VerdictMissing, "this host has not attested yet")
		}
		h.refuse(w, refusal)
		return
	}
	out := api.VerdictAnswer{Verdict: state.Epoch.Text, Digest: state.Epoch.Digest.String(), AgeSeconds: int64((h.Daemon.Clock.Boot() - state.Epoch.Sent).Seconds())}
	if state.Report != nil {
		if b, err := strict.Encode(state.Report); err == nil {
			raw := json.RawMessage(b)
			out.Report = &raw
		}
	}
	h.answer(w, http.StatusOK, out)
}

// ListRefusals gives the table of codes.
func (h handlers) ListRefusals(w http.ResponseWriter, _ *http.Request) {
	list := api.RefusalList{Refusals: []api.RefusalCode{}}
	for _, c := range proof.Codes() {
		list.Refusals = append(list.Refusals, api.RefusalCode{Code: string(c.Code), Meaning: c.Meaning, Remedy: c.Remedy, Status: c.Status})
	}
	h.answer(w, http.StatusOK, list)
}

// GetHealth says that the daemon answers.
func (h handlers) GetHealth(w http.ResponseWriter, _ *http.Request) {
	h.answer(w, http.StatusOK, api.Health{Status: "ok"})
}

// GetReady says whether a launch would be permitted now. It is public, so the reason is a code and no facts.
func (h handlers) GetReady(w http.ResponseWriter, r *http.Request) {
	if refusal := h.Daemon.Status.Ready(r.Context()); refusal != nil {
		p := proof.Refuse(refusal.Code, "no launch would be permitted now").Problem()
		p.Status = http.StatusServiceUnavailable
		h.problem(w, p)
		return
	}
	h.answer(w, http.StatusOK, api.Health{Status: "ready"})
}
