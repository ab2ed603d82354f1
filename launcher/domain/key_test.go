package domain

import (
	"bytes"
	"os"
	"strings"
	"testing"
)

// sealedRequest is a request with a sealed disk.
func sealedRequest(t *testing.T, inside string) []byte {
	t.Helper()
	b, err := os.ReadFile("testdata/requests/direct.xml")
	if err != nil {
		t.Fatal(err)
	}
	disk := "<disk type='file'><driver type='raw'/><source file='/images/data.luks'>" + inside + "</source><target dev='vdz'/></disk>"
	return bytes.Replace(b, []byte("</devices>"), []byte(disk+"</devices>"), 1)
}

func TestSealed(t *testing.T) {
	c, err := Read(sealedRequest(t, "<encryption format='luks'/>"), Request)
	if err != nil {
		t.Fatal(err)
	}
	plain, err := Read(sealedRequest(t, ""), Request)
	if err != nil {
		t.Fatal(err)
	}
	if c.Digest() == plain.Digest() || len(c.Sealed()) != 1 || len(plain.Sealed()) != 0 {
		t.Error("whether a disk is sealed is not measured")
	}
	if c.UUID.IsZero() {
		c.SetUUID(UUID{1})
	}
	// As libvirt 9.0 gave it back.
	key := KeyID(c.UUID, "vdz").String()
	written := string(Emit(c, Additions{}))
	want := `<source file='/images/data.luks'>
        <encryption format='luks' engine='qemu'>
          <secret type='passphrase' uuid='` + key + `'/>
        </encryption>
      </source>`
	if !strings.Contains(written, want) {
		t.Errorf("not as libvirt writes it:\n%s", written)
	}
	got, err := Read([]byte(written), Inactive)
	if err != nil {
		t.Fatal(err)
	}
	if err := Compare(c, got); err != nil {
		t.Error(err)
	}
	if again, err := Read([]byte(written), Request); err != nil || Compare(c, again) != nil {
		t.Errorf("what was written cannot be asked for again: %v", err)
	}
	live := strings.Replace(written, "data.luks'>", "data.luks' index='1'>", 1)
	if got, err = Read([]byte(live), Live); err != nil {
		t.Fatal(err)
	}
	if err := Compare(c, got); err != nil {
		t.Error(err)
	}
	for name, other := range map[string]string{
		"another secret":       strings.Replace(written, key, "11111111-2222-4333-8444-555555555555", 1),
		"another disk's":       strings.Replace(written, key, KeyID(c.UUID, "vda").String(), 1),
		"another domain's":     strings.Replace(written, key, KeyID(UUID{9}, "vdz").String(), 1),
		"by usage":             strings.Replace(written, "uuid='"+key+"'", "usage='troth'", 1),
		"no secret":            strings.Replace(written, "<secret type='passphrase' uuid='"+key+"'/>", "", 1),
		"two secrets":          strings.Replace(written, "<secret type", "<secret type='passphrase' uuid='"+key+"'/><secret type", 1),
		"decrypted by librbd":  strings.Replace(written, "engine='qemu'", "engine='librbd'", 1),
		"another kind of key":  strings.Replace(written, "'passphrase'", "'tls'", 1),
		"sealed and read-only": strings.Replace(written, "<target dev='vdz' bus='virtio'/>", "<target dev='vdz' bus='virtio'/><readonly/>", 1),
	} {
		if other == written {
			t.Fatalf("%s: changed nothing", name)
		}
		if _, err := Read([]byte(other), Inactive); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
	for name, inside := range map[string]string{
		"a secret of its own": "<encryption format='luks'><secret type='passphrase' uuid='11111111-2222-4333-8444-555555555555'/></encryption>",
		"qcow":                "<encryption format='qcow'/>",
		"LUKS2":               "<encryption format='luks2'/>",
		"a cipher":            "<encryption format='luks'><cipher name='aes' size='256'/></encryption>",
	} {
		if _, err := Read(sealedRequest(t, inside), Request); err == nil {
			t.Errorf("a request with %s was accepted", name)
		}
	}
}
