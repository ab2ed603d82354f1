package main

import (
	"context"
	"net/http"

	"github.com/spf13/cobra"

	"troth/hostd/api"
)

func (a *app) domainSave() *cobra.Command {
	return &cobra.Command{
		Use:   "save UUID",
		Short: "Save a trusted domain's memory to a file on the host, and end it",
		Long: `Write the memory of a running trusted domain to a file of the host's own and end the guest, so that
troth domain restore can go on from there. The file holds the guest's memory in clear, with whatever
secrets are in it: the token has to allow it (troth token new --saves allow). Only this host can
restore it, once, and only while the file is byte for byte what was saved.`,
		Example: "  troth domain save 6b1e…",
		Args:    oneUUID,
		RunE: func(c *cobra.Command, args []string) error {
			h, p, err := a.hostd()
			if err != nil {
				return err
			}
			w := a.progress("saving " + args[0])
			d, err := asking[api.Domain](c.Context(), p.slow(saveTimeout), func(ctx context.Context) (*http.Response, error) { return h.SaveDomain(ctx, args[0]) })
			w.stop()
			if err != nil {
				return err
			}
			return a.answer(d, func(p *printer) { p.domain(d) })
		},
	}
}

func (a *app) domainRestore() *cobra.Command {
	var o launchOptions
	c := &cobra.Command{
		Use:   "restore UUID",
		Short: "Let a saved trusted domain go on, with a proof of its own",
		Long: `Let a domain that was saved by troth domain save go on from its file. It is judged like a launch,
with a release and a proof of its own, which says restore and names the file's digest. The guest
goes on with the secret of the link that it booted with: challenge it with the proof of that link.`,
		Example: "  troth domain restore 6b1e… --wait --proof-out proof.json",
		Args:    oneUUID,
		RunE: func(c *cobra.Command, args []string) error {
			if err := o.check(); err != nil {
				return err
			}
			body := api.RestoreRequest{DryRun: &o.dryRun}
			return a.launchBy(c.Context(), o, func(ctx context.Context, h *api.Client, key string) (*http.Response, error) {
				return h.RestoreDomain(ctx, args[0], &api.RestoreDomainParams{IdempotencyKey: key}, body)
			})
		},
	}
	o.flags(c)
	return c
}
