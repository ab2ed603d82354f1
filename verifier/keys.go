package verifier

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"troth/proof"
)

// Keys are the verifier's keys. An attacker who can read verdict.pem can sign verdicts and receipts, who can read token.pem
// can open every token, who can read root.pem can do both in a new key set: the service needs no root.pem to run, so take it
// off the machine after init.
type Keys struct {
	Verdict   *proof.SigningKey                 // the first of the key set: it signs verdicts
	Former    map[string]*proof.SigningKey      // by key id, others of the key set: they sign receipts for the verdicts that they signed
	Token     map[string]*proof.TokenPrivateKey // by key id; old ones stay for open chains
	Challenge proof.Secret
	KeySet    string // signed by the root
	Root      proof.JWK
	Issuer    string
	Issued    int64 // when the root signed the key set
	Public    *proof.VerdictKeys
}

// Files of a key directory. RotateKeys adds verdict-KEYID.pem and token-KEYID.pem; which key is used for what, the key set says.
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

// LoadKeys reads a key directory: the keys that the key set names, and no others.
func LoadKeys(dir string) (*Keys, error) {
	k := &Keys{Former: map[string]*proof.SigningKey{}, Token: map[string]*proof.TokenPrivateKey{}}
	set, text, root, err := readKeySet(dir)
	if err != nil {
		return nil, err
	}
	k.Root, k.KeySet, k.Issuer, k.Issued = root, text, set.Issuer, set.IssuedAt
	if k.Public, err = set.Keys(); err != nil {
		return nil, fmt.Errorf("%s: %w", fileKeySet, err)
	}
	if now := time.Now().Unix(); !set.ValidAt(now) {
		return nil, fmt.Errorf("%s: the key set is not valid now: troth-verifierd keys rotate makes another", fileKeySet)
	}
	b, err := readKeyFile(filepath.Join(dir, fileChallenge))
	if err != nil {
		return nil, err
	}
	raw, err := hex.DecodeString(strings.TrimSpace(string(b)))
	if err != nil || len(raw) != 32 {
		return nil, fmt.Errorf("%s: not 32 bytes in hex", fileChallenge)
	}
	k.Challenge = proof.NewSecret(raw)
	signing, err := readKeys(dir, fileVerdict, proof.ParseSigningKey)
	if err != nil {
		return nil, err
	}
	for i, j := range set.VerdictKeys {
		switch key := signing[j.KeyID]; {
		case key != nil && i == 0:
			k.Verdict = key
		case key != nil:
			k.Former[j.KeyID] = key
		case i == 0: // a verdict that no tenant could verify is not signed: refuse to start instead
			return nil, fmt.Errorf("%s: no file holds the verdict key %s, the first of the key set", fileKeySet, j.KeyID)
		}
	}
	token, err := readKeys(dir, fileToken, proof.ParseTokenPrivateKey)
	if err != nil {
		return nil, err
	}
	for _, t := range set.TokenKeys {
		if k.Token[t.KeyID] = token[t.KeyID]; k.Token[t.KeyID] == nil {
			return nil, fmt.Errorf("%s: no file holds the token key %s that the key set names", fileKeySet, t.KeyID)
		}
	}
	return k, nil
}

// readKeySet reads the key set and verifies it by the root that trust.json names.
func readKeySet(dir string) (set *proof.KeySet, text string, root proof.JWK, err error) {
	b, err := readKeyFile(filepath.Join(dir, fileTrust))
	if err != nil {
		return nil, "", root, err
	}
	trust, err := proof.ParseTrust(b)
	if err != nil {
		return nil, "", root, fmt.Errorf("%s: %w", fileTrust, err)
	}
	if b, err = readKeyFile(filepath.Join(dir, fileKeySet)); err != nil {
		return nil, "", root, err
	}
	text = strings.TrimSpace(string(b))
	if set, err = proof.ParseKeySet(text, trust.Root); err != nil {
		return nil, "", root, fmt.Errorf("%s: %w", fileKeySet, err)
	}
	return set, text, trust.Root, nil
}

func readKeyFile(path string) ([]byte, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("cannot load keys (made by troth-verifierd init): %w", err)
	}
	return b, nil
}

// readKeys reads NAME.pem, as init made it, and NAME-KEYID.pem, by key id.
func readKeys[K interface{ KeyID() string }](dir, name string, parse func([]byte) (K, error)) (map[string]K, error) {
	files, err := keyFiles(dir, name)
	if err != nil {
		return nil, err
	}
	all := map[string]K{}
	for _, path := range files {
		b, err := readKeyFile(path)
		if err != nil {
			return nil, err
		}
		k, err := parse(b)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		all[k.KeyID()] = k
	}
	return all, nil
}

func keyFiles(dir, name string) ([]string, error) {
	files, err := filepath.Glob(filepath.Join(dir, strings.TrimSuffix(name, ".pem")+"*.pem"))
	if err != nil {
		return nil, fmt.Errorf("cannot load keys: %w", err)
	}
	return files, nil
}

// signer is who signs a receipt for a verdict of this key: the same key, so that a host knows both or neither. The keys of the day sign where it is not here any more.
func (k *Keys) signer(keyID string) *proof.SigningKey {
	if former := k.Former[keyID]; former != nil {
		return former
	}
	return k.Verdict
}
