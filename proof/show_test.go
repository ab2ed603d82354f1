package proof

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"troth/tpm/pcr"
)

func sceneGenuine(t *testing.T, s *scene) *Genuine {
	t.Helper()
	return must[*Genuine](t)(Verify(s.make(t), s.trust(t), s.key()))
}

func TestSentences(t *testing.T) {
	s := newScene(t)
	s.onStatement = func(x *Statement) {
		x.Name, x.Action, x.Interactive = "db\"1", ActionMigrateIn, InteractiveYes
		x.Disks = append(x.Disks, StatementDisk{"vdb", DiskSealed, false, ptr(testDigest("luks")), nil}, StatementDisk{"vdc", DiskUnpinned, false, nil, nil})
		x.Measurements.Firmware = ptr(testDigest("firmware"))
	}
	g := sceneGenuine(t, s)
	text := strings.Join(g.Sentences(), "\n")
	for _, want := range []string{
		`Domain "db\"1" (6f1e2c1a-0000-4000-8000-000000000001) was received by migration by the host with AK 000b`,
		`Verifier "verifier.example" released for it at`, "link 1 of token", "Its firmware was measured as", "Its kernel was measured as " + testDigest("kernel").String(),
		"disk vda (read-only, immutable) was measured", "disk vdb (writable, sealed) has a LUKS header", "disk vdc (writable) was not measured",
		"console that takes input", `profile "tboot"`, "PCR 18 was " + testDigest("pcr 18").String(), "software TPM", "further launches: closed-first", "at most 600 s",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("not said: %s\n%s", want, text)
		}
	}
	if n := g.NotSaid(); !strings.Contains(n[len(n)-1], "arrived") {
		t.Errorf("nothing about the migration's arrival: %v", n)
	}
	for _, a := range []string{ActionStart, ActionRestore, ActionMigrateOut, ActionRecover} {
		if past(a) == "" {
			t.Errorf("no word for %s", a)
		}
	}
}

// TestVariableStore: what is said, and what is not, of the variables of a firmware.
func TestVariableStore(t *testing.T) {
	for name, c := range map[string]struct {
		change  func(*Statement)
		said    string
		notSaid string // empty: nothing about variables
	}{
		"first link": {func(s *Statement) {
			s.Disks = append([]StatementDisk{{VariableStore, DiskInitial, false, ptr(testDigest("vars")), nil}}, s.Disks...)
		}, "variables (whether it demands signatures, whose, and what it boots) were measured as " + testDigest("vars").String(), ""},
		"later link": {func(s *Statement) {
			s.Disks = append([]StatementDisk{{VariableStore, DiskInitial, false, ptr(testDigest("vars")), nil}}, s.Disks...)
			s.Previous = ptr(testDigest("before"))
		}, testDigest("vars").String(), "variables are as the guest left them"},
		"not measured": {func(*Statement) {}, "", "what the firmware's variables were"},
	} {
		s := newScene(t)
		s.onStatement = func(x *Statement) {
			x.Measurements.Firmware = ptr(testDigest("firmware"))
			c.change(x)
		}
		p := &sceneGenuine(t, s).Public
		if c.said != "" && !strings.Contains(strings.Join(p.Sentences(), "\n"), c.said) {
			t.Errorf("%s: not said: %s", name, c.said)
		}
		n := strings.Join(p.NotSaid(), "\n")
		if c.notSaid == "" && strings.Contains(n, "variables") || !strings.Contains(n, c.notSaid) {
			t.Errorf("%s: want %q in %s", name, c.notSaid, n)
		}
	}
}

func TestValidate(t *testing.T) {
	g := sceneGenuine(t, newScene(t))
	profile := ProfileRef{"tboot", testDigest("profile")}
	ours := Reference{"mine", PCRList(scenePCRs(), sceneSelection)}
	other := Reference{"other", []PCR{{17, testDigest("x")}}}
	foreign := Reference{"foreign", []PCR{{0, testDigest("x")}}}
	for name, c := range map[string]struct {
		want  Want
		check string
	}{
		"nothing asked":          {Want{}, ""},
		"all as asked":           {Want{&profile, g.Statement.UUID, scenePins(), ptr(sceneToken().Policy()), sceneTime + 20, sceneTime + 20, []Reference{other, ours}}, ""},
		"profile's name":         {Want{Profile: &ProfileRef{"slaunch", profile.Digest}}, "profile"},
		"profile's digest":       {Want{Profile: &ProfileRef{"tboot", testDigest("x")}}, "profile"},
		"domain":                 {Want{Domain: "6f1e2c1a-0000-4000-8000-000000000009"}, "domain"},
		"domain in the pins":     {Want{Pins: &Pins{Domain: "6f1e2c1a-0000-4000-8000-000000000009"}}, "pins"},
		"configuration":          {Want{Pins: &Pins{Configuration: ptr(testDigest("x"))}}, "pins"},
		"policy":                 {Want{Policy: &Policy{MigrationAllow, RestartsAny, TrustLostPause, 1, ""}}, "policy"},
		"expired":                {Want{Expiry: sceneTime + 19}, "expiry"},
		"chain expiry not yet":   {Want{ChainExpiry: 1}, ""},
		"other reference":        {Want{References: []Reference{other}}, "references"},
		"reference not quoted":   {Want{References: []Reference{foreign}}, "references"},
		"reference without PCRs": {Want{References: []Reference{{"empty", nil}}}, "references"},
	} {
		err := Validate(g, c.want)
		var not *Unwanted
		switch {
		case c.check == "" && err != nil:
			t.Errorf("%s: %v", name, err)
		case c.check != "" && (!errors.As(err, &not) || not.Name != c.check || len(not.Facts) == 0):
			t.Errorf("%s: got %v, want %s", name, err, c.check)
		}
		if second := ValidatePublic(&g.Public, c.want); (second == nil) != (err == nil) {
			t.Errorf("%s: in public %v", name, second)
		}
	}
	later := newScene(t)
	later.onStatement = func(x *Statement) { x.Previous = ptr(testDigest("link")) }
	l := sceneGenuine(t, later)
	if err := Validate(l, Want{Expiry: 1}); err != nil {
		t.Errorf("a later link is bound by expiry: %v", err)
	}
	if err := Validate(l, Want{ChainExpiry: 1}); err == nil {
		t.Error("a later link is not bound by chain expiry")
	}
}

// An initial disk is compared at the first link only.
func TestInitialDisk(t *testing.T) {
	pins := &Pins{Disks: []Disk{{"vda", DiskInitial, testDigest("disk"), nil}}}
	st := newScene(t).statement(t, "v")
	st.Disks[0].Mode, st.Disks[0].Digest = DiskInitial, ptr(testDigest("written since"))
	if pins.Judge(st) == nil {
		t.Error("another content at the first link")
	}
	st.Previous = ptr(testDigest("link"))
	if r := pins.Judge(st); r != nil {
		t.Errorf("at a later link: %v", r)
	}
	if r := (&Pins{}).Judge(st); r != nil {
		t.Errorf("without pins: %v", r)
	}
}

func TestPCRLists(t *testing.T) {
	list := PCRList(scenePCRs(), sceneSelection)
	v := must[pcr.Values](t)(PCRValues(list))
	if len(v) != 3 || Digest(v[18]) != testDigest("pcr 18") {
		t.Errorf("%v", v)
	}
	for name, bad := range map[string][]PCR{"twice": {list[0], list[0]}, "order": {list[1], list[0]}, "24": {{24, Digest{}}}, "negative": {{-1, Digest{}}}} {
		if _, err := PCRValues(bad); err == nil {
			t.Errorf("%s: read", name)
		}
	}
	if s, _ := pcr.Select(pcr.SHA256, 17, 20); slices.ContainsFunc(PCRList(scenePCRs(), s), func(p PCR) bool { return p.Index == 20 }) {
		t.Error("a value that is not there was listed")
	}
}
