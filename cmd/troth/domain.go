package main

import (
	"context"
	"encoding/json"
	"net/http"
	"strings"

	"github.com/spf13/cobra"

	"troth/hostd/api"
	"troth/launcher/domain"
	"troth/proof"
)

func (a *app) domainCommand() *cobra.Command {
	return group("domain", "Trusted domains on a host", a.domainDigest(), a.domainLaunch(), a.domainRegister(), a.domainStart(), a.domainSave(), a.domainRestore(), a.domainList(), a.domainShow(),
		a.domainProof(), a.domainChallenge(), a.domainStop(), a.domainRemove(), a.domainWhy())
}

type digestAnswer struct {
	Configuration proof.Digest `json:"configuration"`
	Name          string       `json:"name,omitempty"`
	UUID          string       `json:"uuid,omitempty"`
	Kernel        string       `json:"kernel,omitempty"`
	Initrd        string       `json:"initrd,omitempty"`
	CommandLine   string       `json:"command_line,omitempty"`
	Firmware      string       `json:"firmware,omitempty"`
	Interactive   bool         `json:"interactive"`
	Unmeasured    []string     `json:"unmeasured,omitempty"` // what keeps a host from giving the guest anything
	Disks         []digestDisk `json:"disks,omitempty"`
}

type digestDisk struct {
	Target   string `json:"target"`
	Source   string `json:"source"`
	ReadOnly bool   `json:"read_only"`
	// Backing are the layers below, top first; each is measured.
	Backing []string `json:"backing,omitempty"`
}

func (a *app) domainDigest() *cobra.Command {
	return &cobra.Command{
		Use:   "digest FILE",
		Short: "Compute the configuration digest of a domain's XML, offline",
		Long: `Read a domain's XML as a trusted launch would and print the digest of its configuration: the same
that a host puts into its statement. Name and UUID are not part of it; the content of images is
measured apart. What a trusted domain may not have is refused here as it would be there.`,
		Example: "  troth domain digest guest.xml\n  troth domain digest -o json guest.xml",
		Args:    cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			c, err := a.readDomain(args[0])
			if err != nil {
				return err
			}
			v := digestAnswer{
				Configuration: c.Digest(), Name: c.Name, Kernel: c.Boot.Kernel, Initrd: c.Boot.Initrd,
				CommandLine: c.Boot.CommandLine, Firmware: c.Boot.Firmware, Interactive: c.Interactive(), Unmeasured: c.Unmeasured(),
			}
			if !c.UUID.IsZero() {
				v.UUID = c.UUID.String()
			}
			for _, d := range c.Disks {
				disk := digestDisk{Target: d.Target, Source: d.Source, ReadOnly: d.ReadOnly}
				for _, b := range d.Backing {
					disk.Backing = append(disk.Backing, b.Source)
				}
				v.Disks = append(v.Disks, disk)
			}
			if c.Boot.NVRAM != "" {
				v.Disks = append(v.Disks, digestDisk{Target: proof.VariableStore, Source: c.Boot.NVRAM})
			}
			return a.answer(v, func(p *printer) { p.domainDigest(v) })
		},
	}
}

func (a *app) readDomain(path string) (*domain.Config, error) {
	b, err := a.readFile(path)
	if err != nil {
		return nil, usagef("domain: %w", err)
	}
	return domain.Read(b, domain.Request)
}

func (p *printer) domainDigest(v digestAnswer) {
	p.field("configuration", v.Configuration)
	p.field("name", v.Name)
	p.field("uuid", v.UUID)
	p.field("kernel", v.Kernel)
	p.field("initrd", v.Initrd)
	p.field("command line", v.CommandLine)
	p.field("firmware", v.Firmware)
	p.field("interactive", yesNo(v.Interactive))
	p.field("not measured", strings.Join(v.Unmeasured, ", "))
	for _, d := range v.Disks {
		access := "writable"
		if d.ReadOnly {
			access = "read-only"
		}
		p.field("disk", d.Target+" "+access+" "+strings.Join(append([]string{d.Source}, d.Backing...), " on "))
	}
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

func (a *app) domainList() *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Short:   "List the trusted domains of a host",
		Example: "  troth domain list\n  troth domain list --hostd https://host1:8444 -o json",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			h, p, err := a.hostd()
			if err != nil {
				return err
			}
			all, err := asking[api.DomainList](c.Context(), p, func(ctx context.Context) (*http.Response, error) { return h.ListDomains(ctx) })
			if err != nil {
				return err
			}
			return a.answer(all, func(p *printer) {
				var rows [][]string
				for _, d := range all.Domains {
					rows = append(rows, []string{d.Uuid, d.Name, d.State, yesNo(d.Armed), when(d.Since), short(d.Link)})
				}
				p.table([]string{"UUID", "NAME", "STATE", "ARMED", "SINCE", "LINK"}, rows)
			})
		},
	}
}

func (a *app) domainShow() *cobra.Command {
	return &cobra.Command{
		Use:     "show UUID",
		Short:   "Show one trusted domain",
		Example: "  troth domain show 6b1e…",
		Args:    oneUUID,
		RunE: func(c *cobra.Command, args []string) error {
			h, p, err := a.hostd()
			if err != nil {
				return err
			}
			d, err := asking[api.Domain](c.Context(), p, func(ctx context.Context) (*http.Response, error) { return h.GetDomain(ctx, args[0]) })
			if err != nil {
				return err
			}
			return a.answer(d, func(p *printer) { p.domain(d) })
		},
	}
}

// oneUUID wants one UUID and writes it as libvirt does, in lower case.
func oneUUID(c *cobra.Command, args []string) error {
	if err := cobra.ExactArgs(1)(c, args); err != nil {
		return err
	}
	u, err := domain.ParseUUID(args[0])
	if err != nil {
		return usagef("%w", err)
	}
	args[0] = u.String()
	return nil
}

func (p *printer) domain(d *api.Domain) {
	p.field("uuid", d.Uuid)
	p.field("name", d.Name)
	p.field("state", d.State)
	p.field("since", when(d.Since))
	p.field("link", d.Link)
	p.field("token", d.Token)
	p.field("configuration", deref(d.Configuration))
	p.field("launch", deref(d.Launch))
	if d.Armed {
		p.field("armed", "yes: any libvirt client may start it")
	}
	if d.TrustLost != nil {
		p.field("trust lost", "yes, and the host signed it: troth proof lost checks the report (-o json has it)")
	}
	if d.Refusal != nil {
		p.refusal(hostdRefusal(d.Refusal))
	}
}

func deref(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

// hostdRefusal reads a refusal inside an answer of hostd: the API's generated
// type and proof.Problem have one JSON form.
func hostdRefusal(p *api.Problem) *proof.Refusal {
	b, err := json.Marshal(p)
	var out proof.Problem
	if err == nil {
		err = json.Unmarshal(b, &out)
	}
	if err != nil {
		return proof.Refuse(proof.Internal, "hostd's refusal cannot be read", proof.Fact{Name: "cause", Value: err.Error()})
	}
	return out.Refusal()
}

func (a *app) domainProof() *cobra.Command {
	var out string
	var force bool
	c := &cobra.Command{
		Use:   "proof UUID",
		Short: "Fetch the proof of a domain's last launch, byte for byte",
		Long: `Fetch the proof of a domain's last launch. It is not checked here: troth proof verify does that,
and needs nothing from the host or the engine.`,
		Example: "  troth domain proof 6b1e… --out proof.json\n  troth domain proof 6b1e… > proof.json",
		Args:    oneUUID,
		RunE: func(c *cobra.Command, args []string) error {
			if err := absent(force, out); err != nil {
				return err
			}
			b, err := a.fetchProof(c.Context(), args[0])
			if err != nil {
				return err
			}
			if out != "" {
				if err := writeFile(out, b, public, force); err != nil {
					return err
				}
				v := struct {
					Proof string `json:"proof"`
				}{out}
				return a.answer(v, func(p *printer) { p.field("proof", v.Proof) })
			}
			_, err = a.stdout.Write(b)
			return err
		},
	}
	c.Flags().StringVar(&out, "out", "", "file to write (default: standard output)")
	c.Flags().BoolVar(&force, "force", false, "overwrite the file")
	return c
}

func (a *app) fetchProof(ctx context.Context, uuid string) ([]byte, error) {
	h, p, err := a.hostd()
	if err != nil {
		return nil, err
	}
	return p.ask(ctx, func(ctx context.Context) (*http.Response, error) { return h.GetProof(ctx, uuid) })
}

func (a *app) domainStop() *cobra.Command {
	return &cobra.Command{
		Use:     "stop UUID",
		Short:   "Stop a trusted domain and close its link",
		Example: "  troth domain stop 6b1e…",
		Args:    oneUUID,
		RunE: func(c *cobra.Command, args []string) error {
			h, p, err := a.hostd()
			if err != nil {
				return err
			}
			w := a.progress("stopping " + args[0])
			d, err := asking[api.Domain](c.Context(), p.slow(stopTimeout), func(ctx context.Context) (*http.Response, error) { return h.StopDomain(ctx, args[0]) })
			w.stop()
			if err != nil {
				return err
			}
			return a.answer(d, func(p *printer) { p.domain(d) })
		},
	}
}

func (a *app) domainRemove() *cobra.Command {
	return &cobra.Command{
		Use:     "remove UUID",
		Short:   "Stop a trusted domain, undefine it and forget it",
		Example: "  troth domain remove 6b1e…",
		Args:    oneUUID,
		RunE: func(c *cobra.Command, args []string) error {
			h, p, err := a.hostd()
			if err != nil {
				return err
			}
			w := a.progress("removing " + args[0])
			_, err = p.slow(stopTimeout).ask(c.Context(), func(ctx context.Context) (*http.Response, error) { return h.DeleteDomain(ctx, args[0]) })
			w.stop()
			if err != nil {
				return err
			}
			return a.answer(removed{args[0]}, func(p *printer) { p.line("removed %s", args[0]) })
		},
	}
}

func (a *app) domainWhy() *cobra.Command {
	return &cobra.Command{
		Use:   "why UUID",
		Short: "Tell why a domain is as it is: its last launch, the host's conditions, its history",
		Long: `Tell why a domain is as it is: the refusal of its last launch with facts and remedy, every
condition of the host that is not in order, and what happened before. Exit status 0 says that
hostd answered, not that the domain runs.`,
		Example: "  troth domain why 6b1e…",
		Args:    oneUUID,
		RunE: func(c *cobra.Command, args []string) error {
			h, p, err := a.hostd()
			if err != nil {
				return err
			}
			w, err := asking[api.Why](c.Context(), p, func(ctx context.Context) (*http.Response, error) { return h.WhyDomain(ctx, args[0]) })
			if err != nil {
				return err
			}
			return a.answer(w, func(p *printer) { p.domainWhy(w) })
		},
	}
}

func (p *printer) domainWhy(w *api.Why) {
	p.domain(&w.Domain)
	for _, c := range w.Conditions {
		if c.State == "ok" {
			continue
		}
		p.line("host: %s is %s: %s", c.Name, c.State, c.Evidence)
		if c.Remedy != "" {
			p.line("  remedy: %s", c.Remedy)
		}
	}
	for _, e := range w.History {
		said := strings.TrimPrefix(deref(e.Code)+": "+deref(e.Sentence), ": ")
		p.line("%s  %-9s %s  %s", when(e.At), e.What, e.Launch, strings.TrimSuffix(said, ": "))
		if e.Facts == nil || e.What != "stray" && e.What != "broken" {
			continue // of a launch, the refusal above has them
		}
		for _, f := range *e.Facts {
			p.fact(proof.Fact{Name: f.Name, Want: deref(f.Want), Got: deref(f.Got), Value: deref(f.Value)})
		}
	}
}
