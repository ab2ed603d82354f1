// Package tpm speaks the chip's language without a chip: names, key templates, signed attestations, EK certificates,
// policy digests, sealing.
//
// The keys: an EK (endorsement key) is the TPM's identity, which its maker certified; an AK (attestation key) signs
// quotes, and MakeCredential ties it to an EK; an SRK (storage root key) is the parent under which SealSeed seals.
// Parse* accept exactly the public areas that this project makes, so that an accepted key cannot be duplicated,
// cannot sign what the TPM did not make, and has no second encoding.
//
// It promises that an [Attested] or a nil error comes only from bytes that the named key signed and that were read
// completely. Every check that fails is a [*CheckError]; nothing returns a boolean. It trusts the roots that the
// caller pins and crypto/x509, and go-tpm for marshalling and for the key transport of Part 1, appendix B and C.
package tpm
