package serve

import (
	"net/http"

	"troth/proof"
	"troth/tpm/pcr"
	"troth/verifier"
	"troth/verifier/api"
)

func hostOf(v *verifier.View) api.Host {
	h := api.Host{Name: v.Name, State: string(v.State), Standing: v.Standing, Class: string(v.Class), AkName: v.AKName.String(), Ek: v.EK,
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
	h, err := s.v.Approve(r.Context(), name, req.Profiles, req.Ek, callerOf(r).name)
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
	i, err := s.v.Import(r.Context(), verifier.ImportRequest{Host: req.Host, Name: req.Name, Launcher: req.Launcher, Profile: req.Profile, Apply: req.Apply,
		Confirmed: req.Values, By: callerOf(r).name})
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
