package hooks_test

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"troth/hooks"
	"troth/hooks/answer"
	"troth/hooks/ask"
)

// TestAttack runs the attacks on the gate against the real program.
func TestAttack(t *testing.T) {
	t.Run("R-HOOKDOWN", attackHookDown)
	t.Run("L-STALL", attackStall)
	t.Run("L-OPS", attackOps)
	t.Run("L-NAME", attackName)
	t.Run("L-MARK", attackMark)
	t.Run("X-DEPTH", attackDepth)
	t.Run("X-XML", attackXML)
	t.Run("L-OWN", attackOwn)
	t.Run("R-PANIC", attackPanic)
}

// attackHookDown: hostd stopped, hung, garbage, half an answer. Trusted domains are refused in time, others pass.
func attackHookDown(t *testing.T) {
	say := func(s string) func(net.Conn) {
		return func(c net.Conn) {
			if _, err := c.Write([]byte(s)); err != nil {
				t.Log(err) // the hook went away first
			}
		}
	}
	for name, behave := range map[string]func(net.Conn){
		"says nothing":         func(net.Conn) {},
		"first byte alone":     say("T"),
		"half an answer":       say("TRA1\x01"),
		"garbage":              say(strings.Repeat("\xff", 64)),
		"http":                 say("HTTP/1.1 200 OK\r\n\r\n"),
		"permit with a code":   say("TRA1\x01\x00\x00\x1d"),
		"refusal with no code": say("TRA1\x00\x00\x00\x00"),
		"permit, wrong magic":  say("TRA2\x01\x00\x00\x00"),
		"allow byte 2":         say("TRA1\x02\x00\x00\x00"),
		"permit, padding":      say("TRA1\x01\x01\x00\x00"),
		"unknown code":         say("TRA1\x00\x00\xff\xff"),
		"closes at once":       func(c net.Conn) { c.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			h.register(t, ask.Registry{UUIDs: [][16]byte{uuidOf(t, uuidText)}})
			stop := raw(t, behave)
			refusedAndUnharmed(t)
			stop()
			h.serve(t, permit) // and back: no restart of anything else
			run(t, domain(uuidText, mark, ""), "guest", "prepare", "begin", "-").wantPermitted(t)
		})
	}
	t.Run("stopped", func(t *testing.T) {
		h := newHost(t)
		stop := h.serve(t, permit)
		run(t, domain(uuidText, mark, ""), "guest", "prepare", "begin", "-").wantPermitted(t)
		stop()
		refusedAndUnharmed(t)
	})
	t.Run("no socket", func(t *testing.T) {
		newHost(t)
		refusedAndUnharmed(t)
	})
	t.Run("not a socket", func(t *testing.T) {
		newHost(t)
		if err := os.WriteFile(hooks.SocketPath, []byte("TRA1\x01\x00\x00\x00"), 0o600); err != nil {
			t.Fatal(err)
		}
		refusedAndUnharmed(t)
	})
	t.Run("thinks too long", func(t *testing.T) {
		h := newHost(t)
		h.serve(t, func(ask.Question) ask.Answer { time.Sleep(3100 * time.Millisecond); return ask.Allow() })
		run(t, domain(uuidText, mark, ""), "guest", "prepare", "begin", "-").wantRefused(t, "hostd-unreachable")
	})
	t.Run("thinks long, not too long", func(t *testing.T) {
		h := newHost(t)
		h.serve(t, func(ask.Question) ask.Answer { time.Sleep(time.Second); return ask.Allow() })
		run(t, domain(uuidText, mark, ""), "guest", "prepare", "begin", "-").wantPermitted(t)
	})
}

func refusedAndUnharmed(t *testing.T) {
	t.Helper()
	var wg sync.WaitGroup
	for _, op := range vetoes {
		wg.Go(func() {
			run(t, domain(uuidText, mark, ""), "guest", op, "begin", "-").wantRefused(t, "hostd-unreachable")
		})
	}
	wg.Wait()
	for _, op := range []string{"stopped", "release"} {
		run(t, domain(uuidText, mark, ""), "guest", op, "end", "-").wantPermitted(t)
	}
	run(t, domain(uuidText, mark, ""), "guest", "reconnect", "begin", "-").wantPermitted(t)
	quick(t, 500*time.Millisecond, domain(otherID, "", "")).wantPermitted(t)
}

// quick runs a hook that must not wait: one that does takes the limit in each of three runs.
func quick(t *testing.T, limit time.Duration, xml string) (o outcome) {
	t.Helper()
	for range 3 {
		if o = run(t, xml, "guest", "prepare", "begin", "-"); o.took < limit {
			return o
		}
	}
	t.Errorf("a hook that has nobody to wait for waited %v", o.took)
	return o
}

// attackStall: many trusted starts while hostd hangs. At most eight wait, the others are refused at once.
func attackStall(t *testing.T) {
	h := newHost(t)
	l, err := answer.Listen(hooks.SocketPath, 0o600) // and never Accept
	if err != nil {
		t.Fatal(err)
	}
	g := hooks.Gate{Registry: hooks.RegistryPath, Socket: hooks.SocketPath}
	var waited atomic.Int32
	storm := func() {
		var wg sync.WaitGroup
		for range 60 {
			wg.Go(func() {
				begin := time.Now()
				var line strings.Builder
				if g.Run([]string{"guest", "prepare", "begin", "-"}, strings.NewReader(domain(uuidText, mark, "")), &line) == 0 {
					t.Error("a trusted domain passed without hostd")
				}
				if time.Since(begin) >= ask.FirstByte {
					waited.Add(1)
				}
			})
		}
		wg.Wait()
	}
	// Whoever gave up stays in the queue, so that a machine that stood still during one storm does not during the next, and a hook that really waits does in each.
	storm()
	for again := 0; again < 2 && waited.Load() > answer.MaxWaiting; again++ {
		waited.Store(0)
		storm()
	}
	if n := waited.Load(); n > answer.MaxWaiting {
		t.Errorf("%d hooks waited, want at most %d", n, answer.MaxWaiting)
	}
	quick(t, ask.FirstByte, domain(uuidText, mark, "")).wantRefused(t, "hostd-unreachable")
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	h.serve(t, permit)
	run(t, domain(uuidText, mark, ""), "guest", "prepare", "begin", "-").wantPermitted(t)
}

// attackOps: operations, words and numbers of words that do not exist, and standard input that is none.
func attackOps(t *testing.T) {
	trusted, plain := domain(uuidText, mark, ""), domain(otherID, "", "")
	h := newHost(t)
	h.serve(t, permit)
	for _, argv := range [][]string{
		{}, {"guest"}, {"guest", "prepare"}, {"guest", "prepare", "begin"}, {"guest", "prepare", "begin", "-", "more"},
		{"guest", "prepare", "end", "-"}, {"guest", "prepare", "-", "-"}, {"guest", "PREPARE", "begin", "-"},
		{"guest", "attach", "begin", "-"}, {"guest", "", "begin", "-"}, {"guest", "prepare ", "begin", "-"},
		{"guest", "stop", "end", "-"}, {"guest", "launch\n", "begin", "-"},
	} {
		t.Run(strings.Join(argv, " "), func(t *testing.T) {
			run(t, trusted, argv...).wantRefused(t, "forbidden")
			if o := run(t, plain, argv...); o.status != 0 || o.stderr != "troth: allowed: unknown operation\n" {
				t.Errorf("untrusted: exit %d, %q", o.status, o.stderr)
			}
		})
	}
	t.Run("never vetoed", func(t *testing.T) {
		h.serve(t, func(ask.Question) ask.Answer { return ask.Deny(ask.GrantMissing) })
		before := len(h.questions())
		for _, argv := range [][]string{
			{"guest", "stopped", "end", "-"}, {"guest", "release", "end", "-"}, {"guest", "reconnect", "begin", "-"},
			{"guest", "release", "end", "destroyed"}, {"guest", "reconnect", "begin"}, {"guest", "reconnect"},
			{"guest", "reconnect", "begin", "-", "a newer libvirt"},
		} {
			run(t, trusted, argv...).wantPermitted(t)
			run(t, "", argv...).wantPermitted(t)
			run(t, "<domain", argv...).wantPermitted(t)
		}
		eventually(t, func() bool { return len(h.questions()) == before+7 })
		run(t, trusted, "guest", "prepare", "begin", "-").wantRefused(t, "grant-missing")
	})
	t.Run("stdin", func(t *testing.T) {
		metadata := func(n int) string {
			return "<metadata><x:a xmlns:x='urn:x'>" + strings.Repeat("y", n) + "</x:a></metadata>"
		}
		run(t, "", "guest", "prepare", "begin", "-").wantRefused(t, "request-invalid")
		run(t, " \n", "guest", "prepare", "begin", "-").wantRefused(t, "request-invalid")
		run(t, domain(otherID, metadata(4<<20), ""), "guest", "prepare", "begin", "-").wantPermitted(t)
		run(t, domain(otherID, metadata(9<<20), ""), "guest", "prepare", "begin", "-").wantRefused(t, "request-invalid")
		run(t, plain[:len(plain)/2], "guest", "prepare", "begin", "-").wantRefused(t, "request-invalid")
		run(t, plain+plain, "guest", "prepare", "begin", "-").wantRefused(t, "request-invalid")
		r, w, err := os.Pipe() // never written, never closed
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		defer w.Close()
		inTime(t, 3*time.Second, func() outcome { return runEnv(t, nil, r, "guest", "prepare", "begin", "-") }).wantRefused(t, "internal")
	})
}

// pool is an active pool of libvirt's storage driver that lies in a folder.
func pool(t *testing.T, name, dir string) {
	t.Helper()
	if err := os.MkdirAll(hooks.PoolDir, 0o700); err != nil {
		t.Fatal(err)
	}
	text := "<poolstate>\n<pool type='dir'>\n  <name>" + name + "</name>\n  <target>\n    <path>" + dir + "</path>\n  </target>\n</pool>\n</poolstate>\n"
	if err := os.WriteFile(filepath.Join(hooks.PoolDir, name+".xml"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func eventually(t *testing.T, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(3 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("did not happen within 3 s")
		}
	}
}

// attackName: a domain's name decides nothing and is printed nowhere.
func attackName(t *testing.T) {
	h := newHost(t)
	h.register(t, ask.Registry{UUIDs: [][16]byte{uuidOf(t, uuidText)}})
	for _, name := range []string{
		"", "..", ".", "/", "-rf --x $(id) ..", "--help", "-", "a b", "line\nbreak", "\x01\x1b[2J\x7f", "\xff\xfe", "guest;reboot",
		strings.Repeat("n", 4096), otherID, uuidText, "reconnect", "'\"`",
	} {
		run(t, domain(uuidText, mark, ""), name, "prepare", "begin", "-").wantRefused(t, "hostd-unreachable")
		run(t, domain(otherID, "", ""), name, "prepare", "begin", "-").wantPermitted(t)
	}
	// Names in the XML: the registered UUID counts, whatever the name says; two names are a second reading.
	renamed := strings.Replace(domain(uuidText, "", ""), "<name>guest</name>", "<name>../"+otherID+"</name>", 1)
	run(t, renamed, "guest", "prepare", "begin", "-").wantRefused(t, "hostd-unreachable")
	for _, second := range []string{"<name>b</name>", "<x:name xmlns:x='urn:x'>b</x:name>"} {
		two := strings.Replace(domain(otherID, "", ""), "<name>", second+"<name>", 1)
		run(t, two, "guest", "prepare", "begin", "-").wantRefused(t, "request-invalid")
	}
}

// attackMark: the mark stripped, disguised or forged; the UUID changed; a registered volume by another path.
func attackMark(t *testing.T) {
	dir := t.TempDir()
	image := filepath.Join(dir, "disk.img")
	if err := os.WriteFile(image, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	dev, ino := identity(t, image)
	link, hard, moved := filepath.Join(dir, "link"), filepath.Join(dir, "hard"), filepath.Join(dir, "gone.img")
	if err := os.Symlink(image, link); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(image, hard); err != nil {
		t.Fatal(err)
	}
	other := filepath.Join(dir, "other.img")
	if err := os.WriteFile(other, []byte("y"), 0o600); err != nil {
		t.Fatal(err)
	}
	// A volume that was put back from a backup: the registry has old numbers. And names that XML, a shell or a careless reader makes others of.
	restored, far := filepath.Join(dir, "restored.img"), filepath.Join(t.TempDir(), "far")
	if err := os.WriteFile(restored, []byte("z"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, leads := range map[string]string{"to restored": restored, "a\rb": image, " spaced": image, "slashless": image} {
		if err := os.Symlink(leads, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	// The folder again at another place, and one below which there is nothing of ours.
	for _, d := range []string{far, filepath.Join(dir, "empty")} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := syscall.Mount(dir, far, "", syscall.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(far, 0); err != nil {
			t.Error(err)
		}
	})
	h := newHost(t)
	h.register(t, ask.Registry{
		UUIDs:   [][16]byte{uuidOf(t, uuidText)},
		Volumes: []ask.Volume{{Path: image, Dev: dev, Ino: ino}, {Path: moved}, {Path: restored, Dev: dev + 1, Ino: ino}},
	})
	if err := os.WriteFile(filepath.Join(dir, "empty", "disk.img"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	pool(t, "ours", dir)
	pool(t, "theirs", filepath.Join(dir, "empty"))
	root := strings.TrimPrefix(dir, "/")
	stop := h.serve(t, permit) // even a hostd that says yes to everything
	t.Run("stripped", func(t *testing.T) {
		run(t, domain(uuidText, "", ""), "guest", "prepare", "begin", "-").wantRefused(t, "configuration-changed")
		run(t, domain(strings.ToUpper(uuidText), "", ""), "guest", "prepare", "begin", "-").wantRefused(t, "configuration-changed")
	})
	stop()
	for name, metadata := range map[string]string{
		"other prefix":      `<metadata><x:launch xmlns:x="urn:troth:launch:v1"/></metadata>`,
		"default namespace": `<metadata><launch xmlns="urn:troth:launch:v1"/></metadata>`,
		"prefix above":      `<metadata xmlns:x="urn:troth:launch:v1"><x:launch/></metadata>`,
		"deeper":            `<metadata><a:b xmlns:a="urn:a"><x:launch xmlns:x="urn:troth:launch:v1"/></a:b></metadata>`,
		"character refs":    `<metadata><x:launch xmlns:x="urn:troth:launch&#58;v1"/></metadata>`,
		"newer version":     `<metadata><x:launch xmlns:x="urn:troth:launch:v9"/></metadata>`,
		"not in metadata":   `<x:launch xmlns:x="urn:troth:launch:v1"/>`,
		"rebound prefix":    `<metadata><x:a xmlns:x="urn:x"><x:launch xmlns:x="urn:troth:launch:v1"/></x:a></metadata>`,
	} {
		t.Run(name, func(t *testing.T) {
			run(t, domain(otherID, metadata, ""), "guest", "prepare", "begin", "-").wantRefused(t, "hostd-unreachable")
		})
	}
	for name, metadata := range map[string]string{
		"two marks":       `<metadata><x:launch xmlns:x="urn:troth:launch:v1"/><y:launch xmlns:y="urn:troth:launch:v1"/></metadata>`,
		"short id":        `<metadata><x:launch xmlns:x="urn:troth:launch:v1" id="00"/></metadata>`,
		"upper-case id":   `<metadata><x:launch xmlns:x="urn:troth:launch:v1" id="` + strings.ToUpper(launchID) + `"/></metadata>`,
		"unbound prefix":  `<metadata><troth:launch/></metadata>`,
		"emptied prefix":  `<metadata><troth:launch xmlns:troth=""/></metadata>`,
		"second metadata": `<x:metadata xmlns:x="urn:x"/>`,
	} {
		t.Run(name, func(t *testing.T) {
			run(t, domain(otherID, metadata, ""), "guest", "prepare", "begin", "-").wantRefused(t, "request-invalid")
		})
	}
	for name, d := range map[string]string{
		"volume by its path":      disk(image),
		"volume by symbolic link": disk(link),
		"volume by hard link":     disk(hard),
		"volume by dots":          disk(dir + "/./x/../disk.img"),
		"volume by slashes":       disk(strings.ReplaceAll(image, "/", "//")),
		"volume by reference":     disk(strings.Replace(image, "d", "&#100;", 1)),
		"volume that is away":     disk(moved),
		"volume in json":          `<disk><source file='json:{"driver":"raw","file":{"filename":"` + image + `"}}'/></disk>`,
		"volume of a pool":        `<disk type='volume'><source pool='default' volume='disk.img'/></disk>`,
		"volume as backing file":  `<disk><source file='` + other + `'/><backingStore><source file='` + image + `'/></backingStore></disk>`,
		"volume as a kernel":      `<kernel>` + image + `</kernel>`,
		"volume as an argument":   `<qemu:arg value='-drive file=` + image + `,if=virtio'/>`,

		"restored volume by link":      disk(dir + "/to restored"),
		"carriage return":              disk(dir + "/a\rb"),
		"carriage return, reference":   disk(dir + "/a&#13;b"),
		"relative":                     disk(root + "/disk.img"),
		"relative link":                disk(root + "/link"),
		"relative kernel":              `<kernel>` + root + `/link</kernel>`,
		"spaces around a kernel":       `<kernel> ` + image + ` </kernel>`,
		"spaces that count":            `<kernel>` + dir + "/ spaced" + `</kernel>`,
		"link in an argument":          `<qemu:arg value='file=` + link + `,if=virtio'/>`,
		"slashes in an argument":       `<qemu:arg value='if=virtio,file=` + strings.ReplaceAll(image, "/", "//") + `'/>`,
		"relative in an argument":      `<qemu:arg value='file=` + root + `/link,if=virtio'/>`,
		"link in json":                 `<disk><source file='json:{"file":{"filename":"` + link + `"}}'/></disk>`,
		"folder":                       `<filesystem type='mount'><source dir='` + dir + `'/><target dir='x'/></filesystem>`,
		"folder above":                 `<filesystem type='mount'><source dir='` + filepath.Dir(dir) + `'/><target dir='x'/></filesystem>`,
		"all folders":                  `<filesystem type='mount'><source dir='/'/><target dir='x'/></filesystem>`,
		"folder, relative":             `<disk type='dir'><source dir='` + root + `/.'/></disk>`,
		"folder, bound elsewhere":      `<filesystem type='mount'><source dir='` + far + `'/><target dir='x'/></filesystem>`,
		"volume of a pool, by alias":   `<disk type='volume'><source pool='ours' volume='link'/></disk>`,
		"volume of an unknown pool":    `<disk type='volume'><source pool='none' volume='disk.img'/></disk>`,
		"volume of a pool above":       `<disk type='volume'><source pool='../storage/none' volume='disk.img'/></disk>`,
		"volume of a pool, not there":  `<disk type='volume'><source pool='theirs' volume='gone.img'/></disk>`,
		"volume of a pool, other path": `<disk type='volume'><source pool='theirs' volume='../disk.img'/></disk>`,
	} {
		t.Run(name, func(t *testing.T) {
			run(t, domain(otherID, "", strings.ReplaceAll(d, `"`, "&quot;")), "guest", "prepare", "begin", "-").wantRefused(t, "hostd-unreachable")
		})
	}
	for name, xml := range map[string]string{
		"other disk":       domain(otherID, "", disk(other)),
		"disk not there":   domain(otherID, "", disk("/nonexistent/disk")),
		"other folder":     domain(otherID, "", `<filesystem type='mount'><source dir='`+dir+`/empty'/><target dir='`+dir+`'/></filesystem>`),
		"other argument":   domain(otherID, "", `<qemu:arg value='file=`+other+`,if=virtio'/>`),
		"other of a pool":  domain(otherID, "", `<disk type='volume'><source pool='ours' volume='other.img'/></disk>`),
		"carriage returns": domain(otherID, "<description>a\rb\r\n</description>", ""),
		"name of a volume": domain(otherID, "", `<disk type='volume'><source pool='theirs' volume='disk.img'/></disk>`),
		"slashless name":   domain(otherID, "", disk("slashless")),
		"longer path":      domain(otherID, "", `<disk><source file='json:{"filename":"`+image+`2"}'/></disk>`),
		"comment":          domain(otherID, `<!-- <x:launch xmlns:x="urn:troth:launch:v1"/> -->`, ""),
		"text":             domain(otherID, `<description>urn:troth:launch:v1 &lt;troth:launch/&gt; /a/b</description>`, ""),
		"attribute":        domain(otherID, `<metadata><a:b xmlns:a="urn:a" c="urn:troth:launch:v1"/></metadata>`, ""),
		"declared, unused": domain(otherID, `<metadata><a:b xmlns:a="urn:a" xmlns:t="urn:troth:launch:v1"/></metadata>`, ""),
	} {
		t.Run("honest/"+name, func(t *testing.T) {
			run(t, strings.ReplaceAll(xml, `{"filename":"`+image+`2"}`, "{&quot;filename&quot;:&quot;"+image+"2&quot;}"),
				"guest", "prepare", "begin", "-").wantPermitted(t)
		})
	}
}

// attackPanic: hostd panics over a question; the next one is answered.
func attackPanic(t *testing.T) {
	h := newHost(t)
	h.serve(t, func(q ask.Question) ask.Answer {
		if q.Op == ask.OpStart {
			panic("a fault in hostd")
		}
		return ask.Allow()
	})
	run(t, domain(uuidText, mark, ""), "guest", "start", "begin", "-").wantRefused(t, "internal")
	run(t, domain(uuidText, mark, ""), "guest", "prepare", "begin", "-").wantPermitted(t)
}
