package main

import (
	"context"
	"net/http"
	"strings"

	"github.com/spf13/cobra"

	"troth/proof"
	"troth/verifier/api"
)

func (a *app) hostCommand() *cobra.Command {
	return group("host", "Hosts that a verifier knows", a.hostList(), a.hostShow(), a.hostWhy(), a.hostApprove(), a.hostRevoke())
}

func (a *app) hostList() *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Short:   "List the hosts with their standing",
		Example: "  troth host list\n  troth host list -o json --verifier https://verifier:8443",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			v, p, err := a.verifier()
			if err != nil {
				return err
			}
			hosts, err := asking[[]api.Host](c.Context(), p, func(ctx context.Context) (*http.Response, error) { return v.ListHosts(ctx) })
			if err != nil {
				return err
			}
			return a.answer(hosts, func(p *printer) {
				var rows [][]string
				for _, h := range *hosts {
					rows = append(rows, []string{h.Name, h.State, h.Standing, h.Class, metProfiles(h), when(h.LastAttested)})
				}
				p.table([]string{"NAME", "ENROLMENT", "STANDING", "TPM", "MEETS", "LAST ATTESTED"}, rows)
			})
		},
	}
}

func metProfiles(h api.Host) string {
	var names []string
	for _, m := range h.Met {
		names = append(names, m.Name)
	}
	return strings.Join(names, ",")
}

func (a *app) hostShow() *cobra.Command {
	return &cobra.Command{
		Use:     "show NAME",
		Short:   "Show one host: its keys, enrolment and standing",
		Example: "  troth host show host1",
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			h, err := a.getHost(c.Context(), args[0])
			if err != nil {
				return err
			}
			return a.answer(h, func(p *printer) { p.host(h) })
		},
	}
}

func (a *app) getHost(ctx context.Context, name string) (*api.Host, error) {
	v, p, err := a.verifier()
	if err != nil {
		return nil, err
	}
	return asking[api.Host](ctx, p, func(ctx context.Context) (*http.Response, error) { return v.GetHost(ctx, name) })
}

func (p *printer) host(h *api.Host) {
	p.field("name", h.Name)
	p.field("enrolment", h.State)
	p.field("standing", h.Standing)
	p.field("tpm", h.Class)
	p.field("ak name", h.AkName)
	p.field("ek digest", h.Ek)
	if h.Spki != nil {
		p.field("tls key", h.Spki)
	}
	p.field("judged by", orAll(h.Profiles))
	for _, m := range h.Met {
		p.field("meets", m.Name+"@"+m.Digest.String())
	}
	p.field("last attested", when(h.LastAttested))
	p.field("verdict until", when(h.Expires))
}

func orAll(profiles []string) string {
	if len(profiles) == 0 {
		return "all profiles"
	}
	return strings.Join(profiles, ", ")
}

func (a *app) hostWhy() *cobra.Command {
	return &cobra.Command{
		Use:   "why NAME",
		Short: "Tell why a host stands as it does: every reason with its facts and remedy",
		Long: `Tell why a host stands as it does: every reason that the verifier has against it, the deciding
one first, each with facts (which PCR, which event; wanted, seen) and remedy. Exit status 0 says
that the verifier answered, not that the host is trusted.`,
		Example: "  troth host why host1\n  troth host why host1 -o json",
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			v, p, err := a.verifier()
			if err != nil {
				return err
			}
			why, err := asking[api.Why](c.Context(), p, func(ctx context.Context) (*http.Response, error) { return v.WhyHost(ctx, args[0]) })
			if err != nil {
				return err
			}
			return a.answer(why, func(p *printer) {
				p.line("%s is %s.", why.Host.Name, why.Standing)
				if why.Sentence != "" {
					p.line("%s", why.Sentence)
				}
				for _, r := range why.Reasons {
					p.refusal(&proof.Refusal{Code: r.Code, Sentence: r.Detail, Remedy: r.Remedy, Facts: r.Facts, Also: r.Also})
				}
			})
		},
	}
}

func (a *app) hostApprove() *cobra.Command {
	var profiles []string
	var ek string
	c := &cobra.Command{
		Use:   "approve NAME",
		Short: "Approve a host once, after comparing its EK digest",
		Long: `Approve a host that enrolled. Its EK digest identifies the machine: compare it with what the
machine's own console prints (troth-hostd provision), or give it with --ek, and a host
with another EK is not approved.`,
		Example: "  troth host approve host1 --ek 2f6c…\n  troth host approve host1 --profile gold",
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			v, p, err := a.verifier()
			if err != nil {
				return err
			}
			word := api.Approval{Profiles: profiles}
			if c.Flags().Changed("ek") {
				d, err := proof.ParseDigest(ek)
				if err != nil {
					return usagef("--ek: %w", err)
				}
				word.Ek = &d
			}
			h, err := asking[api.Host](c.Context(), p, func(ctx context.Context) (*http.Response, error) {
				return v.ApproveHost(ctx, args[0], word)
			})
			if err != nil {
				return err
			}
			return a.answer(h, func(p *printer) { p.host(h) })
		},
	}
	c.Flags().StringVar(&ek, "ek", "", "approve only if the host has this EK digest (hex)")
	c.Flags().StringSliceVar(&profiles, "profile", nil, "judge the host by these profiles only (default: by all)")
	return c
}

func (a *app) hostRevoke() *cobra.Command {
	return &cobra.Command{
		Use:     "revoke NAME",
		Short:   "Revoke a host: it gets no further verdict and no release",
		Example: "  troth host revoke host1",
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			v, p, err := a.verifier()
			if err != nil {
				return err
			}
			h, err := asking[api.Host](c.Context(), p, func(ctx context.Context) (*http.Response, error) { return v.RevokeHost(ctx, args[0]) })
			if err != nil {
				return err
			}
			return a.answer(h, func(p *printer) { p.host(h) })
		},
	}
}
