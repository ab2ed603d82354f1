package chip

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"troth/tpm"
)

// device is what the actor owns. Its methods run on the actor only.
type device struct {
	tpm     transport.TPM
	link    link
	ctx     context.Context // of the operation that runs
	pin     tpm.Name        // of the SRK, or zero
	keys    *keys           // nil until first used, and after a key was missing
	epoch   *epoch          // nil until Install
	unclean bool            // the last sweep failed
}

// keys are the persistent keys, read once.
type keys struct {
	ak       *tpm.AK
	srk      *tpm.SRK
	srkPlain tpm2.TPMTPublic
}

func newDevice(l link, config Config) *device {
	d := &device{link: l, pin: config.SRK}
	d.tpm = sender{l, func() context.Context { return d.ctx }}
	if config.Wrap != nil {
		d.tpm = config.Wrap(d.tpm)
	}
	return d
}

// classify adds to an error the one of this package's errors by which callers act.
func classify(err error) error {
	for _, known := range []error{
		ErrUnavailable, ErrBusy, ErrOtherState, ErrDamaged, ErrNotProvisioned, ErrNoSeed, ErrBankUnallocated,
		context.Canceled, context.DeadlineExceeded,
	} {
		if errors.Is(err, known) {
			return err
		}
	}
	var rc tpm2.TPMRC
	var check *tpm.CheckError
	switch {
	case errors.As(err, &rc):
		switch {
		case isRC(err, tpm2.TPMRCRetry, tpm2.TPMRCYielded, tpm2.TPMRCTesting, tpm2.TPMRCNVRate,
			tpm2.TPMRCObjectMemory, tpm2.TPMRCSessionMemory, tpm2.TPMRCPCRChanged):
			return fmt.Errorf("%w: %w", ErrBusy, err)
		default:
			return fmt.Errorf("%w: %w", ErrUnavailable, err)
		}
	case errors.As(err, &check):
		return err
	default: // an answer that go-tpm cannot decode, or whose HMAC is wrong
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
}

// isRC tells whether err is one of the TPM's response codes, whichever handle or parameter it is about.
func isRC(err error, codes ...tpm2.TPMRC) bool {
	for _, c := range codes {
		if errors.Is(err, c) {
			return true
		}
	}
	return false
}

// command sends a command without sessions that go-tpm has no type for, and returns its parameters.
func (d *device) command(cc tpm2.TPMCC, handlesAndParameters []byte) ([]byte, error) {
	b := binary.BigEndian.AppendUint16(nil, uint16(tpm2.TPMSTNoSessions))
	b = binary.BigEndian.AppendUint32(b, uint32(10+len(handlesAndParameters)))
	b = binary.BigEndian.AppendUint32(b, uint32(cc))
	response, err := d.tpm.Send(append(b, handlesAndParameters...))
	if err != nil {
		return nil, err
	}
	if len(response) < 10 {
		return nil, fmt.Errorf("%w: response of %d bytes", ErrUnavailable, len(response))
	}
	if rc := tpm2.TPMRC(binary.BigEndian.Uint32(response[6:])); rc != tpm2.TPMRCSuccess {
		return nil, rc
	}
	return response[10:], nil
}

// sweep flushes every transient object and session but the epoch's. It trusts the TPM's own list, so that it finds
// what an answer that got lost created.
func (d *device) sweep() (err error) {
	defer func() {
		if p := recover(); p != nil { // as in guarded, which calls this
			err = fmt.Errorf("%w: cannot decode its answer: %v", ErrUnavailable, p)
		}
	}()
	var object, session tpm2.TPMHandle
	if d.epoch != nil {
		object = d.epoch.object
		if d.epoch.session != nil {
			session = d.epoch.session.Handle()
		}
	}
	objects, err := d.handles(firstTransient)
	if err != nil {
		return err
	}
	sessions, err := d.handles(firstLoadedSession)
	if err != nil {
		return err
	}
	saved, err := d.handles(firstSavedSession)
	if err != nil {
		return err
	}
	var errs []error
	for _, h := range objects {
		if h != object {
			errs = append(errs, d.flush(h))
		}
	}
	for _, h := range append(sessions, saved...) {
		if session == 0 || h&sessionIndex != session&sessionIndex {
			errs = append(errs, d.flush(h))
		}
	}
	return errors.Join(errs...)
}

// Ranges of handles (TPM 2.0 Part 2, 7.4). Loaded and saved sessions are listed apart, but the low 24 bits of a
// session's handle name it in either list.
const (
	firstTransient     tpm2.TPMHandle = 0x80000000
	firstLoadedSession tpm2.TPMHandle = 0x02000000
	firstSavedSession  tpm2.TPMHandle = 0x03000000
	sessionIndex       tpm2.TPMHandle = 0x00FFFFFF
)

// handles lists the handles of the range that begins with first.
func (d *device) handles(first tpm2.TPMHandle) ([]tpm2.TPMHandle, error) {
	const most = 64 // more than any TPM has slots for
	r, err := tpm2.GetCapability{Capability: tpm2.TPMCapHandles, Property: uint32(first), PropertyCount: most}.Execute(d.tpm)
	if err != nil {
		return nil, err
	}
	list, err := r.CapabilityData.Data.Handles()
	if err != nil {
		return nil, fmt.Errorf("%w: cannot list handles: %w", ErrUnavailable, err)
	}
	return list.Handle, nil
}

// flush frees a handle. One that is gone already is no error: the sweep and the TPM race after a lost answer.
func (d *device) flush(h tpm2.TPMHandle) error {
	_, err := tpm2.FlushContext{FlushHandle: h}.Execute(d.tpm)
	if isRC(err, tpm2.TPMRCHandle) {
		return nil
	}
	return err
}

// load returns the persistent keys, reading and checking them the first time.
func (d *device) load() (*keys, error) {
	if d.keys != nil {
		return d.keys, nil
	}
	akPublic, err := d.readPublic(handleAK)
	if err != nil {
		return nil, err
	}
	srkPublic, err := d.readPublic(handleSRK)
	if err != nil {
		return nil, err
	}
	if akPublic == nil || srkPublic == nil {
		return nil, ErrNotProvisioned
	}
	k := &keys{}
	if k.ak, err = tpm.ParseAK(akPublic); err != nil {
		return nil, fmt.Errorf("handle %#x: %w", uint32(handleAK), err)
	}
	if k.srk, err = tpm.ParseSRK(srkPublic); err != nil {
		return nil, fmt.Errorf("handle %#x: %w", uint32(handleSRK), err)
	}
	if d.pin != (tpm.Name{}) && d.pin != k.srk.Name() {
		return nil, fmt.Errorf("%w: the SRK is %v, want %v", ErrNotProvisioned, k.srk.Name(), d.pin)
	}
	plain, err := tpm2.Unmarshal[tpm2.TPMTPublic](srkPublic)
	if err != nil {
		return nil, err
	}
	k.srkPlain = *plain
	d.keys = k
	return k, nil
}

// missing forgets the keys if the error says that one is gone, as after TPM2_Clear.
func (d *device) missing(err error) error {
	if !isRC(err, tpm2.TPMRCHandle, tpm2.TPMRCReferenceH0) {
		return err
	}
	d.keys = nil
	return fmt.Errorf("%w: %w", ErrNotProvisioned, err)
}

// readPublic returns the TPMT_PUBLIC of a persistent object, or nil if there is none.
func (d *device) readPublic(h tpm2.TPMHandle) ([]byte, error) {
	r, err := tpm2.ReadPublic{ObjectHandle: h}.Execute(d.tpm)
	if isRC(err, tpm2.TPMRCHandle) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("cannot read object %#x: %w", uint32(h), err)
	}
	return r.OutPublic.Bytes(), nil
}

// salted are the options of a session that only the TPM with the SRK can share, and that encrypts what the TPM
// answers (TPM 2.0 Part 1, 19.6.8 and 21).
func (k *keys) salted() []tpm2.AuthOption {
	return []tpm2.AuthOption{tpm2.Salted(handleSRK, k.srkPlain), tpm2.AESEncryption(128, tpm2.EncryptOut)}
}

// named returns the handle with its Name and an empty password.
func named(h tpm2.TPMHandle, n tpm.Name) tpm2.AuthHandle {
	return tpm2.AuthHandle{Handle: h, Name: tpm2.TPM2BName{Buffer: n[:]}, Auth: tpm2.PasswordAuth(nil)}
}
