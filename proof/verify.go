package proof

import (
	"errors"
	"fmt"
	"slices"

	"troth/tpm"
	"troth/tpm/pcr"
)

// Check is one numbered check of docs/proof-format.md.
type Check struct {
	Number int    `json:"number"`
	Name   string `json:"name"`
	Says   string `json:"says"` // what holds once it passed
}

// Invalid says which check a proof does not pass.
type Invalid struct {
	Check
	Err error
}

func (e *Invalid) Error() string {
	return fmt.Sprintf("not genuine: check %d (%s): %v", e.Number, e.Name, e.Err)
}

func (e *Invalid) Unwrap() error { return e.Err } //mutate:keep it decides nothing

// ErrNoKey is Verify's answer without a key: VerifyPublic asks the narrower question.
var ErrNoKey = errors.New("cannot verify without the tenant's key: the MAC was not checked")

// ErrNoTrust is the answer when no verifier is pinned.
var ErrNoTrust = errors.New("cannot verify without trust: no verifier is pinned")

// replicaSkew is how far, in seconds, the clocks of a verifier's replicas may be apart.
const replicaSkew = 10

// A host's owner can slow the TPM's clock or set it forward (TPM 2.0 Part 1,
// 36.3), so verdict lifetimes are compared with 15 % to spare.
const (
	clockSparePercent = 115
	// A clock slowed by 14 % shows 115 % of a lifetime after 134 % of it.
	slowedPercent = 134
)

// verification carries what one check has read to those after it.
type verification struct {
	raw   []byte
	trust *Trust
	key   *Key

	proof         *Proof
	set           *KeySet
	keys          *VerdictKeys
	statement     *Statement
	link          Digest
	verdict       *Verdict
	verdictDigest Digest
	receipt       *Receipt
	ak            *tpm.AK
	quote         *tpm.Attested
	pcrs          pcr.Values
	root          Digest
}

type step struct {
	Check
	run func(*verification) error
}

// publicSteps need no secret. Their order is PROTOCOL's: form, signatures, what
// names what, the quote, the counters, the dynamic launch.
var publicSteps = []step{
	{Check{1, "proof-form", "The proof is in its one form."}, checkProofForm},
	{Check{2, "proof-sum", "No byte of the proof was damaged."}, checkProofSum},
	{Check{3, "trust-keys", "The pinned root signed the verifier's keys."}, checkTrustKeys},
	{Check{4, "statement-form", "The statement is in its one form."}, checkStatementForm},
	{Check{5, "verdict-signature", "The verifier signed the verdict."}, checkVerdictSignature},
	{Check{6, "receipt-signature", "The verifier signed the receipt."}, checkReceiptSignature},
	{Check{7, "verdict-issuer", "The verdict is from the pinned verifier."}, checkVerdictIssuer},
	{Check{8, "receipt-issuer", "The receipt is from the pinned verifier."}, checkReceiptIssuer},
	{Check{9, "keys-valid", "The verifier's keys were valid when the receipt was signed."}, checkKeysValid},
	{Check{10, "receipt-token", "The receipt is for the token that the statement names."}, checkReceiptToken},
	{Check{11, "receipt-statement", "The receipt is for this statement."}, checkReceiptStatement},
	{Check{12, "receipt-verdict", "The receipt was given under this verdict."}, checkReceiptVerdict},
	{Check{13, "receipt-previous", "Receipt and statement name the same link before this one."}, checkReceiptPrevious},
	{Check{14, "receipt-attempt", "Receipt and statement are of the same attempt."}, checkReceiptAttempt},
	{Check{15, "receipt-time", "The receipt was signed while the verdict was valid."}, checkReceiptTime},
	{Check{16, "verdict-status", "The verdict affirms the host."}, checkVerdictStatus},
	{Check{17, "tpm-class", "The host's TPM is of a class that is trusted."}, checkClass},
	{Check{18, "ak-form", "The AK is a restricted signing key of a TPM."}, checkAK},
	{Check{19, "statement-host", "The statement names this AK."}, checkStatementHost},
	{Check{20, "statement-verdict", "The statement names this verdict."}, checkStatementVerdict},
	{Check{21, "verdict-host", "The verdict is about this AK."}, checkVerdictHost},
	{Check{22, "quote-signature", "This AK, in the endorsement hierarchy of its TPM, signed the quote."}, checkQuote},
	{Check{23, "quote-selection", "The quote is over the PCRs that the verdict names."}, checkSelection},
	{Check{24, "pcr-list", "The proof lists these PCRs and no others."}, checkPCRList},
	{Check{25, "pcr-values", "The listed values are those that the TPM signed."}, checkPCRValues},
	{Check{26, "verdict-pcrs", "They are the values that the verifier judged."}, checkVerdictPCRs},
	{Check{27, "batch-path", "The path leads from the statement to one root."}, checkPath},
	{Check{28, "quote-binding", "The TPM signed this root, its count and this verdict."}, checkExtraData},
	{Check{29, "reset-count", "The TPM was not reset between verdict and launch."}, checkReset},
	{Check{30, "restart-count", "No dynamic launch or suspend took place between verdict and launch."}, checkRestart},
	{Check{31, "clock-forward", "The TPM signed after the verdict's evidence."}, checkClockForward},
	{Check{32, "clock-lifetime", "The TPM signed within the verdict's lifetime."}, checkClockLifetime},
	{Check{33, "dynamic-launch", "The PCRs hold a dynamic launch."}, checkDynamicLaunch},
}

// keySteps need the tenant's key.
var keySteps = []step{
	{Check{34, "key-token", "The statement names the token that this key belongs to."}, checkKeyToken},
	{Check{35, "mac", "Whoever made this proof held the token's nonce, and nothing in it was changed since."}, checkMAC},
}

// Checks lists all checks in their order.
func Checks() []Check {
	var list []Check
	for _, s := range slices.Concat(publicSteps, keySteps) {
		list = append(list, s.Check)
	}
	return list
}

// Public is what holds of a proof without the tenant's key: host, verdict,
// receipt and statement belong together and are signed. It does not say that
// the token's nonce was there.
type Public struct {
	Proof     *Proof
	Statement *Statement
	Link      Digest // of the statement
	Verdict   *Verdict
	Receipt   *Receipt
	AK        tpm.Name
	PCRs      pcr.Values
	Window    Window
	Held      []Check // what was checked
}

// Window is when the launch took place, in unix seconds by the verifier's
// clock: not before the nonce was released, not after the TPM's clock could
// still have signed under this verdict.
type Window struct {
	From int64 `json:"from"`
	To   int64 `json:"to"`
}

// Genuine is a proof that passed every check with the tenant's key.
type Genuine struct {
	Public
	Key *Key
}

// Verify asks: is this proof genuine? It runs every check in order and returns
// *Invalid with the first that fails. It does not ask whether the tenant wanted
// what runs (Validate), and nothing in it is compared with the present time.
func Verify(p []byte, t *Trust, k *Key) (*Genuine, error) {
	if k == nil {
		return nil, ErrNoKey
	}
	v := &verification{raw: p, trust: t, key: k}
	public, err := v.run(slices.Concat(publicSteps, keySteps))
	if err != nil {
		return nil, err
	}
	return &Genuine{*public, k}, nil
}

// VerifyPublic asks the narrower question that everybody can ask: did this
// verifier affirm this host and release for this statement, and did this TPM
// sign for it? Only the tenant can ask whether the nonce was there.
func VerifyPublic(p []byte, t *Trust) (*Public, error) {
	v := &verification{raw: p, trust: t}
	return v.run(publicSteps)
}

func (v *verification) run(steps []step) (*Public, error) {
	if v.trust == nil {
		return nil, ErrNoTrust
	}
	var held []Check
	for _, s := range steps {
		if err := s.run(v); err != nil {
			return nil, &Invalid{s.Check, err}
		}
		held = append(held, s.Check)
	}
	return &Public{v.proof, v.statement, v.link, v.verdict, v.receipt, v.ak.Name(), v.pcrs, v.window(), held}, nil
}

func (v *verification) window() Window {
	lifetime := v.verdict.Expires - v.verdict.IssuedAt
	to := v.verdict.IssuedAt + (lifetime*slowedPercent+99)/100
	return Window{v.receipt.IssuedAt, max(v.receipt.IssuedAt, to)}
}
