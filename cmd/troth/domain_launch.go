package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"net/http"
	"time"

	"github.com/spf13/cobra"

	"troth/hostd/api"
	"troth/proof"
)

// launchPoll is how long hostd holds one question about a running launch, unless
// requests may not take that long.
const launchPoll = 10 * time.Second

type launchOptions struct {
	token, domain, key, proofOut string
	dryRun, wait, force          bool
}

type launchAnswer struct {
	*api.Launch
	IdempotencyKey string `json:"idempotency_key"`
	ProofFile      string `json:"proof_file,omitempty"`
}

func (a *app) domainLaunch() *cobra.Command {
	var o launchOptions
	c := &cobra.Command{
		Use:   "launch --token T --domain FILE",
		Short: "Launch a domain with a token, and with --wait follow it until its proof exists",
		Long: `Hand a token and a domain's XML to a host. The launch goes on by itself: without --wait the
command ends when the host has taken it up (exit 0) and prints its id. With --wait it follows the
steps and ends with the launch: 0 launched and proven, 1 refused. --dry-run does every local check
of the host and asks the verifier for nothing.

The idempotency key is printed: the same key with the same token and XML is the same launch, so
repeating an interrupted command with --idempotency-key launches nothing twice.`,
		Example: `  troth domain launch --token token --domain guest.xml --wait --proof-out proof.json
  troth domain launch --token token --domain guest.xml --dry-run`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return a.launch(c.Context(), o) },
	}
	f := c.Flags()
	f.StringVar(&o.token, "token", "", "file with the token; - is standard input")
	f.StringVar(&o.domain, "domain", "", "file with the domain's XML")
	o.flags(c)
	must(c.MarkFlagRequired("token"))
	must(c.MarkFlagRequired("domain"))
	return c
}

func (a *app) launch(ctx context.Context, o launchOptions) error {
	if err := o.check(); err != nil {
		return err
	}
	token, err := a.readToken(o.token)
	if err != nil {
		return err
	}
	xml, err := a.readFile(o.domain)
	if err != nil {
		return usagef("--domain: %w", err)
	}
	body := api.LaunchRequest{Action: "start", Token: token, Domain: string(xml), DryRun: &o.dryRun}
	return a.launchBy(ctx, o, func(ctx context.Context, h *api.Client, key string) (*http.Response, error) {
		return h.CreateLaunch(ctx, &api.CreateLaunchParams{IdempotencyKey: key}, body)
	})
}

// check refuses, before anything is asked, what could not end well.
func (o launchOptions) check() error {
	if o.dryRun && o.proofOut != "" {
		return usagef("a dry run makes no proof: leave out --proof-out")
	}
	return absent(o.force, o.proofOut)
}

// flags are those that launch and start share.
func (o *launchOptions) flags(c *cobra.Command) {
	f := c.Flags()
	f.StringVar(&o.key, "idempotency-key", "", "repeat the launch with this key (default: a new one)")
	f.BoolVar(&o.dryRun, "dry-run", false, "check everything that the host can check, launch nothing")
	f.BoolVar(&o.wait, "wait", false, "follow the launch to its end")
	f.StringVar(&o.proofOut, "proof-out", "", "write the proof to this file; implies --wait")
	f.BoolVar(&o.force, "force", false, "overwrite the proof file")
}

func (a *app) domainStart() *cobra.Command {
	var o launchOptions
	c := &cobra.Command{
		Use:   "start UUID",
		Short: "Launch a registered domain again, from the definition that was proved",
		Long: `Launch a domain again that is registered on the host and stopped: from the definition that was
proved, with its last token or another. It is a launch like the first, with a release and a proof
of its own; the token's policy says whether a further one is allowed.`,
		Example: `  troth domain start 6b1e… --wait --proof-out proof.json
  troth domain start 6b1e… --token token`,
		Args: oneUUID,
		RunE: func(c *cobra.Command, args []string) error {
			if err := o.check(); err != nil {
				return err
			}
			body := api.StartRequest{DryRun: &o.dryRun}
			if o.token != "" {
				token, err := a.readToken(o.token)
				if err != nil {
					return err
				}
				body.Token = &token
			}
			return a.launchBy(c.Context(), o, func(ctx context.Context, h *api.Client, key string) (*http.Response, error) {
				return h.StartDomain(ctx, args[0], &api.StartDomainParams{IdempotencyKey: key}, body)
			})
		},
	}
	c.Flags().StringVar(&o.token, "token", "", "file with another token (default: the one of the last launch)")
	o.flags(c)
	return c
}

// launchBy sends the request for a launch and follows it as far as was asked.
func (a *app) launchBy(ctx context.Context, o launchOptions, send func(context.Context, *api.Client, string) (*http.Response, error)) error {
	if o.key == "" {
		o.key = rand.Text()
	}
	h, p, err := a.hostd()
	if err != nil {
		return err
	}
	a.note("idempotency key %s", o.key)
	l, err := asking[api.Launch](ctx, p, func(ctx context.Context) (*http.Response, error) { return send(ctx, h, o.key) })
	if err != nil {
		return err
	}
	if o.wait || o.dryRun || o.proofOut != "" {
		if l, err = a.follow(ctx, h, p, l); err != nil {
			a.note("the launch %s goes on without this command; ask again with --idempotency-key %s", l.Id, o.key)
			return err
		}
	}
	return a.launched(ctx, l, o)
}

// follow asks for the launch until it is over and shows its steps. On an error it
// gives back the newest state that it saw.
func (a *app) follow(ctx context.Context, h *api.Client, p *peer, l *api.Launch) (*api.Launch, error) {
	w := a.progress("launch " + l.Id)
	defer w.stop()
	wait := min(launchPoll, p.timeout/2).String()
	for l.State == "running" {
		if l.BytesTotal > 0 && l.BytesHashed < l.BytesTotal {
			w.set("launch %s: %s, %s of %s", l.Id, l.Step, size(l.BytesHashed), size(l.BytesTotal))
		} else {
			w.set("launch %s: %s", l.Id, l.Step)
		}
		next, err := asking[api.Launch](ctx, p, func(ctx context.Context) (*http.Response, error) {
			return h.GetLaunch(ctx, l.Id, &api.GetLaunchParams{Wait: &wait})
		})
		if err != nil {
			return l, err
		}
		l = next
	}
	return l, nil
}

// launched tells how the launch stands and writes its proof.
func (a *app) launched(ctx context.Context, l *api.Launch, o launchOptions) error {
	switch {
	case l.State == "refused" && l.Refusal != nil:
		return hostdRefusal(l.Refusal)
	case l.State == "refused":
		return proof.Refuse(proof.Internal, "the launch was refused without a reason", proof.Fact{Name: "launch", Value: l.Id})
	case l.State != "running" && l.State != "done":
		return undecidedf("hostd says that the launch %s is %q, which this program does not know", l.Id, l.State)
	}
	v := launchAnswer{Launch: l, IdempotencyKey: o.key}
	if o.proofOut != "" {
		b, err := a.fetchProof(ctx, l.Uuid)
		if err != nil {
			return err
		}
		if err := writeFile(o.proofOut, b, public, o.force); err != nil {
			return err
		}
		v.ProofFile = o.proofOut
	}
	return a.answer(v, func(p *printer) {
		p.field("launch", l.Id)
		p.field("uuid", l.Uuid)
		p.field("name", l.Name)
		p.field("state", l.State)
		p.field("step", l.Step)
		if l.DryRun && l.Would != nil {
			p.would(l.Would)
		}
		p.field("proof", v.ProofFile)
	})
}

// would tells what a dry run would have asked the verifier for.
func (p *printer) would(w *api.Would) {
	p.line("A launch would ask the verifier for a release of:")
	p.field("configuration", w.Configuration)
	p.field("firmware", deref(w.Firmware))
	p.field("kernel", deref(w.Kernel))
	p.field("initrd", deref(w.Initrd))
	p.field("command line", deref(w.CommandLine))
	for _, d := range w.Disks {
		p.field("disk "+d.Target, fmt.Sprintf("%s %s", deref(d.Mode), deref(d.Digest)))
		p.field("backing of "+d.Target, deref(d.Backing))
	}
	p.field("interactive", w.Interactive)
	p.field("token", w.Token)
	p.field("host", w.Host)
	p.field("verdict", w.Verdict)
}
