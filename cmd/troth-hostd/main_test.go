package main

import (
	"strings"
	"testing"
)

// TestExit: a word that names no command is no success.
func TestExit(t *testing.T) {
	for args, want := range map[string]int{
		"--help": exitYes, "--version": exitYes, "": exitUsage, "docter": exitUsage, "config": exitUsage, "config chek": exitUsage, "audit vrify": exitUsage,
		"doctor x": exitUsage, "serve --no": exitUsage, "config check --config /nonexistent": exitUsage,
	} {
		var out, errs strings.Builder
		if got := run(t.Context(), strings.Fields(args), &out, &errs); got != want || got != exitYes && errs.Len() == 0 {
			t.Errorf("%q ends with %d (%s), want %d", args, got, errs.String(), want)
		}
	}
}
