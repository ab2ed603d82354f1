package tpm

import (
	"encoding/hex"

	"github.com/google/go-tpm/tpm2"
)

// AKTemplate returns the template of an AK: a P-256 primary of the endorsement hierarchy. unique is the template's
// seasoning, 32 random bytes or nil: the TPM derives a primary from its seed and the template, so a random one makes
// every provisioning another key, and a Clear that keeps the seed does not bring an old Name back.
func AKTemplate(unique []byte) tpm2.TPMTPublic {
	return tpm2.TPMTPublic{
		Type:    tpm2.TPMAlgECC,
		NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{
			FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true,
			NoDA: true, Restricted: true, SignEncrypt: true,
		},
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{
			Symmetric: tpm2.TPMTSymDefObject{Algorithm: tpm2.TPMAlgNull},
			Scheme: tpm2.TPMTECCScheme{
				Scheme:  tpm2.TPMAlgECDSA,
				Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSigSchemeECDSA{HashAlg: tpm2.TPMAlgSHA256}),
			},
			CurveID: tpm2.TPMECCNistP256,
			KDF:     tpm2.TPMTKDFScheme{Scheme: tpm2.TPMAlgNull},
		}),
		Unique: tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
			X: tpm2.TPM2BECCParameter{Buffer: unique},
			Y: tpm2.TPM2BECCParameter{Buffer: make([]byte, len(unique))},
		}),
	}
}

// SRKTemplate returns the TCG's P-256 SRK template (TCG TPM v2.0 Provisioning Guidance, 7.5.1).
func SRKTemplate() tpm2.TPMTPublic { return tpm2.ECCSRKTemplate }

// EKTemplate is a default template of the TCG EK Credential Profile 2.5, appendix B, and where its certificate is.
type EKTemplate struct {
	Name        string // the profile's name of the template
	Certificate uint32 // NV index of the certificate
	Handle      uint32 // persistent handle by convention
	Public      tpm2.TPMTPublic
}

// EKTemplates returns the templates in the order in which certificates are looked for.
func EKTemplates() []EKTemplate {
	return []EKTemplate{
		{"L-1", 0x01C00002, 0x81010001, tpm2.RSAEKTemplate},
		{"L-2", 0x01C0000A, 0x81010002, tpm2.ECCEKTemplate},
		{"H-3", 0x01C00016, 0x81010016, p384EK()},
	}
}

// policyB384 is PolicyB with SHA-384: PolicySecret(endorsement) or PolicyAuthorizeNV(0x01C07F02)
// (EK Credential Profile, B.6.3).
const policyB384 = "b26e7d28d11a50bc53d882bcf5fd3a1a074148bb35d3b4e4cb1c0ad9bde419cacb47ba09699646150f9fc000f3f80e12"

func p384EK() tpm2.TPMTPublic {
	policy, err := hex.DecodeString(policyB384)
	if err != nil {
		panic(err) // a constant of this file
	}
	return tpm2.TPMTPublic{
		Type:    tpm2.TPMAlgECC,
		NameAlg: tpm2.TPMAlgSHA384,
		ObjectAttributes: tpm2.TPMAObject{
			FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true,
			AdminWithPolicy: true, Restricted: true, Decrypt: true,
		},
		AuthPolicy: tpm2.TPM2BDigest{Buffer: policy},
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{
			Symmetric: tpm2.TPMTSymDefObject{
				Algorithm: tpm2.TPMAlgAES,
				KeyBits:   tpm2.NewTPMUSymKeyBits(tpm2.TPMAlgAES, tpm2.TPMKeyBits(256)),
				Mode:      tpm2.NewTPMUSymMode(tpm2.TPMAlgAES, tpm2.TPMAlgCFB),
			},
			Scheme:  tpm2.TPMTECCScheme{Scheme: tpm2.TPMAlgNull},
			CurveID: tpm2.TPMECCNistP384,
			KDF:     tpm2.TPMTKDFScheme{Scheme: tpm2.TPMAlgNull},
		}),
		Unique: tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{}),
	}
}
