package serve

import (
	"encoding/json"

	"troth/hostd"
	"troth/hostd/api"
	"troth/launcher"
	"troth/proof"
	"troth/proof/strict"
)

func optional(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

func digestView(d *proof.Digest) *string {
	if d == nil {
		return nil
	}
	s := d.String()
	return &s
}

func problemView(r *proof.Refusal) *api.Problem {
	if r == nil {
		return nil
	}
	p := r.Problem()
	out := &api.Problem{Type: p.Type, Title: p.Title, Status: p.Status, Detail: p.Detail, Code: string(p.Code), Remedy: p.Remedy}
	out.Facts = factViews(p.Facts)
	if len(p.Also) > 0 {
		also := sorted(p.Also)
		out.Also = &also
	}
	return out
}

func factViews(facts []proof.Fact) *[]api.Fact {
	if len(facts) == 0 {
		return nil
	}
	out := make([]api.Fact, 0, len(facts))
	for _, f := range facts {
		out = append(out, api.Fact{Name: f.Name, Want: optional(f.Want), Got: optional(f.Got), Value: optional(f.Value)})
	}
	return &out
}

func launchView(v hostd.View) api.Launch {
	out := api.Launch{Id: v.ID, Uuid: v.UUID, Name: v.Name, State: v.State, Step: v.Step, BytesHashed: v.Hashed, BytesTotal: v.HashedOf,
		DryRun: v.DryRun, Refusal: problemView(v.Refusal)}
	if v.Proof != nil {
		raw := json.RawMessage(v.Proof)
		out.Proof = &raw
	}
	if s := v.Would; s != nil {
		w := &api.Would{Configuration: s.Configuration.String(), Token: s.Token.String(), Verdict: s.Verdict.String(), Host: s.Host.String(),
			Interactive: s.Interactive, Firmware: digestView(s.Measurements.Firmware), Kernel: digestView(s.Measurements.Kernel), Initrd: digestView(s.Measurements.Initrd),
			CommandLine: digestView(s.Measurements.CommandLine), Disks: []api.WouldDisk{}}
		for _, d := range s.Disks {
			w.Disks = append(w.Disks, api.WouldDisk{Target: d.Target, Mode: optional(d.Mode), ReadOnly: d.ReadOnly, Digest: digestView(d.Digest), Backing: digestView(d.Backing)})
		}
		out.Would = w
	}
	return out
}

func domainView(d *launcher.Domain) api.Domain {
	out := api.Domain{Uuid: d.UUID, Name: d.Name, State: d.State, Armed: d.Armed, Since: d.Since, Refusal: problemView(d.Refusal), Launch: optional(d.Launch)}
	if d.Report != nil {
		out.TrustLost = optional(strict.EncodeBase64(d.Report))
	}
	if d.Link != nil && d.State != launcher.StateLaunching {
		out.Link = d.Link.String()
	}
	if d.Token != (proof.Digest{}) {
		out.Token = d.Token.String()
		out.Configuration = digestView(&d.Configuration)
	}
	return out
}

func conditionViews(all []hostd.Condition) []api.Condition {
	out := make([]api.Condition, 0, len(all))
	for _, c := range all {
		out = append(out, api.Condition{Name: c.Name, State: c.State, Code: optional(string(c.Code)), Evidence: c.Evidence, Remedy: c.Remedy, Since: c.Since})
	}
	return out
}
