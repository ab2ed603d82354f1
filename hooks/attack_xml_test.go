package hooks_test

import (
	"strconv"
	"strings"
	"testing"
)

// attackDepth: depth, size and number. An untrusted domain may have what libvirt itself accepts.
func attackDepth(t *testing.T) {
	newHost(t)
	nested := func(n int) string {
		return "<metadata><x:a xmlns:x='urn:x'>" + strings.Repeat("<b>", n) + strings.Repeat("</b>", n) + "</x:a></metadata>"
	}
	run(t, domain(otherID, nested(200), ""), "guest", "prepare", "begin", "-").wantPermitted(t)
	run(t, domain(otherID, nested(300), ""), "guest", "prepare", "begin", "-").wantRefused(t, "request-invalid")
	run(t, domain(otherID, nested(1_000_000), ""), "guest", "prepare", "begin", "-").wantRefused(t, "request-invalid")
	run(t, strings.Repeat("<domain>", 1_000_000), "guest", "prepare", "begin", "-").wantRefused(t, "request-invalid")
	var attrs strings.Builder
	for i := range 500_000 {
		attrs.WriteString(" a")
		for n := i; ; n /= 26 {
			attrs.WriteByte(byte('a' + n%26))
			if n < 26 {
				break
			}
		}
		attrs.WriteString("=''")
	}
	run(t, domain(otherID, "<metadata><x:a xmlns:x='urn:x'"+attrs.String()+"/></metadata>", ""), "guest", "prepare", "begin", "-").wantPermitted(t)
	run(t, domain(otherID, "<metadata>"+strings.Repeat("<a/>", 1_000_000)+"</metadata>", ""), "guest", "prepare", "begin", "-").wantPermitted(t)
	run(t, domain(otherID, "<metadata>"+many("<x%d:a xmlns:x%d='urn:x'>", 200)+many("</x%d:a>", -200)+"</metadata>", ""), "guest", "prepare", "begin", "-").wantPermitted(t)
	run(t, domain(otherID, "<metadata><a "+many("xmlns:x%d='urn:x' ", 100_000)+">"+strings.Repeat("<y:a/>", 500_000)+"</a></metadata>", ""), "guest", "prepare", "begin", "-").wantRefused(t, "request-invalid")
	run(t, domain(otherID, "", strings.Repeat("<s f='/'/>", 100_000)), "guest", "prepare", "begin", "-").wantRefused(t, "request-invalid")
}

// many repeats a format with a number in it, counting down if n is negative.
func many(format string, n int) string {
	var b strings.Builder
	for i := range max(n, -n) {
		if n < 0 {
			i = -n - 1 - i
		}
		b.WriteString(strings.ReplaceAll(format, "%d", strconv.Itoa(i)))
	}
	return b.String()
}

// attackXML: documents that libvirt and Go could read differently.
func attackXML(t *testing.T) {
	newHost(t)
	plain := domain(otherID, "", "")
	uuid := "<uuid>" + otherID + "</uuid>"
	for name, xml := range map[string]string{
		"doctype":          "<!DOCTYPE domain>" + plain,
		"entities":         `<!DOCTYPE d [<!ENTITY u "` + uuidText + `">]>` + strings.Replace(plain, otherID, "&u;", 1),
		"unknown entity":   strings.Replace(plain, otherID, "&u;", 1),
		"utf-16":           "\xff\xfe<\x00d\x00",
		"latin-1":          `<?xml version="1.0" encoding="ISO-8859-1"?>` + plain,
		"two uuids":        strings.Replace(plain, uuid, uuid+"<uuid>"+uuidText+"</uuid>", 1),
		"namespaced uuid":  strings.Replace(plain, uuid, "<x:uuid xmlns:x='urn:x'>"+uuidText+"</x:uuid>"+uuid, 1),
		"no uuid":          strings.Replace(plain, uuid, "", 1),
		"empty uuid":       strings.Replace(plain, otherID, "", 1),
		"uuid no hyphens":  strings.Replace(plain, otherID, strings.ReplaceAll(otherID, "-", ""), 1),
		"uuid with spaces": strings.Replace(plain, otherID, " "+otherID, 1),
		"uuid in pieces":   strings.Replace(plain, otherID, otherID[:8]+"<!-- -->"+otherID[8:], 1),
		"uuid with child":  strings.Replace(plain, otherID, otherID+"<a/>", 1),
		"default ns":       strings.Replace(plain, "<domain ", "<domain xmlns='urn:x' ", 1),
		"other root":       strings.ReplaceAll(plain, "domain", "network"),
		"duplicate attr":   strings.Replace(plain, "type='qemu'", "type='qemu' type='kvm'", 1),
		"two colons":       strings.Replace(plain, "<devices>", "<devices><a:b:c/>", 1),
		"unbound prefix":   strings.Replace(plain, "<devices>", "<devices><a:b/>", 1),
		"wrong end":        strings.Replace(plain, "</os>", "</oss>", 1),
		"trailing text":    plain + "x",
		"nul":              plain + "\x00",
		"control byte":     strings.Replace(plain, "guest", "gu\x01st", 1),
		"bad utf-8":        strings.Replace(plain, "guest", "gu\xffst", 1),
	} {
		t.Run(name, func(t *testing.T) {
			run(t, xml, "guest", "prepare", "begin", "-").wantRefused(t, "request-invalid")
		})
	}
	run(t, plain, "guest", "prepare", "begin", "-").wantPermitted(t)
	run(t, `<?xml version="1.0" encoding="UTF-8"?>`+"\n"+plain, "guest", "prepare", "begin", "-").wantPermitted(t)
}
