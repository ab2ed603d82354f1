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
	if _, err := s.v.ChainEvent(r.Context(), callerOf(r).spki, verifier.Event{Token: req.Token, Link: req.Link, Event: req.Event, Attempt: req.Attempt, Detail: req.Detail, Image: req.Image}); err != nil {
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
