package chip

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"

	"troth/tpm"
)

// Persistent handles. The owner's range begins at 0x81000000 (TCG Registry of Reserved TPM 2.0 Handles, 2.3.1); ours
// are away from the ones that other software takes by convention.
const (
	handleSRK tpm2.TPMHandle = 0x81005401
	handleAK  tpm2.TPMHandle = 0x81005402
	// An EK goes to its conventional handle, or, where another object is, to one of these.
	spareEK tpm2.TPMHandle = 0x81015401
)

// NV indexes of certificates of the EK certificates' issuers (TCG EK Credential Profile 2.5, 2.2.1.5.2).
const firstChainIndex, lastChainIndex tpm2.TPMHandle = 0x01C00100, 0x01C001FF

const maxCertificate = 16 << 10

// EK is an endorsement key and what its maker says of it.
type EK struct {
	Handle      uint32
	Certificate []byte // DER
	Public      []byte // TPMT_PUBLIC
}

// Identity is what a host enrols with.
type Identity struct {
	// EKs that have a certificate, in the order in which certificates are looked for (RSA-2048, P-256, P-384). The
	// first is the one that ActivateCredential uses. A TPM without any certificate has one EK here, P-256, with an
	// empty Certificate.
	EKs       []EK
	AKPublic  []byte // TPMT_PUBLIC
	SRKPublic []byte // TPMT_PUBLIC
	// Chain are DER certificates of issuers that the TPM itself keeps, if it does.
	Chain [][]byte
}

// Provision makes the keys that are not there yet and returns the identity. It never replaces anything: a crash
// between two steps leaves keys that the next call finds, and a second call changes nothing.
func (c *Chip) Provision(ctx context.Context) (*Identity, error) {
	return do(ctx, c, "provision", func(d *device) (*Identity, error) {
		d.keys = nil
		// Nothing here is secret, so each step stands alone: EKs first, since an AK without an EK proves nothing.
		id, err := d.endorsement(true)
		if err != nil {
			return nil, err
		}
		if err := d.ensure(tpm2.TPMRHOwner, tpm.SRKTemplate(), handleSRK); err != nil {
			return nil, fmt.Errorf("storage root key: %w", err)
		}
		seasoning := make([]byte, 32)
		rand.Read(seasoning) // never fails (crypto/rand)
		if err := d.ensure(tpm2.TPMRHEndorsement, tpm.AKTemplate(seasoning), handleAK); err != nil {
			return nil, fmt.Errorf("attestation key: %w", err)
		}
		return d.identity(id)
	})
}

// Identity returns what Provision made, or ErrNotProvisioned.
func (c *Chip) Identity(ctx context.Context) (*Identity, error) {
	return do(ctx, c, "read identity", func(d *device) (*Identity, error) {
		id, err := d.endorsement(false)
		if err != nil {
			return nil, err
		}
		return d.identity(id)
	})
}

func (d *device) identity(id *Identity) (*Identity, error) {
	k, err := d.load()
	if err != nil {
		return nil, err
	}
	id.AKPublic, id.SRKPublic = k.ak.Public(), k.srk.Public()
	return id, nil
}

// ensure makes a primary persistent at the handle if nothing is there. What is there is checked by load.
func (d *device) ensure(hierarchy tpm2.TPMHandle, template tpm2.TPMTPublic, h tpm2.TPMHandle) error {
	public, err := d.readPublic(h)
	if err != nil || public != nil {
		return err
	}
	_, err = d.persist(hierarchy, template, h)
	return err
}

// persist creates a primary and makes it persistent; the owner authorizes that, also in the endorsement hierarchy
// (TPM 2.0 Part 3, 28.5).
func (d *device) persist(hierarchy tpm2.TPMHandle, template tpm2.TPMTPublic, h tpm2.TPMHandle) (public []byte, err error) {
	r, err := tpm2.CreatePrimary{
		PrimaryHandle: tpm2.AuthHandle{Handle: hierarchy, Auth: tpm2.PasswordAuth(nil)},
		InPublic:      tpm2.New2B(template),
	}.Execute(d.tpm)
	if err != nil {
		return nil, fmt.Errorf("cannot create primary: %w", err)
	}
	defer func() { err = errors.Join(err, d.flush(r.ObjectHandle)) }()
	_, err = tpm2.EvictControl{
		Auth:             tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)},
		ObjectHandle:     &tpm2.NamedHandle{Handle: r.ObjectHandle, Name: r.Name},
		PersistentHandle: h,
	}.Execute(d.tpm)
	if err != nil {
		return nil, fmt.Errorf("cannot make object %#x persistent: %w", uint32(h), err)
	}
	return r.OutPublic.Bytes(), nil
}

// endorsement finds the EKs that have certificates and, if asked to, makes those that are not persistent yet.
func (d *device) endorsement(create bool) (*Identity, error) {
	id := &Identity{}
	templates := tpm.EKTemplates()
	for n, t := range templates {
		certificate, err := d.certificate(tpm2.TPMHandle(t.Certificate))
		if err != nil {
			return nil, err
		}
		if certificate == nil {
			continue
		}
		ek, err := d.endorsementKey(t, spareEK+tpm2.TPMHandle(n), certificate, create)
		if err != nil {
			return nil, fmt.Errorf("endorsement key %s: %w", t.Name, err)
		}
		id.EKs = append(id.EKs, *ek)
	}
	if len(id.EKs) == 0 {
		ek, err := d.endorsementKey(templates[1], spareEK+1, nil, create)
		if err != nil {
			return nil, fmt.Errorf("endorsement key %s: %w", templates[1].Name, err)
		}
		id.EKs = append(id.EKs, *ek)
	}
	var err error
	id.Chain, err = d.chain()
	return id, err
}

// endorsementKey finds the EK of a template at its conventional or its spare handle, or makes it at the first free.
func (d *device) endorsementKey(t tpm.EKTemplate, spare tpm2.TPMHandle, certificate []byte, create bool) (*EK, error) {
	for _, h := range []tpm2.TPMHandle{tpm2.TPMHandle(t.Handle), spare} {
		public, err := d.readPublic(h)
		if err != nil {
			return nil, err
		}
		if public == nil {
			if !create {
				continue
			}
			if public, err = d.persist(tpm2.TPMRHEndorsement, t.Public, h); err != nil {
				return nil, err
			}
			return &EK{uint32(h), certificate, public}, nil
		}
		if ours(public, t, certificate) {
			return &EK{uint32(h), certificate, public}, nil
		}
	}
	if create {
		return nil, errors.New("its handles hold other objects")
	}
	return nil, ErrNotProvisioned
}

// ours tells whether a public area is an EK of the template, with the certificate's key if that can be read.
func ours(public []byte, t tpm.EKTemplate, certificate []byte) bool {
	ek, err := tpm.ParseEK(public)
	if err != nil || ek.Template() != t.Name {
		return false
	}
	c, err := x509.ParseCertificate(certificate)
	if err != nil {
		return true // the verifier judges certificates; the template is right
	}
	switch k := ek.Key().(type) {
	case *rsa.PublicKey:
		return k.Equal(c.PublicKey)
	case *ecdsa.PublicKey:
		return k.Equal(c.PublicKey)
	default:
		panic("EK of unknown type") // ParseEK makes no other
	}
}

// certificate reads the DER certificate in an NV index, or nil if the index does not exist.
func (d *device) certificate(index tpm2.TPMHandle) ([]byte, error) {
	b, err := d.readNV(index)
	if err != nil || b == nil {
		return nil, err
	}
	var der asn1.RawValue
	if _, err := asn1.Unmarshal(b, &der); err != nil { // makers pad the index
		return nil, fmt.Errorf("cannot read NV index %#x: no certificate: %w", uint32(index), err)
	}
	return der.FullBytes, nil
}

// chain reads the issuers' certificates, which lie one after the other over one or more indexes.
func (d *device) chain() ([][]byte, error) {
	handles, err := d.handles(firstChainIndex)
	if err != nil {
		return nil, err
	}
	var all []byte
	for _, h := range handles {
		if h < firstChainIndex || h > lastChainIndex {
			continue
		}
		b, err := d.readNV(h)
		if err != nil {
			return nil, err
		}
		all = append(all, b...)
	}
	var chain [][]byte
	for len(all) > 0 {
		var der asn1.RawValue
		rest, err := asn1.Unmarshal(all, &der)
		if err != nil || der.Tag != asn1.TagSequence {
			break // padding
		}
		chain = append(chain, der.FullBytes)
		all = rest
	}
	return chain, nil
}

// readNV reads an NV index, or returns nil if it does not exist or was never written.
func (d *device) readNV(index tpm2.TPMHandle) ([]byte, error) {
	p, err := tpm2.NVReadPublic{NVIndex: index}.Execute(d.tpm)
	if isRC(err, tpm2.TPMRCHandle) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("cannot read NV index %#x: %w", uint32(index), err)
	}
	public, err := p.NVPublic.Contents()
	if err != nil {
		return nil, fmt.Errorf("cannot read NV index %#x: %w", uint32(index), err)
	}
	if !public.Attributes.Written {
		return nil, nil
	}
	if public.DataSize > maxCertificate {
		return nil, fmt.Errorf("cannot read NV index %#x: %d bytes, at most %d", uint32(index), public.DataSize, maxCertificate)
	}
	var data []byte
	for len(data) < int(public.DataSize) {
		const chunk = 512 // the least that TPM_PT_NV_BUFFER_MAX may be
		auth := tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)}
		if public.Attributes.AuthRead {
			auth = tpm2.AuthHandle{Handle: index, Name: p.NVName, Auth: tpm2.PasswordAuth(nil)}
		}
		r, err := tpm2.NVRead{
			AuthHandle: auth,
			NVIndex:    &tpm2.NamedHandle{Handle: index, Name: p.NVName},
			Size:       uint16(min(chunk, int(public.DataSize)-len(data))),
			Offset:     uint16(len(data)),
		}.Execute(d.tpm)
		if err != nil {
			return nil, fmt.Errorf("cannot read NV index %#x: %w", uint32(index), err)
		}
		if len(r.Data.Buffer) == 0 {
			return nil, fmt.Errorf("cannot read NV index %#x: %w: it returns nothing", uint32(index), ErrUnavailable)
		}
		data = append(data, r.Data.Buffer...)
	}
	return data, nil
}
