package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"troth/proof"
)

// app is one run of the program: its streams and what every command shares.
type app struct {
	stdin  io.Reader
	stdout io.Writer
	stderr io.Writer
	now    func() time.Time

	output  string // -o: text or json
	flags   connectionFlags
	started bool // the command line was accepted and a command runs
}

// run executes one command line and returns the exit status. It owns no state
// beyond the call, so tests run it as often as they like.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	a := &app{stdin: stdin, stdout: stdout, stderr: stderr, now: time.Now}
	root := a.tree()
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	c, err := root.ExecuteContextC(ctx)
	if err != nil && !a.started {
		err = &usageError{err}
	}
	if err != nil {
		a.complain(c, err)
	}
	return int(exitOf(err))
}

// tree builds the whole command tree; completion and the man pages come from it.
func (a *app) tree() *cobra.Command {
	root := &cobra.Command{
		Use:   "troth",
		Short: "Tokens, proofs and trusted domains",
		Long: `troth makes tokens for trusted domains, launches them, and checks launch proofs.

Exit status of every command: 0 yes, 1 no (refused, not genuine, not wanted,
unreadable), 2 wrong use, 3 could not decide. With -o json, standard output is
exactly one JSON document, also when the answer is no.`,
		Example:       "  troth proof verify --trust trust.json --key nonce.key proof.json\n  troth host list -o json",
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          needsNoun,
		RunE:          nothingAsked,
		PersistentPreRunE: func(*cobra.Command, []string) error {
			if a.output != "text" && a.output != "json" {
				return usagef("-o %q: must be text or json", a.output)
			}
			return nil
		},
	}
	root.PersistentFlags().StringVarP(&a.output, "output", "o", "text", "form of the answer: text or json")
	a.flags.register(root)
	root.AddCommand(
		a.tokenCommand(), a.proofCommand(), a.trustCommand(), a.verdictCommand(),
		a.domainCommand(), a.hostCommand(), a.profileCommand(), a.referenceCommand(),
		a.guestCommand(), a.configCommand(), a.versionCommand(), a.manCommand(),
	)
	a.markStart(root)
	return root
}

// markStart notes the moment when a command itself begins: an error before it
// (unknown flag, missing flag, wrong number of words) is one of use.
func (a *app) markStart(c *cobra.Command) {
	if does := c.RunE; does != nil {
		c.RunE = func(c *cobra.Command, args []string) error {
			a.started = true
			return does(c, args)
		}
	}
	for _, s := range c.Commands() {
		a.markStart(s)
	}
}

// group is a noun: it does nothing but hold its verbs.
func group(noun, short string, verbs ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{Use: noun, Short: short, Args: needsNoun, RunE: nothingAsked}
	for i, v := range verbs {
		if i > 0 {
			c.Example += "\n"
		}
		c.Example += firstLine(v.Example)
	}
	c.AddCommand(verbs...)
	return c
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return line
}

// needsNoun refuses words that name no subcommand: cobra would print help and
// call that success.
func needsNoun(c *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usagef("unknown command %q for %q (it has: %s)", args[0], c.CommandPath(), verbs(c))
	}
	return nil
}

func nothingAsked(c *cobra.Command, _ []string) error {
	return usagef("%q needs one of: %s", c.CommandPath(), verbs(c))
}

func verbs(c *cobra.Command) string {
	var names []string
	for _, v := range c.Commands() {
		if v.IsAvailableCommand() {
			names = append(names, v.Name())
		}
	}
	return strings.Join(names, ", ")
}

func (a *app) json() bool { return a.output == "json" }

// note tells a person something on standard error that is not the answer.
func (a *app) note(format string, args ...any) {
	var p printer
	p.line(format, args...)
	fmt.Fprint(a.stderr, p.b.String())
}

// ask puts a yes-or-no question; only a typed "y" or "yes" is a yes.
func (a *app) ask(question string) (bool, error) {
	fmt.Fprintf(a.stderr, "%s [y/N] ", clean(question))
	line, err := bufio.NewReader(io.LimitReader(a.stdin, 256)).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return false, fmt.Errorf("cannot read the answer: %w", err)
	}
	switch strings.ToLower(strings.TrimSpace(line)) {
	case "y", "yes":
		return true, nil
	default:
		return false, nil
	}
}

// failure is how an unhappy end looks with -o json.
type failure struct {
	Exit    exit           `json:"exit"`
	Error   string         `json:"error"`
	Refusal *refusalAnswer `json:"refusal,omitempty"`
}

type refusalAnswer struct {
	Code     proof.Code   `json:"code"`
	Sentence string       `json:"sentence"`
	Facts    []proof.Fact `json:"facts,omitempty"`
	Remedy   string       `json:"remedy,omitempty"`
	Also     []proof.Code `json:"also,omitempty"`
}

// answered marks the error of a command whose answer has already said why
// (proof verify prints its checks, whatever they say).
type answered struct{ error }

func (e answered) Unwrap() error { return e.error }

// complain prints why the command did not end with yes.
func (a *app) complain(c *cobra.Command, err error) {
	if _, ok := errors.AsType[answered](err); ok {
		return
	}
	r, refused := errors.AsType[*proof.Refusal](err)
	if a.json() {
		f := failure{Exit: exitOf(err), Error: err.Error()}
		if refused {
			f.Refusal = answerRefusal(r)
		}
		if werr := writeJSON(a.stdout, f); werr != nil {
			a.note("troth: %s", werr)
		}
		return
	}
	if refused {
		var p printer
		p.refusal(r)
		fmt.Fprint(a.stderr, p.b.String())
		return
	}
	a.note("troth: %s", err)
	if exitOf(err) == exitUsage {
		a.note("try: %s --help", c.CommandPath())
	}
}

func answerRefusal(r *proof.Refusal) *refusalAnswer {
	if r == nil {
		return nil
	}
	return &refusalAnswer{r.Code, r.Sentence, r.Facts, r.Remedy, r.Also}
}

// refusal prints code, sentence, facts, remedy: every refusal looks like this.
func (p *printer) refusal(r *proof.Refusal) {
	word := "refused"
	if undecided(r.Code) {
		word = "could not decide"
	}
	p.line("%s: %s: %s", word, string(r.Code), r.Sentence)
	for _, f := range r.Facts {
		p.fact(f)
	}
	if r.Remedy != "" {
		p.line("  remedy: %s", r.Remedy)
	}
	for _, c := range r.Also {
		p.line("  also: %s", string(c))
	}
}

func (p *printer) fact(f proof.Fact) {
	if f.Want == "" && f.Got == "" {
		p.line("  %s: %s", f.Name, f.Value)
		return
	}
	p.line("  %s: want %s", f.Name, orDash(f.Want))
	p.line("  %s:  got %s", f.Name, orDash(f.Got))
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
