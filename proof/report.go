package proof

import "troth/tpm"

// Results of one check in a report: "could not check" is never "passed" and never "failed".
const (
	Passed  = "passed"
	Failed  = "failed"
	NotRun  = "not-run"
	Errored = "error"
)

// Report is the whole of an appraisal, for operators; it is not signed and no
// proof carries it.
type Report struct {
	Host      string          `json:"host"`
	AK        tpm.Name        `json:"ak"`
	EK        Digest          `json:"ek"`
	Class     tpm.Class       `json:"class"`
	Status    string          `json:"status"`
	Time      int64           `json:"time"`
	Launcher  string          `json:"launcher,omitempty"`
	PCRs      []PCR           `json:"pcrs,omitempty"`
	Checks    []ReportCheck   `json:"checks"`
	Profiles  []ReportProfile `json:"profiles,omitempty"`
	Refusal   *Refusal        `json:"refusal,omitempty"`
	NextCheck int64           `json:"next_check,omitempty"`
}

// ReportProfile is one profile, met or not.
type ReportProfile struct {
	ProfileRef
	Met    bool          `json:"met"`
	Checks []ReportCheck `json:"checks,omitempty"`
}

// ReportCheck is one thing that was compared: a PCR, an event, or a rule.
type ReportCheck struct {
	Name   string `json:"name"`
	Result string `json:"result"` // passed | failed | not-run | error
	PCR    *int   `json:"pcr,omitempty"`
	Event  string `json:"event,omitempty"`
	Want   string `json:"want,omitempty"`
	Got    string `json:"got,omitempty"`
	Detail string `json:"detail,omitempty"`
}
