package proof

import (
	"fmt"

	"troth/proof/strict"
	"troth/tpm"
	"troth/tpm/pcr"
)

// Bounds of a challenge: a verifier chooses its form, a host repeats it.
const (
	MinChallenge = 32
	MaxChallenge = 128
)

// QuoteDoc is a TPM's quote in a document.
type QuoteDoc struct {
	Message   Bytes `json:"message"`   // TPMS_ATTEST
	Signature Bytes `json:"signature"` // r‖s, 64 bytes, low S
}

// Quote is the form that package tpm verifies.
func (q QuoteDoc) Quote() tpm.Quote { return tpm.Quote{Message: q.Message, Signature: q.Signature} }

// PCR is one value of the SHA-256 bank.
type PCR struct {
	Index int    `json:"index"`
	Value Digest `json:"value"`
}

// PCRList writes the selected values in ascending order.
func PCRList(v pcr.Values, s pcr.Selection) []PCR {
	var list []PCR
	for _, i := range s.Indexes() {
		if d, ok := v[i]; ok {
			list = append(list, PCR{i, d})
		}
	}
	return list
}

// PCRValues reads a list: ascending, each index once, 0-23.
func PCRValues(list []PCR) (pcr.Values, error) {
	v := pcr.Values{}
	last := -1
	for i, p := range list {
		if p.Index <= last || p.Index > 23 {
			return nil, fmt.Errorf("pcrs[%d].index: %d is not above %d and below 24", i, p.Index, last)
		}
		last = p.Index
		v[p.Index] = p.Value
	}
	return v, nil
}

// Log is one measurement log.
type Log struct {
	Kind string `json:"kind"` // "tcg2": crypto-agile TCG2 log of the dynamic launch
	Data Bytes  `json:"data"`
}

// LogTCG2 is the kind of log that package tpm/eventlog reads.
const LogTCG2 = "tcg2"

const evidenceVersion = "troth-evidence/v1"

// Evidence is what a host sends each epoch.
type Evidence struct {
	Version   string   `json:"version"`
	Challenge Bytes    `json:"challenge"`
	AK        tpm.Name `json:"ak"`
	Quote     QuoteDoc `json:"quote"`
	PCRs      []PCR    `json:"pcrs"`
	Logs      []Log    `json:"logs,omitempty"`
}

func (e *Evidence) check() error {
	if err := checkVersion(e.Version, evidenceVersion); err != nil {
		return err
	}
	if len(e.Challenge) < MinChallenge || len(e.Challenge) > MaxChallenge {
		return fmt.Errorf("challenge: it has %d bytes, not %d-%d", len(e.Challenge), MinChallenge, MaxChallenge)
	}
	if len(e.Quote.Message) == 0 || len(e.Quote.Message) > 1024 || len(e.Quote.Signature) != 64 {
		return fmt.Errorf("quote: message or signature has a wrong length")
	}
	if _, err := PCRValues(e.PCRs); err != nil {
		return err
	}
	if len(e.Logs) > 4 {
		return fmt.Errorf("logs: there are more than 4")
	}
	for i, l := range e.Logs {
		if err := checkID(fmt.Sprintf("logs[%d].kind", i), l.Kind); err != nil {
			return err
		}
		if len(l.Data) > MaxLog {
			return fmt.Errorf("logs[%d].data: it has more than %d bytes", i, MaxLog)
		}
	}
	return nil
}

// Encode writes the evidence. Version is filled in.
func (e *Evidence) Encode() ([]byte, error) {
	e.Version = evidenceVersion
	if err := e.check(); err != nil {
		return nil, fmt.Errorf("cannot write evidence: %w", err)
	}
	return strict.Encode(e)
}

// ParseEvidence reads what Encode writes and nothing else.
func ParseEvidence(b []byte) (*Evidence, error) {
	var e Evidence
	if err := strict.Document(b, MaxEvidence, &e); err != nil {
		return nil, fmt.Errorf("cannot read evidence: %w", err)
	}
	if err := e.check(); err != nil {
		return nil, fmt.Errorf("cannot read evidence: %w", err)
	}
	return &e, nil
}

// AttestExtraData is what an attest quote signs beside the PCRs: the verifier's
// challenge and the digest of the host's TLS key (SPKI).
func AttestExtraData(challenge []byte, spki Digest) []byte {
	d := Hash(LabelAttest, challenge, spki[:])
	return d[:]
}

// EnrolExtraData is what the certification of the SRK signs.
func EnrolExtraData(challenge []byte, spki Digest) []byte {
	d := Hash(LabelEnrol, challenge, spki[:])
	return d[:]
}
