package main

import (
	"context"
	"net/http"
	"strings"

	"github.com/spf13/cobra"

	"troth/verifier/api"
)

// launchers are the dynamic launches whose logs the verifier replays.
const launchers = "tboot-legacy, tboot-da or slaunch"

func (a *app) profileCommand() *cobra.Command {
	return group("profile", "Profiles: what a good host is, by name and digest", a.profileAdd(), a.profileList(), a.profileShow(), a.profileRemove())
}

func (a *app) profileAdd() *cobra.Command {
	var r api.ProfileRequest
	c := &cobra.Command{
		Use:   "add NAME",
		Short: "Make or replace a profile",
		Long: `Make or replace a profile: a launcher, a selection of PCRs and the sets of reference values of
which a host must match one. The digest covers the content of those sets, so a token that
pins NAME@DIGEST pins what "good" means.`,
		Example: "  troth profile add gold --launcher tboot-legacy --reference gold-2026-11",
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			v, p, err := a.verifier()
			if err != nil {
				return err
			}
			r.Name = args[0]
			f, err := asking[api.Profile](c.Context(), p, func(ctx context.Context) (*http.Response, error) { return v.PutProfile(ctx, r) })
			if err != nil {
				return err
			}
			return a.answer(f, func(p *printer) { p.profile(f) })
		},
	}
	c.Flags().StringVar(&r.Launcher, "launcher", "", launchers)
	c.Flags().StringVar(&r.Selection, "selection", "sha256:17,18,19", "PCRs that are judged")
	c.Flags().StringSliceVar(&r.References, "reference", nil, "set of reference values; may be given more than once")
	must(c.MarkFlagRequired("launcher"))
	must(c.MarkFlagRequired("reference"))
	return c
}

func (p *printer) profile(f *api.Profile) {
	p.field("name", f.Name)
	p.field("digest", f.Digest)
	p.field("launcher", f.Launcher)
	p.field("selection", f.Selection)
	p.field("references", strings.Join(f.References, ", "))
	p.field("for tokens", f.Name+"@"+f.Digest.String())
}

func (a *app) profileList() *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Short:   "List the profiles",
		Example: "  troth profile list",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			v, p, err := a.verifier()
			if err != nil {
				return err
			}
			all, err := asking[[]api.Profile](c.Context(), p, func(ctx context.Context) (*http.Response, error) { return v.ListProfiles(ctx) })
			if err != nil {
				return err
			}
			return a.answer(all, func(p *printer) {
				var rows [][]string
				for _, f := range *all {
					rows = append(rows, []string{f.Name, f.Launcher, f.Selection, strings.Join(f.References, ","), f.Digest.String()})
				}
				p.table([]string{"NAME", "LAUNCHER", "SELECTION", "REFERENCES", "DIGEST"}, rows)
			})
		},
	}
}

func (a *app) getProfile(ctx context.Context, name string) (*api.Profile, error) {
	v, p, err := a.verifier()
	if err != nil {
		return nil, err
	}
	return asking[api.Profile](ctx, p, func(ctx context.Context) (*http.Response, error) { return v.GetProfile(ctx, name) })
}

func (a *app) profileShow() *cobra.Command {
	return &cobra.Command{
		Use:     "show NAME",
		Short:   "Show one profile; with -o json, a file that token new --profile takes",
		Example: "  troth profile show gold\n  troth profile show gold -o json > gold.json",
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			f, err := a.getProfile(c.Context(), args[0])
			if err != nil {
				return err
			}
			return a.answer(f, func(p *printer) { p.profile(f) })
		},
	}
}

func (a *app) profileRemove() *cobra.Command {
	return &cobra.Command{
		Use:     "remove NAME",
		Short:   "Remove a profile",
		Example: "  troth profile remove gold",
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			v, p, err := a.verifier()
			if err != nil {
				return err
			}
			if _, err := p.ask(c.Context(), func(ctx context.Context) (*http.Response, error) { return v.DeleteProfile(ctx, args[0]) }); err != nil {
				return err
			}
			return a.answer(removed{args[0]}, func(p *printer) { p.line("removed %s", args[0]) })
		},
	}
}

type removed struct {
	Removed string `json:"removed"`
}
