package journal

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
)

// memFS is a file system that forgets what was not synced, and fails where the test says.
type memFS struct {
	mu    sync.Mutex
	files map[string]*memData
	fail  map[string]error // by operation: "write", "sync", "truncate", "rename", "create"
	short int              // with a failing write: how many bytes get through
	syncs int
}

type memData struct{ now, disk []byte }

type memFile struct {
	fs   *memFS
	data *memData
	read int
}

func newMemFS() *memFS { return &memFS{files: map[string]*memData{}, fail: map[string]error{}} }

func (m *memFS) Open(path string) (File, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.files[path] == nil {
		m.files[path] = &memData{}
	}
	return &memFile{fs: m, data: m.files[path]}, nil
}

func (m *memFS) Create(path string) (File, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.fail["create"]; err != nil {
		return nil, err
	}
	m.files[path] = &memData{}
	return &memFile{fs: m, data: m.files[path]}, nil
}

func (m *memFS) Rename(from, to string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.fail["rename"]; err != nil {
		return err
	}
	m.files[to] = m.files[from]
	delete(m.files, from)
	return nil
}

// crash keeps what is on the disk, and cut bytes of what was written after it.
func (m *memFS) crash(cut int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, d := range m.files {
		keep := len(d.disk)
		if len(d.now) > keep && bytes.HasPrefix(d.now, d.disk) {
			keep = min(len(d.now), keep+cut)
			d.now = d.now[:keep]
		} else {
			d.now = bytes.Clone(d.disk)
		}
		d.disk = bytes.Clone(d.now)
	}
	m.fail = map[string]error{}
}

func (f *memFile) Read(p []byte) (int, error) {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	if f.read >= len(f.data.now) {
		return 0, io.EOF
	}
	n := copy(p, f.data.now[f.read:])
	f.read += n
	return n, nil
}

func (f *memFile) Write(p []byte) (int, error) {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	if err := f.fs.fail["write"]; err != nil {
		n := min(f.fs.short, len(p))
		f.data.now = append(f.data.now, p[:n]...)
		return n, err
	}
	f.data.now = append(f.data.now, p...)
	return len(p), nil
}

func (f *memFile) Sync() error {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	if err := f.fs.fail["sync"]; err != nil {
		return err
	}
	f.fs.syncs++
	f.data.disk = bytes.Clone(f.data.now)
	return nil
}

func (f *memFile) Truncate(size int64) error {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	if err := f.fs.fail["truncate"]; err != nil {
		return err
	}
	f.data.now = f.data.now[:size]
	return nil
}

func (f *memFile) Close() error { return nil }

func open(t *testing.T, fs FS) (*Journal, []string) {
	t.Helper()
	j, records, err := Open(fs, "j")
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	return j, texts(records)
}

func texts(records [][]byte) []string {
	out := []string{}
	for _, r := range records {
		out = append(out, string(r))
	}
	return out
}

func equal(t *testing.T, got []string, want ...string) {
	t.Helper()
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Fatalf("records %q, want %q", got, want)
	}
}

func TestAppendSurvivesCrash(t *testing.T) {
	fs := newMemFS()
	j, _ := open(t, fs)
	for _, r := range []string{"a", "", "b c"} {
		if err := j.Append([]byte(r)); err != nil {
			t.Fatal(err)
		}
	}
	fs.crash(0)
	_, got := open(t, fs)
	equal(t, got, "a", "", "b c")
}

// TestTornTail cuts the last append at every byte: the record is whole or gone, and the journal goes on.
func TestTornTail(t *testing.T) {
	for cut := 0; ; cut++ {
		fs := newMemFS()
		j, _ := open(t, fs)
		if err := j.Append([]byte("first")); err != nil {
			t.Fatal(err)
		}
		whole := len(fs.files["j"].now)
		fs.fail["sync"] = syscall.EIO
		if err := j.Append([]byte("second")); !errors.Is(err, syscall.EIO) {
			t.Fatalf("append with failing sync: %v", err)
		}
		full := len(fs.files["j"].now) - whole
		fs.crash(cut)
		j, got := open(t, fs)
		want := []string{"first"}
		if cut >= full {
			want = append(want, "second")
		}
		equal(t, got, want...)
		if err := j.Append([]byte("third")); err != nil {
			t.Fatalf("cut %d: %v", cut, err)
		}
		_, got = open(t, fs)
		equal(t, got, append(want, "third")...)
		if cut > full {
			return
		}
	}
}

func TestFailedSyncIsFinal(t *testing.T) {
	fs := newMemFS()
	j, _ := open(t, fs)
	fs.fail["sync"] = syscall.EIO
	if err := j.Append([]byte("a")); !errors.Is(err, syscall.EIO) {
		t.Fatalf("got %v", err)
	}
	delete(fs.fail, "sync")
	if err := j.Append([]byte("b")); err == nil {
		t.Fatal("a journal appended after a failed sync")
	}
}

func TestNoSpace(t *testing.T) {
	for _, short := range []int{0, 1, 20, 40} {
		fs := newMemFS()
		j, _ := open(t, fs)
		if err := j.Append([]byte("a")); err != nil {
			t.Fatal(err)
		}
		fs.fail["write"], fs.short = syscall.ENOSPC, short
		if err := j.Append([]byte("lost, it is longer than what gets through")); !errors.Is(err, syscall.ENOSPC) {
			t.Fatalf("got %v", err)
		}
		delete(fs.fail, "write")
		if err := j.Append([]byte("b")); err != nil {
			t.Fatalf("append after space came back: %v", err)
		}
		_, got := open(t, fs)
		equal(t, got, "a", "b")

		fs.fail["write"], fs.fail["truncate"] = syscall.ENOSPC, syscall.EIO
		if err := j.Append([]byte("c")); err == nil {
			t.Fatal("append succeeded without space")
		}
		delete(fs.fail, "write")
		if err := j.Append([]byte("d")); err == nil {
			t.Fatal("a journal with half a line in it went on")
		}
	}
}

// TestEveryBit flips every bit of a journal of three records: an error or a shorter journal, never other records.
func TestEveryBit(t *testing.T) {
	fs := newMemFS()
	j, _ := open(t, fs)
	want := []string{"one", "two", "three"}
	for _, r := range want {
		if err := j.Append([]byte(r)); err != nil {
			t.Fatal(err)
		}
	}
	content := fs.files["j"].now
	for bit := range 8 * len(content) {
		changed := bytes.Clone(content)
		changed[bit/8] ^= 1 << (bit % 8)
		records, _, _, err := parse(changed)
		if err != nil {
			continue
		}
		if len(records) > 2 || fmt.Sprint(texts(records)) != fmt.Sprint(want[:len(records)]) {
			t.Fatalf("bit %d: %q", bit, records)
		}
	}
}

func TestMissingDoubledMovedLines(t *testing.T) {
	var lines [][]byte
	var chain [chainLen]byte
	var settled int64
	for _, r := range []string{"one", "two", "three"} {
		var l []byte
		l, chain = appendLine(nil, chain, settled, []byte(r))
		settled += int64(len(l))
		lines = append(lines, l)
	}
	for name, order := range map[string][]int{"missing": {0, 2, 2}, "moved": {1, 0, 2}, "doubled": {0, 0, 1, 2}, "first gone": {1, 2}} {
		var content []byte
		for _, i := range order {
			content = append(content, lines[i]...)
		}
		if _, _, _, err := parse(content); !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestRewrite(t *testing.T) {
	fs := newMemFS()
	j, _ := open(t, fs)
	for _, r := range []string{"a", "b", "c"} {
		if err := j.Append([]byte(r)); err != nil {
			t.Fatal(err)
		}
	}
	fs.fail["create"] = syscall.ENOSPC
	if err := j.Rewrite([][]byte{[]byte("c")}); err == nil {
		t.Fatal("rewrite without space succeeded")
	}
	fs.crash(0)
	j, got := open(t, fs)
	equal(t, got, "a", "b", "c")
	if err := j.Rewrite([][]byte{[]byte("c")}); err != nil {
		t.Fatal(err)
	}
	if err := j.Append([]byte("d")); err != nil {
		t.Fatal(err)
	}
	fs.crash(0)
	_, got = open(t, fs)
	equal(t, got, "c", "d")
}

func TestBadRecords(t *testing.T) {
	j, _ := open(t, newMemFS())
	if err := j.Append([]byte("a\nb")); err == nil {
		t.Error("a record with a newline was taken")
	}
	if err := j.Append(make([]byte, MaxRecord+1)); err == nil {
		t.Error("a record over the bound was taken")
	}
}

func TestConcurrentAppendsShareSyncs(t *testing.T) {
	fs := newMemFS()
	j, _ := open(t, fs)
	var wg sync.WaitGroup
	for i := range 64 {
		wg.Go(func() {
			if err := j.Append(fmt.Appendf(nil, "r%d", i)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	syncs := fs.syncs
	fs.crash(0)
	_, got := open(t, fs)
	if len(got) != 64 || syncs > 64 {
		t.Fatalf("%d records, %d syncs", len(got), syncs)
	}
}

func TestRealFiles(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal")
	j, _, err := Open(OS{}, path)
	if err != nil {
		t.Fatal(err)
	}
	if err := j.Append([]byte("a")); err != nil {
		t.Fatal(err)
	}
	if err := j.Rewrite([][]byte{[]byte("a2")}); err != nil {
		t.Fatal(err)
	}
	if err := j.Append([]byte("b")); err != nil {
		t.Fatal(err)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	if err := j.Append([]byte("c")); err == nil {
		t.Fatal("append to a closed journal")
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString("0123 torn"); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	j, records, err := Open(OS{}, path)
	if err != nil {
		t.Fatal(err)
	}
	equal(t, texts(records), "a2", "b")
	if err := j.Append([]byte("c")); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v", info.Mode())
	}
	_, records, err = Open(OS{}, path)
	if err != nil {
		t.Fatal(err)
	}
	equal(t, texts(records), "a2", "b", "c")
}

// TestFull: no append and no rewrite makes a journal that is larger than Open reads.
func TestFull(t *testing.T) {
	fs := newMemFS()
	j, _ := open(t, fs)
	j.max = 3 * (headLen + 2)
	for _, r := range []string{"a", "b", "c"} {
		if err := j.Append([]byte(r)); err != nil {
			t.Fatal(err)
		}
	}
	if err := j.Append([]byte("d")); !errors.Is(err, ErrFull) {
		t.Errorf("append: %v", err)
	}
	if err := j.Rewrite([][]byte{[]byte("a"), []byte("b"), []byte("cc")}); !errors.Is(err, ErrFull) {
		t.Errorf("rewrite: %v", err)
	}
	if err := j.Rewrite([][]byte{[]byte("c")}); err != nil {
		t.Fatal(err)
	}
	if err := j.Append([]byte("d")); err != nil {
		t.Fatal(err)
	}
	_, got := open(t, fs)
	equal(t, got, "c", "d")
}

// TestRewriteWithoutSpace: a rewrite that finds no space leaves nothing behind that takes the journal's.
func TestRewriteWithoutSpace(t *testing.T) {
	fs := newMemFS()
	j, _ := open(t, fs)
	if err := j.Append([]byte("a")); err != nil {
		t.Fatal(err)
	}
	fs.fail["write"], fs.short = syscall.ENOSPC, 20
	if err := j.Rewrite([][]byte{[]byte("b")}); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("got %v", err)
	}
	if n := len(fs.files["j.new"].now); n != 0 {
		t.Errorf("%d bytes are left", n)
	}
	delete(fs.fail, "write")
	if err := j.Append([]byte("c")); err != nil {
		t.Fatal(err)
	}
	_, got := open(t, fs)
	equal(t, got, "a", "c")
}
