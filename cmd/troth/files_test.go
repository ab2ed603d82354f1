package main

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spf13/cobra"
)

func TestWriteFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	read := func() string { return string(need[[]byte](t)(os.ReadFile(path))) }
	if err := writeFile(path, []byte("one"), private, false); err != nil {
		t.Fatal(err)
	}
	if info := need[os.FileInfo](t)(os.Stat(path)); info.Mode().Perm() != private {
		t.Errorf("mode %v", info.Mode())
	}
	// The file is there although absent would have been asked before: still not replaced.
	if err := writeFile(path, []byte("two"), public, false); exitOf(err) != exitNo || read() != "one" {
		t.Errorf("%v, holds %q", err, read())
	}
	if err := absent(false, "", path); exitOf(err) != exitNo {
		t.Errorf("absent: %v", err)
	}
	if err := absent(true, path); err != nil {
		t.Errorf("absent with force: %v", err)
	}
	if err := writeFile(path, []byte("three"), public, true); err != nil || read() != "three" {
		t.Errorf("%v, holds %q", err, read())
	}
	// A link is not written through.
	link, target := filepath.Join(dir, "link"), filepath.Join(dir, "target")
	if err := os.Symlink(target, link); err != nil {
		t.Fatal(err)
	}
	if err := writeFile(link, []byte("x"), private, false); exitOf(err) != exitNo {
		t.Errorf("a dangling link was replaced: %v", err)
	}
	if _, err := os.Stat(target); err == nil {
		t.Error("it was written through the link")
	}
	if err := writeFile(filepath.Join(dir, "none", "f"), nil, private, false); err == nil {
		t.Error("written into a folder that does not exist")
	}
	left := need[[]string](t)(filepath.Glob(filepath.Join(dir, ".troth-*")))
	if len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// TestProgress: silence for two seconds, then a line every few.
func TestProgress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		p := (&app{stderr: &out}).progress("measuring")
		time.Sleep(1900 * time.Millisecond)
		synctest.Wait()
		if out.Len() > 0 {
			t.Errorf("too early: %q", out.String())
		}
		time.Sleep(200 * time.Millisecond)
		synctest.Wait()
		if out.String() != "… measuring (2 s)\n" {
			t.Errorf("got %q", out.String())
		}
		p.set("half of %s", "it\x1b")
		time.Sleep(5 * time.Second)
		p.stop()
		if want := "… measuring (2 s)\n… half of it\\x1b (7 s)\n"; out.String() != want {
			t.Errorf("got %q", out.String())
		}
	})
	for n, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1536: "1.5 KiB", 4 << 30: "4.0 GiB", 1 << 62: "4096.0 PiB"} {
		if got := size(n); got != want {
			t.Errorf("%d: got %s, want %s", n, got, want)
		}
	}
}

// TestDocs: docs/cli.md names every command and every key of the settings.
func TestDocs(t *testing.T) {
	doc := string(need[[]byte](t)(os.ReadFile("../../docs/cli.md")))
	eachCommand((&app{}).tree(), func(c *cobra.Command) {
		words := strings.Fields(c.CommandPath())[1:]
		if len(words) == 0 || c.HasSubCommands() {
			return
		}
		line := "`" + words[0]
		if len(words) == 2 {
			line += " [^`]*\\b" + words[1]
		}
		if !regexp.MustCompile(line).MatchString(doc) {
			t.Errorf("docs/cli.md does not name troth %s", strings.Join(words, " "))
		}
	})
	for _, s := range settingFlags {
		if !strings.Contains(doc, "`"+s.key+"`") || !strings.Contains(doc, "`--"+s.flag+"`") && s.key != "timeout" {
			t.Errorf("docs/cli.md does not name the setting %s (--%s)", s.key, s.flag)
		}
	}
}
