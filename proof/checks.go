package proof

import (
	"bytes"
	"errors"
	"fmt"
	"slices"

	"troth/tpm"
)

// The checks of verify.go's table, one function each, in its order.

func checkProofForm(v *verification) (err error) {
	v.proof, err = ParseProof(v.raw)
	return err
}

// checkProofSum keeps PROTOCOL's rule that every changed byte is a refusal for
// those without the key too; who changes a proof on purpose can compute it, and
// meets the signatures and the MAC.
func checkProofSum(v *verification) error {
	want, err := v.proof.sum()
	if err != nil { //mutate:keep what was read in its one form can be written
		return err
	}
	return same(want, v.proof.Sum)
}

func checkTrustKeys(v *verification) (err error) {
	if v.set, err = v.trust.KeySet(); err != nil {
		return err
	}
	v.keys, err = v.set.Keys()
	return err //mutate:keep without keys no signature holds: checks 5 and 6
}

func checkStatementForm(v *verification) (err error) {
	v.link = Link(v.proof.Statement)
	v.statement, err = ParseStatement(v.proof.Statement)
	return err
}

func checkVerdictSignature(v *verification) (err error) {
	v.verdictDigest = VerdictDigest(v.proof.Verdict)
	v.verdict, err = ParseVerdict(v.proof.Verdict, v.keys)
	return err
}

func checkReceiptSignature(v *verification) (err error) {
	v.receipt, err = ParseReceipt(v.proof.Receipt, v.keys)
	return err
}

func checkVerdictIssuer(v *verification) error {
	return sameText(v.trust.Verifier, v.verdict.Issuer)
}

func checkReceiptIssuer(v *verification) error {
	return sameText(v.trust.Verifier, v.receipt.Issuer)
}

func checkKeysValid(v *verification) error {
	if !v.set.ValidAt(v.receipt.IssuedAt) {
		return fmt.Errorf("the receipt's time %d is not in %d-%d", v.receipt.IssuedAt, v.set.NotBefore, v.set.NotAfter)
	}
	return nil
}

func checkReceiptToken(v *verification) error { return same(v.statement.Token, v.receipt.Token) }

func checkReceiptStatement(v *verification) error { return same(v.link, v.receipt.Statement) }

func checkReceiptVerdict(v *verification) error { return same(v.verdictDigest, v.receipt.Verdict) }

func checkReceiptPrevious(v *verification) error {
	s, r := v.statement.Previous, v.receipt.Previous
	if s == nil || r == nil {
		if s != r {
			return errors.New("one names a previous link and the other does not")
		}
		return nil
	}
	return same(*s, *r)
}

func checkReceiptAttempt(v *verification) error {
	if v.statement.Attempt != v.receipt.Attempt {
		return fmt.Errorf("want %d, got %d", v.statement.Attempt, v.receipt.Attempt)
	}
	return nil
}

func checkReceiptTime(v *verification) error {
	from, to := v.verdict.IssuedAt-replicaSkew, v.verdict.Expires+replicaSkew
	if v.receipt.IssuedAt < from || v.receipt.IssuedAt > to {
		return fmt.Errorf("the receipt's time %d is not in %d-%d", v.receipt.IssuedAt, from, to)
	}
	return nil
}

func checkVerdictStatus(v *verification) error { return sameText(Affirming, v.verdict.Status) }

func checkClass(v *verification) error {
	if v.verdict.Class != tpm.Hardware && !v.trust.AllowSoftwareTPM {
		return fmt.Errorf("the TPM is a %s TPM, and trust.json does not say allow_software_tpm", v.verdict.Class)
	}
	return nil
}

func checkAK(v *verification) (err error) {
	v.ak, err = tpm.ParseAK(v.proof.AK)
	return err
}

func checkStatementHost(v *verification) error {
	return sameText(v.ak.Name().String(), v.statement.Host.String())
}

func checkStatementVerdict(v *verification) error { return same(v.verdictDigest, v.statement.Verdict) }

func checkVerdictHost(v *verification) error {
	return sameText(v.ak.Name().String(), v.verdict.Host.String())
}

// checkQuote: signature first, then magic, type, form and qualified signer (package tpm).
func checkQuote(v *verification) (err error) {
	v.quote, err = v.ak.VerifyQuote(v.proof.Quote.Quote())
	return err
}

func checkSelection(v *verification) error {
	if want := v.verdict.Selection.Marshal(); !bytes.Equal(want, v.quote.Selection) {
		return fmt.Errorf("want %x (%v), got %x", want, v.verdict.Selection, v.quote.Selection)
	}
	return nil
}

func checkPCRList(v *verification) error {
	var listed []int
	for _, p := range v.proof.PCRs {
		listed = append(listed, p.Index)
	}
	if want := v.verdict.Selection.Indexes(); !slices.Equal(want, listed) {
		return fmt.Errorf("want the PCRs %v, got %v", want, listed)
	}
	return nil
}

func checkPCRValues(v *verification) (err error) {
	if v.pcrs, err = PCRValues(v.proof.PCRs); err != nil { //mutate:keep the proof's form has no index twice
		return err
	}
	got, err := v.pcrs.Digest(v.verdict.Selection)
	if err != nil { //mutate:keep pcr-list found every index
		return err
	}
	return same(v.quote.PCRDigest, got)
}

func checkVerdictPCRs(v *verification) error { return same(v.verdict.PCRDigest, v.quote.PCRDigest) }

func checkPath(v *verification) (err error) {
	v.root, err = rootFrom(v.link, v.proof.Index, v.proof.Count, v.proof.Path)
	return err
}

func checkExtraData(v *verification) error {
	if want := QuoteExtraData(v.root, v.proof.Count, v.verdictDigest); !bytes.Equal(want, v.quote.ExtraData) {
		return fmt.Errorf("want %x, got %x", want, v.quote.ExtraData)
	}
	return nil
}

func checkReset(v *verification) error {
	if v.quote.Counters.Reset != v.verdict.Counters.Reset {
		return fmt.Errorf("want %d, got %d", v.verdict.Counters.Reset, v.quote.Counters.Reset)
	}
	return nil
}

func checkRestart(v *verification) error {
	if v.quote.Counters.Restart != v.verdict.Counters.Restart {
		return fmt.Errorf("want %d, got %d", v.verdict.Counters.Restart, v.quote.Counters.Restart)
	}
	return nil
}

func checkClockForward(v *verification) error {
	if v.quote.Clock < v.verdict.Clock {
		return fmt.Errorf("the quote's clock of %d ms is before the verdict's of %d ms", v.quote.Clock, v.verdict.Clock)
	}
	return nil
}

// checkClockLifetime bounds what was quoted after the verdict's clock; what was
// quoted before it is clock-forward's.
func checkClockLifetime(v *verification) error {
	most := uint64(v.verdict.Expires-v.verdict.IssuedAt) * 10 * clockSparePercent // ms
	if v.quote.Clock > v.verdict.Clock && v.quote.Clock-v.verdict.Clock > most {
		return fmt.Errorf("the quote is %d ms after the verdict's evidence, more than %d ms", v.quote.Clock-v.verdict.Clock, most)
	}
	return nil
}

func checkDynamicLaunch(v *verification) error { return v.pcrs.DynamicLaunch() }

func checkKeyToken(v *verification) error { return same(v.key.Token, v.statement.Token) }

func checkMAC(v *verification) error {
	want, err := v.proof.mac(v.key.Nonce)
	if err != nil { //mutate:keep what was read in its one form can be written
		return err
	}
	if !want.Equal(v.proof.MAC) {
		return errors.New("it was not made with this token's nonce over this proof")
	}
	return nil
}

func same(want, got Digest) error {
	if !want.Equal(got) {
		return fmt.Errorf("want %s, got %s", want, got)
	}
	return nil
}

func sameText(want, got string) error {
	if want != got {
		return fmt.Errorf("want %s, got %s", clean(want), clean(got))
	}
	return nil
}
