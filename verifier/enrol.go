package verifier

import (
	"context"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"time"

	"troth/proof"
	"troth/tpm"
	"troth/verifier/store"
)

// enrolmentAge is how long a credential waits for its activation.
const enrolmentAge = 10 * time.Minute

// maxEKs is how many EKs a TPM may show: RSA, P-256, P-384 and one to spare.
const maxEKs = 4

var namePattern = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,62}$`)

func checkName(field, name string) *proof.Refusal {
	if namePattern.MatchString(name) {
		return nil
	}
	return proof.Refuse(proof.RequestInvalid, fmt.Sprintf("%s is not a name: 1 to 63 of a-z 0-9 . _ -, beginning with a letter or digit", field),
		proof.Fact{Name: field, Got: strconv.Quote(cut(name, 80))})
}

func cut(s string, n int) string {
	if len(s) > n {
		return s[:n] + "…"
	}
	return s
}

func itoa[T int | int64 | uint32 | uint64](n T) string { return fmt.Sprint(n) }

// EK is an endorsement key as a host shows it.
type EK struct{ Certificate, Public []byte }

// Enrolment is a host's identity, presented over its TLS key.
type Enrolment struct {
	Name             string
	Challenge        []byte
	EKs              []EK // the first is proven and counts; what stands behind it is not looked at
	AK, SRK          []byte
	SRKCertification tpm.Quote
}

// Credential can be opened by the TPM alone that has both EK and AK.
type Credential struct {
	ID              string
	Blob, Encrypted []byte
}

// enrolment is the stored step between credential and activation.
type enrolment struct {
	Host    Host         `json:"host"`
	Secret  proof.Digest `json:"secret"` // digest of what the credential holds
	Expires int64        `json:"expires"`
	Done    bool         `json:"done"`
}

// secretDigest is what the store keeps in place of a credential's secret.
func secretDigest(id string, secret []byte) proof.Digest {
	return proof.Hash(proof.LabelEnrolment, []byte(id), secret)
}

// Enrol checks an identity and answers a credential. Nothing is trusted yet: Activate shows that AK and EK live in one TPM,
// and an operator approves. If we crash after the store was written, the host enrols again and gets a new credential.
func (v *Verifier) Enrol(ctx context.Context, spki proof.Digest, req Enrolment) (*Credential, error) {
	h, ek, refusal := v.identify(spki, req)
	if refusal != nil {
		return nil, refusal
	}
	if refusal := v.conflict(h); refusal != nil {
		return nil, refusal
	}
	if refusal := v.useChallenge(req.Challenge); refusal != nil {
		return nil, refusal
	}
	secret := proof.RandomSecret(32)
	defer secret.Forget()
	blob, encrypted, err := tpm.MakeCredential(ek, h.AKName, secret.Reveal())
	if err != nil {
		return nil, internal("cannot make credential", err)
	}
	// One open enrolment for each identity over each key: repeating replaces it, and nobody fills the store.
	id := h.identity().String()[:32]
	e := enrolment{Host: *h, Secret: secretDigest(id, secret.Reveal()), Expires: v.now().Add(enrolmentAge).Unix()}
	if err := v.store.Apply(ctx, store.Write{Kind: kindEnrolment, Name: id, Rev: store.Any, Body: encode(e)}); err != nil {
		return nil, internal("cannot keep enrolment", err)
	}
	v.log.Info("enrolment begun", "host", strconv.Quote(h.Name), "ek", h.EK.String(), "ak", h.AKName.String(), "class", string(h.Class))
	return &Credential{id, blob, encrypted}, nil
}

// identify makes a Host out of what was presented, or says which check failed. Of the EKs it takes the first alone, whose
// private half Activate proves: a certificate is public, and whoever shows another's has not its TPM.
func (v *Verifier) identify(spki proof.Digest, req Enrolment) (*Host, *tpm.EK, *proof.Refusal) {
	if r := checkName("name", req.Name); r != nil {
		return nil, nil, r
	}
	if len(req.EKs) == 0 || len(req.EKs) > maxEKs {
		return nil, nil, proof.Refuse(proof.RequestInvalid, "eks has a wrong length", proof.Fact{Name: "eks", Want: "1 to 4", Got: itoa(len(req.EKs))})
	}
	if r := v.checkChallenge(req.Challenge, spki, v.hostBySPKI(spki)); r != nil {
		return nil, nil, r
	}
	ek, err := tpm.ParseEK(req.EKs[0].Public)
	if err != nil {
		return nil, nil, badEvidence("eks[0].public", err)
	}
	class, err := ek.CheckCertificate(req.EKs[0].Certificate, v.cfg.Roots, v.cfg.Intermediates...)
	if err != nil {
		return nil, nil, badEvidence("eks[0].certificate", err)
	}
	h := &Host{Name: req.Name, State: Pending, Class: class, EK: ek.Digest(), AK: req.AK, SRK: req.SRK, SPKI: spki}
	if err := h.complete(0); err != nil {
		return nil, nil, badEvidence("", err)
	}
	extra := proof.EnrolExtraData(req.Challenge, spki)
	if err := h.ak.VerifyCertify(req.SRKCertification, extra, h.srk.Name()); err != nil {
		return nil, nil, badEvidence("srk_certification", err)
	}
	return h, ek, nil
}

// badEvidence names the field and the TPM check that failed.
func badEvidence(field string, err error) *proof.Refusal {
	facts := []proof.Fact{}
	var check *tpm.CheckError
	switch {
	case errors.As(err, &check):
		facts = append(facts, proof.Fact{Name: name(field, check.Check), Want: check.Want, Got: check.Got})
	case field != "":
		facts = append(facts, proof.Fact{Name: field, Value: "refused"})
	}
	return proof.Refuse(proof.EvidenceInvalid, err.Error(), facts...)
}

func name(field, check string) string {
	if field == "" {
		return check
	}
	return field + ": " + check
}

// conflict keeps what belongs to another host: a name to the TPM that has it, EK, AK and TLS key to their host.
func (v *Verifier) conflict(h *Host) *proof.Refusal {
	v.mu.RLock()
	defer v.mu.RUnlock()
	for _, other := range v.hosts {
		sameTPM := h.EK == other.EK
		var f proof.Fact
		switch {
		case other.Name == h.Name && !sameTPM:
			f = proof.Fact{Name: "name", Want: "EK " + other.EK.String(), Got: "EK " + h.EK.String()}
		case other.Name != h.Name && sameTPM:
			f = proof.Fact{Name: "ek", Want: "host " + other.Name, Got: "host " + h.Name}
		case other.Name != h.Name && other.AKName == h.AKName:
			f = proof.Fact{Name: "ak", Want: "host " + other.Name, Got: "host " + h.Name}
		case other.Name != h.Name && other.SPKI == h.SPKI:
			f = proof.Fact{Name: "tls key", Want: "host " + other.Name, Got: "host " + h.Name}
		case other.Name == h.Name && other.State == Revoked:
			return proof.Refuse(proof.HostNotApproved, "the host was revoked", proof.Fact{Name: "state", Value: string(Revoked)})
		default:
			continue
		}
		return proof.Refuse(proof.Forbidden, "the identity belongs to another host", f)
	}
	return nil
}

// Activate takes the secret out of the credential: the TPM with the EK has the AK too. The host is then pending.
//
//	credential made ──secret──▶ pending ──operator──▶ approved ◀──operator──▶ revoked
//
// Host and enrolment change in one compare-and-swap: of two callers one wins, and the other finds it done.
func (v *Verifier) Activate(ctx context.Context, spki proof.Digest, id string, secret []byte) (State, error) {
	for range 3 {
		state, err := v.activate(ctx, spki, id, secret)
		if errors.Is(err, store.ErrConflict) {
			continue
		}
		return state, err
	}
	return "", internal("cannot activate", store.ErrConflict)
}

func (v *Verifier) activate(ctx context.Context, spki proof.Digest, id string, secret []byte) (State, error) {
	unknown := proof.Refuse(proof.Forbidden, "there is no such enrolment over this key", proof.Fact{Name: "id", Got: strconv.Quote(cut(id, 40))})
	d, err := v.store.Get(ctx, kindEnrolment, id)
	if errors.Is(err, store.ErrNotFound) {
		return "", unknown
	}
	if err != nil {
		return "", internal("cannot read enrolment", err)
	}
	var e enrolment
	if err := json.Unmarshal(d.Body, &e); err != nil {
		return "", internal("stored enrolment is damaged", err)
	}
	if e.Host.SPKI != spki || e.Expires <= v.now().Unix() {
		return "", unknown
	}
	got := secretDigest(id, secret)
	if subtle.ConstantTimeCompare(got[:], e.Secret[:]) != 1 {
		v.log.Warn("enrolment refused", "host", strconv.Quote(e.Host.Name), "cause", "wrong secret")
		return "", proof.Refuse(proof.EvidenceInvalid, "the secret is not the credential's", proof.Fact{Name: "secret", Want: "what the credential holds", Got: "another"})
	}
	h := e.Host
	if err := h.complete(0); err != nil {
		return "", internal("stored enrolment is damaged", err)
	}
	if r := v.conflict(&h); r != nil { // another may have come first since Enrol; the claims below decide for good
		return "", r
	}
	old := v.hostByName(h.Name)
	if old != nil && old.sameIdentity(&h) {
		return old.State, nil // nothing new: an approved host stays approved
	}
	if e.Done && old != nil {
		return old.State, nil
	}
	rev := int64(0)
	if old != nil {
		rev = old.rev
		h.Profiles = old.Profiles
	}
	e.Done = true
	err = v.store.Apply(ctx,
		store.Write{Kind: kindEnrolment, Name: id, Rev: d.Rev, Body: encode(e)},
		store.Write{Kind: kindHost, Name: h.Name, Rev: rev, Body: encode(h), Claims: h.claims()})
	var taken *store.TakenError
	if errors.As(err, &taken) {
		return "", proof.Refuse(proof.Forbidden, "the identity belongs to another host", proof.Fact{Name: taken.Claim, Want: taken.Kind + " " + taken.Name, Got: "host " + h.Name})
	}
	if err != nil {
		return "", fmt.Errorf("cannot keep host: %w", err)
	}
	h.rev = rev + 1
	v.mu.Lock()
	v.keep(old, &h)
	v.mu.Unlock()
	v.log.Info("host enrolled", "host", strconv.Quote(h.Name), "ek", h.EK.String(), "ak", h.AKName.String(), "state", string(h.State), "again", old != nil)
	return h.State, nil
}
