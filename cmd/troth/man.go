package main

import (
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
)

// manCommand writes the man pages of the whole tree: packages run it at build
// time. Pages carry a fixed date, so that two builds of one source are equal.
func (a *app) manCommand() *cobra.Command {
	var dir string
	c := &cobra.Command{
		Use:     "man",
		Short:   "Write the man pages of all commands",
		Example: "  troth man --dir build/man",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := os.MkdirAll(dir, 0o755); err != nil {
				return fmt.Errorf("cannot make %s: %w", dir, err)
			}
			root := c.Root()
			root.DisableAutoGenTag = true
			epoch := time.Unix(0, 0).UTC()
			if err := doc.GenManTree(root, &doc.GenManHeader{Section: "1", Source: "troth", Manual: "Troth", Date: &epoch}, dir); err != nil {
				return fmt.Errorf("cannot write the man pages: %w", err)
			}
			return nil
		},
	}
	c.Flags().StringVar(&dir, "dir", "", "folder to write into; it is made when it does not exist")
	must(c.MarkFlagRequired("dir"))
	return c
}

// must ends the program on an error that only a mistake in the tree can cause.
func must(err error) {
	if err != nil {
		panic(err)
	}
}
