package proof

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"troth/proof/strict"
)

// docs/refusals.md has the table of the code, row for row.
func TestRefusalsAreDocumented(t *testing.T) {
	var want strings.Builder
	for i, c := range Codes() {
		fmt.Fprintf(&want, "| %d | `%s` | %s | %s | %d |\n", i+1, c.Code, c.Meaning, c.Remedy, c.Status)
	}
	const path = "../docs/refusals.md"
	doc := string(must[[]byte](t)(os.ReadFile(path)))
	begin := strings.Index(doc, "| 1 |")
	if begin < 0 {
		t.Fatal("no table in " + path)
	}
	end := begin + strings.LastIndex(doc[begin:], " |\n") + 3
	if *update {
		doc = doc[:begin] + want.String() + doc[end:]
		if err := os.WriteFile(path, []byte(doc), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if got := doc[begin:end]; got != want.String() {
		t.Errorf("%s differs from the code; go test ./proof -run Refusals -update writes it\ngot:\n%s\nwant:\n%s", path, got, want.String())
	}
}

func TestCodesAreInPROTOCOLsOrder(t *testing.T) {
	const order = "request-invalid, token-invalid, evidence-invalid, forbidden, internal, tpm-unavailable, tpm-busy, verifier-unreachable, host-not-approved, no-dynamic-launch, bank-unallocated, host-rebooted, host-relaunched, pcr-mismatch, profile-not-met, verdict-missing, verdict-stale, verdict-for-other-host, verdict-contraindicated, sealed-to-other-state, sealed-blob-damaged, token-expired, token-used, token-constraint, configuration-not-allowed, configuration-changed, image-not-measured, image-changed, grant-missing, hook-not-live, hostd-unreachable, destination-unproven, not-registered"
	var got []string
	for i, c := range Codes() {
		got = append(got, string(c.Code))
		if c.Code.Order() != i || c.Meaning == "" || c.Remedy == "" || c.Status < 400 || c.Status > 599 {
			t.Errorf("row %d: %+v", i, c)
		}
	}
	if strings.Join(got, ", ") != order {
		t.Errorf("got %s", got)
	}
	if Code("never-heard-of").Order() != -1 || Code("never-heard-of").Info().Code != Internal {
		t.Error("an unknown code has a place")
	}
}

func TestFirstKeepsTheOrderAndTellsTheRest(t *testing.T) {
	a, b, c := Refuse(TokenUsed, "c"), Refuse(VerdictStale, "b"), Refuse(TokenInvalid, "a")
	a.Also = []Code{ImageChanged}
	r := First([]*Refusal{a, nil, b, c, Refuse(VerdictStale, "again")})
	if r.Code != TokenInvalid || r.Sentence != "a" || !slices.Equal(r.Also, []Code{VerdictStale, TokenUsed, ImageChanged}) {
		t.Errorf("%+v", r)
	}
	if c.Also != nil {
		t.Error("First changed what it was given")
	}
	if First(nil) != nil || First([]*Refusal{nil}) != nil {
		t.Error("a refusal of nothing")
	}
	if r := First([]*Refusal{c}); r.Also != nil {
		t.Errorf("%+v", r)
	}
}

func TestProblemAndBack(t *testing.T) {
	r := Refuse(PCRMismatch, "PCR 18 differs", Fact{Name: "pcr 18", Want: "aa", Got: "bb"}, Fact{Name: "event", Value: "vmlinuz"})
	r.Also = []Code{TokenUsed}
	b := compact(t, r.Problem())
	var p Problem
	if err := strict.JSON(b, 4096, &p); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(p.Refusal(), r) || p.Status != 403 || p.Type != "urn:troth:refusal:pcr-mismatch" || p.Title == "" {
		t.Errorf("%s became %+v", b, p.Refusal())
	}
	err := fmt.Errorf("launch: %w", r)
	if !errors.Is(err, &Refusal{Code: PCRMismatch}) || errors.Is(err, &Refusal{Code: TokenUsed}) {
		t.Error("errors.Is does not compare codes")
	}
	p.Code = "from-the-future"
	if got := p.Refusal(); got.Code != Internal || !slices.Contains(got.Facts, Fact{Name: "code", Value: "from-the-future"}) {
		t.Errorf("%+v", got)
	}
	if got := (Problem{Code: TokenUsed}).Refusal(); got.Sentence == "" {
		t.Error("a problem without detail has no sentence")
	}
}

func TestErrorIsOneCleanLine(t *testing.T) {
	r := Refuse(RequestInvalid, "cannot read the domain", Fact{Name: "name", Want: "text", Got: "a\nb\x1b[31m"}, Fact{Name: "n", Want: "", Got: "1"})
	want := `request-invalid: cannot read the domain; name: want text, got "a\nb\x1b[31m"; n: want nothing, got 1`
	if r.Error() != want {
		t.Errorf("got %s", r.Error())
	}
	if b := compact(t, r); !json.Valid(b) || !strings.Contains(string(b), `"code":"request-invalid"`) {
		t.Errorf("%s", b)
	}
}
