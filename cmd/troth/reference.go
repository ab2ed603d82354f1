package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"troth/proof"
	"troth/verifier/api"
)

func (a *app) referenceCommand() *cobra.Command {
	return group("reference", "Reference values: what PCR 17-19 of a good host hold", a.referenceAdd(), a.referenceList(), a.referenceImport(), a.referenceRemove())
}

func (a *app) referenceAdd() *cobra.Command {
	var r api.Reference
	var values []string
	c := &cobra.Command{
		Use:   "add NAME | add --file F",
		Short: "Make or replace a set of reference values",
		Example: `  troth reference add gold-2026-11 --launcher tboot-legacy --pcr 17=5f3a… --pcr 18=77c0… --pcr 19=e1d2…
  troth reference add --file gold-2026-11.json`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			file, err := c.Flags().GetString("file")
			if err != nil {
				return err
			}
			if err := a.readReference(&r, file, args, values); err != nil {
				return err
			}
			v, p, err := a.verifier()
			if err != nil {
				return err
			}
			out, err := asking[api.Reference](c.Context(), p, func(ctx context.Context) (*http.Response, error) { return v.PutReference(ctx, r) })
			if err != nil {
				return err
			}
			return a.answer(out, func(p *printer) { p.reference(out) })
		},
	}
	c.Flags().String("file", "", "JSON as reference list -o json prints one set; - is standard input")
	c.Flags().StringVar(&r.Launcher, "launcher", "", launchers)
	c.Flags().StringArrayVar(&values, "pcr", nil, "INDEX=DIGEST (hex); once for each PCR")
	c.Flags().StringVar(&r.Comment, "comment", "", "for people")
	c.Flags().StringVar(&r.Source, "source", "", "where the values come from")
	return c
}

// readReference fills r from a file or from the flags, never from both.
func (a *app) readReference(r *api.Reference, file string, args, values []string) error {
	if file != "" {
		if len(args) > 0 || len(values) > 0 || r.Launcher != "" {
			return usagef("--file says everything: give no NAME, --pcr or --launcher beside it")
		}
		b, err := a.readFile(file)
		if err != nil {
			return usagef("--file: %w", err)
		}
		if err := json.Unmarshal(b, r); err != nil {
			return usagef("--file: cannot read %s: %w", file, err)
		}
		return nil
	}
	if len(args) == 0 || len(values) == 0 || r.Launcher == "" {
		return usagef("a set needs NAME, --launcher and --pcr INDEX=DIGEST, or --file")
	}
	r.Name = args[0]
	for _, v := range values {
		index, digest, _ := strings.Cut(v, "=")
		i, err := strconv.Atoi(index)
		if err != nil {
			return usagef("--pcr %q: must be INDEX=DIGEST", v)
		}
		d, err := proof.ParseDigest(digest)
		if err != nil {
			return usagef("--pcr %q: %w", v, err)
		}
		r.Values = append(r.Values, api.PCR{Index: i, Value: d})
	}
	return nil
}

func (p *printer) reference(r *api.Reference) {
	p.field("name", r.Name)
	p.field("launcher", r.Launcher)
	for _, v := range r.Values {
		p.field("pcr "+strconv.Itoa(v.Index), v.Value)
	}
	p.field("comment", r.Comment)
	p.field("source", r.Source)
}

func (a *app) referenceList() *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Short:   "List the sets of reference values",
		Example: "  troth reference list",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			v, p, err := a.verifier()
			if err != nil {
				return err
			}
			all, err := asking[[]api.Reference](c.Context(), p, func(ctx context.Context) (*http.Response, error) { return v.ListReferences(ctx) })
			if err != nil {
				return err
			}
			return a.answer(all, func(p *printer) {
				var rows [][]string
				for _, r := range *all {
					var pcrs []string
					for _, v := range r.Values {
						pcrs = append(pcrs, fmt.Sprintf("%d=%s", v.Index, short(v.Value.String())))
					}
					rows = append(rows, []string{r.Name, r.Launcher, strings.Join(pcrs, " "), r.Comment, r.Source})
				}
				p.table([]string{"NAME", "LAUNCHER", "VALUES", "COMMENT", "SOURCE"}, rows)
			})
		},
	}
}

func (a *app) referenceImport() *cobra.Command {
	var r api.ImportRequest
	var yes bool
	c := &cobra.Command{
		Use:   "import HOST --name N --launcher L",
		Short: "Take a golden host's present values as reference values, after showing the difference",
		Long: `Take the values that HOST attested last as the set of reference values N. The difference to what
the set says now is shown first, and nothing changes until you say yes (or --yes). If the host
attests other values meanwhile, nothing changes either. With --profile
the profile is made, or extended by this set, too.`,
		Example: "  troth reference import host1 --name gold-2026-11 --launcher tboot-legacy\n  troth reference import host1 --name gold-2026-11 --launcher tboot-legacy --profile gold --yes",
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			r.Host = args[0]
			return a.importReference(c.Context(), r, yes)
		},
	}
	c.Flags().StringVar(&r.Name, "name", "", "name of the set")
	c.Flags().StringVar(&r.Launcher, "launcher", "tboot-legacy", launchers)
	c.Flags().StringVar(&r.Profile, "profile", "", "also make or extend this profile")
	c.Flags().BoolVar(&yes, "yes", false, "apply without asking")
	must(c.MarkFlagRequired("name"))
	return c
}

func (a *app) importReference(ctx context.Context, r api.ImportRequest, yes bool) error {
	v, p, err := a.verifier()
	if err != nil {
		return err
	}
	send := func(ctx context.Context) (*http.Response, error) { return v.ImportReference(ctx, r) }
	seen, err := asking[api.Import](ctx, p, send)
	if err != nil {
		return err
	}
	var t printer
	t.difference(seen.Difference)
	fmt.Fprint(a.stderr, t.b.String())
	if !yes {
		ok, err := a.ask(fmt.Sprintf("Make these values of %s the reference values %s?", r.Host, r.Name))
		if err != nil {
			return err
		}
		if !ok {
			return nof("nothing was changed")
		}
	}
	r.Apply, r.Values = true, seen.Values // the host may attest something else while the person is reading
	done, err := asking[api.Import](ctx, p, send)
	if err != nil {
		return err
	}
	return a.answer(done, func(p *printer) {
		p.field("name", r.Name)
		for _, v := range done.Values {
			p.field("pcr "+strconv.Itoa(v.Index), v.Value)
		}
		if done.Profile != nil {
			p.field("profile", done.Profile.Name+"@"+done.Profile.Digest.String())
		}
	})
}

func (p *printer) difference(all []api.Difference) {
	if len(all) == 0 {
		p.line("no difference: the set holds these values already")
		return
	}
	var rows [][]string
	for _, d := range all {
		rows = append(rows, []string{strconv.Itoa(d.Pcr), d.Event, d.Want, d.Got})
	}
	p.table([]string{"PCR", "EVENT", "SET SAYS", "HOST HAS"}, rows)
}

func (a *app) referenceRemove() *cobra.Command {
	return &cobra.Command{
		Use:     "remove NAME",
		Short:   "Remove a set that no profile uses",
		Example: "  troth reference remove gold-2026-10",
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			v, p, err := a.verifier()
			if err != nil {
				return err
			}
			if _, err := p.ask(c.Context(), func(ctx context.Context) (*http.Response, error) { return v.DeleteReference(ctx, args[0]) }); err != nil {
				return err
			}
			return a.answer(removed{args[0]}, func(p *printer) { p.line("removed %s", args[0]) })
		},
	}
}
