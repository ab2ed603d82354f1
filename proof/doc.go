// Package proof holds the documents that travel between tenant, verifier, host
// and engine: it makes them, reads them strictly, verifies and judges them.
//
//	tenant ──token──▶ engine ──token──▶ host ──evidence──▶ verifier
//	                                    host ◀──verdict───
//	                                    host ──token, statement──▶
//	                                    host ◀──receipt, sealed nonce──
//	tenant ◀──proof── engine ◀──proof── host
//
// It promises: every document has one encoding; every hashed, MACed or signed
// message begins with its own label (label.go); a signature is accepted in one
// form only (ES256, low S); Verify answers "is it genuine?" and Validate "is it
// what I asked for?", and neither answers anything else. Secrets are a type
// that cannot be printed or marshalled.
//
// It trusts: the verifier's root key that a tenant pinned, and the code of
// crypto/*, go-jose and tlog. It opens no file and no socket and asks no clock:
// time is a parameter. Random numbers are drawn only where documents are made.
package proof
