package crash

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"troth/proof"
	"troth/test/cast"
	"troth/test/lab"
	"troth/test/scene"
)

const (
	name = "crash"
	uuid = "10000000-0000-4000-8000-00000000dead"
)

// stage is a lab with one host, one domain and one token.
type stage struct {
	*scene.Scene
	hostd, judge *http.Client
	xml, token   string
	launches     int
	began        time.Time // of the running step
	journalled   int64     // size of the journal then
}

func newStage(ctx context.Context, t *testing.T) *stage {
	s := &stage{Scene: scene.New(ctx, t, lab.Options{})}
	s.hostd, s.judge = s.Host.UnixClient(), scene.Must[*http.Client](t)(s.Lab.Client("operator"))
	s.xml = s.Lab.Guest.XML(lab.Domain{Name: name, UUID: uuid})
	if err := s.newToken(ctx, name); err != nil {
		t.Fatal(err)
	}
	return s
}

// newToken lets the tenant make the token that launches use from now on.
func (s *stage) newToken(ctx context.Context, file string) error {
	err := s.Tenant.Do(ctx, s.Host, nil, cast.NewToken(s.Lab.Guest, lab.Domain{}, s.Profile, file+".key", file+".token")...)
	if err != nil {
		return err
	}
	b, err := os.ReadFile(s.Tenant.Path(file + ".token"))
	s.token = strings.TrimSpace(string(b))
	return err
}

// call calls hostd. A refusal is a *lab.Problem.
func (s *stage) call(ctx context.Context, method, path, key string, in, out any) error {
	b, err := json.Marshal(in)
	if err != nil {
		return err
	}
	var body io.Reader
	if in != nil {
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://hostd"+path, body)
	if err != nil {
		return err
	}
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if key != "" {
		req.Header.Set("Idempotency-Key", key)
	}
	resp, err := s.hostd.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if b, err = io.ReadAll(resp.Body); err != nil {
		return err
	}
	if resp.StatusCode >= 300 {
		p := &lab.Problem{Status: resp.StatusCode}
		if err := json.Unmarshal(b, p); err != nil {
			return fmt.Errorf("%s %s: status %d: %s", method, path, resp.StatusCode, b)
		}
		return p
	}
	if out == nil {
		return nil
	}
	return json.Unmarshal(b, out)
}

// refusal is what a launch or a domain ended with.
type refusal struct {
	Code   proof.Code `json:"code"`
	Detail string     `json:"detail"`
	Title  string     `json:"title"`
}

type launchView struct {
	ID      string   `json:"id"`
	State   string   `json:"state"`
	Step    string   `json:"step"`
	Refusal *refusal `json:"refusal"`
}

type domainView struct {
	State   string   `json:"state"`
	Link    string   `json:"link"`
	Refusal *refusal `json:"refusal"`
}

type chainView struct {
	State string `json:"state"`
	Link  string `json:"link"`
}

// missing says that what was asked for is not there.
func missing(err error) bool {
	p, ok := errors.AsType[*lab.Problem](err)
	return ok && (p.Status == http.StatusNotFound || p.Code == string(proof.NotRegistered))
}

// domain is the domain as hostd has it, nil when it knows none.
func (s *stage) domain(ctx context.Context) (*domainView, error) {
	d := &domainView{}
	err := s.call(ctx, "GET", "/v1/domains/"+uuid, "", nil, d)
	if missing(err) {
		return nil, nil
	}
	return d, err
}

// chain is the token's chain as the verifier has it.
func (s *stage) chain(ctx context.Context) (*chainView, error) {
	c := &chainView{State: "free"}
	err := lab.Call(ctx, s.judge, "GET", s.Lab.Verifier.URL()+"/v1/chains/"+proof.TokenDigest(s.token).String(), nil, c)
	if missing(err) {
		return &chainView{State: "free"}, nil
	}
	return c, err
}

// submit asks for a launch and returns its id.
func (s *stage) submit(ctx context.Context) (string, error) {
	s.launches++
	var v launchView
	err := s.call(ctx, "POST", "/v1/launches", fmt.Sprintf("crash-%08d", s.launches), map[string]string{"token": s.token, "domain": s.xml, "action": "start"}, &v)
	return v.ID, err
}

// begin starts the step; ended is closed when hostd has answered how it ended, or cannot any more.
func (s *stage) begin(ctx context.Context, stop bool, ended chan<- struct{}) (string, error) {
	if stop {
		go func() {
			defer close(ended)
			s.call(ctx, "POST", "/v1/domains/"+uuid+"/stop", "", nil, nil) //nolint:errcheck // hostd may die in it
		}()
		return "", nil
	}
	id, err := s.submit(ctx)
	if err != nil {
		return "", err
	}
	go func() {
		defer close(ended)
		s.call(ctx, "GET", "/v1/launches/"+id+"?wait=30s", "", nil, nil) //nolint:errcheck // hostd may die in it
	}()
	return id, nil
}

// rest brings the domain to where a step begins: running for a stop, not running for a launch, now and then forgotten.
func (s *stage) rest(ctx context.Context, running, forget bool) error {
	d, err := s.domain(ctx)
	if err != nil {
		return err
	}
	if d != nil && d.State == "proved" && !running {
		if err := s.call(ctx, "POST", "/v1/domains/"+uuid+"/stop", "", nil, nil); err != nil {
			return err
		}
	}
	if d != nil && forget && !running {
		if err := s.call(ctx, "DELETE", "/v1/domains/"+uuid, "", nil, nil); err != nil {
			return err
		}
	}
	if running && (d == nil || d.State != "proved") {
		return s.launched(ctx)
	}
	return nil
}

// launched launches honestly.
func (s *stage) launched(ctx context.Context) error {
	id, err := s.submit(ctx)
	if err != nil {
		return err
	}
	var v launchView
	if err := s.call(ctx, "GET", "/v1/launches/"+id+"?wait=30s", "", nil, &v); err != nil {
		return err
	}
	if v.State != "done" {
		return fmt.Errorf("an honest launch with the same token: %s at %s: %+v", v.State, v.Step, v.Refusal)
	}
	return nil
}

// mark remembers how the host is before a step.
func (s *stage) mark() error {
	info, err := os.Stat(s.Host.Path("/var/lib/troth/journal/launches"))
	if err != nil {
		return err
	}
	s.began, s.journalled = time.Now(), info.Size()
	return nil
}
