package reaper

import (
	"errors"
	"fmt"
	"strings"

	"troth/launcher/emulator"
)

// maxLine bounds request and answer.
const maxLine = 512

// Request names one process and what to do with it.
type Request struct {
	PID    int
	Start  uint64 // clock ticks after boot
	Action emulator.Action
}

// encode gives the only form: "reap 1 ACTION PID START\n".
func (r Request) encode() string { return fmt.Sprintf("reap 1 %s %d %d\n", r.Action, r.PID, r.Start) }

// parse reads what encode wrote and nothing else.
func parse(line string) (Request, error) {
	var r Request
	var action string
	if _, err := fmt.Sscanf(line, "reap 1 %s %d %d\n", &action, &r.PID, &r.Start); err != nil {
		return r, errors.New("not a request")
	}
	r.Action = emulator.Action(action)
	if r.encode() != line || r.Action != emulator.Kill && r.Action != emulator.Stop || r.PID <= 1 {
		return r, errors.New("not a request")
	}
	return r, nil
}

// Answers: the first word, and for all but "done" the reason.
const (
	answerDone   = "done"   // the signal was sent
	answerNot    = "not"    // this is not that process, or it runs no trusted guest
	answerFailed = "failed" // nobody could decide
)

func answer(err error) string {
	word := answerFailed
	switch {
	case err == nil:
		return answerDone + "\n"
	case errors.Is(err, emulator.ErrNotIt):
		word = answerNot
	}
	text := strings.Map(func(c rune) rune {
		if c < ' ' || c > '~' {
			return '?'
		}
		return c
	}, err.Error())
	return word + " " + text[:min(len(text), maxLine-16)] + "\n"
}

func readAnswer(line string) error {
	word, why, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
	switch word {
	case answerDone:
		return nil
	case answerNot:
		return fmt.Errorf("%w: the reaper says: %s", emulator.ErrNotIt, why)
	case answerFailed:
		return fmt.Errorf("the reaper says: %s", why)
	}
	return fmt.Errorf("the reaper answers %q", line)
}
