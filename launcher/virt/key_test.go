package virt_test

import (
	"os/exec"
	"strings"
	"testing"
)

const (
	keyID    = "6cf3a1f8-0f41-8f6e-9a5e-6f8f7a2b9c02"
	keyUsage = "troth/" + uuid + "/vda"
)

func virsh(t *testing.T, args ...string) (string, error) {
	t.Helper()
	out, err := exec.Command("virsh", append([]string{"-c", uri}, args...)...).CombinedOutput()
	return string(out), err
}

// TestKey: a key is private and ephemeral, takes the place of whatever stood there, and goes by its domain.
func TestKey(t *testing.T) {
	n := newNode(t)
	all := func(string) func() { return func() {} }
	must(t, n.virt.RemoveKeys(n.deadline(), "troth/", all)) // there is none

	// Somebody waits under the UUID with a secret that shows what is put into it.
	planted := exec.Command("virsh", "-c", uri, "secret-define", "/dev/stdin")
	planted.Stdin = strings.NewReader("<secret ephemeral='no' private='no'><uuid>" + keyID + "</uuid></secret>")
	if out, err := planted.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for range 2 { // put again: a repeated step
		must(t, n.virt.PutKey(n.deadline(), keyID, keyUsage, []byte("the key")))
	}
	out, err := virsh(t, "secret-dumpxml", keyID)
	if err != nil || !strings.Contains(out, "<secret ephemeral='yes' private='yes'>") || !strings.Contains(out, keyUsage) {
		t.Errorf("%v: %s", err, out)
	}
	if out, err := virsh(t, "secret-get-value", keyID); err == nil || !strings.Contains(out, "private") {
		t.Errorf("the key was shown: %v: %s", err, out)
	}

	must(t, n.virt.RemoveKeys(n.deadline(), "troth/11111111-", all))
	must(t, n.virt.RemoveKeys(n.deadline(), "troth/", func(usage string) func() {
		if usage == keyUsage {
			return nil
		}
		return func() {}
	}))
	if _, err := virsh(t, "secret-dumpxml", keyID); err != nil {
		t.Error("the key of another domain was removed")
	}
	must(t, n.virt.RemoveKeys(n.deadline(), "troth/"+uuid+"/", all))
	must(t, n.virt.RemoveKeys(n.deadline(), "troth/"+uuid+"/", all))
	if out, err := virsh(t, "secret-dumpxml", keyID); err == nil {
		t.Errorf("the key is left: %s", out)
	}
}
