package verifier

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"troth/proof"
)

// Keys are the verifier's keys. An attacker who can read verdict.pem can sign verdicts and receipts, who can read token.pem
// can open every token, who can read root.pem can do both in a new key set: the service needs no root.pem to run, so take it
// off the machine after init.
type Keys struct {
	Verdict   *proof.SigningKey
	Token     map[string]*proof.TokenPrivateKey // by key id; old ones stay for open chains
	Challenge proof.Secret
	KeySet    string // signed by the root
	Root      proof.JWK
	Issuer    string
	Public    *proof.VerdictKeys
}

// Files of a key directory. token-*.pem hold token keys of the past.
const (
	fileRoot      = "root.pem"
	fileVerdict   = "verdict.pem"
	fileToken     = "token.pem"
	fileChallenge = "challenge.key"
	fileKeySet    = "keys.jws"
	fileTrust     = "trust.json"
)

// keySetValidity is how long the first key set holds.
const keySetValidity = 2 * 365 * 24 * time.Hour

// InitKeys makes root, verdict, token and challenge key in dir, signs the key set and writes the trust.json that tenants
// pin. It refuses if one of the files is there: trust state is never overwritten and never made by default.
func InitKeys(dir, issuer string, allowSoftware bool, now time.Time) error {
	names := []string{fileRoot, fileVerdict, fileToken, fileChallenge, fileKeySet, fileTrust}
	for _, n := range names {
		if _, err := os.Lstat(filepath.Join(dir, n)); !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("cannot make keys: %s is there already", filepath.Join(dir, n))
		}
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("cannot make keys: %w", err)
	}
	files, err := newKeys(issuer, allowSoftware, now)
	if err != nil {
		return fmt.Errorf("cannot make keys: %w", err)
	}
	for i, n := range names {
		mode := os.FileMode(0o600)
		if n == fileKeySet || n == fileTrust {
			mode = 0o644
		}
		// If we crash here some files are there: the next init refuses, and the operator removes them.
		if err := writeNew(filepath.Join(dir, n), files[i], mode); err != nil {
			return fmt.Errorf("cannot make keys: %w", err)
		}
	}
	return nil
}

// newKeys gives the contents of the files in the order of InitKeys.
func newKeys(issuer string, allowSoftware bool, now time.Time) ([][]byte, error) {
	root, err := proof.GenerateSigningKey()
	if err != nil {
		return nil, err
	}
	verdict, err := proof.GenerateSigningKey()
	if err != nil {
		return nil, err
	}
	token, err := proof.GenerateTokenKey()
	if err != nil {
		return nil, err
	}
	set, err := proof.SignKeySet(&proof.KeySet{Issuer: issuer, IssuedAt: now.Unix(), NotBefore: now.Add(-time.Minute).Unix(),
		NotAfter: now.Add(keySetValidity).Unix(), VerdictKeys: []proof.JWK{verdict.JWK()}, TokenKeys: []proof.TokenKey{token.Public()}}, root)
	if err != nil {
		return nil, err
	}
	trust, err := (&proof.Trust{Verifier: issuer, Root: root.JWK(), Keys: set, AllowSoftwareTPM: allowSoftware}).Encode()
	if err != nil {
		return nil, err
	}
	challenge := make([]byte, 32)
	rand.Read(challenge)
	rootPEM, err1 := root.PEM()
	verdictPEM, err2 := verdict.PEM()
	tokenPEM, err3 := token.PEM()
	return [][]byte{rootPEM, verdictPEM, tokenPEM, []byte(hex.EncodeToString(challenge) + "\n"), []byte(set), trust},
		errors.Join(err1, err2, err3)
}

func writeNew(path string, b []byte, mode os.FileMode) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	return errors.Join(err, f.Sync(), f.Close())
}

// LoadKeys reads a key directory and checks that the key set names the verdict key and every token key that is in use.
func LoadKeys(dir string) (*Keys, error) {
	read := func(name string) ([]byte, error) {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return nil, fmt.Errorf("cannot load keys (made by troth-verifierd init): %w", err)
		}
		return b, nil
	}
	k := &Keys{Token: map[string]*proof.TokenPrivateKey{}}
	b, err := read(fileVerdict)
	if err != nil {
		return nil, err
	}
	if k.Verdict, err = proof.ParseSigningKey(b); err != nil {
		return nil, fmt.Errorf("%s: %w", fileVerdict, err)
	}
	if b, err = read(fileChallenge); err != nil {
		return nil, err
	}
	raw, err := hex.DecodeString(strings.TrimSpace(string(b)))
	if err != nil || len(raw) != 32 {
		return nil, fmt.Errorf("%s: not 32 bytes in hex", fileChallenge)
	}
	k.Challenge = proof.NewSecret(raw)
	if b, err = read(fileTrust); err != nil {
		return nil, err
	}
	trust, err := proof.ParseTrust(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", fileTrust, err)
	}
	if b, err = read(fileKeySet); err != nil {
		return nil, err
	}
	k.Root, k.KeySet = trust.Root, strings.TrimSpace(string(b))
	set, err := proof.ParseKeySet(k.KeySet, k.Root)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", fileKeySet, err)
	}
	if k.Public, err = set.Keys(); err != nil {
		return nil, fmt.Errorf("%s: %w", fileKeySet, err)
	}
	// A verdict that no tenant could verify is not signed: refuse to start instead.
	if !slices.ContainsFunc(set.VerdictKeys, func(j proof.JWK) bool { return j.KeyID == k.Verdict.KeyID() }) {
		return nil, fmt.Errorf("%s: the key set does not name the verdict key %s", fileKeySet, k.Verdict.KeyID())
	}
	if now := time.Now().Unix(); !set.ValidAt(now) {
		return nil, fmt.Errorf("%s: the key set is not valid now", fileKeySet)
	}
	k.Issuer = set.Issuer
	old, err := filepath.Glob(filepath.Join(dir, "token-*.pem"))
	if err != nil {
		return nil, fmt.Errorf("cannot load keys: %w", err)
	}
	for _, path := range append([]string{filepath.Join(dir, fileToken)}, old...) {
		b, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("cannot load keys: %w", err)
		}
		t, err := proof.ParseTokenPrivateKey(b)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		k.Token[t.KeyID()] = t
	}
	for _, t := range set.TokenKeys {
		if k.Token[t.KeyID] == nil {
			return nil, fmt.Errorf("%s: no file holds the token key %s that the key set names", fileKeySet, t.KeyID)
		}
	}
	return k, nil
}
