package audit

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"troth/proof"
)

// Report is what Verify found.
type Report struct {
	Whole   bool         `json:"whole"`
	Records uint64       `json:"records"`
	First   uint64       `json:"first"` // sequence of the oldest record that is kept
	Head    proof.Digest `json:"head"`
	Held    bool         `json:"held"`             // a head that was asked for is one of the lines
	Torn    int          `json:"torn,omitempty"`   // bytes at the end without a newline: being written, or torn by a crash
	Broken  string       `json:"broken,omitempty"` // where and why the chain breaks first
}

// Verify follows the chain through all files of a log, oldest first. The error says that it could not be read; what is wrong with it stands in
// the report. Each, unless it is nil, gets every line whose place in the chain is right.
func Verify(path string, head *proof.Digest, each func(line []byte) error) (*Report, error) {
	w := &walk{report: Report{Whole: true}, want: head, each: each}
	found := false
	for n := Kept; n >= 0 && w.report.Whole; n-- {
		name := path
		if n > 0 {
			name = fmt.Sprintf("%s.%d", path, n)
		}
		err := w.file(name, n == 0)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		found = true
	}
	if !found {
		return nil, fmt.Errorf("cannot read the audit log %s: %w", path, fs.ErrNotExist)
	}
	w.report.Held = w.report.Held || head == nil
	if !w.report.Held && w.report.Whole {
		w.report.Whole, w.report.Broken = false, "the head that was asked for is not one of the lines: the end was cut off, or it is older than what is kept"
	}
	return &w.report, nil
}

// walk is a verification under way.
type walk struct {
	report Report
	next   uint64
	want   *proof.Digest
	each   func([]byte) error
}

func (w *walk) file(name string, newest bool) (err error) {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	r := bufio.NewReaderSize(f, maxLine)
	for at := 1; ; at++ {
		line, err := r.ReadSlice('\n')
		switch {
		case errors.Is(err, io.EOF) && len(line) == 0:
			return nil
		case errors.Is(err, io.EOF) && newest:
			w.report.Torn = len(line)
			return nil
		case errors.Is(err, bufio.ErrBufferFull), errors.Is(err, io.EOF):
			w.broken(name, at, "not a line of this log")
			return nil
		case err != nil:
			return err
		}
		if why := w.line(bytes.TrimSuffix(line, []byte{'\n'})); why != "" {
			w.broken(name, at, why)
			return nil
		}
		if w.each != nil {
			if err := w.each(line); err != nil {
				return err
			}
		}
	}
}

func (w *walk) broken(name string, at int, why string) {
	w.report.Whole, w.report.Broken = false, fmt.Sprintf("%s:%d: %s", name, at, why)
}

// line says what is wrong with the next line. The oldest that is kept may follow lines that are not; the very first follows none.
func (w *walk) line(line []byte) string {
	var r Record
	if err := json.Unmarshal(line, &r); err != nil {
		return "damaged: " + err.Error()
	}
	if again, err := json.Marshal(r); err != nil || !bytes.Equal(again, line) {
		return "not as hostd writes it"
	}
	first := w.report.Records == 0
	switch {
	case first && (r.Sequence == 0 || r.Sequence == 1 && r.Previous != proof.Digest{}):
		return "the first record follows another one"
	case !first && r.Sequence != w.next:
		return fmt.Sprintf("record %d where %d should be", r.Sequence, w.next)
	case !first && r.Previous != w.report.Head:
		return "it does not follow the line before it: one of them was changed"
	}
	if first {
		w.report.First = r.Sequence
	}
	w.report.Head, w.next = Hash(line), r.Sequence+1
	w.report.Records++
	w.report.Held = w.report.Held || w.want != nil && *w.want == w.report.Head
	return ""
}
