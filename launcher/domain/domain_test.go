package domain

import (
	"bytes"
	"errors"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"troth/proof"
)

// TestRoundTrip: what Emit writes reads as the same Config in every mode, and is a fixed point.
func TestRoundTrip(t *testing.T) {
	for _, name := range requests(t) {
		t.Run(name, func(t *testing.T) {
			want := request(t, name)
			for _, m := range []Mode{Request, Inactive, Hook, Live} {
				a := Additions{}
				switch m {
				case Inactive:
					a = added
				case Hook, Live:
					a = addedLive()
				}
				text := Emit(want, a)
				got, err := Read(text, m)
				if err != nil {
					t.Fatalf("%s: %v\n%s", m, err, text)
				}
				if err := Compare(want, got); err != nil {
					t.Errorf("%s: %v", m, err)
				}
				if got.Added != a || !got.Mark || got.Mode != m {
					t.Errorf("%s: additions %+v, mark %v, mode %s", m, got.Added, got.Mark, got.Mode)
				}
				if m == Request || m == Inactive {
					if d := cmp.Diff(want, got, cmpopts.IgnoreUnexported(Config{}), cmpopts.IgnoreFields(Config{}, "Mode", "Mark", "Added")); d != "" {
						t.Errorf("%s: %s", m, d)
					}
					if again := Emit(got, a); !bytes.Equal(text, again) {
						t.Errorf("%s: written otherwise:\n%s", m, lineDiff(string(text), string(again)))
					}
				}
			}
		})
	}
}

// TestDigest pins the canonical form: a token made with one version pins the same domain in the next.
func TestDigest(t *testing.T) {
	var got strings.Builder
	for _, name := range requests(t) {
		c := request(t, name)
		got.WriteString(name + " " + c.Digest().String() + "\n")
	}
	const golden = "testdata/digests"
	if *update {
		write(t, golden, []byte(got.String()))
	}
	if want := string(readFile(t, golden)); got.String() != want {
		t.Errorf("digests changed, which breaks every token that pins one:\n%s", lineDiff(want, got.String()))
	}
}

// TestDigestCoversEveryField changes each leaf of a Config that has them all, and wants another digest each time.
func TestDigestCoversEveryField(t *testing.T) {
	c := full()
	seen := map[proof.Digest]string{c.Digest(): "nothing"}
	count := 0
	var walk func(path string, v reflect.Value)
	walk = func(path string, v reflect.Value) {
		switch v.Kind() {
		case reflect.Struct:
			for i := range v.NumField() {
				f := v.Type().Field(i)
				if f.IsExported() && f.Tag.Get("config") != "-" {
					walk(path+"."+f.Name, v.Field(i))
				}
			}
			return
		case reflect.Slice:
			old := reflect.ValueOf(v.Interface())
			v.Set(reflect.Append(old, old.Index(0)))
			note(t, seen, c, path+" longer")
			v.Set(old)
			walk(path+"[0]", v.Index(0))
			return
		case reflect.String:
			old := v.String()
			for _, s := range []string{"", old + "x"} {
				v.SetString(s)
				note(t, seen, c, path+"="+s)
			}
			v.SetString(old)
		case reflect.Uint64:
			old := v.Uint()
			for _, u := range []uint64{0, old + 1} {
				v.SetUint(u)
				note(t, seen, c, path)
			}
			v.SetUint(old)
		case reflect.Bool:
			v.SetBool(!v.Bool())
			note(t, seen, c, path)
			v.SetBool(!v.Bool())
		default:
			t.Fatalf("%s has kind %s", path, v.Kind())
		}
		count++
	}
	walk("", reflect.ValueOf(c).Elem())
	if count < 150 {
		t.Errorf("only %d leaves were changed", count)
	}
	if _, same := seen[c.Digest()]; !same {
		t.Error("the walk did not put everything back")
	}
}

func note(t *testing.T, seen map[proof.Digest]string, c *Config, what string) {
	t.Helper()
	d := c.Digest()
	if other, ok := seen[d]; ok {
		t.Errorf("%s has the digest of %s", what, other)
	}
	seen[d] = what
}

// full is a Config in which nothing is zero.
func full() *Config {
	c := &Config{}
	var set func(v reflect.Value)
	set = func(v reflect.Value) {
		switch v.Kind() {
		case reflect.Struct:
			for i := range v.NumField() {
				if v.Type().Field(i).IsExported() && v.Type().Field(i).Tag.Get("config") != "-" {
					set(v.Field(i))
				}
			}
		case reflect.Slice:
			v.Set(reflect.MakeSlice(v.Type(), 1, 1))
			set(v.Index(0))
		case reflect.String:
			v.SetString("text")
		case reflect.Uint64:
			v.SetUint(7)
		case reflect.Bool:
			v.SetBool(true)
		}
	}
	set(reflect.ValueOf(c).Elem())
	return c
}

// TestIdentityIsNotInTheDigest: name and UUID are told apart by Diff, and by the statement.
func TestIdentityIsNotInTheDigest(t *testing.T) {
	a, b := request(t, "direct"), request(t, "direct")
	b.Name = "other"
	b.SetUUID(UUID{1})
	if a.Digest() != b.Digest() {
		t.Error("the digest depends on name or UUID")
	}
	var names []string
	for _, f := range Diff(a, b) {
		names = append(names, f.Name)
	}
	if !slices.Equal(names, []string{"name", "uuid"}) {
		t.Errorf("Diff names %v", names)
	}
	if facts := Diff(a, a); len(facts) > 0 || Compare(a, a) != nil {
		t.Errorf("a Config differs from itself: %v", facts)
	}
}

// TestFill: what a request leaves out has one value, and writing it out changes nothing.
func TestFill(t *testing.T) {
	c := request(t, "direct")
	if c.CurrentMemory != c.Memory || c.Clock.Offset != "utc" || c.OnPowerOff != "destroy" || c.OnReboot != "restart" || c.OnCrash != "destroy" || c.CPU.Model != "qemu64" || !slices.Equal(c.Boot.Devices, []string{"hd"}) {
		t.Errorf("filled otherwise: %+v", c)
	}
	kinds := map[string]bool{}
	for _, k := range c.Controllers {
		kinds[k.Type+" "+k.Model] = true
	}
	for _, k := range []string{"usb none", "sata ", "virtio-serial ", "pci pcie-root"} {
		if !kinds[k] {
			t.Errorf("no controller %q in %v", k, kinds)
		}
	}
	for _, a := range c.pciDevices() {
		if a.Type != "pci" {
			t.Errorf("a device has no address: %+v", c)
		}
	}
	if c.UUID.IsZero() {
		t.Error("the UUID was not read")
	}
	without := strings.Replace(string(readFile(t, "testdata/requests/direct.xml")), "<uuid>AAAAAAAA-0000-4000-8000-000000000001</uuid>", "", 1)
	d, err := Read([]byte(without), Request)
	if err != nil || !d.UUID.IsZero() || d.Digest() != c.Digest() {
		t.Errorf("without UUID: %v, %v", d, err)
	}
	if _, err := Read(Emit(d, Additions{}), Inactive); !errors.Is(err, &proof.Refusal{Code: proof.RequestInvalid}) {
		t.Errorf("a definition without UUID: %v", err)
	}
}

// TestAlso: a request with several things that are not allowed is told of all of them; what hostd compares is refused by the first alone.
func TestAlso(t *testing.T) {
	text := string(readFile(t, "testdata/requests/direct.xml"))
	bad := text
	for old, now := range map[string]string{
		"machine='pc-q35-7.2'": "machine='q35'", "<devices>": "<memtune/><devices><memballoon model='virtio'/><hostdev/><tpm/>",
	} {
		if bad = strings.Replace(bad, old, now, 1); !strings.Contains(bad, now) {
			t.Fatalf("nothing to replace: %s", old)
		}
	}
	all := func(m Mode) (element string, also []string) {
		_, err := Read([]byte(bad), m)
		f, ok := errors.AsType[*proof.Refusal](err)
		if !ok || f.Code != proof.ConfigurationNotAllowed {
			t.Fatalf("%s: %v", m, err)
		}
		for _, fact := range f.Facts {
			switch fact.Name {
			case "element":
				element = fact.Value
			case "also":
				path, _, _ := strings.Cut(fact.Value, ": ")
				also = append(also, path)
			}
		}
		return element, also
	}
	element, also := all(Request)
	want := []string{"/domain/devices/memballoon", "/domain/memtune", "/domain/devices/hostdev", "/domain/devices/tpm"}
	if element != "/domain/os/type/@machine" || !slices.Equal(also, want) {
		t.Errorf("%s, also %q, want %q", element, also, want)
	}
	if _, also := all(Inactive); also != nil {
		t.Errorf("what libvirt gave back: also %q", also)
	}
}

func TestInteractive(t *testing.T) {
	for name, want := range map[string]bool{"direct": false, "firmware": false, "hostmodel": false, "rootports": false, "everything": true, "i440fx": true} {
		if got := request(t, name).Interactive(); got != want {
			t.Errorf("%s: interactive is %v", name, got)
		}
	}
	direct := string(readFile(t, "testdata/requests/direct.xml"))
	for what, xml := range map[string]string{
		"pty":      "<serial type='pty'><target port='1'/></serial>",
		"channel":  "<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>",
		"graphics": "<graphics type='vnc'/><video><model type='virtio'/></video>",
		"video":    "<video><model type='virtio'/></video>",
		"keyboard": "<input type='keyboard' bus='virtio'/>",
	} {
		text := strings.Replace(direct, "</devices>", xml+"</devices>", 1)
		if what == "pty" {
			text = strings.Replace(direct, "<console type='file'>\n      <source path='/var/log/libvirt/direct.log'/>\n    </console>", xml, 1)
		}
		c, err := Read([]byte(text), Request)
		if err != nil || !c.Interactive() {
			t.Errorf("%s: not interactive, %v", what, err)
		}
	}
}

// TestRunningCPU: a feature that was asked for and that QEMU does not give is a difference, an added one is none.
func TestRunningCPU(t *testing.T) {
	want := request(t, "everything")
	live := string(readFile(t, "testdata/captured/everything.live"))
	for _, c := range []struct{ old, new, fact string }{
		{"policy='require' name='hypervisor'", "policy='disable' name='hypervisor'", "cpu.feature.hypervisor"},
		{"<feature policy='disable' name='lahf_lm'/>", "", "cpu.feature.lahf_lm"},
		{"sockets='2' dies='1' cores='2'", "sockets='1' dies='1' cores='4'", "cpu.topology"},
		{">qemu64<", ">kvm64<", "cpu.model"},
		{"<feature policy='disable' name='lahf_lm'/>", "<feature policy='disable' name='lahf_lm'/><feature policy='require' name='avx'/>", ""},
	} {
		got, err := Read([]byte(strings.Replace(live, c.old, c.new, 1)), Live)
		if err != nil {
			t.Fatal(err)
		}
		if c.fact == "" {
			if err := Compare(want, got); err != nil {
				t.Error(err)
			}
			continue
		}
		changed(t, want, got, c.fact)
	}
	// The same expansion at rest is not libvirt's doing.
	rest := strings.Replace(string(readFile(t, "testdata/captured/hostmodel.inactive")), "check='partial'", "check='full'", 1)
	_, err := Read([]byte(rest), Inactive)
	if !errors.Is(err, &proof.Refusal{Code: denied}) || !strings.Contains(err.Error(), "/domain/cpu/@check") {
		t.Errorf("check='full' at rest: %v", err)
	}
}

// TestReasonsAreDocumented: docs/domain-xml.md has each reason of a refusal.
func TestReasonsAreDocumented(t *testing.T) {
	doc, err := os.ReadFile("../../docs/domain-xml.md")
	if err != nil {
		t.Fatal(err)
	}
	for name, why := range refusedWhy {
		if !strings.Contains(string(doc), why) {
			t.Errorf("docs/domain-xml.md does not tell of %s: %s", name, why)
		}
	}
}

func FuzzRead(f *testing.F) {
	for _, name := range requests(f) {
		f.Add(readFile(f, "testdata/requests/"+name+".xml"), uint8(0))
		for i, c := range captures {
			f.Add(readFile(f, "testdata/captured/"+name+"."+c.ending), uint8(i))
		}
	}
	f.Fuzz(func(t *testing.T, text []byte, mode uint8) {
		m := []Mode{Request, Inactive, Hook, Live}[mode%4]
		c, err := Read(text, m)
		if err != nil {
			var r *proof.Refusal
			if !errors.As(err, &r) || (r.Code != invalid && r.Code != denied) || len(r.Facts) < 2 {
				t.Fatalf("not a refusal of ours: %v", err)
			}
			return
		}
		// What was accepted is written and read back as the same.
		if m != Request && m != Inactive {
			c.CPU.Features, c.live = nil, liveCPU{}
		}
		back, err := Read(Emit(c, Additions{}), Inactive)
		if c.UUID.IsZero() {
			back, err = Read(Emit(c, Additions{}), Request)
		}
		if err != nil {
			t.Fatalf("what was accepted is not read back: %v\n%s", err, Emit(c, Additions{}))
		}
		if m == Request || m == Inactive {
			if err := Compare(c, back); err != nil {
				t.Fatal(err)
			}
		}
	})
}
