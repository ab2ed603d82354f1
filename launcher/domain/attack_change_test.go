package domain

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"troth/proof"
)

func testMark(t *testing.T, direct, inactive, live string) {
	const mark = `<troth:launch xmlns:troth="urn:troth:launch:v1"/>`
	run(t, inactive, Inactive, []attack{
		{"two marks", mark, mark + mark, invalid, "/domain/metadata/troth:launch[2]", "twice"},
		{"two marks by other prefixes", mark, mark + `<t:launch xmlns:t="urn:troth:launch:v1"/>`, invalid, "/domain/metadata/t:launch", "twice"},
		{"a launch id at rest", mark, strings.Replace(mark, "/>", ` id="`+strings.Repeat("ab", 32)+`"/>`, 1), denied, "/domain/metadata/troth:launch/@id", "live XML only"},
		{"another word of ours", mark, `<troth:other xmlns:troth="urn:troth:launch:v1"/>`, invalid, "/domain/metadata/troth:other", "only <troth:launch/>"},
		{"a mark with content", mark, `<troth:launch xmlns:troth="urn:troth:launch:v1"><a/></troth:launch>`, invalid, "/domain/metadata/troth:launch", "only"},
		{"no declaration", mark, `<troth:launch/>`, invalid, "/domain/metadata/troth:launch", "declared"},
		{"two metadata", "</metadata>", "</metadata><metadata/>", invalid, "/domain/metadata[2]", "twice"},
	})
	run(t, live, Live, []attack{
		{"a short launch id", `id="0102`, `id="02`, invalid, "/domain/metadata/troth:launch/@id", "64"},
		{"a launch id in capitals", `0a0b0c`, `0A0B0C`, invalid, "/domain/metadata/troth:launch/@id", "lower-case"},
	})
	for what, text := range map[string]string{
		"stripped":           strings.Replace(inactive, mark, "", 1),
		"in another space":   strings.Replace(inactive, mark, `<troth:launch xmlns:troth="urn:troth:launch:v2"/>`, 1),
		"below foreign data": strings.Replace(inactive, mark, `<x:y xmlns:x="urn:x">`+mark+`</x:y>`, 1),
	} {
		c, err := Read([]byte(text), Inactive)
		if err != nil || c.Mark {
			t.Errorf("%s: mark %v, %v", what, c != nil && c.Mark, err)
		}
	}
	if c, err := Read([]byte(direct), Request); err != nil || c.Mark {
		t.Errorf("a request without mark is read with one: %v", err)
	}
	other := strings.Replace(inactive, "aaaaaaaa-", "bbbbbbbb-", 1)
	got, err := Read([]byte(other), Inactive)
	if err != nil {
		t.Fatal(err)
	}
	changed(t, request(t, "direct"), got, "uuid")
}

// testChanged: a definition that was redefined between judging and starting is told apart, by name of what changed.
func testChanged(t *testing.T, inactive, start, live string) {
	want := request(t, "direct")
	for _, c := range []struct{ name, old, new, fact string }{
		{"kernel", "/images/kernel", "/images/kernel2", "boot.kernel"},
		{"initrd", "/images/initrd", "/images/initrd2", "boot.initrd"},
		{"command line", "console=ttyS0", "console=ttyS0 init=/bin/sh", "boot.command-line"},
		{"disk", "/images/raw1", "/images/raw2", "disks[0].source"},
		{"disk writable", "<readonly/>", "", "disks[0].read-only"},
		{"memory", "'KiB'>131072</memory>\n  <currentMemory unit='KiB'>131072<", "'KiB'>262144</memory>\n  <currentMemory unit='KiB'>262144<", "memory"},
		{"CPUs", "'static'>1<", "'static'>2<", "vcpus"},
		{"CPU model", ">qemu64<", ">qemu32<", "cpu.model"},
		{"machine", "pc-q35-7.2", "pc-q35-7.1", "machine"},
		{"network", "bridge='br0'", "bridge='br1'", "interfaces[0].source"},
		{"name", "<name>direct<", "<name>other<", "name"},
		{"acceleration", "<domain type='qemu'", "<domain type='kvm'", "type"},
		{"console", "direct.log", "other.log", "serials[0].path"},
		{"a device more", "</devices>", "<panic model='isa'/></devices>", "panics.count"},
		{"a device less", "<apic/>", "", "features.apic"},
	} {
		for m, text := range map[Mode]string{Inactive: inactive, Hook: start, Live: live} {
			t.Run(c.name+"/"+m.String(), func(t *testing.T) {
				if !strings.Contains(text, c.old) {
					t.Fatalf("there is no %q to change", c.old)
				}
				got, err := Read(bytes.ReplaceAll([]byte(text), []byte(c.old), []byte(c.new)), m)
				if err != nil {
					t.Fatal(err)
				}
				changed(t, want, got, c.fact)
			})
		}
	}
}

func changed(t *testing.T, want, got *Config, fact string) {
	t.Helper()
	err := Compare(want, got)
	var r *proof.Refusal
	if !errors.As(err, &r) || r.Code != proof.ConfigurationChanged {
		t.Fatalf("Compare gives %v, want configuration-changed", err)
	}
	for _, f := range r.Facts {
		if f.Name == fact && f.Want != f.Got {
			return
		}
	}
	t.Errorf("no fact %s in %v", fact, err)
}
