package verifier

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"troth/proof"
	"troth/verifier/store"
)

// ReadKeySet reads the key set of a key directory, whether it is valid now or not.
func ReadKeySet(dir string) (*proof.KeySet, error) {
	set, _, _, err := readKeySet(dir)
	return set, err
}

// Rotation says what changes in a key set.
type Rotation struct {
	Verdict, Token bool     // a new key of this kind, which is used from now on; the others of the set stay good
	Revoke         []string // key ids that the set names no more; a key that was in use is replaced
}

// RotateKeys makes new keys in a key directory and has the root sign a new key set. The new private keys are written first; the new key set takes the old one's name in one
// step, and before that step nothing has changed. Tenants pin the root, so a set that it signed is all that they need.
func RotateKeys(dir string, root *proof.SigningKey, r Rotation, now time.Time) (*proof.KeySet, error) {
	old, _, pinned, err := readKeySet(dir)
	if err != nil {
		return nil, err
	}
	if root.KeyID() != pinned.KeyID {
		return nil, fmt.Errorf("cannot rotate keys: this root is %s, tenants pinned %s", root.KeyID(), pinned.KeyID)
	}
	set := *old
	set.IssuedAt, set.NotAfter = max(now.Unix(), old.IssuedAt+1), now.Add(keySetValidity).Unix()
	if err := r.drop(&set); err != nil {
		return nil, err
	}
	if r.Verdict || len(set.VerdictKeys) == 0 || set.VerdictKeys[0].KeyID != old.VerdictKeys[0].KeyID {
		key, err := newKeyFile(dir, fileVerdict, proof.GenerateSigningKey)
		if err != nil {
			return nil, err
		}
		set.VerdictKeys = slices.Insert(set.VerdictKeys, 0, key.JWK())
	}
	if r.Token || len(set.TokenKeys) == 0 || set.TokenKeys[0].KeyID != old.TokenKeys[0].KeyID {
		key, err := newKeyFile(dir, fileToken, proof.GenerateTokenKey)
		if err != nil {
			return nil, err
		}
		set.TokenKeys = slices.Insert(set.TokenKeys, 0, key.Public())
	}
	text, err := proof.SignKeySet(&set, root)
	if err != nil {
		return nil, err
	}
	if err := replace(filepath.Join(dir, fileKeySet), []byte(text)); err != nil {
		return nil, err
	}
	// From here on the new set holds. trust.json is a copy for tenants; the service takes the root alone from it.
	if err := errors.Join(renewTrust(dir, text), r.forget(dir)); err != nil {
		return &set, fmt.Errorf("the new key set holds, and not all of its files are in order: %w", err)
	}
	return &set, nil
}

// drop takes the revoked keys out of the set.
func (r Rotation) drop(set *proof.KeySet) error {
	known := map[string]bool{}
	gone := func(keyID string) bool { known[keyID] = true; return slices.Contains(r.Revoke, keyID) }
	set.VerdictKeys = slices.DeleteFunc(slices.Clone(set.VerdictKeys), func(j proof.JWK) bool { return gone(j.KeyID) })
	set.TokenKeys = slices.DeleteFunc(slices.Clone(set.TokenKeys), func(t proof.TokenKey) bool { return gone(t.KeyID) })
	for _, keyID := range r.Revoke {
		if !known[keyID] {
			return fmt.Errorf("cannot revoke key: the key set names no %q", keyID)
		}
	}
	return nil
}

// forget removes the files of revoked keys: nobody has a use for them but who must not have them.
func (r Rotation) forget(dir string) error {
	signing, err1 := keyFiles(dir, fileVerdict)
	token, err2 := keyFiles(dir, fileToken)
	err := errors.Join(err1, err2)
	for _, path := range append(signing, token...) {
		b, rerr := os.ReadFile(path)
		if rerr != nil {
			err = errors.Join(err, rerr)
			continue
		}
		var keyID string
		if k, perr := proof.ParseSigningKey(b); perr == nil {
			keyID = k.KeyID()
		} else if k, perr := proof.ParseTokenPrivateKey(b); perr == nil {
			keyID = k.KeyID()
		}
		if slices.Contains(r.Revoke, keyID) {
			err = errors.Join(err, os.Remove(path))
		}
	}
	return err
}

// newKeyFile makes a key in a file that is named by it.
func newKeyFile[K interface {
	KeyID() string
	PEM() ([]byte, error)
}](dir, name string, generate func() (K, error)) (k K, err error) {
	if k, err = generate(); err != nil {
		return k, err
	}
	text, err := k.PEM()
	if err != nil {
		return k, err
	}
	defer clear(text)
	path := filepath.Join(dir, name[:len(name)-len(".pem")]+"-"+k.KeyID()+".pem")
	err = writeNew(path, text, 0o600)
	if err == nil {
		err = giveLike(dir, path)
	}
	if err != nil {
		return k, fmt.Errorf("cannot make key: %w", err)
	}
	return k, syncFolder(dir)
}

// renewTrust writes the new key set into trust.json.
func renewTrust(dir, keys string) error {
	path := filepath.Join(dir, fileTrust)
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	trust, err := proof.ParseTrust(bytes.TrimSpace(b))
	if err != nil {
		return err
	}
	trust.Keys = keys
	if b, err = trust.Encode(); err != nil {
		return err
	}
	return replace(path, b)
}

// replace puts a public file in the place of another, whole or not at all.
func replace(path string, b []byte) error {
	fresh := path + ".new"
	if err := os.Remove(fresh); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("cannot write %s: %w", path, err) // a leftover of a crash
	}
	if err := writeNew(fresh, b, 0o644); err != nil {
		return fmt.Errorf("cannot write %s: %w", path, err)
	}
	if err := errors.Join(giveLike(path, fresh), os.Rename(fresh, path)); err != nil {
		return fmt.Errorf("cannot write %s: %w", path, err)
	}
	return syncFolder(filepath.Dir(path))
}

// giveLike gives a file that root made to the owner of another: the service runs as a user of its own.
func giveLike(other, path string) error {
	if os.Geteuid() != 0 {
		return nil
	}
	info, err := os.Stat(other)
	if err != nil {
		return err
	}
	owner, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return nil
	}
	return os.Chown(path, int(owner.Uid), int(owner.Gid))
}

func syncFolder(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// SetKeys goes over to another key set of the same root and issuer, as after RotateKeys. Verdicts of keys that it does not name are forgotten: they release nothing any more,
// and their hosts attest anew. It refuses a set that is older than the present one.
func (v *Verifier) SetKeys(k *Keys) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	now := v.keys.Load()
	switch {
	case k.Root.KeyID != now.Root.KeyID:
		return fmt.Errorf("cannot take keys: they are of the root %s, tenants pinned %s", k.Root.KeyID, now.Root.KeyID)
	case k.Issuer != now.Issuer:
		return fmt.Errorf("cannot take keys: they are of %q, not of %q", k.Issuer, now.Issuer)
	case k.Issued < now.Issued:
		return fmt.Errorf("cannot take keys: the key set is of %d, older than the present one of %d", k.Issued, now.Issued)
	}
	v.keys.Store(k)
	for d, i := range v.verdicts {
		if k.Public.Has(i.KeyID) {
			continue
		}
		delete(v.verdicts, d)
		v.enqueue(store.Write{Kind: kindVerdict, Name: d.String(), Rev: store.Any})
		if s := v.standing[i.V.Host]; s != nil && s.Verdict == i {
			delete(v.standing, i.V.Host)
		}
	}
	return nil
}
