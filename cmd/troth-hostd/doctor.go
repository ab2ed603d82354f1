package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"troth/hostd"
	"troth/hostd/api"
)

func (a *app) doctor(ctx context.Context) error {
	c, err := a.load()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	d := &hostd.Doctor{Config: c, Now: time.Now,
		OpenChip: func(ctx context.Context) (hostd.Examined, func() error, error) {
			t, err := openChip(ctx, c)
			if err != nil {
				return nil, nil, err
			}
			return t, t.Close, nil
		},
		Libvirt: func(ctx context.Context) (string, error) {
			lv := &libvirtd{uri: c.Libvirt.URI, log: a.logger()}
			v, err := lv.Version(ctx)
			return v, errors.Join(err, lv.Close())
		},
		Serving: func(ctx context.Context) ([]hostd.Finding, error) { return ask(ctx, c.API.Socket) },
	}
	findings := d.Examine(ctx)
	err = a.print(findings, func(w io.Writer) error {
		for _, f := range findings {
			if _, err := fmt.Fprintf(w, "%-8s %-15s %s\n", f.State, f.Name, f.Evidence); err != nil {
				return err
			}
			if f.State != hostd.OK && f.Remedy != "" {
				if _, err := fmt.Fprintf(w, "%-8s %-15s remedy: %s\n", "", "", f.Remedy); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	code := exitYes
	for _, f := range findings {
		switch f.State {
		case hostd.Failed:
			return &exit{code: exitNo}
		case hostd.Unknown:
			code = exitUndecided
		}
	}
	if code != exitYes {
		return &exit{code: code}
	}
	return nil
}

// ask asks a troth-hostd that is at work for its conditions.
func ask(ctx context.Context, socket string) ([]hostd.Finding, error) {
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}
	defer transport.CloseIdleConnections()
	client, err := api.NewClient("http://hostd", api.WithHTTPClient(&http.Client{Transport: transport, Timeout: 10 * time.Second}))
	if err != nil {
		return nil, err
	}
	resp, err := client.GetStatus(ctx)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("troth-hostd answers %s", resp.Status)
	}
	var s api.Status
	if err := json.NewDecoder(io.LimitReader(resp.Body, 1<<20)).Decode(&s); err != nil {
		return nil, fmt.Errorf("cannot read the answer of troth-hostd: %w", err)
	}
	var all []hostd.Finding
	for _, c := range s.Conditions {
		all = append(all, hostd.Finding{Name: c.Name, State: c.State, Evidence: c.Evidence, Remedy: c.Remedy})
	}
	return all, nil
}
