package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// printer writes text for people. Every string that it is given may come from
// a stranger (a host's name, a label of a log), so control characters are
// written as escapes and a value can neither start a new line nor move a cursor.
type printer struct {
	b strings.Builder
}

func (p *printer) line(format string, args ...any) {
	for i, a := range args {
		switch v := a.(type) {
		case string:
			args[i] = clean(v)
		case error:
			args[i] = clean(v.Error())
		case fmt.Stringer:
			args[i] = clean(v.String())
		}
	}
	fmt.Fprintf(&p.b, format+"\n", args...)
}

// field writes one aligned "name value" line; an empty value is left out.
func (p *printer) field(name string, value any) {
	s := fmt.Sprint(value)
	if s == "" {
		return
	}
	p.line("%-16s %s", name, s)
}

// table writes rows under their heads, columns aligned by their widest cell.
func (p *printer) table(heads []string, rows [][]string) {
	width := make([]int, len(heads))
	all := append([][]string{heads}, rows...)
	for r, row := range all {
		cells := make([]string, len(heads))
		for i := range heads {
			if i < len(row) {
				cells[i] = clean(row[i])
			}
			if cells[i] == "" {
				cells[i] = "-"
			}
			width[i] = max(width[i], utf8.RuneCountInString(cells[i]))
		}
		all[r] = cells
	}
	for _, row := range all {
		var b strings.Builder
		for i, c := range row {
			b.WriteString(c)
			if i < len(row)-1 {
				b.WriteString(strings.Repeat(" ", width[i]-utf8.RuneCountInString(c)+2))
			}
		}
		p.line("%s", b.String())
	}
}

// clean keeps printable characters and writes everything else as an escape.
func clean(s string) string {
	plain := true
	for _, r := range s {
		if r == utf8.RuneError || !strconv.IsPrint(r) {
			plain = false
			break
		}
	}
	if plain {
		return s
	}
	var b strings.Builder
	for _, r := range s {
		if r != utf8.RuneError && strconv.IsPrint(r) {
			b.WriteRune(r)
			continue
		}
		q := strconv.QuoteRuneToASCII(r)
		b.WriteString(q[1 : len(q)-1])
	}
	return b.String()
}

// answer writes the result of a command: one JSON document with -o json,
// otherwise what text prints.
func (a *app) answer(v any, text func(p *printer)) error {
	if a.json() {
		return writeJSON(a.stdout, v)
	}
	var p printer
	text(&p)
	if _, err := io.WriteString(a.stdout, p.b.String()); err != nil {
		return fmt.Errorf("cannot write the answer: %w", err)
	}
	return nil
}

func writeJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	if err := e.Encode(v); err != nil {
		return fmt.Errorf("cannot write the answer: %w", err)
	}
	return nil
}

// when writes a time of a document (unix seconds) for people.
func when(unix int64) string {
	if unix == 0 {
		return "-"
	}
	return time.Unix(unix, 0).UTC().Format("2006-01-02 15:04:05 UTC")
}

// short writes the head of a long hexadecimal value, for tables.
func short(hex string) string {
	if len(hex) <= 16 {
		return hex
	}
	return hex[:16] + "…"
}
