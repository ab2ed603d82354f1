package serve

import (
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"mime"
	"net/http"
	"strconv"

	"troth/proof"
	"troth/proof/strict"
	"troth/tpm"
	"troth/tpm/pcr"
	"troth/verifier"
	"troth/verifier/api"
)

// Bounds of bodies, in bytes.
const (
	maxBody      = 64 << 10
	maxEvidence  = proof.MaxEvidence
	maxRelease   = proof.MaxToken + 2*proof.MaxStatement + 4<<10
	maxReference = 1 << 20
)

type server struct {
	v   *verifier.Verifier
	log *slog.Logger
}

var _ api.ServerInterface = (*server)(nil)

// body reads a bounded request body.
func body(w http.ResponseWriter, r *http.Request, limit int64) ([]byte, error) {
	if kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || kind != "application/json" {
		return nil, proof.Refuse(proof.RequestInvalid, "the body is not application/json", proof.Fact{Name: "Content-Type", Want: "application/json", Got: strconv.Quote(r.Header.Get("Content-Type"))})
	}
	b, err := io.ReadAll(http.MaxBytesReader(w, r.Body, limit))
	var large *http.MaxBytesError
	if errors.As(err, &large) {
		return nil, proof.Refuse(proof.RequestInvalid, "the body is too large", proof.Fact{Name: "body", Want: "at most " + strconv.FormatInt(limit, 10) + " bytes", Got: "more"})
	}
	if err != nil {
		return nil, proof.Refuse(proof.RequestInvalid, "the body cannot be read: "+err.Error(), proof.Fact{Name: "body", Value: "refused"})
	}
	return b, nil
}

// read reads a body strictly into v: unknown, duplicate, missing and differently-cased keys are refused, the field named.
func read(w http.ResponseWriter, r *http.Request, limit int64, v any) error {
	b, err := body(w, r, limit)
	if err != nil {
		return err
	}
	if err := strict.JSON(b, int(limit), v); err != nil {
		return proof.Refuse(proof.RequestInvalid, err.Error(), proof.Fact{Name: "body", Value: "refused"})
	}
	return nil
}

// answer writes JSON, or the problem that err is.
func (s *server) answer(w http.ResponseWriter, r *http.Request, status int, v any, err error) {
	if err != nil {
		s.refuse(w, r, err)
		return
	}
	b, err := json.Marshal(v)
	if err != nil {
		s.refuse(w, r, err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	s.write(w, b)
}

func (s *server) write(w http.ResponseWriter, b []byte) {
	if _, err := w.Write(b); err != nil {
		s.log.Debug("cannot answer", "error", err.Error())
	}
}

func (s *server) refuse(w http.ResponseWriter, r *http.Request, err error) {
	var refusal *proof.Refusal
	if !errors.As(err, &refusal) {
		// What went wrong inside is for the log, not for the caller.
		s.log.Error("internal error", "path", strconv.Quote(r.URL.Path), "error", strconv.Quote(err.Error()))
		refusal = proof.Refuse(proof.Internal, "the service could not decide")
	}
	p := refusal.Problem()
	var unknown *verifier.UnknownError
	if errors.As(err, &unknown) {
		p.Status = http.StatusNotFound
	}
	// A host whose verdict is stale, or whose evidence was refused, gets the next challenge at once.
	if c, ok := r.Context().Value(callerKey{}).(caller); ok && c.role == api.RoleHost &&
		(refusal.Code == proof.VerdictStale || r.Pattern == "POST /v1/attestations") {
		p.Challenge = proof.Bytes(s.v.Challenge(c.spki).Bytes).String()
	}
	s.problem(w, p)
}

func (s *server) problem(w http.ResponseWriter, p proof.Problem) {
	b, err := json.Marshal(p)
	if err != nil {
		s.log.Error("cannot encode problem", "error", err.Error())
		w.WriteHeader(http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(p.Status)
	s.write(w, b)
}

// GetHealth answers that the process lives.
func (s *server) GetHealth(w http.ResponseWriter, r *http.Request) {
	s.answer(w, r, http.StatusOK, api.State{State: "alive"}, nil)
}

// GetReady asks the store.
func (s *server) GetReady(w http.ResponseWriter, r *http.Request) {
	if err := s.v.Ready(r.Context()); err != nil {
		s.log.Error("not ready", "error", err.Error())
		p := proof.Refuse(proof.Internal, "the store does not answer").Problem()
		p.Status = http.StatusServiceUnavailable
		s.problem(w, p)
		return
	}
	s.answer(w, r, http.StatusOK, api.State{State: "ready"}, nil)
}

// GetKeys hands out the signed key set.
func (s *server) GetKeys(w http.ResponseWriter, r *http.Request) {
	set, root := s.v.KeySet()
	s.answer(w, r, http.StatusOK, api.Keys{Keys: set, Root: &root}, nil)
}

// ListRefusals is the table of codes.
func (s *server) ListRefusals(w http.ResponseWriter, r *http.Request) {
	var out []api.RefusalInfo
	for _, c := range proof.Codes() {
		out = append(out, api.RefusalInfo{Code: string(c.Code), Meaning: c.Meaning, Remedy: c.Remedy, Status: c.Status})
	}
	s.answer(w, r, http.StatusOK, out, nil)
}

// GetChallenge makes a challenge for the calling host.
func (s *server) GetChallenge(w http.ResponseWriter, r *http.Request) {
	c := s.v.Challenge(callerOf(r).spki)
	s.answer(w, r, http.StatusOK, api.Challenge{Challenge: c.Bytes, Expires: c.Expires.Unix(), Selection: c.Selection.String()}, nil)
}

// CreateEnrolment begins an enrolment.
func (s *server) CreateEnrolment(w http.ResponseWriter, r *http.Request) {
	var req api.EnrolmentRequest
	if err := read(w, r, maxBody, &req); err != nil {
		s.refuse(w, r, err)
		return
	}
	e := verifier.Enrolment{Name: req.Name, Challenge: req.Challenge, AK: req.Ak, SRK: req.Srk,
		SRKCertification: tpm.Quote{Message: req.SrkCertification.Message, Signature: req.SrkCertification.Signature}}
	for _, k := range req.Eks {
		e.EKs = append(e.EKs, verifier.EK{Certificate: k.Certificate, Public: k.Public})
	}
	c, err := s.v.Enrol(r.Context(), callerOf(r).spki, e)
	if err != nil {
		s.refuse(w, r, err)
		return
	}
	s.answer(w, r, http.StatusCreated, api.Enrolment{Id: c.ID, Credential: c.Blob, EncryptedSecret: c.Encrypted}, nil)
}

// ActivateEnrolment ends an enrolment.
func (s *server) ActivateEnrolment(w http.ResponseWriter, r *http.Request, id string) {
	var req api.Activation
	if err := read(w, r, maxBody, &req); err != nil {
		s.refuse(w, r, err)
		return
	}
	state, err := s.v.Activate(r.Context(), callerOf(r).spki, id, req.Secret)
	s.answer(w, r, http.StatusOK, api.HostState{State: string(state)}, err)
}

// CreateAttestation judges evidence. The body is the evidence document itself, in its one form.
func (s *server) CreateAttestation(w http.ResponseWriter, r *http.Request) {
	b, err := body(w, r, maxEvidence)
	if err != nil {
		s.refuse(w, r, err)
		return
	}
	e, err := proof.ParseEvidence(b)
	if err != nil {
		s.refuse(w, r, proof.Refuse(proof.EvidenceInvalid, err.Error(), proof.Fact{Name: "evidence", Value: "refused"}))
		return
	}
	a, err := s.v.Attest(r.Context(), callerOf(r).spki, e)
	if err != nil {
		s.refuse(w, r, err)
		return
	}
	out := api.Attestation{Verdict: a.JWS, Report: *a.Report, Challenge: a.Next.Bytes, ChallengeExpires: a.Next.Expires.Unix(),
		Selection: a.Next.Selection.String(), NextCheck: a.Verdict.NextCheck}
	if a.Release != nil {
		out.Release = &api.SealedSeed{Public: a.Release.Public, Duplicate: a.Release.Duplicate, EncryptedSeed: a.Release.EncryptedSeed}
	}
	s.answer(w, r, http.StatusOK, out, nil)
}

// CreateRelease judges a token against a statement.
func (s *server) CreateRelease(w http.ResponseWriter, r *http.Request) {
	var req api.ReleaseRequest
	if err := read(w, r, maxRelease, &req); err != nil {
		s.refuse(w, r, err)
		return
	}
	out, err := s.v.Release(r.Context(), callerOf(r).spki, req.Token, req.Statement, req.Consent)
	if err != nil {
		s.refuse(w, r, err)
		return
	}
	s.answer(w, r, http.StatusOK, api.Release{Receipt: out.Receipt, Sealed: out.Sealed}, nil)
}

// CreateChainEvent takes a host's report.
func (s *server) CreateChainEvent(w http.ResponseWriter, r *http.Request) {
	var req api.ChainEvent
	if err := read(w, r, maxBody, &req); err != nil {
		s.refuse(w, r, err)
		return
	}
	if _, err := s.v.ChainEvent(r.Context(), callerOf(r).spki, verifier.Event{Token: req.Token, Link: req.Link, Event: req.Event, Attempt: req.Attempt, Detail: req.Detail}); err != nil {
		s.refuse(w, r, err)
		return
	}
	s.chain(w, r, req.Token)
}

// GetChain tells where a chain stands.
func (s *server) GetChain(w http.ResponseWriter, r *http.Request, token string) {
	d, err := proof.ParseDigest(token)
	if err != nil {
		s.refuse(w, r, proof.Refuse(proof.RequestInvalid, err.Error(), proof.Fact{Name: "token", Value: "refused"}))
		return
	}
	s.chain(w, r, d)
}

func (s *server) chain(w http.ResponseWriter, r *http.Request, token proof.Digest) {
	c, err := s.v.Chain(r.Context(), token)
	if err != nil {
		s.refuse(w, r, err)
		return
	}
	out := api.Chain{Token: c.Token, TokenId: c.TokenID, State: string(c.State), Uuid: c.UUID, Link: c.Link, Number: c.Number, Attempt: c.Attempt,
		HostName: c.HostName, Revoked: c.Revoked, Events: []api.ChainRecord{}}
	if c.Link != nil {
		out.Host = c.Host.String()
	}
	for _, e := range c.Records {
		out.Events = append(out.Events, api.ChainRecord{Time: e.Time, Event: e.Event, Link: e.Link, Number: e.Number, Attempt: e.Attempt, Host: e.Host.String(), Detail: e.Detail})
	}
	s.answer(w, r, http.StatusOK, out, nil)
}

func hostOf(v *verifier.View) api.Host {
	h := api.Host{Name: v.Name, State: string(v.State), Standing: v.Standing, Class: string(v.Class), AkName: v.AKName.String(), Eks: v.EKs,
		Spki: &v.SPKI, Profiles: v.Profiles, Met: v.Met, LastAttested: v.LastAttested, Expires: v.Expires}
	if h.Profiles == nil {
		h.Profiles = []string{}
	}
	return h
}

// ListHosts lists all hosts.
func (s *server) ListHosts(w http.ResponseWriter, r *http.Request) {
	out := []api.Host{}
	for _, h := range s.v.Hosts() {
		out = append(out, hostOf(s.v.View(h)))
	}
	s.answer(w, r, http.StatusOK, out, nil)
}

func (s *server) host(w http.ResponseWriter, r *http.Request, h *verifier.Host, err error) {
	if err != nil {
		s.refuse(w, r, err)
		return
	}
	s.answer(w, r, http.StatusOK, hostOf(s.v.View(h)), nil)
}

// GetHost shows one host.
func (s *server) GetHost(w http.ResponseWriter, r *http.Request, name string) {
	h, err := s.v.Host(name)
	s.host(w, r, h, err)
}

// WhyHost tells why a host stands as it does.
func (s *server) WhyHost(w http.ResponseWriter, r *http.Request, name string) {
	h, err := s.v.Host(name)
	if err != nil {
		s.refuse(w, r, err)
		return
	}
	view := s.v.View(h)
	out := api.Why{Host: hostOf(view), Standing: view.Standing, Sentence: view.Sentence(), Reasons: []api.Problem{}, Report: view.Report}
	for _, reason := range view.Reasons {
		out.Reasons = append(out.Reasons, reason.Problem())
	}
	s.answer(w, r, http.StatusOK, out, nil)
}

// ApproveHost takes an operator's word; the body may be empty.
func (s *server) ApproveHost(w http.ResponseWriter, r *http.Request, name string) {
	var req api.Approval
	if r.ContentLength != 0 {
		if err := read(w, r, maxBody, &req); err != nil {
			s.refuse(w, r, err)
			return
		}
	}
	h, err := s.v.Approve(r.Context(), name, req.Profiles, callerOf(r).name)
	s.host(w, r, h, err)
}

// RevokeHost ends trust in a host.
func (s *server) RevokeHost(w http.ResponseWriter, r *http.Request, name string) {
	h, err := s.v.Revoke(r.Context(), name, callerOf(r).name)
	s.host(w, r, h, err)
}

func profileOf(p *verifier.Profile) api.Profile {
	return api.Profile{Name: p.Name, Launcher: p.Launcher, Selection: p.Selection.String(), References: p.References, Digest: p.Digest()}
}

// ListProfiles lists all profiles.
func (s *server) ListProfiles(w http.ResponseWriter, r *http.Request) {
	out := []api.Profile{}
	for _, p := range s.v.Profiles() {
		out = append(out, profileOf(p))
	}
	s.answer(w, r, http.StatusOK, out, nil)
}

func (s *server) profile(w http.ResponseWriter, r *http.Request, p *verifier.Profile, err error) {
	if err != nil {
		s.refuse(w, r, err)
		return
	}
	s.answer(w, r, http.StatusOK, profileOf(p), nil)
}

// GetProfile shows one profile.
func (s *server) GetProfile(w http.ResponseWriter, r *http.Request, name string) {
	p, err := s.v.Profile(name)
	s.profile(w, r, p, err)
}

// PutProfile adds or replaces a profile.
func (s *server) PutProfile(w http.ResponseWriter, r *http.Request) {
	var req api.ProfileRequest
	if err := read(w, r, maxBody, &req); err != nil {
		s.refuse(w, r, err)
		return
	}
	sel, err := pcr.Parse(req.Selection)
	if err != nil {
		s.refuse(w, r, proof.Refuse(proof.RequestInvalid, "selection: "+err.Error(), proof.Fact{Name: "selection", Value: "refused"}))
		return
	}
	p, err := s.v.PutProfile(r.Context(), &verifier.Profile{Name: req.Name, Launcher: req.Launcher, Selection: sel, References: req.References}, callerOf(r).name)
	s.profile(w, r, p, err)
}

// DeleteProfile removes a profile.
func (s *server) DeleteProfile(w http.ResponseWriter, r *http.Request, name string) {
	s.gone(w, r, s.v.DeleteProfile(r.Context(), name, callerOf(r).name))
}

func (s *server) gone(w http.ResponseWriter, r *http.Request, err error) {
	if err != nil {
		s.refuse(w, r, err)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

func referenceOf(x *verifier.Reference) api.Reference {
	out := api.Reference{Name: x.Name, Launcher: x.Launcher, Values: x.Values, Comment: x.Comment, Source: x.Source}
	for _, e := range x.Events {
		out.Events = append(out.Events, api.ReferenceEvent{Index: e.Index, Type: e.Type, Digest: e.Digest})
	}
	return out
}

// ListReferences lists all reference values.
func (s *server) ListReferences(w http.ResponseWriter, r *http.Request) {
	out := []api.Reference{}
	for _, x := range s.v.References() {
		out = append(out, referenceOf(x))
	}
	s.answer(w, r, http.StatusOK, out, nil)
}

func (s *server) reference(w http.ResponseWriter, r *http.Request, name string) {
	x, err := s.v.Reference(name)
	if err != nil {
		s.refuse(w, r, err)
		return
	}
	s.answer(w, r, http.StatusOK, referenceOf(x), nil)
}

// GetReference shows one set.
func (s *server) GetReference(w http.ResponseWriter, r *http.Request, name string) {
	s.reference(w, r, name)
}

// PutReference adds or replaces a set.
func (s *server) PutReference(w http.ResponseWriter, r *http.Request) {
	var req api.Reference
	if err := read(w, r, maxReference, &req); err != nil {
		s.refuse(w, r, err)
		return
	}
	x := &verifier.Reference{Name: req.Name, Launcher: req.Launcher, Values: req.Values, Comment: req.Comment, Source: req.Source}
	for _, e := range req.Events {
		x.Events = append(x.Events, verifier.ReferenceEvent{Index: e.Index, Type: e.Type, Digest: e.Digest})
	}
	if err := s.v.PutReference(r.Context(), x, callerOf(r).name); err != nil {
		s.refuse(w, r, err)
		return
	}
	s.reference(w, r, x.Name)
}

// DeleteReference removes a set.
func (s *server) DeleteReference(w http.ResponseWriter, r *http.Request, name string) {
	s.gone(w, r, s.v.DeleteReference(r.Context(), name, callerOf(r).name))
}

// ImportReference takes reference values from a host.
func (s *server) ImportReference(w http.ResponseWriter, r *http.Request) {
	var req api.ImportRequest
	if err := read(w, r, maxBody, &req); err != nil {
		s.refuse(w, r, err)
		return
	}
	i, err := s.v.Import(r.Context(), verifier.ImportRequest{Host: req.Host, Name: req.Name, Launcher: req.Launcher, Profile: req.Profile, Apply: req.Apply, By: callerOf(r).name})
	if err != nil {
		s.refuse(w, r, err)
		return
	}
	out := api.Import{Difference: []api.Difference{}, Values: i.Values, Applied: i.Applied, Profile: i.Profile}
	for _, d := range i.Difference {
		out.Difference = append(out.Difference, api.Difference{Pcr: d.PCR, Event: d.Event, Want: d.Want, Got: d.Got})
	}
	s.answer(w, r, http.StatusOK, out, nil)
}
