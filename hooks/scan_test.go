package hooks

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"strings"
	"testing"
)

// FuzzScan: what the scan is sure of, Go's own reading with namespaces says too: one uuid of libvirt's, and a mark
// exactly if there is one.
func FuzzScan(f *testing.F) {
	const plain = `<domain xmlns:q='urn:q'><name>a</name><uuid>11111111-2222-3333-4444-555555555555</uuid><metadata>%</metadata><os/></domain>`
	for _, s := range []string{
		"", `<t:launch xmlns:t="urn:troth:launch:v1"/>`, `<launch xmlns="urn:troth:launch:v1"><x xmlns=""/></launch>`,
		`<q:a><!-- --><![CDATA[<uuid>]]></q:a>`, `<a:b xmlns:a="urn:troth:launch:v2"/>`,
	} {
		f.Add([]byte(strings.Replace(plain, "%", s, 1)))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := scan(b)
		if err != nil {
			return
		}
		uuids, marked := second(t, b)
		if len(uuids) != 1 || marked != s.marked {
			t.Fatalf("scan: marked %v; second reading: uuids %q, marked %v\n%q", s.marked, uuids, marked, b)
		}
		if u, err := parseUUID(uuids[0]); err != nil || u != s.uuid {
			t.Errorf("scan: %x; second reading: %q, %v", s.uuid, uuids[0], err)
		}
	})
}

// second reads with the translating decoder instead of our own bindings.
func second(t *testing.T, b []byte) (uuids []string, marked bool) {
	t.Helper()
	d := xml.NewDecoder(bytes.NewReader(b))
	depth, inUUID := 0, false
	for {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			return uuids, marked
		}
		if err != nil {
			t.Fatalf("second reading fails: %v\n%q", err, b)
		}
		switch token := token.(type) {
		case xml.StartElement:
			depth++
			if strings.HasPrefix(token.Name.Space, markFamily) {
				marked = true
			}
			if inUUID = depth == 2 && token.Name == (xml.Name{Local: "uuid"}); inUUID {
				uuids = append(uuids, "")
			}
		case xml.EndElement:
			depth--
			inUUID = false
		case xml.CharData:
			if inUUID {
				uuids[len(uuids)-1] += string(token)
			}
		}
	}
}
