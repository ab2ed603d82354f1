package main

import (
	"context"
	"net/http"

	"github.com/spf13/cobra"

	"troth/hostd/api"
)

func (a *app) domainRegister() *cobra.Command {
	o := launchOptions{wait: true}
	c := &cobra.Command{
		Use:   "register --token T --domain FILE",
		Short: "Arm a domain, so that any libvirt client may start it",
		Long: `Hand a token and a domain's XML to a host, which measures the domain and defines it. From then on
any libvirt client may start it: virsh, an engine that knows nothing of Troth, libvirt's autostart.
Each start is judged in libvirt's hook and asks for a release of its own; the proof says
"mode: hook" and is fetched afterwards with 'troth domain proof'.

A domain whose XML carries the token itself, as <troth:launch xmlns:troth="urn:troth:launch:v1"
token="…"/> in its metadata, need not be registered before its first start.`,
		Example: `  troth domain register --token token --domain guest.xml
  virsh start guest
  troth domain proof 6b1e… --out proof.json`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return a.register(c.Context(), o) },
	}
	f := c.Flags()
	f.StringVar(&o.token, "token", "", "file with the token; - is standard input")
	f.StringVar(&o.domain, "domain", "", "file with the domain's XML")
	f.StringVar(&o.key, "idempotency-key", "", "repeat the registration with this key (default: a new one)")
	must(c.MarkFlagRequired("token"))
	must(c.MarkFlagRequired("domain"))
	return c
}

func (a *app) register(ctx context.Context, o launchOptions) error {
	token, err := a.readToken(o.token)
	if err != nil {
		return err
	}
	xml, err := a.readFile(o.domain)
	if err != nil {
		return usagef("--domain: %w", err)
	}
	body := api.RegisterRequest{Token: token, Domain: string(xml)}
	return a.launchBy(ctx, o, func(ctx context.Context, h *api.Client, key string) (*http.Response, error) {
		return h.RegisterDomain(ctx, &api.RegisterDomainParams{IdempotencyKey: key}, body)
	})
}
