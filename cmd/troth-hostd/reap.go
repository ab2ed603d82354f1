package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os/user"
	"path/filepath"
	"strconv"

	"github.com/coreos/go-systemd/v22/activation"
	"github.com/spf13/cobra"

	"troth/hooks"
	"troth/hooks/answer"
	"troth/hostd/reaper"
)

// reap is the small service beside hostd that may signal other users' processes. It reads no configuration: what it may end is a constant's matter, and hostd's
// user is the only one whom it answers.
func (a *app) reap() *cobra.Command {
	var who, socket string
	c := &cobra.Command{Use: "reap", Short: "End emulators that run a trusted guest without a grant, for troth-hostd", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return a.runReaper(c.Context(), who, socket) }}
	c.Flags().StringVar(&who, "user", "troth", "the user that troth-hostd runs as: nobody else is answered")
	c.Flags().StringVar(&socket, "socket", "", "where to listen without systemd; else systemd passes the socket")
	return c
}

func (a *app) runReaper(ctx context.Context, who, socket string) error {
	u, err := user.Lookup(who)
	if err != nil {
		return usage(err)
	}
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	if err != nil {
		return usage(err)
	}
	l, err := reaperSocket(socket)
	if err != nil {
		return &exit{exitUndecided, err}
	}
	s := &reaper.Server{Registry: hooks.RegistryPath, UIDs: []uint32{uint32(uid)}, Log: a.logger()}
	if err := s.Serve(ctx, l); err != nil {
		return &exit{exitUndecided, err}
	}
	return nil
}

// reaperSocket takes the socket from systemd, or makes it.
func reaperSocket(path string) (net.Listener, error) {
	if path != "" {
		if !filepath.IsAbs(path) {
			return nil, errors.New("the socket's path is not absolute")
		}
		return answer.Listen(path, 0o600)
	}
	all, err := activation.Listeners()
	if err != nil {
		return nil, fmt.Errorf("cannot take the socket from systemd: %w", err)
	}
	if len(all) != 1 || all[0] == nil {
		return nil, fmt.Errorf("systemd passes %d sockets, not one: see troth-reaper.socket, or use --socket", len(all))
	}
	return all[0], nil
}
