package proof

import (
	"strings"
	"testing"
)

// TestSavedImage: a restore names its save image, and nothing else does, written or read.
func TestSavedImage(t *testing.T) {
	image := testDigest("image")
	for _, c := range []struct {
		action string
		image  *Digest
		good   bool
	}{{ActionStart, nil, true}, {ActionRestore, &image, true}, {ActionRestore, nil, false}, {ActionStart, &image, false}, {ActionMigrateIn, &image, false}, {ActionRecover, &image, false}} {
		s := *sceneGenuine(t, newScene(t)).Statement
		s.Action, s.SavedImage = c.action, c.image
		b, err := s.Encode()
		if (err == nil) != c.good {
			t.Errorf("%s with image %v: %v", c.action, c.image != nil, err)
		}
		if err != nil {
			continue
		}
		again, err := ParseStatement(b)
		if err != nil || (again.SavedImage == nil) != (c.image == nil) || c.image != nil && *again.SavedImage != image {
			t.Errorf("%s: %v", c.action, err)
		}
		spoilt := strings.Replace(string(b), `"action":"restore"`, `"action":"start"`, 1)
		if c.image != nil {
			if _, err := ParseStatement([]byte(spoilt)); err == nil {
				t.Error("a start with a save image was read")
			}
		}
	}
}

// TestSaves: a token says allow or nothing.
func TestSaves(t *testing.T) {
	p := sceneToken().Policy()
	for saves, good := range map[string]bool{"": true, SavesAllow: true, "deny": false, "Allow": false} {
		if p.Saves = saves; (p.check() == nil) != good {
			t.Errorf("%q: %v", saves, p.check())
		}
	}
}
