// Command troth-hostd is the daemon of a measured host: it attests the host, launches proven domains, and answers libvirt's hook.
// It parses, wires and exits; everything else is in package hostd. It is the only program that links libvirt.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"troth/config"
	"troth/hostd"
	"troth/proof"
)

var version = "unreleased" // set by the linker

// Exits: 0 yes, 1 no, 2 wrong usage or configuration, 3 could not decide.
const (
	exitYes = iota
	exitNo
	exitUsage
	exitUndecided
)

// exit is an error that says how to end.
type exit struct {
	code int
	err  error
}

func (e *exit) Error() string { return e.err.Error() }
func (e *exit) Unwrap() error { return e.err }

func usage(err error) error {
	if err == nil {
		return nil
	}
	return &exit{exitUsage, err}
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

func run(ctx context.Context, args []string, out, errs io.Writer) int {
	a := &app{out: out, errs: errs}
	root := a.root()
	root.SetArgs(args)
	root.SetOut(out)
	root.SetErr(errs)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitYes
	}
	var e *exit
	if errors.As(err, &e) {
		if e.err != nil {
			a.complain(e.err)
		}
		return e.code
	}
	var r *proof.Refusal
	if errors.As(err, &r) {
		a.complain(err)
		if r.Code == proof.VerifierUnreachable || r.Code == proof.TPMUnavailable || r.Code == proof.TPMBusy || r.Code == proof.Internal {
			return exitUndecided
		}
		return exitNo
	}
	a.complain(err)
	return exitUsage
}

type app struct {
	out, errs io.Writer
	file      string
	format    string
	verbose   bool
}

func (a *app) complain(err error) {
	fmt.Fprintln(a.errs, "troth-hostd:", err)
	var r *proof.Refusal
	if errors.As(err, &r) && r.Remedy != "" {
		fmt.Fprintln(a.errs, "remedy:", r.Remedy)
	}
}

func (a *app) root() *cobra.Command {
	root := noun(&cobra.Command{Use: "troth-hostd", Short: "The daemon of a measured host", SilenceUsage: true, SilenceErrors: true, Version: version})
	root.PersistentFlags().StringVar(&a.file, "config", "", "configuration file (default /etc/troth/hostd.toml and its parts)")
	root.PersistentFlags().BoolVarP(&a.verbose, "verbose", "v", false, "log more")
	serve := &cobra.Command{Use: "serve", Short: "Attest, launch, answer the hook, until stopped", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return a.serve(c.Context()) }}
	provision := &cobra.Command{Use: "provision", Short: "Make the TPM's keys and enrol this host; may be repeated", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return a.provision(c.Context()) }}
	doctor := &cobra.Command{Use: "doctor", Short: "Look at everything that a launch needs; exit 0 all is well, 1 something is not, 3 something could not be seen",
		Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error { return a.doctor(c.Context()) }}
	for _, c := range []*cobra.Command{provision, doctor} {
		c.Flags().StringVarP(&a.format, "output", "o", "text", "text or json")
	}
	check := &cobra.Command{Use: "check", Short: "Read the configuration and say what is wrong with it", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if _, err := a.load(); err != nil {
				return err
			}
			_, err := fmt.Fprintln(a.out, "the configuration is good")
			return err
		}}
	group := noun(&cobra.Command{Use: "config", Short: "The configuration"})
	group.AddCommand(check)
	root.AddCommand(serve, provision, doctor, group, a.audits(), a.reap())
	return root
}

// noun makes c a command that does nothing but hold others. Of a word that names none of them cobra would print help and call that success.
func noun(c *cobra.Command) *cobra.Command {
	c.Args = func(c *cobra.Command, args []string) error {
		if len(args) > 0 {
			return fmt.Errorf("unknown command %q for %q; see %s --help", args[0], c.CommandPath(), c.CommandPath())
		}
		return nil
	}
	c.RunE = func(c *cobra.Command, _ []string) error {
		return fmt.Errorf("%q needs a command; see %s --help", c.CommandPath(), c.CommandPath())
	}
	return c
}

func (a *app) load() (*hostd.Config, error) {
	c := hostd.Default()
	if err := config.Load(c, config.Source{Name: "hostd", File: a.file}); err != nil {
		return nil, usage(err)
	}
	return c, usage(c.Check())
}

func (a *app) logger() *slog.Logger {
	level := slog.LevelInfo
	if a.verbose {
		level = slog.LevelDebug
	}
	return slog.New(slog.NewTextHandler(a.errs, &slog.HandlerOptions{Level: level}))
}

// print writes v as JSON, or the text form.
func (a *app) print(v any, text func(io.Writer) error) error {
	switch a.format {
	case "json":
		e := json.NewEncoder(a.out)
		e.SetIndent("", "  ")
		return e.Encode(v)
	case "text":
		return text(a.out)
	default:
		return usage(fmt.Errorf("unknown output %q: text or json", a.format))
	}
}
