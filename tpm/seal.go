package tpm

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"

	"troth/tpm/pcr"
)

// MaxSeed is the largest seed that SealSeed takes; every TPM seals at least this much (MAX_SYM_DATA).
const MaxSeed = 128

// Operands of TPM2_PolicyCounterTimer in the release policy (TPM 2.0 Part 3, 23.12).
const (
	counterOffset = 16 // resetCount in TPMS_TIME_INFO: after time and clock, 8 bytes each
	operationEQ   = 0  // TPM_EO_EQ
)

// SealedSeed is a seed that one TPM alone can unseal, in one state of its PCRs and one launch of one boot. It is safe
// to carry in the open.
type SealedSeed struct {
	Public        []byte // TPMT_PUBLIC of the sealed object
	Duplicate     []byte // its TPM2B_PRIVATE buffer, wrapped for the SRK
	EncryptedSeed []byte // TPM2B_ENCRYPTED_SECRET buffer: the wrapping key, for the SRK
}

// CounterOperand returns operandB, offset and operation of the TPM2_PolicyCounterTimer that binds to the counters.
func CounterOperand(c Counters) (operandB []byte, offset, operation uint16) {
	b := binary.BigEndian.AppendUint32(nil, c.Reset)
	return binary.BigEndian.AppendUint32(b, c.Restart), counterOffset, operationEQ
}

// ReleasePolicy returns the digest of PolicyPCR(sel, pcrDigest) followed by PolicyCounterTimer(reset ‖ restart, equal)
// (TPM 2.0 Part 3, 23.7 and 23.12). Identical launches leave identical PCRs: the counters tell them apart.
func ReleasePolicy(sel pcr.Selection, pcrDigest [32]byte, c Counters) [32]byte {
	operand, offset, operation := CounterOperand(c)
	args := binary.BigEndian.AppendUint16(operand, offset)
	args = binary.BigEndian.AppendUint16(args, operation)
	argsDigest := sha256.Sum256(args)

	var d [32]byte
	d = extendPolicy(d, tpm2.TPMCCPolicyPCR, sel.Marshal(), pcrDigest[:])
	return extendPolicy(d, tpm2.TPMCCPolicyCounterTimer, argsDigest[:])
}

func extendPolicy(old [32]byte, cc tpm2.TPMCC, args ...[]byte) [32]byte {
	b := binary.BigEndian.AppendUint32(old[:], uint32(cc))
	for _, a := range args {
		b = append(b, a...)
	}
	return sha256.Sum256(b)
}

// SealSeed seals the seed to the TPM that has the SRK, without a TPM: as an importable duplicate of a data object
// (TPM 2.0 Part 1, 23.3) that the policy alone opens. userWithAuth is clear, so that no password does; the DUP role
// needs a policy that names TPM2_Duplicate, so that the object cannot be taken further.
func SealSeed(srk *SRK, seed []byte, policy [32]byte) (*SealedSeed, error) {
	if len(seed) == 0 || len(seed) > MaxSeed {
		return nil, fmt.Errorf("cannot seal %d bytes: want 1 to %d", len(seed), MaxSeed)
	}
	if policy == ([32]byte{}) {
		return nil, errors.New("cannot seal under an empty policy")
	}
	parent, err := unmarshalPublic(srk.public)
	if err != nil {
		return nil, fmt.Errorf("cannot seal: %w", err)
	}
	key, err := tpm2.ImportEncapsulationKey(parent)
	if err != nil {
		return nil, fmt.Errorf("cannot seal: %w", err)
	}

	// unique = H(seedValue ‖ data) hides the data from whoever sees the public area (Part 1, 27.5.3.2).
	obfuscation := make([]byte, sha256.Size)
	rand.Read(obfuscation) // never fails (crypto/rand)
	unique := sha256.Sum256(append(append([]byte(nil), obfuscation...), seed...))
	public := tpm2.Marshal(sealedTemplate(policy, unique))
	sensitive := tpm2.Marshal(tpm2.TPMTSensitive{
		SensitiveType: tpm2.TPMAlgKeyedHash,
		SeedValue:     tpm2.TPM2BDigest{Buffer: obfuscation},
		Sensitive:     tpm2.NewTPMUSensitiveComposite(tpm2.TPMAlgKeyedHash, &tpm2.TPM2BSensitiveData{Buffer: seed}),
	})
	name := nameOf(public)
	duplicate, secret, err := tpm2.CreateDuplicate(rand.Reader, key, name[:], sensitive)
	if err != nil {
		return nil, fmt.Errorf("cannot seal: %w", err)
	}
	return &SealedSeed{Public: public, Duplicate: duplicate, EncryptedSeed: secret}, nil
}

func sealedTemplate(policy, unique [32]byte) tpm2.TPMTPublic {
	return tpm2.TPMTPublic{
		Type:             tpm2.TPMAlgKeyedHash,
		NameAlg:          tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{AdminWithPolicy: true, NoDA: true},
		AuthPolicy:       tpm2.TPM2BDigest{Buffer: policy[:]},
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgKeyedHash, &tpm2.TPMSKeyedHashParms{
			Scheme: tpm2.TPMTKeyedHashScheme{Scheme: tpm2.TPMAlgNull},
		}),
		Unique: tpm2.NewTPMUPublicID(tpm2.TPMAlgKeyedHash, &tpm2.TPM2BDigest{Buffer: unique[:]}),
	}
}

// Check returns an error unless the sealed object's public area is one that SealSeed makes: a host that lets an
// object with userWithAuth into its TPM would take a seed that anyone else can unseal for its own. It returns the
// policy digest.
func (s *SealedSeed) Check() (policy [32]byte, err error) {
	p, err := unmarshalPublic(s.Public)
	if err != nil {
		return policy, fmt.Errorf("cannot accept sealed seed: %w", err)
	}
	attributes := tpm2.Marshal(p.ObjectAttributes)
	want := sealedTemplate(policy, [32]byte{})
	if w := tpm2.Marshal(want.ObjectAttributes); string(w) != string(attributes) {
		return policy, fmt.Errorf("cannot accept sealed seed: %w", failed(CheckAttributes, fmt.Sprintf("%x", w), "%x", attributes))
	}
	unique, err := p.Unique.KeyedHash()
	if err != nil || len(unique.Buffer) != 32 || len(p.AuthPolicy.Buffer) != 32 {
		return policy, fmt.Errorf("cannot accept sealed seed: %w", failed(CheckKey, "", "not a data object with a SHA-256 policy"))
	}
	policy = [32]byte(p.AuthPolicy.Buffer)
	if string(tpm2.Marshal(sealedTemplate(policy, [32]byte(unique.Buffer)))) != string(s.Public) {
		return policy, fmt.Errorf("cannot accept sealed seed: %w", failed(CheckKey, "", "type, nameAlg or scheme differ"))
	}
	return policy, nil
}
