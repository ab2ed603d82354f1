package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"troth/hostd"
	"troth/hostd/audit"
	"troth/proof"
)

// audits are the commands that read the audit log. They need no daemon, and change nothing.
func (a *app) audits() *cobra.Command {
	var head string
	verify := &cobra.Command{Use: "verify", Short: "Follow the chain of the audit log; exit 0 whole, 1 broken (it says where), 3 could not be read", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error { return a.auditVerify(head) }}
	verify.Flags().StringVarP(&a.format, "output", "o", "text", "text or json")
	verify.Flags().StringVar(&head, "head", "", "a head that was copied away earlier: it must be one of the lines")
	show := &cobra.Command{Use: "show", Short: "Print the lines of the audit log, oldest first; exit 1 where the chain breaks", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error { return a.auditShow() }}
	group := noun(&cobra.Command{Use: "audit", Short: "The audit log"})
	group.AddCommand(verify, show)
	return group
}

func (a *app) audit(head *proof.Digest, each func([]byte) error) (*audit.Report, error) {
	c, err := a.load()
	if err != nil {
		return nil, err
	}
	r, err := audit.Verify(hostd.AuditPath(c.StateDir), head, each)
	if err != nil {
		return nil, &exit{exitUndecided, err}
	}
	return r, nil
}

func (a *app) auditVerify(text string) error {
	var head *proof.Digest
	if text != "" {
		d, err := proof.ParseDigest(text)
		if err != nil {
			return usage(fmt.Errorf("--head: %w", err))
		}
		head = &d
	}
	r, err := a.audit(head, nil)
	if err != nil {
		return err
	}
	err = a.print(r, func(w io.Writer) error {
		if !r.Whole {
			_, err := fmt.Fprintf(w, "BROKEN after %d records: %s\n", r.Records, r.Broken)
			return err
		}
		_, err := fmt.Fprintf(w, "whole: %d records from %d\nhead: %s\n", r.Records, r.First, r.Head)
		return err
	})
	if err == nil && !r.Whole {
		err = &exit{code: exitNo}
	}
	return err
}

func (a *app) auditShow() error {
	r, err := a.audit(nil, func(line []byte) error {
		_, err := a.out.Write(line)
		return err
	})
	if err != nil {
		return err
	}
	if !r.Whole {
		return &exit{exitNo, fmt.Errorf("the audit log is broken: %s", r.Broken)}
	}
	return nil
}
