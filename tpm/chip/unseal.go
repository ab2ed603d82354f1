package chip

import (
	"context"
	"encoding/binary"
	"fmt"

	"github.com/google/go-tpm/tpm2"

	"troth/tpm"
	"troth/tpm/pcr"
)

// maxPolicyRestarts is how often Unseal starts its policy again because some PCR, IMA's PCR 10 as a rule, was
// extended between PolicyPCR and Unseal.
const maxPolicyRestarts = 8

// epoch is what Install left in the TPM, and what is needed to put it there again.
type epoch struct {
	private  tpm2.TPM2BPrivate // wrapped by the SRK's TPM for itself
	public   []byte
	name     tpm2.TPM2BName
	sel      pcr.Selection
	counters tpm.Counters

	object  tpm2.TPMHandle
	session tpm2.Session // nil: none; renew makes one
	dirty   bool         // the session's policy digest is not empty
}

// Install imports and loads a sealed seed and starts the session that will unseal it, once per epoch. It replaces the
// seed before; if it fails before the seed is loaded, the one before stays.
func (c *Chip) Install(ctx context.Context, s tpm.SealedSeed, sel pcr.Selection, counters tpm.Counters) error {
	_, err := do(ctx, c, "install sealed seed", func(d *device) (struct{}, error) {
		return struct{}{}, d.install(s, sel, counters)
	})
	return err
}

func (d *device) install(s tpm.SealedSeed, sel pcr.Selection, counters tpm.Counters) error {
	if _, err := s.Check(); err != nil {
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	k, err := d.load()
	if err != nil {
		return err
	}
	imported, err := tpm2.Import{
		ParentHandle: named(handleSRK, k.srk.Name()),
		ObjectPublic: tpm2.BytesAs2B[tpm2.TPMTPublic](s.Public),
		Duplicate:    tpm2.TPM2BPrivate{Buffer: s.Duplicate},
		InSymSeed:    tpm2.TPM2BEncryptedSecret{Buffer: s.EncryptedSeed},
		Symmetric:    tpm2.TPMTSymDef{Algorithm: tpm2.TPMAlgNull},
	}.Execute(d.tpm)
	if err != nil {
		return damaged(d.missing(err))
	}
	e := &epoch{private: imported.OutPrivate, public: s.Public, sel: sel, counters: counters}
	if err := d.loadSeed(k, e); err != nil {
		return err
	}
	// The new seed is in. The sweep after a failure from here on keeps it and drops the old one.
	old := d.epoch
	d.epoch = e
	if old != nil {
		if err := d.discard(old); err != nil {
			return err
		}
	}
	return d.startSession(k, e)
}

// loadSeed loads the sealed object of the epoch.
func (d *device) loadSeed(k *keys, e *epoch) error {
	r, err := tpm2.Load{
		ParentHandle: named(handleSRK, k.srk.Name()),
		InPrivate:    e.private,
		InPublic:     tpm2.BytesAs2B[tpm2.TPMTPublic](e.public),
	}.Execute(d.tpm)
	if err != nil {
		return damaged(d.missing(err))
	}
	e.object, e.name = r.ObjectHandle, r.Name
	return nil
}

// damaged marks the codes by which a TPM refuses a blob that is not its own or not whole.
func damaged(err error) error {
	if isRC(err, tpm2.TPMRCIntegrity, tpm2.TPMRCValue, tpm2.TPMRCSize, tpm2.TPMRCBinding, tpm2.TPMRCECCPoint,
		tpm2.TPMRCInsufficient, tpm2.TPMRCHash, tpm2.TPMRCAttributes, tpm2.TPMRCType, tpm2.TPMRCSensitive, tpm2.TPMRCNoResult) {
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return err
}

// discard flushes an epoch's object and session.
func (d *device) discard(e *epoch) error {
	if err := d.flush(e.object); err != nil {
		return err
	}
	return d.endSession(e)
}

func (d *device) startSession(k *keys, e *epoch) error {
	session, _, err := tpm2.PolicySession(d.tpm, tpm2.TPMAlgSHA256, 32, k.salted()...)
	if err != nil {
		return d.missing(err)
	}
	e.session, e.dirty = session, false
	return nil
}

func (d *device) endSession(e *epoch) error {
	if e.session == nil {
		return nil
	}
	h := e.session.Handle()
	e.session = nil
	if h == tpm2.TPMRHNull { // an answer without continueSession: the TPM has flushed it
		return nil
	}
	return d.flush(h)
}

// Unseal returns the installed seed: PolicyPCR, PolicyCounterTimer, Unseal on the epoch's session, three commands.
// A policy that an extend overtook starts again up to 8 times, then ErrBusy. After any other error in the session it
// is flushed and everything is tried once more on a new one: an error leaves a session dirty, and a reset of the TPM
// takes object and session away. What fails on a new session is the state's fault: ErrOtherState.
func (c *Chip) Unseal(ctx context.Context) ([]byte, error) {
	return do(ctx, c, "unseal", func(d *device) ([]byte, error) {
		if d.epoch == nil {
			return nil, ErrNoSeed
		}
		k, err := d.load()
		if err != nil {
			return nil, err
		}
		seed, err := d.unsealOn(k, d.epoch)
		if err == nil || isRC(err, tpm2.TPMRCPCRChanged) {
			return seed, err
		}
		if err := d.renew(k, d.epoch, err); err != nil {
			return nil, err
		}
		seed, err = d.unsealOn(k, d.epoch)
		if isRC(err, tpm2.TPMRCPolicyFail, tpm2.TPMRCPolicy) {
			err = fmt.Errorf("%w: %w", ErrOtherState, err)
		}
		return seed, err
	})
}

// renew gives the epoch a new session, and loads the object again if it is gone: a reset of the TPM takes it, and so
// does a resource manager whose device was closed after an error.
func (d *device) renew(k *keys, e *epoch, cause error) error {
	if err := d.endSession(e); err != nil {
		d.unclean = true // a resource manager refuses handles that it does not know: go on, and sweep later
	}
	if !isRC(cause, tpm2.TPMRCPolicyFail, tpm2.TPMRCPolicy) {
		present, err := d.handles(e.object)
		if err != nil {
			return err
		}
		if len(present) == 0 || present[0] != e.object {
			if err := d.loadSeed(k, e); err != nil {
				return err
			}
		}
	}
	return d.startSession(k, e)
}

// unsealOn satisfies the policy on the epoch's session and unseals.
func (d *device) unsealOn(k *keys, e *epoch) ([]byte, error) {
	if e.session == nil {
		if err := d.startSession(k, e); err != nil {
			return nil, err
		}
	}
	var err error
	for range 1 + maxPolicyRestarts {
		if e.dirty {
			if err := d.policyRestart(e); err != nil {
				return nil, err
			}
		}
		e.dirty = true
		var seed []byte
		if seed, err = d.satisfyAndUnseal(e); err == nil {
			e.dirty = false // the TPM resets a policy session after its use (Part 1, 19.7.3)
			return seed, nil
		}
		if !isRC(err, tpm2.TPMRCPCRChanged) {
			return nil, err
		}
	}
	return nil, fmt.Errorf("%w: PCRs changed during each of %d attempts: %w", ErrBusy, 1+maxPolicyRestarts, err)
}

func (d *device) satisfyAndUnseal(e *epoch) ([]byte, error) {
	h := e.session.Handle()
	// An empty digest binds to the current values (TPM 2.0 Part 3, 23.7); the object's policy has the good ones.
	if _, err := (tpm2.PolicyPCR{PolicySession: h, Pcrs: selection(e.sel)}).Execute(d.tpm); err != nil {
		return nil, fmt.Errorf("PolicyPCR: %w", err)
	}
	if err := d.policyCounterTimer(h, e.counters); err != nil {
		return nil, fmt.Errorf("PolicyCounterTimer: %w", err)
	}
	r, err := tpm2.Unseal{ItemHandle: tpm2.AuthHandle{Handle: e.object, Name: e.name, Auth: e.session}}.Execute(d.tpm)
	if err != nil {
		return nil, fmt.Errorf("Unseal: %w", err)
	}
	return r.OutData.Buffer, nil
}

// policyCounterTimer sends TPM2_PolicyCounterTimer (TPM 2.0 Part 3, 23.12), which go-tpm does not have: session,
// operandB, offset, operation.
func (d *device) policyCounterTimer(session tpm2.TPMHandle, c tpm.Counters) error {
	operand, offset, operation := tpm.CounterOperand(c)
	b := binary.BigEndian.AppendUint32(nil, uint32(session))
	b = binary.BigEndian.AppendUint16(b, uint16(len(operand)))
	b = append(b, operand...)
	b = binary.BigEndian.AppendUint16(b, offset)
	b = binary.BigEndian.AppendUint16(b, operation)
	_, err := d.command(tpm2.TPMCCPolicyCounterTimer, b)
	return err
}

// policyRestart sends TPM2_PolicyRestart (TPM 2.0 Part 3, 11.2), which go-tpm does not have either.
func (d *device) policyRestart(e *epoch) error {
	_, err := d.command(tpm2.TPMCCPolicyRestart, binary.BigEndian.AppendUint32(nil, uint32(e.session.Handle())))
	return err
}
