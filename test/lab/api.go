package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"
)

// Problem is a refusal of one of the two APIs (RFC 9457), as far as the lab reads it.
type Problem struct {
	Status int    `json:"status"`
	Code   string `json:"code"`
	Title  string `json:"title"`
	Detail string `json:"detail"`
}

func (p *Problem) Error() string {
	return fmt.Sprintf("%s (%d): %s %s", p.Code, p.Status, p.Title, p.Detail)
}

// Client is an HTTP client on the lab's network with the certificate of that name, or with none if it is empty: operator,
// engine, tenant, or what PKI.Client has made.
func (l *Lab) Client(name string) (*http.Client, error) {
	var cert Certificate
	if name != "" {
		var err error
		if cert, err = l.PKI.existing(name); err != nil {
			return nil, err
		}
	}
	conf, err := l.PKI.TLS(cert)
	if err != nil {
		return nil, err
	}
	return &http.Client{Transport: &http.Transport{DialContext: l.Outside.DialContext, TLSClientConfig: conf}}, nil
}

// UnixClient is an HTTP client on hostd's unix socket: root, so operator and engine. The host in its URLs is ignored.
func (h *Host) UnixClient() *http.Client {
	return &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", h.HostdSocket())
	}}}
}

// Call sends a JSON request and reads a JSON answer into out, unless that is nil. A refusal is a *Problem.
func Call(ctx context.Context, c *http.Client, method, url string, in, out any) error {
	var body io.Reader
	if in != nil {
		data, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(data)
	}
	req, err := http.NewRequestWithContext(ctx, method, url, body)
	if err != nil {
		return err
	}
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := c.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, 16<<20))
	if err != nil {
		return fmt.Errorf("%s %s: %w", method, url, err)
	}
	if resp.StatusCode >= 300 {
		p := &Problem{Status: resp.StatusCode, Title: strings.TrimSpace(string(data))}
		if strings.HasPrefix(resp.Header.Get("Content-Type"), "application/problem+json") {
			p.Title = ""
			if err := json.Unmarshal(data, p); err != nil {
				return fmt.Errorf("%s %s: cannot read the refusal: %w", method, url, err)
			}
		}
		return fmt.Errorf("%s %s: %w", method, url, p)
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(data, out); err != nil {
		return fmt.Errorf("%s %s: cannot read the answer: %w", method, url, err)
	}
	return nil
}

// operate calls the verifier as its operator.
func (l *Lab) operate(ctx context.Context, method, path string, in, out any) error {
	c, err := l.Client("operator")
	if err != nil {
		return err
	}
	defer c.CloseIdleConnections()
	return Call(ctx, c, method, l.Verifier.URL()+path, in, out)
}

// until tries until it succeeds or the context ends.
func until(ctx context.Context, what string, try func() error) error {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := try()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: %w", what, errors.Join(ctx.Err(), err))
		case <-tick.C:
		}
	}
}
