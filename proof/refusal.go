package proof

import (
	"fmt"
	"slices"
	"strings"
)

// Code names a refusal; stable, in a fixed order (docs/refusals.md).
type Code string

// The codes, in the order in which the first of several is chosen.
const (
	RequestInvalid          Code = "request-invalid"
	TokenInvalid            Code = "token-invalid"
	EvidenceInvalid         Code = "evidence-invalid"
	Forbidden               Code = "forbidden"
	Internal                Code = "internal"
	TPMUnavailable          Code = "tpm-unavailable"
	TPMBusy                 Code = "tpm-busy"
	VerifierUnreachable     Code = "verifier-unreachable"
	HostNotApproved         Code = "host-not-approved"
	NoDynamicLaunch         Code = "no-dynamic-launch"
	BankUnallocated         Code = "bank-unallocated"
	HostRebooted            Code = "host-rebooted"
	HostRelaunched          Code = "host-relaunched"
	PCRMismatch             Code = "pcr-mismatch"
	ProfileNotMet           Code = "profile-not-met"
	VerdictMissing          Code = "verdict-missing"
	VerdictStale            Code = "verdict-stale"
	VerdictForOtherHost     Code = "verdict-for-other-host"
	VerdictContraindicated  Code = "verdict-contraindicated"
	SealedToOtherState      Code = "sealed-to-other-state"
	SealedBlobDamaged       Code = "sealed-blob-damaged"
	TokenExpired            Code = "token-expired"
	TokenUsed               Code = "token-used"
	TokenConstraint         Code = "token-constraint"
	ConfigurationNotAllowed Code = "configuration-not-allowed"
	ConfigurationChanged    Code = "configuration-changed"
	ImageNotMeasured        Code = "image-not-measured"
	ImageChanged            Code = "image-changed"
	GrantMissing            Code = "grant-missing"
	HookNotLive             Code = "hook-not-live"
	HostdUnreachable        Code = "hostd-unreachable"
	DestinationUnproven     Code = "destination-unproven"
	NotRegistered           Code = "not-registered"
)

// CodeInfo is one row of the table of refusals.
type CodeInfo struct {
	Code    Code   `json:"code"`
	Meaning string `json:"meaning"`
	Remedy  string `json:"remedy"`
	Status  int    `json:"status"` // HTTP status
}

var codes = []CodeInfo{
	{RequestInvalid, "The request cannot be read: a field is missing, unknown, repeated or out of bounds.", "Correct the field that the facts name and send the request again.", 400},
	{TokenInvalid, "The token cannot be read or opened: damaged, made for another verifier, or not in its one form.", "Make a new token with `troth token new` for this verifier's key set.", 400},
	{EvidenceInvalid, "The host's evidence fails a check before any value is compared: form, signature, key or challenge.", "Attest again; if it repeats, run `troth-hostd doctor` and enrol the host again.", 400},
	{Forbidden, "The caller's certificate or user does not have the role that this call needs.", "Use a certificate of the right role, or ask the operator.", 403},
	{Internal, "Something failed that is not the caller's doing; nothing was decided.", "Try again; if it repeats, read the service's log.", 500},
	{TPMUnavailable, "The TPM does not answer.", "Run `troth-hostd doctor`; check the device or socket in the configuration and who else holds it.", 503},
	{TPMBusy, "The TPM's state kept changing while it was asked, or its queue is full.", "Try again in a moment.", 503},
	{VerifierUnreachable, "No verifier of the list answers, and every trusted launch needs one.", "Check network, certificates and the verifier's /readyz; running domains are not affected.", 503},
	{HostNotApproved, "The verifier does not know this host, or no operator has approved it, or its approval was revoked.", "An operator runs `troth host approve NAME` after comparing the EK digest.", 403},
	{NoDynamicLaunch, "The PCRs 17-22 hold no dynamic launch: all ones, or zero without an event.", "Boot the host through its measured launch (tboot or Secure Launch) and attest again.", 403},
	{BankUnallocated, "The PCR bank that the profile names is not allocated in this TPM.", "Allocate the SHA-256 bank in the firmware or with tpm2_pcrallocate and reboot.", 403},
	{HostRebooted, "The host's TPM was reset since the verdict, or its counters or clock went back.", "Let the host attest again; after TPM2_Clear enrol it again.", 409},
	{HostRelaunched, "A dynamic launch or a resume from suspend took place since the verdict.", "Let the host attest again.", 409},
	{PCRMismatch, "A PCR differs from the reference value, or the values differ from the signed digest.", "Compare with `troth host why NAME`; boot the approved software, or import new reference values.", 403},
	{ProfileNotMet, "The host does not meet the profile that the token asks for.", "Use a host that meets it (`troth host list`), or a token for another profile.", 403},
	{VerdictMissing, "The host has no verdict yet.", "Wait for the first attestation, or see why it fails with `troth host why NAME`.", 409},
	{VerdictStale, "The host's verdict is older than it may be.", "The host attests again with the fresh challenge and repeats the request by itself; if it persists, check the verifier and the network.", 409},
	{VerdictForOtherHost, "The verdict belongs to another host, TPM key or TLS key than the one that uses it.", "Each host uses its own verdict over its own key; attest again on this host.", 403},
	{VerdictContraindicated, "The verifier judged this host and found against it.", "See the failed checks with `troth host why NAME`.", 403},
	{SealedToOtherState, "The TPM refuses to unseal: PCRs or counters are not those that the release key was sealed to.", "Let the host attest again; it gets a release key for its present state.", 409},
	{SealedBlobDamaged, "The sealed release key or the sealed nonce is damaged.", "Let the host attest again; if it repeats, check the verifier's and the host's TPM.", 502},
	{TokenExpired, "The token's time is over, for a first release or for its chain.", "Make a new token with a later expiry.", 403},
	{TokenUsed, "The token's chain is held by another launch or host, or is closed.", "Stop that launch first, migrate it, or make a new token.", 409},
	{TokenConstraint, "What is to run differs from what the token pins, or the token pins too little for what it carries.", "Launch what the token pins, or make a token that pins what is launched.", 403},
	{ConfigurationNotAllowed, "The domain's XML has an element, a value or a device that trusted domains may not have.", "Remove what the facts name from the domain's XML.", 403},
	{ConfigurationChanged, "The domain that libvirt has is not the one that was judged.", "Define it again through troth; look for another client that edits the domain.", 409},
	{ImageNotMeasured, "An image that has to be measured was not, or cannot be.", "Use a local file or block device in raw or qcow2 with an explicit format, and make it readable.", 403},
	{ImageChanged, "An image changed during or after its measurement.", "Find the writer, restore the image, and launch again.", 409},
	{GrantMissing, "A trusted domain was started without a grant of hostd.", "Start it through troth: `troth domain launch` or `troth domain start`.", 403},
	{HookNotLive, "libvirt does not call the qemu hook, so the gate is open.", "Install the hook, send libvirtd or virtqemud a SIGHUP, and run `troth-hostd doctor`.", 503},
	{HostdUnreachable, "The hook cannot reach hostd, so trusted domains do not start.", "Start troth-hostd; untrusted domains are not affected.", 503},
	{DestinationUnproven, "The destination of a migration did not prove itself.", "Migrate to a host with a fresh verdict of the same verifier.", 403},
	{NotRegistered, "No trusted domain with this UUID is registered here.", "See `troth domain list`; launch the domain first.", 404},
}

// Codes returns the table in its order.
func Codes() []CodeInfo { return slices.Clone(codes) }

// Order is the code's place in the table, or -1.
func (c Code) Order() int {
	return slices.IndexFunc(codes, func(i CodeInfo) bool { return i.Code == c })
}

// Info is the code's row; an unknown code gets Internal's.
func (c Code) Info() CodeInfo {
	if i := c.Order(); i >= 0 {
		return codes[i]
	}
	return codes[Internal.Order()]
}

// Fact is one thing that was seen: Want and Got where two values were compared,
// Value where one is told.
type Fact struct {
	Name  string `json:"name"`
	Want  string `json:"want,omitempty"`
	Got   string `json:"got,omitempty"`
	Value string `json:"value,omitempty"`
}

// Refusal is the answer "no": what, why, what to do, and what was seen.
type Refusal struct {
	Code     Code   `json:"code"`
	Sentence string `json:"sentence"`
	Remedy   string `json:"remedy"`
	Facts    []Fact `json:"facts,omitempty"`
	Also     []Code `json:"also,omitempty"`
}

// Refuse makes a refusal; the remedy is the table's.
func Refuse(c Code, sentence string, facts ...Fact) *Refusal {
	return &Refusal{Code: c, Sentence: sentence, Remedy: c.Info().Remedy, Facts: facts}
}

// Error is one line: code, sentence, facts. Values are quoted where they could
// carry control bytes.
func (r *Refusal) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s", r.Code, r.Sentence)
	for _, f := range r.Facts {
		switch {
		case f.Value != "":
			fmt.Fprintf(&b, "; %s: %s", clean(f.Name), clean(f.Value))
		default:
			fmt.Fprintf(&b, "; %s: want %s, got %s", clean(f.Name), clean(f.Want), clean(f.Got))
		}
	}
	return b.String()
}

func clean(s string) string {
	if s == "" {
		return "nothing"
	}
	if q := fmt.Sprintf("%q", s); q != `"`+s+`"` {
		return q
	}
	return s
}

// Is makes errors.Is(err, &Refusal{Code: c}) compare codes.
func (r *Refusal) Is(target error) bool {
	t, ok := target.(*Refusal)
	return ok && t.Code == r.Code
}

// First chooses the refusal whose code stands first in the table and names the
// codes of the others in Also. It returns nil for none.
func First(rs []*Refusal) *Refusal {
	rs = slices.DeleteFunc(slices.Clone(rs), func(r *Refusal) bool { return r == nil })
	if len(rs) == 0 {
		return nil
	}
	slices.SortStableFunc(rs, func(a, b *Refusal) int { return a.Code.Order() - b.Code.Order() })
	first := *rs[0]
	also := slices.Clone(first.Also)
	for _, r := range rs[1:] {
		also = append(append(also, r.Code), r.Also...)
	}
	slices.SortFunc(also, func(a, b Code) int { return a.Order() - b.Order() })
	first.Also = slices.DeleteFunc(slices.Compact(also), func(c Code) bool { return c == first.Code })
	if len(first.Also) == 0 {
		first.Also = nil
	}
	return &first
}

// Problem is a refusal over HTTP (RFC 9457, application/problem+json).
type Problem struct {
	Type   string `json:"type"`
	Title  string `json:"title"`
	Status int    `json:"status"`
	Detail string `json:"detail,omitempty"`
	Code   Code   `json:"code"`
	Remedy string `json:"remedy,omitempty"`
	Facts  []Fact `json:"facts,omitempty"`
	Also   []Code `json:"also,omitempty"`

	// Challenge is a fresh challenge beside verdict-stale, so that the host can
	// attest and repeat its request at once.
	Challenge string `json:"challenge,omitempty"`
}

// ProblemType begins the `type` of every problem; the code follows.
const ProblemType = "urn:troth:refusal:"

// Problem gives the refusal's form over HTTP.
func (r *Refusal) Problem() Problem {
	i := r.Code.Info()
	return Problem{Type: ProblemType + string(r.Code), Title: i.Meaning, Status: i.Status, Detail: r.Sentence,
		Code: r.Code, Remedy: r.Remedy, Facts: r.Facts, Also: r.Also}
}

// Refusal gives back what Problem was made from. A code that this version does
// not know becomes Internal, told in the facts.
func (p Problem) Refusal() *Refusal {
	r := &Refusal{Code: p.Code, Sentence: p.Detail, Remedy: p.Remedy, Facts: p.Facts, Also: p.Also}
	if r.Code.Order() < 0 {
		r.Facts = append(slices.Clone(r.Facts), Fact{Name: "code", Value: string(p.Code)})
		r.Code = Internal
	}
	if r.Sentence == "" {
		r.Sentence = r.Code.Info().Meaning
	}
	return r
}
