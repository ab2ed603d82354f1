// Command troth-verifierd is the attestation service: it judges hosts and releases what tenants sealed.
//
// It reads /etc/troth/verifierd.toml (see Config), needs keys that `init` makes once, listens on one address with TLS 1.3,
// writes its state to one SQLite file, and never dials out.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/activation"
	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"

	"troth/verifier"
	"troth/verifier/serve"
	"troth/verifier/store"
)

var version = "unreleased" // set by the linker

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	code := exitStatus(ctx, command(), os.Stderr)
	stop()
	os.Exit(code)
}

// exitStatus runs a command and returns the exit status: 0 done; 1 failed; 2 wrong use or a wrong configuration, and nothing was begun.
func exitStatus(ctx context.Context, root *cobra.Command, errs io.Writer) int {
	begun := false
	for _, c := range commands(root) {
		if do := c.RunE; do != nil {
			c.RunE = func(c *cobra.Command, args []string) error {
				begun = true
				return do(c, args)
			}
		}
	}
	err := root.ExecuteContext(ctx)
	var m misuse
	switch {
	case err == nil:
		return 0
	case !begun || errors.As(err, &m):
		fmt.Fprintln(errs, "troth-verifierd:", err)
		return 2
	default:
		fmt.Fprintln(errs, "troth-verifierd:", err)
		return 1
	}
}

func commands(c *cobra.Command) []*cobra.Command {
	all := []*cobra.Command{c}
	for _, sub := range c.Commands() {
		all = append(all, commands(sub)...)
	}
	return all
}

// misuse is an error of what was typed or configured.
type misuse struct{ error }

func (m misuse) Unwrap() error { return m.error }

// noun makes c a command that does nothing but hold others. Of a word that names none of them cobra would print help and call that success.
func noun(c *cobra.Command) *cobra.Command {
	c.Args = func(c *cobra.Command, args []string) error {
		if len(args) > 0 {
			return misuse{fmt.Errorf("unknown command %q for %q; see %s --help", args[0], c.CommandPath(), c.CommandPath())}
		}
		return nil
	}
	c.RunE = func(c *cobra.Command, _ []string) error {
		return misuse{fmt.Errorf("%q needs a command; see %s --help", c.CommandPath(), c.CommandPath())}
	}
	return c
}

func command() *cobra.Command {
	var file string
	root := noun(&cobra.Command{Use: "troth-verifierd", Short: "Attestation service of Troth", SilenceUsage: true, SilenceErrors: true, Version: version})
	root.PersistentFlags().StringVar(&file, "config", "", "configuration file in place of /etc/troth/verifierd.toml")
	var allowSoftware bool
	initialise := &cobra.Command{Use: "init", Short: "Make root, verdict, token and challenge key; refuses if there are any", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return initKeys(cmd, file, allowSoftware)
		}}
	initialise.Flags().BoolVar(&allowSoftware, "allow-software-tpm", false, "let trust.json accept software TPMs (default: only if every EK root is one)")
	check := noun(&cobra.Command{Use: "config", Short: "Configuration"})
	check.AddCommand(&cobra.Command{Use: "check", Short: "Read everything that serve would read, and say what is wrong", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if _, err := prepare(file); err != nil {
				return err
			}
			_, err := fmt.Fprintln(cmd.OutOrStdout(), "the configuration is good")
			return err
		}})
	root.AddCommand(initialise, check, keysCommand(&file),
		&cobra.Command{Use: "serve", Short: "Run the service", Args: cobra.NoArgs,
			RunE: func(cmd *cobra.Command, _ []string) error { return run(cmd.Context(), file) }},
		&cobra.Command{Use: "version", Short: "Print the version", Args: cobra.NoArgs,
			RunE: func(cmd *cobra.Command, _ []string) error {
				_, err := fmt.Fprintln(cmd.OutOrStdout(), "troth-verifierd", version)
				return err
			}})
	return root
}

func initKeys(cmd *cobra.Command, file string, allowSoftware bool) error {
	c, err := load(file)
	if err != nil {
		return err
	}
	if !cmd.Flags().Changed("allow-software-tpm") {
		vc, err := c.verifier()
		if err != nil {
			return misuse{err}
		}
		allowSoftware = softwareOnly(vc)
	}
	if err := verifier.InitKeys(c.keys(), c.Issuer, allowSoftware, time.Now()); err != nil {
		return err
	}
	_, err = fmt.Fprintf(cmd.OutOrStdout(), "keys are in %[1]s\ngive tenants %[2]s\ntake %[3]s off this machine: the service does not need it\n",
		c.keys(), filepath.Join(c.keys(), "trust.json"), filepath.Join(c.keys(), "root.pem"))
	return err
}

// prepared is all that serve needs besides store and network.
type prepared struct {
	config   *Config
	verifier verifier.Config
	keys     *verifier.Keys
	server   *http.Server // without handler
	log      *slog.Logger
}

func prepare(file string) (*prepared, error) {
	c, err := load(file)
	if err != nil {
		return nil, err
	}
	vc, err := c.verifier()
	if err != nil {
		return nil, misuse{err}
	}
	keys, err := verifier.LoadKeys(c.keys())
	if err != nil {
		return nil, err
	}
	cert, pool, err := c.tls()
	if err != nil {
		return nil, misuse{err}
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: c.LogLevel}))
	return &prepared{c, vc, keys, serve.Server(nil, serve.TLSConfig(cert, pool), log), log}, nil
}

// run serves until ctx ends: stop accepting, let requests end, write the last marks and verdicts, close the store.
func run(ctx context.Context, file string) (err error) {
	p, err := prepare(file)
	if err != nil {
		return err
	}
	st, err := store.Open(ctx, p.config.database())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, st.Close()) }()
	v, err := verifier.New(ctx, p.verifier, p.keys, st, p.log)
	if err != nil {
		return err
	}
	if p.server.Handler, err = serve.Handler(v, p.log); err != nil {
		return err
	}
	listeners, err := activation.Listeners()
	if err != nil {
		return fmt.Errorf("cannot take sockets from systemd: %w", err)
	}
	if len(listeners) == 0 {
		l, err := serve.Listen(ctx, p.config.Listen)
		if err != nil {
			return err
		}
		listeners = append(listeners, l)
	}
	renewed := make(chan os.Signal, 1)
	signal.Notify(renewed, syscall.SIGHUP)
	defer signal.Stop(renewed)
	work, cancel := context.WithCancel(context.WithoutCancel(ctx))
	go takeKeys(work, v, p, renewed)
	written := make(chan error, 1)
	go func() { written <- v.Run(work) }()
	served := make(chan error, len(listeners))
	for _, l := range listeners {
		p.log.Info("listening", "address", l.Addr().String(), "issuer", p.config.Issuer, "version", version)
		go func() { served <- p.server.ServeTLS(l, "", "") }()
	}
	if _, err := daemon.SdNotify(false, daemon.SdNotifyReady); err != nil {
		p.log.Warn("cannot notify systemd", "error", err.Error())
	}
	select {
	case err = <-served:
	case <-ctx.Done():
	}
	if _, nerr := daemon.SdNotify(false, daemon.SdNotifyStopping); nerr != nil {
		p.log.Warn("cannot notify systemd", "error", nerr.Error())
	}
	drain, done := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer done()
	shut := p.server.Shutdown(drain)
	cancel()
	if errors.Is(err, http.ErrServerClosed) {
		err = nil
	}
	return errors.Join(err, shut, <-written)
}

// takeKeys takes the keys on the disk whenever it is told, until ctx ends. Keys that are not good change nothing.
func takeKeys(ctx context.Context, v *verifier.Verifier, p *prepared, told <-chan os.Signal) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-told:
		}
		keys, err := verifier.LoadKeys(p.config.keys())
		if err == nil {
			err = v.SetKeys(keys)
		}
		if err != nil {
			p.log.Error("cannot take new keys, the present ones stay", "error", err.Error())
			continue
		}
		p.log.Info("took new keys", "verdict", keys.Verdict.KeyID(), "signed", keys.Issued)
	}
}
